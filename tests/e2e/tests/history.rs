//! The past of a cluster: coordinators are killed while deployments end, one is away over several
//! snapshots, one joins anew; afterwards each of them shows the whole of it.

use std::fs;

use anyhow::{Context, ensure};
use serde_json::Value;
use tidegate_e2e::story;
use tidegate_e2e::support::{apply, begin, publish, scope};
use tidegate_harness::cluster::text;
use tidegate_harness::{Cluster, Shape};

const THREE: Shape = Shape {
    coordinators: 3,
    agents: 0,
};

const OBJECTS: &str = "\
kind: application
name: shop
spec: {}
---
kind: environment
name: test
spec: {tier: 1}
---
kind: strategy
name: at-once
spec: {kind: all_in, bake: 0s, drain: 1s}
";

/// Snapshots come often, so that a member that was away for a while needs one.
fn often(cluster: &mut Cluster) -> anyhow::Result<()> {
    for position in 0..3 {
        cluster.stop_coordinator(position)?;
        let file = cluster.coordinator_dir(position).join("coordinator.toml");
        let before = fs::read_to_string(&file)?;
        let after = before.replace("[raft]\n", "[raft]\nsnapshot_entries = 15\n");
        ensure!(after != before, "no [raft] in {before}");
        fs::write(&file, after)?;
        cluster.start_coordinator(position)?;
        cluster.agree()?;
    }
    Ok(())
}

/// A deployment that ends without ever starting: no agent is there.
fn end_one(cluster: &Cluster) -> anyhow::Result<String> {
    let id = begin(cluster, "1", "at-once", &[])?;
    cluster.tidegate(&["deployment", "cancel", &id])?.ok()?;
    Ok(id)
}

/// What one coordinator answers, asked alone with the first administrator's papers.
fn alone(cluster: &Cluster, position: usize, arguments: &[&str]) -> anyhow::Result<Value> {
    let folder = tempfile::tempdir_in(cluster.dir())?;
    let admin = cluster.dir().join("admin");
    for name in ["cert.pem", "key.pem", "roots.pem"] {
        fs::copy(admin.join(name), folder.path().join(name))?;
    }
    let context = format!(
        "name = \"alone\"\ncluster_id = \"\"\ntrust_domain = \"test.tidegate\"\nuser = \"admin\"\n\
         control = [\"{}\"]\n",
        cluster.listeners(position).control
    );
    fs::write(folder.path().join("context.toml"), context)?;
    let none = folder.path().join("none").display().to_string();
    let environment = [
        ("TIDEGATE_CONTEXT", folder.path().display().to_string()),
        ("TIDEGATE_CONFIG_DIR", none),
        ("TIDEGATE_OUTPUT", "json".to_owned()),
    ];
    let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
    cluster.finish("tidegate", &arguments, &environment)?.json()
}

fn ids(list: &Value) -> Vec<String> {
    let rows = list["deployments"].as_array().cloned();
    let rows = rows.unwrap_or_default();
    rows.iter().map(|row| text(row, "id").to_owned()).collect()
}

/// Every coordinator shows every deployment, and the audit log is whole, unbroken and the same.
fn is_whole(cluster: &Cluster, ended: &[String]) -> anyhow::Result<()> {
    cluster.agree()?;
    let newest_first: Vec<String> = ended.iter().rev().cloned().collect();
    let mut first = None;
    for position in 0..3 {
        // From its own state and disk; the list comes from the leader's.
        let history = ["deployment", "history", "shop", "--limit", "0"];
        let found = ids(&alone(cluster, position, &history)?);
        ensure!(
            found == newest_first,
            "c{position}: {found:?}, want {newest_first:?}"
        );
        let list = ["deployment", "list", "--limit", "0"];
        let mut found = ids(&alone(cluster, position, &list)?);
        let mut wanted = ended.to_vec();
        found.sort();
        wanted.sort();
        ensure!(found == wanted, "c{position}: {found:?}, want {wanted:?}");
        let events = alone(cluster, position, &["audit", "list", "--limit", "0"])?;
        let lines = events["events"].as_array().context("no list of events")?;
        let begin = lines.first().context("no event")?;
        ensure!(text(begin, "kind") == "cluster_initialised", "{begin}");
        for pair in lines.windows(2) {
            ensure!(
                text(&pair[0], "hash") == text(&pair[1], "previousHash"),
                "c{position}: the chain is broken between {} and {}",
                pair[0],
                pair[1]
            );
        }
        let lines = lines.clone();
        match &first {
            None => first = Some(lines),
            // Another line may have come meanwhile.
            Some(first) => ensure!(lines.starts_with(first), "c{position} tells otherwise"),
        }
    }
    Ok(())
}

/// How often a coordinator was sent a snapshot with its history.
fn arrived(cluster: &Cluster, position: usize) -> anyhow::Result<usize> {
    let log = format!("logs/c{}.log", position + 1);
    let told = fs::read_to_string(cluster.dir().join(log))?;
    Ok(told.matches("the history is complete").count())
}

#[test]
fn every_coordinator_keeps_the_whole_past_through_kills_and_snapshots() {
    story(THREE, |cluster| {
        // No agent is there to take the port.
        apply(cluster, &format!("{OBJECTS}{}", scope("shop", 8_080)))?;
        publish(cluster, "1")?;
        often(cluster)?;
        let mut ended = Vec::new();
        for position in 0..3 {
            ended.push(end_one(cluster)?);
            ended.push(end_one(cluster)?);
            cluster.kill_coordinator(position)?;
            ended.push(end_one(cluster)?);
            cluster.start_coordinator(position)?;
            is_whole(cluster, &ended)?;
        }

        // Away over several snapshots: the log that it would need is cut.
        let away = (cluster.leader()? + 1) % 3;
        let before = arrived(cluster, away)?;
        cluster.kill_coordinator(away)?;
        for _ in 0..30 {
            ended.push(end_one(cluster)?);
        }
        cluster.start_coordinator(away)?;
        is_whole(cluster, &ended)?;
        ensure!(arrived(cluster, away)? > before, "it needed no snapshot");

        for position in 0..3 {
            cluster.kill_coordinator(position)?;
        }
        for position in 0..3 {
            cluster.start_coordinator(position)?;
        }
        is_whole(cluster, &ended)?;
        let first = ended.first().context("none")?;
        let refused = cluster.tidegate(&["deployment", "retry", first])?;
        refused.refused(1, &["TG-1212", "tidegate deploy"])
    });
}
