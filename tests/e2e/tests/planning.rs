//! Plans against what then happens on real processes, and scopes that take releases by themselves.

use std::fs;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tidegate_e2e::story;
use tidegate_e2e::support::{apply, begin, ends, establish, get, publish, scope, shop};
use tidegate_harness::cluster::{PATIENCE, text};
use tidegate_harness::{Cluster, Shape, poll};

const ONE: Shape = Shape {
    coordinators: 1,
    agents: 1,
};

#[test]
fn what_was_planned_is_what_happens() {
    story(ONE, |cluster| {
        shop(cluster)?;
        establish(cluster, "1.0.0")?;
        publish(cluster, "2.0.0")?;
        apply(
            cluster,
            "kind: strategy\nname: steps\nspec:\n  traffic: {steps: [{percent: 20, hold: 1s}, {percent: 60, hold: 1s}, {percent: 100, hold: 1s}]}\n  bake: 1s\n  drain: 1s\n  rollback: {rules: []}\n",
        )?;
        let plan = [
            "plan",
            "shop",
            "2.0.0",
            "--scope",
            "shop",
            "--strategy",
            "steps",
        ];
        let before = audit(cluster)?;
        let planned = cluster.tidegate(&plan)?.json()?;
        ensure!(
            audit(cluster)? == before,
            "a plan left a line in the audit log"
        );
        let listed = cluster.tidegate(&["deployment", "list"])?.json()?;
        ensure!(!listed.to_string().contains("\"2.0.0\""), "{listed}");
        let member = &planned["members"][0];
        ensure!(text(member, "replacesVersion") == "1.0.0", "{planned}");
        ensure!(text(member, "status") == "FINALIZED", "{planned}");
        let shown = cluster.tidegate(&[&plan[..], &["-o", "table"]].concat())?;
        for part in ["Nothing was made", "step 2: 60 %", "Taken for granted"] {
            ensure!(shown.stdout.contains(part), "{shown}");
        }
        let id = begin(cluster, "2.0.0", "steps", &[])?;
        ends(cluster, &id, "FINALIZED")?;
        let happened = events(cluster, &id)?;
        ensure!(statuses(member) == happened, "{planned}\n{happened:?}");
        refusals(cluster)
    });
}

/// Lines of the audit log.
fn audit(cluster: &Cluster) -> anyhow::Result<usize> {
    let all = cluster.tidegate(&["audit", "list"])?.json()?;
    let events = all["events"].as_array().context("no events")?;
    Ok(events.len())
}

/// The statuses that a plan goes through, less the first, in lower case.
fn statuses(member: &Value) -> Vec<String> {
    let moments = member["moments"].as_array().cloned().unwrap_or_default();
    let statuses = moments.iter().filter(|m| text(m, "what") == "STATUS");
    statuses
        .map(|moment| text(moment, "status").to_lowercase())
        .skip(1)
        .collect()
}

/// The statuses that a deployment went through, as the audit log tells them.
fn events(cluster: &Cluster, id: &str) -> anyhow::Result<Vec<String>> {
    let all = cluster.tidegate(&["deployment", "history", id])?.json()?;
    let known = [
        "creating",
        "waiting_for_instances",
        "running",
        "finalizing",
        "finalized",
    ];
    let events = all["events"].as_array().context("no events")?;
    let kinds = events.iter().filter_map(|event| {
        let kind = text(event, "kind").strip_prefix("deployment_")?;
        known.contains(&kind).then(|| kind.to_owned())
    });
    Ok(kinds.collect())
}

fn refusals(cluster: &Cluster) -> anyhow::Result<()> {
    for (arguments, status, parts) in [
        (
            &["--scope", "shop", "--at", "tomorrow"][..],
            2,
            &["--at", "TG-1003"][..],
        ),
        (
            &["--scope", "shop", "--at", "2020-01-01T00:00:00+05:30"],
            1,
            &["--at: 2019-12-31T18:30:00.000Z is over", "TG-1001"],
        ),
        (&["--scope", "nope"], 1, &["nope", "TG-1101"]),
    ] {
        let plan = [&["plan", "shop", "2.0.0"], arguments].concat();
        cluster.tidegate(&plan)?.refused(status, parts)?;
    }
    // A window that opens never, and one that says so.
    apply(
        cluster,
        "kind: policy\nname: once\nspec:\n  windows:\n  - {rrules: [\"FREQ=DAILY;COUNT=1\"], dtstart: \"2020-01-01T00:00:00\", duration: 1h}\n",
    )?;
    let plan = ["plan", "shop", "1.0.0", "--scope", "shop", "-o", "table"];
    let never = cluster.tidegate(&plan)?;
    ensure!(never.status == Some(5), "{never}");
    for part in ["it never starts", "once/windows[0]"] {
        ensure!(never.stdout.contains(part), "{never}");
    }
    Ok(())
}

#[test]
fn a_scope_takes_new_releases_by_itself() {
    story(ONE, |cluster| {
        let port = shop(cluster)?;
        establish(cluster, "1.0.0")?;
        let file = cluster.dir().join("auto.yaml");
        let path = file.display().to_string();
        let manifest = scope("shop", port);
        fs::write(
            &file,
            format!("{manifest}  auto_deploy: release.versio == \"2\"\n"),
        )?;
        cluster.tidegate(&["apply", "-f", &path])?.refused(
            1,
            &["spec.auto_deploy", "release has no \"versio\"", "TG-1001"],
        )?;
        let rule = "{when: '!release.version.startsWith(\"9\")', strategy: at-once}";
        apply(cluster, &format!("{manifest}  auto_deploy: {rule}\n"))?;
        publish(cluster, "2.0.0")?;
        let id = poll::until("2.0.0 is deployed by itself", PATIENCE, || {
            let found = cluster.newest("shop")?;
            poll::holds(text(&found, "version") == "2.0.0", || found.to_string())?;
            Ok(text(&found, "id").to_owned())
        })?;
        ends(cluster, &id, "FINALIZED")?;
        let found = get(cluster, &id)?;
        ensure!(text(&found, "autoDeployOf").starts_with("user:"), "{found}");
        ensure!(text(&found, "strategyName") == "at-once", "{found}");
        publish(cluster, "9.0.0")?;
        let shown = cluster.tidegate(&["scope", "get", "shop", "-o", "table"])?;
        for part in ["takes by itself", "9.0.0 is passed over", "2.0.0 is here"] {
            ensure!(shown.stdout.contains(part), "{shown}");
        }
        Ok(())
    });
}
