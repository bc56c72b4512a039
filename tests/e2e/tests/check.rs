//! `tidegate scope check`: what would stop a deployment is told before one is made, with the port
//! held by a program that is not ours.

use std::net::TcpListener;

use anyhow::ensure;
use serde_json::Value;
use tidegate_e2e::story;
use tidegate_e2e::support::{apply, begin, ends, publish, shop};
use tidegate_harness::cluster::{Output, text};
use tidegate_harness::{Cluster, Shape};

fn check(cluster: &Cluster, more: &[&str]) -> anyhow::Result<Output> {
    cluster.tidegate(&[&["scope", "check", "shop"], more].concat())
}

fn finding<'a>(found: &'a Value, severity: &str, part: &str) -> Option<&'a Value> {
    let findings = found["findings"].as_array()?;
    findings.iter().find(|finding| {
        text(finding, "severity") == severity && text(finding, "message").contains(part)
    })
}

#[test]
fn what_would_stop_a_deployment_is_told_before_one_is_made() {
    let shape = Shape {
        coordinators: 3,
        agents: 2,
    };
    story(shape, |cluster| {
        let port = shop(cluster)?;
        let nothing = check(cluster, &[])?;
        ensure!(nothing.status == Some(1), "{nothing}");
        ensure!(
            nothing.stdout.contains("no release that is ready"),
            "{nothing}"
        );

        publish(cluster, "1")?;
        let holder = TcpListener::bind(cluster.proxy(1, port))?;
        let held = check(cluster, &[])?;
        ensure!(held.status == Some(1), "{held}");
        let found: Value = serde_json::from_str(&held.stdout)?;
        let taken = finding(&found, "ERROR", &format!("(pid {})", std::process::id()));
        ensure!(taken.is_some_and(|f| text(f, "subject") == "a2"), "{found}");
        let free = finding(&found, "GOOD", &format!("port {port} is free"));
        ensure!(free.is_some_and(|f| text(f, "subject") == "a1"), "{found}");
        let words = check(cluster, &["-o", "table"])?;
        ensure!(words.stdout.contains("cannot be deployed"), "{words}");
        ensure!(words.stdout.contains("stop the other program"), "{words}");
        drop(holder);

        let good = check(cluster, &["--release", "1", "-o", "table"])?;
        ensure!(good.status == Some(0), "{good}");
        ensure!(good.stdout.contains("nothing is in the way"), "{good}");
        // It says so, and it is so.
        let deployment = begin(cluster, "1", "at-once", &[])?;
        let busy = check(cluster, &[])?;
        ensure!(busy.status == Some(1), "{busy}");
        ensure!(busy.stdout.contains("TG-1201"), "{busy}");
        ends(cluster, &deployment, "FINALIZED")?;

        apply(
            cluster,
            "kind: scope\nname: elsewhere\nspec: {application: shop, environment: test, port: 9, agents: role=db}\n",
        )?;
        let nobody = cluster.tidegate(&["scope", "check", "elsewhere"])?;
        ensure!(nobody.status == Some(1), "{nobody}");
        ensure!(
            nobody
                .stdout
                .contains("no agent matches (selector role=db)"),
            "{nobody}"
        );
        let unknown = cluster.tidegate(&["scope", "check", "shopp"])?;
        unknown.refused(1, &["TG-1101", "shop"])?;
        Ok(())
    });
}
