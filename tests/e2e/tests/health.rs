//! What the daemons tell of themselves on the loopback, and that they tell the truth.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::ensure;
use tidegate_e2e::story;
use tidegate_harness::cluster::PATIENCE;
use tidegate_harness::{Cluster, Shape, http, poll, ports};

/// An address of the loopback that is free.
fn free() -> anyhow::Result<SocketAddr> {
    let host = IpAddr::from([127, 0, 0, 1]);
    Ok(SocketAddr::new(host, ports::free(host)?))
}

/// Gives both daemons addresses of their own for health, and starts them with these.
fn told(cluster: &mut Cluster) -> anyhow::Result<(SocketAddr, SocketAddr)> {
    let (coordinator, agent) = (free()?, free()?);
    let file = cluster.coordinator_dir(0).join("coordinator.toml");
    let written = fs::read_to_string(&file)?;
    let line = format!("[listen]\nhealth = \"{coordinator}\"\n");
    let with_health = written.replace("[listen]\n", &line);
    ensure!(with_health != written, "no listeners in {written}");
    fs::write(&file, with_health)?;
    let file = cluster.agent_dir(0).join("agent.toml");
    let written = fs::read_to_string(&file)?;
    fs::write(&file, format!("health = \"{agent}\"\n{written}"))?;
    cluster.stop_coordinator(0)?;
    cluster.start_coordinator(0)?;
    cluster.stop_agent(0)?;
    cluster.start_agent(0)?;
    Ok((coordinator, agent))
}

/// Waits until a path is answered with this status and these words.
fn answers(at: SocketAddr, path: &str, status: u16, part: &str) -> anyhow::Result<()> {
    poll::until(&format!("{status} of {path} at {at}"), PATIENCE, || {
        let answer = http::get(at, path)?;
        poll::holds(
            answer.status == status && answer.text.contains(part),
            || format!("{answer:?}"),
        )
    })
}

#[test]
fn daemons_tell_how_they_are_and_what_they_count() {
    let shape = Shape {
        coordinators: 1,
        agents: 1,
    };
    story(shape, |cluster| {
        let (coordinator, agent) = told(cluster)?;
        for at in [coordinator, agent] {
            answers(at, "/healthz", 200, "ok")?;
            answers(at, "/readyz", 200, "ready")?;
            answers(at, "/secrets", 404, "/metrics")?;
        }
        for line in [
            "tidegate_raft_is_leader 1\n",
            "tidegate_raft_voters 1\n",
            "tidegate_agents 1\n",
            "tidegate_agent_sessions 1\n",
            "tidegate_build_info{version=",
            "# EOF",
        ] {
            answers(coordinator, "/metrics", 200, line)?;
        }
        answers(agent, "/metrics", 200, "tidegate_agent_session_up 1\n")?;
        answers(agent, "/metrics", 200, "tidegate_agent_places 0\n")?;

        cluster.kill_coordinator(0)?;
        answers(agent, "/readyz", 503, "applications and the proxy go on")?;
        answers(agent, "/metrics", 200, "tidegate_agent_session_up 0\n")?;
        answers(agent, "/healthz", 200, "ok")?;
        Ok(())
    });
}
