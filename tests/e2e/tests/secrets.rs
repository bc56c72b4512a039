//! Secret parameters and parameter files through the whole path: they reach the application, and
//! their bytes are found nowhere else.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};
use tidegate_e2e::support::apply;
use tidegate_e2e::{answers, deploy, goes_well, serves, site, story};
use tidegate_harness::cluster::control::{processes_of, signal};
use tidegate_harness::cluster::text;
use tidegate_harness::{Cluster, Output, Shape, archive};

const FIRST: &str = "first-Kp7wQz-needle-of-the-database";
const SECOND: &str = "second-Xw3mVt-needle-of-the-database";
const KEY: &str = "-----BEGIN KEY-----\nneedle-Lr8nBc-of-the-key\n-----END KEY-----";

const SMALL: Shape = Shape {
    coordinators: 1,
    agents: 1,
};

/// Serves a page with digests of what it was given; a word of the release makes it end instead,
/// after it has told everybody its secret.
const START: &str = "\
#!/bin/sh
set -eu
if [ -e \"$TIDEGATE_RELEASE_DIR/ends\" ]; then echo \"cannot log in as $DB_PASSWORD\" >&2; exit 7; fi
mkdir -p \"$TIDEGATE_INSTANCE_DIR/www\"
hash() { sha256sum | cut -c1-16; }
{
  echo \"db $(printf %s \"$DB_PASSWORD\" | hash)\"
  echo \"key $(hash <\"$TLS_KEY\") $(stat -c %a \"$TLS_KEY\")\"
  echo \"conf $(cat \"$CONF\")\"
} >\"$TIDEGATE_INSTANCE_DIR/www/index.html\"
exec python3 -m http.server \"$PORT\" --directory \"$TIDEGATE_INSTANCE_DIR/www\"
";

const RUN: &str = "\
command: ./start
hooks:
  before_start:
  - command: /bin/sh
    args: [-c, 'echo hook uses $DB_PASSWORD; cat $TLS_KEY']
";

fn short_hash(value: &str) -> String {
    hex::encode(Sha256::digest(value.as_bytes()))[..16].to_owned()
}

/// What the person types in lies here, and is not searched.
fn inputs(cluster: &Cluster) -> anyhow::Result<PathBuf> {
    let folder = cluster.dir().join("inputs");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn input(cluster: &Cluster, name: &str, content: &str) -> anyhow::Result<String> {
    let path = inputs(cluster)?.join(name);
    fs::write(&path, content)?;
    Ok(path.display().to_string())
}

fn publish(cluster: &Cluster, version: &str, more: &[(&str, &str, bool)]) -> anyhow::Result<()> {
    let file = cluster.dir().join(format!("site-{version}.tar.gz"));
    let mut files = vec![("start", START, true), ("version", version, false)];
    files.extend(more);
    archive::write(&file, &files)?;
    let run = input(cluster, "run.yaml", RUN)?;
    let asset = file.display().to_string();
    cluster
        .tidegate(&[
            "release",
            "create",
            "site",
            version,
            "--asset",
            &asset,
            "--run-file",
            &run,
        ])?
        .ok()?;
    Ok(())
}

/// The files below a folder that hold a text, but for the inputs and the key's own file.
fn holders(folder: &Path, needle: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("inputs") {
                folders.push(path);
            } else if path.is_file() && !path.ends_with("tls/key.pem") {
                let bytes = fs::read(&path).unwrap_or_default();
                if bytes.windows(needle.len()).any(|w| w == needle.as_bytes()) {
                    found.push(path);
                }
            }
        }
    }
    found
}

const NEEDLES: [&str; 3] = [FIRST, SECOND, "needle-Lr8nBc-of-the-key"];

fn tells_nothing(output: &Output) -> anyhow::Result<()> {
    for needle in NEEDLES {
        let told = output.stdout.contains(needle) || output.stderr.contains(needle);
        ensure!(!told, "{output}");
    }
    Ok(())
}

