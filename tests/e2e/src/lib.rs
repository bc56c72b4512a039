//! What the end-to-end tests share: telling a story on a cluster, and applications to publish.
//!
//! The tests themselves stand under `tests/`; each starts its own cluster of real processes.

pub mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tidegate_harness::cluster::{PATIENCE, text};
use tidegate_harness::{Cluster, Shape, archive, http, poll};

/// Runs a story on a cluster of its own. If it fails, the folder with all logs stays.
///
/// # Panics
/// If the cluster does not start or the story fails.
pub fn story(shape: Shape, tell: impl FnOnce(&mut Cluster) -> anyhow::Result<()>) {
    let mut cluster = match Cluster::start(shape) {
        Ok(cluster) => cluster,
        Err(error) => panic!("the cluster does not start: {error:?}"),
    };
    if let Err(error) = tell(&mut cluster) {
        let logs = cluster.tails();
        let kept = cluster.keep();
        panic!("{error:?}\n\n{logs}\neverything is in {}", kept.display());
    }
}

/// Makes application `site`, environment `test` and scope `site`, whose page must answer; gives the
/// port of the scope.
///
/// # Errors
/// The cluster's refusal.
pub fn site(cluster: &Cluster) -> anyhow::Result<u16> {
    let port = cluster.scope_port()?;
    let manifest = format!(
        "kind: application\nname: site\nspec: {{}}\n---\n\
         kind: environment\nname: test\nspec: {{tier: 1}}\n---\n\
         kind: strategy\nname: quick\nspec:\n  traffic:\n    steps:\n    - {{percent: 50, hold: 1s}}\n    \
         - {{percent: 100, hold: 0s}}\n  bake: 1s\n  drain: 1s\n---\n\
         kind: scope\nname: site\nspec:\n  application: site\n  environment: test\n  port: {port}\n  \
         max_restarts: 2\n  \
         health_check: {{http: {{path: /}}, interval: 200ms, healthy_threshold: 1}}\n"
    );
    let file = cluster.dir().join("site.yaml");
    std::fs::write(&file, manifest)?;
    cluster
        .tidegate(&["apply", "-f", &file.display().to_string()])?
        .ok()?;
    Ok(port)
}

/// Publishes a release of `site` that Python's own web server serves.
///
/// # Errors
/// The cluster's refusal.
pub fn python_release(cluster: &Cluster, version: &str) -> anyhow::Result<()> {
    let file = cluster.dir().join(format!("site-{version}.tar.gz"));
    let page = format!("this is version {version}\n");
    archive::write(&file, &[("index.html", &page, false)])?;
    // `--directory` because the working folder is the instance's.
    let run = "python3 -m http.server ${PORT} --directory ${RELEASE_DIR}";
    release(cluster, version, &file, run)
}

/// Publishes a release of `site` from a file.
///
/// # Errors
/// The cluster's refusal.
pub fn release(cluster: &Cluster, version: &str, file: &Path, run: &str) -> anyhow::Result<()> {
    let asset = file.display().to_string();
    let arguments = [
        "release", "create", "site", version, "--asset", &asset, "--run", run,
    ];
    cluster.tidegate(&arguments)?.ok()?;
    Ok(())
}

/// Deploys a release of `site` and waits for its end; gives the exit status.
///
/// # Errors
/// The command cannot be run.
pub fn deploy(cluster: &Cluster, version: &str) -> anyhow::Result<Option<i32>> {
    let output = cluster.tidegate(&[
        "deploy",
        "site",
        version,
        "--scope",
        "site",
        "--strategy",
        "quick",
        "--wait",
        "--timeout",
        "2m",
    ])?;
    Ok(output.status)
}

/// Deploys a release of `site`, which must be finalized.
///
/// # Errors
/// It was not; the message holds the deployment.
pub fn goes_well(cluster: &Cluster, version: &str) -> anyhow::Result<()> {
    let status = deploy(cluster, version)?;
    ensure!(
        status == Some(0),
        "exit {status:?} of {version}: {}",
        cluster.newest("site")?
    );
    Ok(())
}

/// Waits until a page holds a text.
///
/// # Errors
/// It does not in time.
pub fn serves(address: SocketAddr, wanted: &str) -> anyhow::Result<()> {
    poll::until(&format!("\"{wanted}\" at {address}"), PATIENCE, || {
        let answer = http::get(address, "/")?;
        poll::holds(answer.text.contains(wanted), || format!("{answer:?}"))
    })
}

/// Looks at a page once: it must hold a text.
///
/// # Errors
/// It does not.
pub fn answers(address: SocketAddr, wanted: &str) -> anyhow::Result<()> {
    let answer = http::get(address, "/")?;
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(answer.text.contains(wanted), "{answer:?}");
    Ok(())
}

/// Waits until the newest deployment of `site` has a status.
///
/// # Errors
/// It has not in time.
pub fn reaches(cluster: &Cluster, status: &str) -> anyhow::Result<Value> {
    poll::until(&format!("status {status}"), PATIENCE, || {
        let newest = cluster.newest("site")?;
        poll::holds(text(&newest, "status") == status, || newest.to_string())?;
        Ok(newest)
    })
    .context("the newest deployment of site")
}

/// Flips a byte of the blob that was stored last, on every coordinator; gives its digest.
///
/// # Errors
/// No blob is found.
pub fn damage_newest_blob(cluster: &Cluster) -> anyhow::Result<String> {
    let mut blobs: Vec<PathBuf> = Vec::new();
    let mut folders = vec![cluster.dir().to_owned()];
    while let Some(folder) = folders.pop() {
        // Agents' folders hold releases under the same names.
        let own = folder.join("agent.toml");
        if own.exists() {
            continue;
        }
        for entry in fs::read_dir(&folder)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
                blobs.push(entry.path());
            }
        }
    }
    let age = |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).ok();
    let newest = blobs.iter().max_by_key(|path| age(path));
    let name = newest
        .and_then(|path| path.file_name())
        .context("no blob is stored")?
        .to_owned();
    for path in blobs.iter().filter(|path| path.file_name() == Some(&name)) {
        let mut bytes = fs::read(path)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes)?;
    }
    Ok(name.to_string_lossy().into_owned())
}
