//! Kill -9 in the middle of things: the leader during a step of traffic, an agent, the parent of a
//! proxy. Nothing that was acknowledged is lost, and no request fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use tidegate_e2e::{answers, goes_well, python_release, reaches, serves, site, story};
use tidegate_harness::cluster::{PATIENCE, text};
use tidegate_harness::{Shape, http, poll};

#[test]
fn a_killed_leader_loses_nothing_and_the_rollout_goes_on() {
    let shape = Shape {
        coordinators: 3,
        agents: 2,
    };
    story(shape, |cluster| {
        let port = site(cluster)?;
        python_release(cluster, "1.0.0")?;
        goes_well(cluster, "1.0.0")?;
        python_release(cluster, "2.0.0")?;
        cluster
            .tidegate(&[
                "deploy",
                "site",
                "2.0.0",
                "--scope",
                "site",
                "--strategy",
                "quick",
                "--set",
                "traffic.steps=50:3s,100:0s",
            ])?
            .ok()?;
        reaches(cluster, "RUNNING")?;
        let leader = cluster.leader()?;
        cluster.kill_coordinator(leader)?;
        let ended = reaches(cluster, "FINALIZED")?;
        ensure!(text(&ended, "version") == "2.0.0", "{ended}");
        for agent in 0..2 {
            serves(cluster.proxy(agent, port), "this is version 2.0.0")?;
        }
        cluster.start_coordinator(leader)?;
        poll::until("the killed one as a follower", PATIENCE, || {
            let status = cluster.tidegate(&["cluster", "status"])?.json()?;
            let members = status["members"].as_array().cloned().unwrap_or_default();
            let down = members
                .iter()
                .filter(|member| text(member, "role") == "unreachable");
            poll::holds(down.count() == 0, || status.to_string())
        })
    });
}

#[test]
fn a_killed_agent_is_adopted_and_no_request_fails() {
    let shape = Shape {
        coordinators: 1,
        agents: 1,
    };
    story(shape, |cluster| {
        let port = site(cluster)?;
        python_release(cluster, "1.0.0")?;
        goes_well(cluster, "1.0.0")?;
        let address = cluster.proxy(0, port);
        let stop = Arc::new(AtomicBool::new(false));
        let load = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || -> anyhow::Result<u64> {
                let mut served = 0;
                while !stop.load(Ordering::Relaxed) {
                    let answer = http::get(address, "/")?;
                    ensure!(answer.status == 200, "{answer:?}");
                    served += 1;
                }
                Ok(served)
            }
        });
        let before = process_of(cluster)?;
        cluster.kill_agent(0)?;
        answers(address, "this is version 1.0.0")?;
        cluster.start_agent(0)?;
        python_release(cluster, "2.0.0")?;
        // It was adopted: the same process, not a second one.
        let adopted = process_of(cluster)?;
        ensure!(before == adopted, "{before} became {adopted}");
        goes_well(cluster, "2.0.0")?;
        serves(address, "this is version 2.0.0")?;
        stop.store(true, Ordering::Relaxed);
        let served = load.join().ok().context("the load ended by itself")??;
        ensure!(served > 0);
        Ok(())
    });
}

/// The process of the one instance of the newest deployment, once the agent reports it.
fn process_of(cluster: &tidegate_harness::Cluster) -> anyhow::Result<u64> {
    poll::until("the instance's process", PATIENCE, || {
        let newest = cluster.newest("site")?;
        let short = text(&newest, "shortId").to_owned();
        let found = cluster.tidegate(&["deployment", "get", &short])?.json()?;
        let instance = &found["participants"][0]["instances"][0];
        let state = text(instance, "state");
        poll::holds(state == "healthy", || found.to_string())?;
        instance["pid"].as_u64().context("no process")
    })
}