fn parameters(cluster: &Cluster) -> anyhow::Result<String> {
    let db = input(cluster, "db", &format!("{FIRST}\n"))?;
    let made = cluster.tidegate(&[
        "parameter",
        "create",
        "db",
        "--application",
        "site",
        "--variable",
        "DB_PASSWORD",
        "--secret",
        "--value-file",
        &db,
    ])?;
    tells_nothing(&made)?;
    made.ok()?;
    input(cluster, "key.pem", KEY)?;
    let manifest = "\
kind: parameter
name: tls
spec:
  variable: TLS_KEY
  kind: secret
  value_from: {file: key.pem}
  file: {path: tls/key.pem, mode: \"0400\"}
  target: {scope: site}
---
kind: parameter
name: conf
spec:
  variable: CONF
  value: port is ${PORT}
  file: {path: conf/app.conf}
  target: {scope: site}
";
    let manifest = input(cluster, "parameters.yaml", manifest)?;
    cluster.tidegate(&["apply", "-f", &manifest])?.ok()?;
    Ok(manifest)
}

/// Every view of the cluster that a person has.
fn views(cluster: &Cluster) -> anyhow::Result<Vec<Output>> {
    let newest = cluster.newest("site")?;
    let id = text(&newest, "id").to_owned();
    let views: [&[&str]; 12] = [
        &["parameter", "list"],
        &["parameter", "list", "-o", "table"],
        &["parameter", "get", "db"],
        &["parameter", "get", "tls", "-o", "yaml"],
        &["export"],
        &["deployment", "get", &id],
        &["deployment", "get", &id, "-o", "table"],
        &["deployment", "history", "site"],
        &["scope", "get", "site"],
        &["audit", "list"],
        &["agent", "get", "a1"],
        &["logs", "site"],
    ];
    views.iter().map(|view| cluster.tidegate(view)).collect()
}

#[test]
fn a_secret_reaches_the_application_and_its_bytes_are_nowhere_else() {
    story(SMALL, |cluster| {
        let port = site(cluster)?;
        let manifest = parameters(cluster)?;
        publish(cluster, "1.0.0", &[])?;
        goes_well(cluster, "1.0.0")?;
        let page = cluster.proxy(0, port);
        answers(page, &format!("db {}", short_hash(FIRST)))?;
        answers(page, &format!("key {} 400", short_hash(KEY)))?;
        answers(page, "conf port is ")?;

        // What is applied again is unchanged, be it the manifest or what the cluster shows.
        for again in [manifest, {
            let shown = cluster.tidegate(&["export", "-o", "yaml"])?.ok()?;
            ensure!(shown.stdout.matches("(secret)").count() == 2, "{shown}");
            input(cluster, "export.yaml", &shown.stdout)?
        }] {
            let applied = cluster
                .tidegate(&["apply", "-f", &again, "-o", "table"])?
                .ok()?;
            ensure!(applied.stdout.contains("0 created, 0 changed"), "{applied}");
        }

        // A new value comes with the next deployment, and goes with its release.
        let db = input(cluster, "db", SECOND)?;
        let update = ["parameter", "update", "db", "--secret", "--value-file", &db];
        cluster.tidegate(&update)?.ok()?;
        answers(page, &short_hash(FIRST))?;
        publish(cluster, "2.0.0", &[])?;
        goes_well(cluster, "2.0.0")?;
        answers(page, &short_hash(SECOND))?;
        cluster.tidegate(&["rollback", "site", "--wait"])?.ok()?;
        answers(page, &short_hash(FIRST))?;

        // One that tells its secret while it fails.
        publish(cluster, "3.0.0", &[("ends", "", false)])?;
        ensure!(deploy(cluster, "3.0.0")? == Some(3));
        let newest = cluster.newest("site")?;
        let told = cluster.tidegate(&["deployment", "get", text(&newest, "id")])?;
        ensure!(told.stdout.contains("cannot log in as (secret)"), "{told}");

        for view in views(cluster)? {
            tells_nothing(&view)?;
        }
        let shown = cluster.tidegate(&["parameter", "get", "db"])?;
        ensure!(shown.stdout.contains("(secret)"), "{shown}");
        let logs = cluster.tidegate(&["logs", "site"])?.ok()?;
        ensure!(logs.stdout.contains("hook uses (secret)"), "{logs}");
        let audit = cluster.tidegate(&["audit", "list"])?.ok()?;
        ensure!(audit.stdout.contains("parameter_changed"), "{audit}");

        for file in ["secrets", "secrets.key"] {
            let path = cluster.agent_dir(0).join(file);
            let mode = fs::metadata(&path)
                .with_context(|| path.display().to_string())?
                .permissions()
                .mode();
            ensure!(mode & 0o777 == 0o600, "{file}: {mode:o}");
        }
        // With a snapshot and after a restart too.
        cluster.stop_coordinator(0)?;
        for needle in NEEDLES {
            let found = holders(cluster.dir(), needle);
            // The application of 3.0.0 wrote it into its own output.
            let own = |path: &PathBuf| path.to_string_lossy().contains("/instances/");
            let found: Vec<_> = found.into_iter().filter(|path| !own(path)).collect();
            ensure!(found.is_empty(), "{needle} stands in {found:?}");
        }

        // No coordinator: the instance ends, the agent is new, and the secret is still there.
        cluster.kill_agent(0)?;
        let instances = cluster.agent_dir(0).join("instances");
        for process in processes_of(&instances) {
            signal(process.pid, rustix::process::Signal::KILL)?;
        }
        cluster.start_agent(0)?;
        serves(page, &format!("db {}", short_hash(FIRST)))?;
        cluster.start_coordinator(0)?;
        Ok(())
    });
}

#[test]
fn wrong_parameters_are_refused_in_one_line() {
    story(SMALL, |cluster| {
        site(cluster)?;
        parameters(cluster)?;
        let on_argv = cluster.tidegate(&[
            "parameter",
            "create",
            "x",
            "--scope",
            "site",
            "--variable",
            "X",
            "--secret",
            "--value",
            FIRST,
        ])?;
        on_argv.refused(2, &["command line", "--value-file"])?;
        let nothing = cluster.tidegate(&[
            "parameter",
            "create",
            "x",
            "--scope",
            "site",
            "--variable",
            "X",
            "--secret",
        ])?;
        nothing.refused(1, &["TG-1001", "no value for x came"])?;
        let away = cluster.tidegate(&["parameter", "update", "db", "--environment", "test"])?;
        away.refused(1, &["TG-1150", "target"])?;

        let target = "target: {scope: site}";
        let cases = [
            (
                "kind: secret\n  value: needle-in-a-manifest",
                "spec.value",
                "value_from",
            ),
            (
                "value: x\n  file: {path: ../x}",
                "spec.file.path",
                "relative path",
            ),
            (
                "value: x\n  file: {path: /etc/x}",
                "spec.file.path",
                "relative path",
            ),
            (
                "kind: secret\n  file: {path: x, mode: \"0644\"}",
                "spec.file.mode",
                "0600",
            ),
            (
                "value: x\n  file: {path: x, mode: \"0777\"}",
                "spec.file",
                "octal",
            ),
            (
                "value: x\n  on_rollback: latest",
                "spec.on_rollback",
                "secrets",
            ),
            (
                "value_from: {env: NOT_SET_ANYWHERE}",
                "spec.value_from",
                "not set",
            ),
            ("value_from: {file: none}", "spec.value_from", "none"),
        ];
        for (fields, place, words) in cases {
            let manifest =
                format!("kind: parameter\nname: x\nspec:\n  variable: X\n  {fields}\n  {target}\n");
            let file = input(cluster, "wrong.yaml", &manifest)?;
            let refused = cluster.tidegate(&["apply", "-f", &file])?;
            refused.refused(1, &["TG-1002", "wrong.yaml:", place, words])?;
            ensure!(!refused.stderr.contains("needle-in"), "{refused}");
        }
        // Sound by themselves, and the same file.
        let twin = "kind: parameter\nname: twin\nspec:\n  variable: TWIN\n  value: x\n  \
                    file: {path: conf}\n  target: {scope: site}\n";
        apply(cluster, twin)?;
        publish(cluster, "1.0.0", &[])?;
        let refused = cluster.tidegate(&["deploy", "site", "1.0.0", "--scope", "site"])?;
        refused.refused(1, &["TG-1001", "CONF", "TWIN", "conf/app.conf"])?;
        Ok(())
    });
}
