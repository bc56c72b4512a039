//! Manifests through a running cluster: whole folders applied, checked, compared, exported, pruned and
//! scaffolded, and every wrong one told with its place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tidegate_e2e::story;
use tidegate_harness::cluster::{Output, PATIENCE, programs, text};
use tidegate_harness::{Cluster, Process, Shape, poll};

const ALONE: Shape = Shape {
    coordinators: 1,
    agents: 0,
};

/// Writes files into a folder of the story; gives the folder.
fn folder(cluster: &Cluster, name: &str, files: &[(&str, &str)]) -> anyhow::Result<String> {
    let folder = cluster.dir().join(name);
    for (file, text) in files {
        let path = folder.join(file);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(&path, text)?;
    }
    fs::create_dir_all(&folder)?;
    Ok(folder.display().to_string())
}

/// Runs a command as a person sees it.
fn seen(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<Output> {
    cluster.tidegate(&[arguments, &["-o", "table"]].concat())
}

fn says(output: &Output, parts: &[&str]) -> anyhow::Result<()> {
    for part in parts {
        ensure!(
            output.stdout.contains(part),
            "\"{part}\" is missing: {output}"
        );
    }
    Ok(())
}

fn everything(cluster: &Cluster) -> anyhow::Result<String> {
    Ok(cluster.tidegate(&["export", "-o", "yaml"])?.ok()?.stdout)
}

/// What becomes of each object, as `kind name change`.
fn changes(output: &Value) -> Vec<String> {
    let told = output.as_array().into_iter().flatten();
    told.map(|one| {
        let words = [text(one, "kind"), text(one, "name"), text(one, "change")];
        words.join(" ")
    })
    .collect()
}

#[test]
fn a_scaffolded_folder_is_applied_as_it_is_and_then_nothing_differs() {
    story(ALONE, |cluster| {
        let dir = cluster.dir().join("made/here").display().to_string();
        let made = seen(cluster, &["init", &dir, "--application", "web"])?.ok()?;
        says(&made, &["wrote ", "scopes.yaml", "tidegate apply -f"])?;
        let again = cluster.tidegate(&["init", &dir])?;
        again.refused(
            1,
            &["application.yaml", "policies.yaml", "--force", "TG-1603"],
        )?;

        let empty = everything(cluster)?;
        let checked = seen(cluster, &["apply", "-f", &dir, "--dry-run"])?.ok()?;
        says(
            &checked,
            &[
                "scope \"web-production\" created",
                "(dry run, nothing was changed)",
            ],
        )?;
        ensure!(everything(cluster)? == empty, "a dry run wrote");
        differs(
            cluster,
            &dir,
            1,
            &["scope \"web-staging\" would be created"],
        )?;
        let applied = cluster.tidegate(&["apply", "-f", &dir])?.json()?;
        let told = changes(&applied);
        ensure!(
            told.first()
                .is_some_and(|one| one == "application web created"),
            "{told:?}"
        );
        ensure!(told.iter().all(|one| one.ends_with(" created")), "{told:?}");
        differs(cluster, &dir, 0, &["0 of "])?;
        let applied = seen(cluster, &["apply", "-f", &dir])?.ok()?;
        says(&applied, &["0 created, 0 changed"])?;

        // What export prints is what apply reads.
        let export = folder(cluster, "export", &[("all.yaml", &everything(cluster)?)])?;
        differs(cluster, &export, 0, &["0 of "])?;
        let applied = seen(cluster, &["apply", "-f", &export])?.ok()?;
        says(&applied, &["0 created, 0 changed"])?;
        let json = cluster.tidegate(&["export"])?.ok()?.stdout;
        let array: Vec<Value> = serde_json::from_str(&json)?;
        let row: Vec<String> = array.iter().map(Value::to_string).collect();
        for (file, text) in [("list.json", json), ("row.json", row.join("\n"))] {
            let dir = folder(cluster, file, &[(file, &text)])?;
            differs(cluster, &dir, 0, &["0 of "])?;
            let applied = seen(cluster, &["apply", "-f", &dir])?.ok()?;
            let unchanged = format!("0 created, 0 changed, {} unchanged", array.len());
            says(&applied, &[&unchanged])?;
        }

        let piped = piped(
            cluster,
            &["apply", "-f", "-"],
            Path::new(&export).join("all.yaml"),
        )?;
        ensure!(piped.contains("0 created, 0 changed"), "{piped}");

        patterns_and_schema(cluster)
    });
}

/// Runs a command that reads a file from its standard input; gives what it prints.
fn piped(cluster: &Cluster, arguments: &[&str], file: PathBuf) -> anyhow::Result<String> {
    let output = Command::new(programs()?.join("tidegate"))
        .args(arguments)
        .env("TIDEGATE_CONTEXT", "people")
        .env("TIDEGATE_CONFIG_DIR", cluster.dir())
        .stdin(fs::File::open(file)?)
        .output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{told}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The ready policies and the schema that are shipped.
fn patterns_and_schema(cluster: &Cluster) -> anyhow::Result<()> {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging");
    let policies = packaging.join("config/policies").display().to_string();
    let applied = cluster.tidegate(&["apply", "-f", &policies])?.json()?;
    let told = changes(&applied);
    ensure!(told.len() >= 12, "{told:?}");
    ensure!(
        told.iter()
            .all(|one| one.starts_with("policy ") && one.ends_with(" created")),
        "{told:?}"
    );
    differs(cluster, &policies, 0, &["0 of "])?;
    let printed = cluster.tidegate(&["schema"])?.ok()?;
    let shipped = fs::read_to_string(packaging.join("schema/manifest.schema.json"))?;
    ensure!(
        printed.stdout == shipped,
        "the program prints another schema"
    );
    Ok(())
}

fn differs(cluster: &Cluster, path: &str, exit: i32, parts: &[&str]) -> anyhow::Result<Output> {
    let told = seen(cluster, &["diff", path])?;
    ensure!(told.status == Some(exit), "want exit {exit}: {told}");
    says(&told, parts)?;
    Ok(told)
}

/// So many environments, a document each.
fn many(count: usize, tier: u32) -> String {
    let one = |n| {
        format!(
            "kind: environment\nname: env-{n}\nlabels: {{set: many}}\nspec: {{tier: {tier}}}\n---\n"
        )
    };
    (0..count).map(one).collect()
}

#[test]
fn many_objects_travel_together_and_an_interrupted_set_is_gone_on_with() {
    const COUNT: usize = 3_000;
    story(ALONE, |cluster| {
        let dir = folder(cluster, "many", &[("all.yaml", &many(COUNT, 1))])?;
        let log = cluster.dir().join("apply.log");
        let environment = [
            ("TIDEGATE_CONTEXT", "people".to_owned()),
            ("TIDEGATE_CONFIG_DIR", cluster.dir().display().to_string()),
            ("TIDEGATE_OUTPUT", "table".to_owned()),
        ];
        let program = programs()?.join("tidegate");
        let arguments = ["apply", "-f", &dir];
        let mut applying = Process::start("apply", &program, &arguments, &environment, &log)?;
        poll::until("the first objects", PATIENCE, || {
            let said = applying.output();
            poll::holds(said.contains(&format!(" of {COUNT} objects sent")), || said)
        })?;
        applying.signal(Signal::INT)?;
        let status = applying.wait(PATIENCE)?;
        let said = applying.output();
        ensure!(status.code() == Some(130), "{status}: {said}");
        for part in [
            &format!("of {COUNT} objects are known to be applied"),
            "apply again",
            "TG-1601",
        ] {
            ensure!(said.contains(part), "no \"{part}\": {said}");
        }
        let rest = cluster.tidegate(&["apply", "-f", &dir])?;
        ensure!(
            rest.stderr
                .contains(&format!("{COUNT} of {COUNT} objects sent")),
            "{}",
            rest.stderr
        );
        let told = changes(&rest.json()?);
        let count = |word: &str| told.iter().filter(|one| one.ends_with(word)).count();
        ensure!(count(" unchanged") >= 200, "what was done stays unchanged");
        ensure!(
            count(" unchanged") + count(" created") == COUNT,
            "{} objects",
            told.len()
        );
        differs(cluster, &dir, 0, &["0 of 3000 objects differ"])?;
        Ok(())
    });
}

const SHOP: &str = "kind: application\nname: shop\nlabels: {app: shop}\nspec: {}\n";
const SCOPE: &str = "kind: scope\nname: shop\nlabels: {app: shop}\nspec:\n  application: shop\n  environment: test\n  port: 8080\n";
const TEST: &str = "kind: environment\nname: test\nlabels: {app: shop}\nspec: {tier: 1}\n";

#[test]
fn what_is_wrong_is_told_by_place_and_holds_nothing_else_up() {
    story(ALONE, |cluster| {
        malformed(cluster)?;
        refused_one_by_one(cluster)?;
        wrong_prunes(cluster)
    });
}

/// A name, the files that are applied, and what the refusal says.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);

/// Mistakes that are seen before anything is sent: nothing is written.
fn malformed(cluster: &Cluster) -> anyhow::Result<()> {
    let before = everything(cluster)?;
    let unknown = SCOPE.replace("port: 8080", "prot: 8080");
    let cases: [Case; 5] = [
        (
            "unknown",
            &[("a.yaml", SHOP), ("deep/b.yaml", &unknown)],
            &["b.yaml:7:3", "prot", "TG-1002"],
        ),
        (
            "twins",
            &[("a.yaml", SHOP), ("b.yml", SHOP)],
            &["b.yml:1:1", "described already", "a.yaml:1", "TG-1002"],
        ),
        (
            "nothing",
            &[("readme.txt", "kind: nothing"), (".hidden.yaml", SHOP)],
            &["describes nothing", "TG-1002"],
        ),
        (
            "no-yaml",
            &[("a.yaml", "kind: [open\n"), ("b.yaml", SHOP)],
            &["a.yaml:", "TG-1002"],
        ),
        (
            "bytes",
            &[("a.json", "{\"kind\": \"application\", \"name\": \"a\"}")],
            &["a.json:1:", "spec", "TG-1002"],
        ),
    ];
    for (name, files, parts) in cases {
        let dir = folder(cluster, name, files)?;
        cluster
            .tidegate(&["apply", "-f", &dir])?
            .refused(1, parts)?;
        cluster
            .tidegate(&["apply", "-f", &dir, "--dry-run"])?
            .refused(1, parts)?;
        // Of diff, 1 would say that something differs.
        cluster.tidegate(&["diff", &dir])?.refused(2, parts)?;
    }
    let missing = cluster.dir().join("none").display().to_string();
    cluster
        .tidegate(&["apply", "-f", &missing])?
        .refused(1, &["there is no such file", "TG-1002"])?;
    cluster
        .tidegate(&["diff"])?
        .refused(2, &["FILE|DIR", "TG-1003"])?;
    ensure!(everything(cluster)? == before, "something was written");
    Ok(())
}

/// Refusals of the cluster: each object is judged for itself.
fn refused_one_by_one(cluster: &Cluster) -> anyhow::Result<()> {
    let lost = SCOPE
        .replace("name: shop", "name: lost")
        .replace("environment: test", "environment: tset");
    let policy = "kind: policy\nname: p\nspec:\n  selector: enviroment.name == \"x\"\n  approval: {required: 1}\n";
    let dir = folder(
        cluster,
        "set",
        &[
            ("scopes.yaml", &format!("{SCOPE}---\n{lost}")),
            ("rest.yaml", &format!("{SHOP}---\n{TEST}")),
        ],
    )?;
    let places = [
        "scopes.yaml:14:16: spec.environment",
        "there is no environment \"tset\"",
        "TG-1101",
    ];
    let checked = cluster.tidegate(&["apply", "-f", &dir, "--dry-run"])?;
    checked.refused(1, &places)?;
    let told = changes(&serde_json::from_str(&checked.stdout)?);
    let wanted = [
        "application shop created",
        "environment test created",
        "scope shop created",
        "scope lost refused",
    ];
    ensure!(told == wanted, "{told:?}");
    let empty = cluster.tidegate(&["application", "get", "shop"])?;
    empty.refused(1, &["TG-1101"])?;

    let applied = cluster.tidegate(&["apply", "-f", &dir])?;
    applied.refused(1, &places)?;
    applied.refused(
        1,
        &[
            "did you mean environment \"test\"",
            "3 of 4 objects were applied",
        ],
    )?;
    cluster.tidegate(&["scope", "get", "shop"])?.ok()?;

    // One that cannot even be read, and one that is refused: both are named.
    fs::write(cluster.dir().join("set/policy.yaml"), policy)?;
    let applied = cluster.tidegate(&["apply", "-f", &dir])?;
    applied.refused(
        1,
        &[
            "2 objects were refused",
            "TG-1600",
            "policy.yaml:4:13: spec.selector",
            "enviroment",
            "TG-1001",
            "scopes.yaml:14:16",
        ],
    )?;
    let told = changes(&serde_json::from_str(&applied.stdout)?);
    ensure!(
        told.contains(&"scope shop unchanged".to_owned()),
        "{told:?}"
    );

    // Corrected, the rest is done.
    let good = fs::read_to_string(cluster.dir().join("set/scopes.yaml"))?.replace("tset", "test").replace("name: lost\nlabels: {app: shop}\nspec:\n  application: shop\n  environment: test\n  port: 8080", "name: lost\nlabels: {app: shop}\nspec:\n  application: shop\n  environment: test\n  port: 8081");
    fs::write(cluster.dir().join("set/scopes.yaml"), good)?;
    fs::write(
        cluster.dir().join("set/policy.yaml"),
        policy.replace("enviroment", "environment"),
    )?;
    let applied = seen(cluster, &["apply", "-f", &dir])?.ok()?;
    says(&applied, &["2 created, 0 changed, 3 unchanged"])
}

fn wrong_prunes(cluster: &Cluster) -> anyhow::Result<()> {
    let before = everything(cluster)?;
    let dir = cluster.dir().join("set").display().to_string();
    for (arguments, parts) in [
        (&["--prune"][..], &["--selector"][..]),
        (&["--prune", "--selector", ""], &["needs a selector"]),
        (&["--prune", "--selector", "app!=shop"], &["without labels"]),
        (&["--prune", "--selector", "app"], &["not a label selector"]),
        (&["--selector", "app=shop"], &["--prune"]),
    ] {
        let all = [&["apply", "-f", &dir], arguments].concat();
        let told = cluster.tidegate(&all)?;
        told.refused(2, parts)?;
        told.refused(2, &["TG-1003"])?;
    }
    ensure!(everything(cluster)? == before, "something was written");
    Ok(())
}

#[test]
fn what_is_in_no_manifest_any_more_is_pruned_by_its_label() {
    story(ALONE, |cluster| {
        let parameter = "kind: parameter\nname: color\nlabels: {app: shop}\nspec:\n  variable: COLOR\n  value: red\n  target: {scope: old}\n";
        let old = SCOPE
            .replace("name: shop", "name: old")
            .replace("environment: test", "environment: gone")
            .replace("8080", "8081");
        let gone = TEST.replace("name: test", "name: gone");
        let other = TEST
            .replace("name: test", "name: other")
            .replace("app: shop", "app: web");
        let first = folder(
            cluster,
            "first",
            &[(
                "a.yaml",
                &[SHOP, TEST, SCOPE, &old, &gone, &other, parameter].join("---\n"),
            )],
        )?;
        cluster.tidegate(&["apply", "-f", &first])?.ok()?;
        let lone = "kind: parameter\nname: size\nlabels: {app: shop}\nspec:\n  variable: SIZE\n  value: \"1\"\n  target: {scope: shop}\n";
        let second = folder(
            cluster,
            "second",
            &[("a.yaml", &[SHOP, TEST, SCOPE, lone].join("---\n"))],
        )?;
        let before = everything(cluster)?;
        let prune = ["apply", "-f", &second, "--prune", "--selector", "app=shop"];

        let doomed = [
            "parameter color deleted",
            "scope old deleted",
            "environment gone deleted",
        ];
        let checked = cluster
            .tidegate(&[&prune[..], &["--dry-run"]].concat())?
            .json()?;
        let told = changes(&checked);
        ensure!(
            told.ends_with(&doomed.map(str::to_owned)),
            "what refers to others goes first: {told:?}"
        );
        // Nobody is there to be asked.
        let asked = cluster.tidegate(&prune)?;
        asked.refused(
            1,
            &[
                "3 objects would be deleted",
                "scope \"old\"",
                "--yes",
                "TG-1602",
            ],
        )?;
        ensure!(everything(cluster)? == before, "something was written");

        let pruned = seen(cluster, &[&prune[..], &["--yes"]].concat())?.ok()?;
        says(
            &pruned,
            &[
                "scope \"old\" deleted",
                "1 created, 0 changed, 3 unchanged, 3 deleted",
            ],
        )?;
        cluster
            .tidegate(&["environment", "get", "gone"])?
            .refused(1, &["TG-1101"])?;
        // Another label, and a kind that no manifest is of, stay.
        cluster.tidegate(&["environment", "get", "other"])?.ok()?;
        let again = seen(cluster, &prune)?.ok()?;
        says(&again, &["0 created, 0 changed, 4 unchanged"])?;
        refused_prunes(cluster)
    });
}

/// What is still in use stays and is named; while a manifest is refused nothing is deleted.
fn refused_prunes(cluster: &Cluster) -> anyhow::Result<()> {
    // The application is used by a scope whose kind no manifest is of.
    let only = folder(
        cluster,
        "only",
        &[("a.yaml", &SHOP.replace("name: shop", "name: new"))],
    )?;
    let prune = [
        "apply",
        "-f",
        &only,
        "--prune",
        "--selector",
        "app=shop",
        "--yes",
    ];
    // A dry run knows it, in the words of the real one.
    let parts = ["application \"shop\" is in use: scope \"shop\"", "TG-1103"];
    let dry = [&prune[..], &["--dry-run"]].concat();
    let told = cluster.tidegate(&dry)?;
    told.refused(1, &parts)?;
    let told: Value = serde_json::from_str(&told.stdout)?;
    ensure!(
        changes(&told) == ["application new created", "application shop refused"],
        "{told}"
    );
    cluster
        .tidegate(&["application", "get", "new"])?
        .refused(1, &["TG-1101"])?;
    let told = cluster.tidegate(&prune)?;
    told.refused(1, &parts)?;
    cluster.tidegate(&["scope", "get", "shop"])?.ok()?;
    let delete = |name: &str| {
        let dry = ["application", "delete", name, "--dry-run"];
        seen(cluster, &dry)
    };
    delete("shop")?.refused(1, &parts)?;
    says(
        &delete("new")?.ok()?,
        &["deleted (dry run, nothing was changed)"],
    )?;
    cluster.tidegate(&["application", "get", "new"])?.ok()?;
    let bad = SCOPE.replace("application: shop", "application: none");
    let bad = folder(
        cluster,
        "bad",
        &[("a.yaml", &bad.replace("name: shop", "name: bad"))],
    )?;
    let told = cluster.tidegate(&[
        "apply",
        "-f",
        &bad,
        "--prune",
        "--selector",
        "app=shop",
        "--yes",
    ])?;
    told.refused(1, &["there is no application \"none\""])?;
    cluster.tidegate(&["scope", "get", "shop"])?.ok()?;
    Ok(())
}

const FIRST: &str = "needle-of-the-first-value";
const SECOND: &str = "needle-of-the-second-value";

#[test]
fn differences_are_told_field_by_field_and_secrets_are_not() {
    story(ALONE, |cluster| {
        let secret = "kind: parameter\nname: db\nspec:\n  variable: DB\n  kind: secret\n  value_from: {file: db.txt}\n  target: {application: shop}\n";
        let all = [SHOP, TEST, SCOPE, secret].join("---\n");
        let dir = folder(cluster, "shop", &[("a.yaml", &all), ("db.txt", FIRST)])?;
        let told = differs(
            cluster,
            &dir,
            1,
            &["4 of 4 objects differ", "+ spec.port: 8080"],
        )?;
        ensure!(!told.stdout.contains(FIRST), "{told}");
        cluster.tidegate(&["apply", "-f", &dir])?.ok()?;
        differs(cluster, &dir, 0, &["0 of 4 objects differ"])?;

        // A default that is written out is no difference.
        let manifest = PathBuf::from(&dir).join("a.yaml");
        fs::write(
            &manifest,
            all.replace(
                "port: 8080",
                "port: 8080\n  max_restarts: 5\n  instances_per_agent: 1",
            ),
        )?;
        differs(cluster, &dir, 0, &["0 of 4"])?;
        fs::write(
            &manifest,
            all.replace("8080", "8081\n  http2: true")
                .replace("app: shop", "app: web"),
        )?;
        let told = differs(
            cluster,
            &dir,
            1,
            &[
                "~ spec.port: 8080 → 8081",
                "+ spec.http2: true",
                "~ labels.app: shop → web",
                "a.yaml:",
            ],
        )?;
        ensure!(!told.stdout.contains("max_restarts"), "{told}");
        let colored = cluster.tidegate(&["diff", &dir, "-o", "table", "--color", "always"])?;
        ensure!(colored.stdout.contains("\u{1b}[32m8081"), "{colored}");
        let json = cluster.tidegate(&["diff", "-f", &dir])?;
        ensure!(json.status == Some(1), "{json}");
        let found: Value = serde_json::from_str(&json.stdout)?;
        ensure!(
            found[2]["fields"][2]["path"] == "spec.port" && found[2]["fields"][2]["new"] == 8081,
            "{found}"
        );

        // The cluster alone knows that a secret's value differs, and nobody is told which it is.
        fs::write(&manifest, &all)?;
        fs::write(PathBuf::from(&dir).join("db.txt"), SECOND)?;
        let told = differs(
            cluster,
            &dir,
            1,
            &[
                "parameter \"db\" would be changed",
                "(another secret)",
                "1 of 4",
            ],
        )?;
        ensure!(!told.stdout.contains("needle"), "{told}");
        cluster.tidegate(&["apply", "-f", &dir])?.ok()?;
        differs(cluster, &dir, 0, &["0 of 4"])?;
        exported_secrets(cluster)
    });
}

/// A secret is exported as a mark: "as it is" where it is, refused where it is not.
fn exported_secrets(cluster: &Cluster) -> anyhow::Result<()> {
    let exported = everything(cluster)?;
    ensure!(
        exported.contains("(secret)") && !exported.contains("needle"),
        "{exported}"
    );
    let export = folder(cluster, "export", &[("all.yaml", &exported)])?;
    differs(cluster, &export, 0, &["0 of 4"])?;
    let applied = seen(cluster, &["apply", "-f", &export])?.ok()?;
    says(&applied, &["0 created, 0 changed, 4 unchanged"])?;
    let some = cluster
        .tidegate(&["export", "parameters", "-o", "yaml"])?
        .ok()?;
    let elsewhere = folder(
        cluster,
        "elsewhere",
        &[("p.yaml", &some.stdout.replace("name: db", "name: db-two"))],
    )?;
    let refused = cluster.tidegate(&["apply", "-f", &elsewhere])?;
    refused.refused(1, &["p.yaml:", "db-two", "value_from", "TG-1150"])?;
    let labelled = cluster.tidegate(&["export", "-l", "app=shop"])?.json()?;
    let kinds: Vec<&str> = labelled
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| text(one, "kind"))
        .collect();
    ensure!(
        kinds == ["application", "environment", "scope"],
        "{labelled}"
    );
    Ok(())
}
