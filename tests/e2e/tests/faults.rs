//! What breaks while it works: coordinators killed one by one and all at once, in the middle of
//! traffic steps and under a steady load that counts every failed request.

use tidegate_e2e::story;
use tidegate_e2e::support::{begin, ends, establish, is_there, publish, shop, weight};
use tidegate_harness::cluster::PATIENCE;
use tidegate_harness::load::Load;
use tidegate_harness::{Cluster, Shape, poll};

const WHOLE: Shape = Shape {
    coordinators: 3,
    agents: 2,
};

fn load(cluster: &Cluster, port: u16) -> Load {
    Load::start(&[cluster.proxy(0, port), cluster.proxy(1, port)])
}

/// Makes an environment, which is a command that was acknowledged.
fn acknowledge(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let arguments = ["environment", "create", name, "--tier", "3"];
    cluster.tidegate(&arguments)?.ok()?;
    Ok(())
}

#[test]
fn the_leader_is_killed_or_told_to_end_in_the_middle_of_a_step() {
    story(WHOLE, |cluster| {
        let port = shop(cluster)?;
        establish(cluster, "1")?;
        publish(cluster, "2")?;
        publish(cluster, "3")?;
        let load = load(cluster, port);
        load.wait_for("1", 20, PATIENCE)?;

        let rollout = begin(cluster, "2", "steps", &[])?;
        weight(cluster, &rollout, 2_500)?;
        acknowledge(cluster, "before-the-kill")?;
        let leader = cluster.leader()?;
        cluster.kill_coordinator(leader)?;
        // The command line finds another member and waits until it leads.
        acknowledge(cluster, "after-the-kill")?;
        ends(cluster, &rollout, "FINALIZED")?;
        load.wait_for("2", 20, PATIENCE)?;
        load.clean("with the leader killed in a step")?;
        cluster.start_coordinator(leader)?;
        cluster.agree()?;
        for name in ["before-the-kill", "after-the-kill"] {
            is_there(cluster, "environment", name)?;
        }

        let rollout = begin(cluster, "3", "steps", &[])?;
        weight(cluster, &rollout, 2_500)?;
        let leader = cluster.leader()?;
        let stopped = cluster.stop_coordinator(leader)?;
        anyhow::ensure!(stopped.success(), "SIGTERM: {stopped}");
        acknowledge(cluster, "after-the-stop")?;
        anyhow::ensure!(cluster.leader()? != leader, "nobody took over");
        ends(cluster, &rollout, "FINALIZED")?;
        load.wait_for("3", 20, PATIENCE)?;
        cluster.start_coordinator(leader)?;
        cluster.agree()?;
        load.clean("with the leader told to end in a step")
    });
}

#[test]
fn every_coordinator_is_killed_once_in_a_rollout_and_then_all() {
    story(WHOLE, |cluster| {
        let port = shop(cluster)?;
        establish(cluster, "1")?;
        publish(cluster, "2")?;
        publish(cluster, "3")?;
        let load = load(cluster, port);
        load.wait_for("1", 20, PATIENCE)?;

        let rollout = begin(cluster, "2", "steps", &["--set", "bake=3s"])?;
        for position in 0..3 {
            weight(cluster, &rollout, [0, 2_500, 5_000][position])?;
            acknowledge(cluster, &format!("before-{position}"))?;
            cluster.kill_coordinator(position)?;
            acknowledge(cluster, &format!("without-{position}"))?;
            cluster.start_coordinator(position)?;
            cluster.agree()?;
        }
        ends(cluster, &rollout, "FINALIZED")?;
        load.wait_for("2", 20, PATIENCE)?;
        load.clean("with each coordinator killed once")?;

        let rollout = begin(cluster, "3", "steps", &[])?;
        weight(cluster, &rollout, 2_500)?;
        acknowledge(cluster, "the-last-one")?;
        for position in 0..3 {
            cluster.kill_coordinator(position)?;
        }
        // Traffic flows on as it was divided, with nobody there to say so.
        load.wait_for("2", 50, PATIENCE)?;
        load.wait_for("3", 20, PATIENCE)?;
        for position in 0..3 {
            cluster.start_coordinator(position)?;
        }
        poll::until("a leader", PATIENCE, || cluster.leader())?;
        cluster.agree()?;
        for position in 0..3 {
            is_there(cluster, "environment", &format!("before-{position}"))?;
            is_there(cluster, "environment", &format!("without-{position}"))?;
        }
        is_there(cluster, "environment", "the-last-one")?;
        ends(cluster, &rollout, "FINALIZED")?;
        load.wait_for("3", 20, PATIENCE)?;
        load.clean("with all coordinators killed")
    });
}
