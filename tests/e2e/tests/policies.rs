//! Policies through a running cluster: mistakes are refused with their place, closed gates are
//! explained, guardrails refuse, and people's skips, freezes and thaws act and are kept.

use std::fs;

use anyhow::ensure;
use tidegate_e2e::story;
use tidegate_e2e::support::{apply, begin, ends, establish, get, publish, shop, status};
use tidegate_harness::cluster::text;
use tidegate_harness::{Cluster, Shape};

const ONE: Shape = Shape {
    coordinators: 1,
    agents: 1,
};

#[test]
fn policies_hold_up_explain_and_are_overruled_by_people() {
    story(ONE, |cluster| {
        shop(cluster)?;
        establish(cluster, "1.0.0")?;
        publish(cluster, "2.0.0")?;
        mistakes(cluster)?;
        dependencies(cluster)?;
        guardrails(cluster)?;
        windows_and_skips(cluster)?;
        freezes(cluster)?;
        let audit = cluster.tidegate(&["audit", "list"])?.json()?.to_string();
        for kind in ["rule_skipped", "skip_deleted", "frozen", "thawed"] {
            ensure!(audit.contains(kind), "no {kind} in {audit}");
        }
        Ok(())
    });
}

fn mistakes(cluster: &Cluster) -> anyhow::Result<()> {
    let file = cluster.dir().join("bad.yaml");
    let path = file.display().to_string();
    for (manifest, parts) in [
        (
            "kind: policy\nname: p\nspec:\n  selector: enviroment.name == \"test\"\n  approval: {required: 1}\n",
            &["bad.yaml:4:13: spec.selector", "enviroment", "TG-1001"][..],
        ),
        (
            "kind: policy\nname: p\nspec:\n  windows:\n  - duration: 1h\n    time_zone: Europe/Atlantis\n    rrules: [\"FREQ=DAILY;BYHOUR=25\"]\n",
            &[
                "bad.yaml:6:16: spec.windows[0].time_zone",
                "bad.yaml:7:14: spec.windows[0].rrules[0]: at character 12",
            ],
        ),
        (
            "kind: policy\nname: p\nspec:\n  cooldown: {intervall: 1h}\n",
            &["bad.yaml:4:14", "intervall"],
        ),
    ] {
        fs::write(&file, manifest)?;
        cluster
            .tidegate(&["apply", "-f", &path])?
            .refused(1, parts)?;
    }
    let wrong = [
        "freeze",
        "--for",
        "1h",
        "--reason",
        "x",
        "--selector",
        "scope.nam == \"a\"",
    ];
    cluster
        .tidegate(&wrong)?
        .refused(1, &["scope has no \"nam\"", "TG-1001"])?;
    let listed = cluster.tidegate(&["policy", "list"])?.json()?;
    ensure!(!listed.to_string().contains("\"p\""), "{listed}");
    Ok(())
}

fn dependencies(cluster: &Cluster) -> anyhow::Result<()> {
    let file = cluster.dir().join("needs.yaml");
    let path = file.display().to_string();
    let policy = |selector: &str, on: &str| {
        format!(
            "kind: policy\nname: needs\nspec:\n  selector: {selector}\n  dependencies:\n  - application: {on}\n    version: \">=1\"\n"
        )
    };
    let unknown = policy("environment.name == \"far\"", "nowhere");
    let itself = policy("application.name == \"shop\"", "shop");
    for (manifest, parts) in [
        (
            &unknown,
            &[
                "needs.yaml:6:18: spec.dependencies[0].application",
                "there is no application \"nowhere\"",
                "TG-1101",
            ][..],
        ),
        (
            &itself,
            &[
                "needs.yaml:6:18: spec.dependencies[0].application",
                "cannot depend on itself",
                "TG-1001",
            ],
        ),
    ] {
        fs::write(&file, manifest)?;
        for args in [
            &["apply", "-f", &path][..],
            &["apply", "-f", &path, "--dry-run"],
            &["policy", "create", "-f", &path],
        ] {
            cluster.tidegate(args)?.refused(1, parts)?;
        }
    }
    let listed = cluster.tidegate(&["policy", "list"])?.json()?;
    ensure!(!listed.to_string().contains("\"needs\""), "{listed}");
    // Whatever the order in the file, what is referred to is made first.
    let both = format!("{unknown}---\nkind: application\nname: nowhere\nspec: {{}}\n");
    fs::write(&file, both)?;
    for args in [
        &["apply", "-f", &path, "--dry-run"][..],
        &["apply", "-f", &path],
    ] {
        cluster.tidegate(args)?.ok()?;
    }
    cluster
        .tidegate(&["application", "delete", "nowhere"])?
        .refused(1, &["dependencies[0] of policy \"needs\"", "TG-1103"])?;
    cluster.tidegate(&["policy", "delete", "needs"])?.ok()?;
    cluster
        .tidegate(&["application", "delete", "nowhere"])?
        .ok()?;
    Ok(())
}

