//! Releases that are not ours through the whole path: good ones, and every way in which one can be
//! bad before it serves.

use std::net::TcpListener;

use anyhow::ensure;
use tidegate_e2e::{
    answers, deploy, goes_well, python_release, reaches, release, serves, site, story,
};
use tidegate_harness::cluster::text;
use tidegate_harness::{Shape, archive};

const SMALL: Shape = Shape {
    coordinators: 1,
    agents: 1,
};

#[test]
fn python_s_web_server_is_published_and_taken_back() {
    let shape = Shape {
        coordinators: 3,
        agents: 2,
    };
    story(shape, |cluster| {
        let port = site(cluster)?;
        python_release(cluster, "1.0.0")?;
        goes_well(cluster, "1.0.0")?;
        for agent in 0..2 {
            answers(cluster.proxy(agent, port), "this is version 1.0.0")?;
        }
        python_release(cluster, "1.1.0")?;
        goes_well(cluster, "1.1.0")?;
        for agent in 0..2 {
            answers(cluster.proxy(agent, port), "this is version 1.1.0")?;
        }
        cluster.tidegate(&["rollback", "site", "--wait"])?.ok()?;
        for agent in 0..2 {
            answers(cluster.proxy(agent, port), "this is version 1.0.0")?;
        }
        let newest = cluster.newest("site")?;
        ensure!(text(&newest, "outcome") == "fast_rolled_back", "{newest}");
        Ok(())
    });
}

#[test]
fn a_wrong_digest_is_refused_and_changes_nothing() {
    story(SMALL, |cluster| {
        let port = site(cluster)?;
        python_release(cluster, "1.0.0")?;
        goes_well(cluster, "1.0.0")?;
        // The blob of the next release is damaged in the store, as a bad disk would.
        python_release(cluster, "2.0.0")?;
        let damaged = tidegate_e2e::damage_newest_blob(cluster)?;
        ensure!(deploy(cluster, "2.0.0")? == Some(5));
        let newest = cluster.newest("site")?;
        ensure!(text(&newest, "status") == "FAILED", "{newest}");
        let said = newest.to_string();
        ensure!(
            said.contains("DIGEST_MISMATCH") || said.contains("ASSET_MISSING"),
            "{damaged}: {said}"
        );
        answers(cluster.proxy(0, port), "this is version 1.0.0")
    });
}

#[test]
fn a_taken_port_is_told() {
    story(SMALL, |cluster| {
        let port = site(cluster)?;
        let _held = TcpListener::bind(cluster.proxy(0, port))?;
        python_release(cluster, "1.0.0")?;
        ensure!(deploy(cluster, "1.0.0")? == Some(5));
        let newest = cluster.newest("site")?;
        let said = newest.to_string();
        ensure!(said.contains("PORT_TAKEN"), "{said}");
        ensure!(
            said.contains(&std::process::id().to_string()),
            "by whom? {said}"
        );
        Ok(())
    });
}

#[test]
fn an_application_that_exits_is_rolled_back() {
    story(SMALL, |cluster| {
        let port = site(cluster)?;
        python_release(cluster, "1.0.0")?;
        goes_well(cluster, "1.0.0")?;
        let file = cluster.dir().join("exits.tar.gz");
        let script = "#!/bin/sh\necho the licence ran out >&2\nexit 7\n";
        archive::write(&file, &[("start", script, true)])?;
        release(cluster, "2.0.0", &file, "./start")?;
        ensure!(deploy(cluster, "2.0.0")? == Some(3));
        let newest = reaches(cluster, "ROLLED_BACK")?;
        let said = newest.to_string();
        ensure!(said.contains("MAX_RESTARTS"), "{said}");
        answers(cluster.proxy(0, port), "this is version 1.0.0")
    });
}

#[test]
fn an_application_that_never_gets_healthy_is_rolled_back() {
    story(SMALL, |cluster| {
        let port = site(cluster)?;
        python_release(cluster, "1.0.0")?;
        goes_well(cluster, "1.0.0")?;
        let file = cluster.dir().join("hangs.tar.gz");
        archive::write(&file, &[("start", "#!/bin/sh\nexec sleep 600\n", true)])?;
        release(cluster, "2.0.0", &file, "./start")?;
        let output = cluster.tidegate(&[
            "deploy",
            "site",
            "2.0.0",
            "--scope",
            "site",
            "--strategy",
            "quick",
            "--set",
            "deadlines.progress=2s",
            "--wait",
            "--timeout",
            "2m",
        ])?;
        ensure!(output.status == Some(3), "{output}");
        let newest = cluster.newest("site")?;
        ensure!(text(&newest, "reason") == "progress_deadline", "{newest}");
        serves(cluster.proxy(0, port), "this is version 1.0.0")
    });
}
