//! An application whose answers tell their version, for tests that look at every request: scope
//! `shop` with strategies `steps` (three steps that go on by themselves), `by-hand` (steps that
//! wait for a person) and `at-once`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tidegate_harness::cluster::{PATIENCE, control::Found, number, programs, text};
use tidegate_harness::{Client, Cluster, archive, poll};

/// A whole rollout, on a busy machine too.
pub const ROLLOUT: Duration = Duration::from_secs(90);

/// Statuses that a deployment does not leave.
const ENDS: [&str; 6] = [
    "CREATING_APPROVAL_DENIED",
    "FINALIZED",
    "CANCELLED",
    "ROLLED_BACK",
    "FAILED",
    "DELETED",
];

/// Objects of the shop but for its scopes.
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
name: steps
spec:
  traffic: {steps: [{percent: 25, hold: 4s}, {percent: 50, hold: 1s}, {percent: 100, hold: 0s}]}
  bake: 1s
  drain: 1s
---
kind: strategy
name: by-hand
spec:
  traffic: {steps: [{percent: 20, hold: manual}, {percent: 60, hold: manual}, {percent: 100, hold: 0s}]}
  bake: 1h
  drain: 1s
  finalize: manual
---
kind: strategy
name: at-once
spec: {kind: all_in, bake: 0s, drain: 1s}
";

/// A scope of the shop with a port.
pub fn scope(name: &str, port: u16) -> String {
    format!(
        "---\nkind: scope\nname: {name}\nspec:\n  application: shop\n  environment: test\n  \
         port: {port}\n  max_restarts: 2\n  \
         health_check: {{http: {{path: /healthz}}, interval: 200ms, healthy_threshold: 1}}\n"
    )
}

/// Applies manifests.
///
/// # Errors
/// The cluster's refusal.
pub fn apply(cluster: &impl Client, manifests: &str) -> anyhow::Result<()> {
    let file = cluster.dir().join("applied.yaml");
    std::fs::write(&file, manifests)?;
    let file = file.display().to_string();
    cluster.tidegate(&["apply", "-f", &file])?.ok()?;
    Ok(())
}

/// Makes the shop with its scope `shop`; gives the scope's port.
///
/// # Errors
/// The cluster's refusal.
pub fn shop(cluster: &Cluster) -> anyhow::Result<u16> {
    let port = cluster.scope_port()?;
    shop_at(cluster, port)?;
    Ok(port)
}

/// Makes the shop with its scope `shop` at this port.
///
/// # Errors
/// The cluster's refusal.
pub fn shop_at(cluster: &impl Client, port: u16) -> anyhow::Result<()> {
    apply(cluster, &format!("{OBJECTS}{}", scope("shop", port)))
}

/// The command that runs the shop's releases; it mentions the release's folder.
///
/// # Errors
/// The programs are not built.
pub fn run_line() -> anyhow::Result<String> {
    Ok(run_line_of(&programs()?.join("tidegate")))
}

fn run_line_of(program: &Path) -> String {
    format!(
        "{} demo-app --release ${{RELEASE_DIR}}/app.json",
        program.display()
    )
}

/// Publishes a good release of the shop.
///
/// # Errors
/// The cluster's refusal.
pub fn publish(cluster: &impl Client, version: &str) -> anyhow::Result<()> {
    let told = format!("{{\"version\": \"{version}\", \"error_rate\": 0.0}}");
    publish_files(
        cluster,
        version,
        &[("app.json", &told, false)],
        &run_line_of(&cluster.program()?),
    )
}

/// Publishes a release of the shop of these files.
///
/// # Errors
/// The cluster's refusal.
pub fn publish_files(
    cluster: &impl Client,
    version: &str,
    files: &[(&str, &str, bool)],
    run: &str,
) -> anyhow::Result<()> {
    let file = cluster.dir().join(format!("shop-{version}.tar.gz"));
    archive::write(&file, files)?;
    let asset = file.display().to_string();
    let arguments = [
        "release", "create", "shop", version, "--asset", &asset, "--run", run,
    ];
    cluster.tidegate(&arguments)?.ok()?;
    Ok(())
}