fn guardrails(cluster: &Cluster) -> anyhow::Result<()> {
    apply(
        cluster,
        "kind: policy\nname: careful\nspec:\n  guardrail: {condition: strategy.kind != \"all_in\", message: no sudden cut-over here}\n",
    )?;
    let deploy = [
        "deploy",
        "shop",
        "2.0.0",
        "--scope",
        "shop",
        "--strategy",
        "at-once",
    ];
    cluster.tidegate(&deploy)?.refused(
        1,
        &["careful/guardrail", "no sudden cut-over here", "TG-1214"],
    )?;
    // What runs was made at once too: the same again is a new deployment.
    cluster.tidegate(&["scope", "restart", "shop"])?.refused(
        1,
        &["careful/guardrail", "no sudden cut-over here", "TG-1214"],
    )?;
    cluster.tidegate(&["policy", "delete", "careful"])?.ok()?;
    Ok(())
}

fn windows_and_skips(cluster: &Cluster) -> anyhow::Result<()> {
    apply(
        cluster,
        "kind: policy\nname: once\nspec:\n  windows:\n  - {rrules: [\"FREQ=DAILY;COUNT=1\"], dtstart: \"2020-01-01T00:00:00\", duration: 1h}\n",
    )?;
    let id = begin(cluster, "2.0.0", "at-once", &[])?;
    status(cluster, &id, "PENDING")?;
    let found = get(cluster, &id)?;
    let waits = text(&found, "waitingFor");
    ensure!(waits.contains("policy once/windows[0]"), "{found}");
    let told = cluster.tidegate(&["explain", &id, "-o", "table"])?;
    for part in [
        "Waiting: policy once/windows[0]",
        "never opens again",
        "It needs: ",
    ] {
        ensure!(told.stdout.contains(part), "{told}");
    }
    let skip = [
        "skip",
        "create",
        "once/windows",
        "--scope",
        "shop",
        "--for",
        "1h",
        "--reason",
        "agreed",
    ];
    let made = cluster.tidegate(&skip)?.json()?;
    ends(cluster, &id, "FINALIZED")?;
    let listed = cluster.tidegate(&["skip", "list"])?.json()?.to_string();
    ensure!(
        listed.contains("once/windows") && listed.contains("agreed"),
        "{listed}"
    );
    cluster
        .tidegate(&["skip", "delete", text(&made, "name")])?
        .ok()?;
    cluster.tidegate(&["policy", "delete", "once"])?.ok()?;
    Ok(())
}

fn freezes(cluster: &Cluster) -> anyhow::Result<()> {
    let freeze = ["freeze", "--for", "1h", "--reason", "a drill"];
    cluster.tidegate(&freeze)?.ok()?;
    let listed = cluster.tidegate(&["freeze", "--list"])?.json()?.to_string();
    ensure!(listed.contains("a drill"), "{listed}");
    let id = begin(cluster, "1.0.0", "at-once", &[])?;
    status(cluster, &id, "PENDING")?;
    let told = cluster.tidegate(&["explain", &id, "-o", "table"])?;
    ensure!(told.stdout.contains("a drill"), "{told}");
    cluster.tidegate(&["thaw", "--all"])?.ok()?;
    ends(cluster, &id, "FINALIZED")?;
    Ok(())
}