/// Starts a deployment of the shop to its scope; gives its id.
///
/// # Errors
/// The cluster's refusal.
pub fn begin(
    cluster: &impl Client,
    version: &str,
    strategy: &str,
    more: &[&str],
) -> anyhow::Result<String> {
    let mut arguments = vec!["deploy", "shop", version, "--strategy", strategy];
    if !more.contains(&"--scope") {
        arguments.extend(["--scope", "shop"]);
    }
    arguments.extend(more);
    let made = cluster.tidegate(&arguments)?.json()?;
    let id = text(&made, "id");
    ensure!(!id.is_empty(), "no id: {made}");
    Ok(id.to_owned())
}

/// Publishes a version and brings it to its good end at once.
///
/// # Errors
/// It does not get there.
pub fn establish(cluster: &impl Client, version: &str) -> anyhow::Result<()> {
    publish(cluster, version)?;
    let id = begin(cluster, version, "at-once", &[])?;
    ends(cluster, &id, "FINALIZED").map(drop)
}

/// A deployment as it is now.
///
/// # Errors
/// Nobody answers, or it is not there.
pub fn get(cluster: &impl Client, id: &str) -> anyhow::Result<Value> {
    cluster.tidegate(&["deployment", "get", id])?.json()
}

/// Waits until a deployment is at an end, which must be this one.
///
/// # Errors
/// Another end, or none in time.
pub fn ends(cluster: &impl Client, id: &str, wanted: &str) -> anyhow::Result<Value> {
    let ended = poll::until(&format!("{wanted} of {id}"), ROLLOUT, || {
        let found = get(cluster, id)?;
        poll::holds(ENDS.contains(&text(&found, "status")), || found.to_string())?;
        Ok(found)
    })?;
    if text(&ended, "status") != wanted {
        bail!("want {wanted}: {ended}");
    }
    Ok(ended)
}

/// Waits until a deployment has this status.
///
/// # Errors
/// Not in time.
pub fn status(cluster: &impl Client, id: &str, wanted: &str) -> anyhow::Result<Value> {
    poll::until(&format!("{wanted} of {id}"), PATIENCE, || {
        let found = get(cluster, id)?;
        poll::holds(text(&found, "status") == wanted, || found.to_string())?;
        Ok(found)
    })
}

/// Waits until the data planes hold at least this weight of a deployment, in basis points.
///
/// # Errors
/// Not in time.
pub fn weight(cluster: &impl Client, id: &str, wanted: u64) -> anyhow::Result<Value> {
    poll::until(&format!("weight {wanted} of {id}"), PATIENCE, || {
        let found = get(cluster, id)?;
        let actual = number(&found["traffic"], "actual");
        poll::holds(actual >= wanted, || found.to_string())?;
        Ok(found)
    })
}

/// The instance processes among those of an agent.
pub fn instances(found: &[Found]) -> Vec<Found> {
    let is = |process: &&Found| process.command.contains("demo-app");
    found.iter().filter(is).cloned().collect()
}

/// The proxy among the processes of an agent.
///
/// # Errors
/// There is not exactly one.
pub fn proxy(found: &[Found]) -> anyhow::Result<Found> {
    let is = |process: &&Found| process.command.contains(" proxy --dir ");
    let proxies: Vec<Found> = found.iter().filter(is).cloned().collect();
    ensure!(proxies.len() == 1, "want one proxy: {found:#?}");
    proxies.into_iter().next().context("no proxy")
}

/// An object's name is there.
///
/// # Errors
/// It is not.
pub fn is_there(cluster: &impl Client, kind: &str, name: &str) -> anyhow::Result<()> {
    cluster.tidegate(&[kind, "get", name])?.ok()?;
    Ok(())
}
