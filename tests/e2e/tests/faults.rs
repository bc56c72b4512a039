//! What breaks while it works: coordinators killed one by one and all at once, agents, proxies and
//! instances killed, a disk that is full, an agent that is cut off; in the middle of traffic steps
//! and under a steady load that counts every failed request.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use rustix::process::Signal;
use serde_json::Value;
use tidegate_e2e::story;
use tidegate_e2e::support::{
    begin, ends, establish, get, instances, is_there, proxy, publish, publish_files, run_line,
    shop, weight,
};
use tidegate_harness::cluster::control::signal;
use tidegate_harness::cluster::{PATIENCE, number, programs, text};
use tidegate_harness::load::Load;
use tidegate_harness::{Cluster, Process, Shape, http, poll};

const WHOLE: Shape = Shape {
    coordinators: 3,
    agents: 2,
};
const ONE: Shape = Shape {
    coordinators: 1,
    agents: 1,
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
        ensure!(stopped.success(), "SIGTERM: {stopped}");
        acknowledge(cluster, "after-the-stop")?;
        ensure!(cluster.leader()? != leader, "nobody took over");
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

#[test]
fn an_agent_its_group_and_its_proxy_are_killed_in_the_middle_of_a_step() {
    story(ONE, |cluster| {
        let port = shop(cluster)?;
        establish(cluster, "1")?;
        publish(cluster, "2")?;
        publish(cluster, "3")?;
        publish(cluster, "4")?;
        let load = Load::start(&[cluster.proxy(0, port)]);
        load.wait_for("1", 20, PATIENCE)?;

        for (version, whole_group) in [("2", false), ("3", true)] {
            let old = load.seen();
            let rollout = begin(cluster, version, "steps", &[])?;
            weight(cluster, &rollout, 2_500)?;
            let before = cluster.children_of_agent(0);
            ensure!(instances(&before).len() == 2, "{before:#?}");
            if whole_group {
                cluster.kill_agent_group(0)?;
            } else {
                cluster.kill_agent(0)?;
            }
            load.wait_for(version, 10, PATIENCE)?;
            cluster.start_agent(0)?;
            let during = cluster.children_of_agent(0);
            ensure!(before == during, "{before:#?} became {during:#?}");
            ends(cluster, &rollout, "FINALIZED")?;
            let after = cluster.children_of_agent(0);
            ensure!(proxy(&after)? == proxy(&before)?, "another proxy");
            let left = instances(&after);
            ensure!(left.len() == 1, "want one instance: {left:#?}");
            ensure!(before.contains(&left[0]), "started anew: {left:#?}");
            load.wait_for(version, 20, PATIENCE)?;
            load.clean(&format!("killed during version {version}, before: {old:?}"))?;
        }
        drop(load.stop());
        proxy_comes_back(cluster, port)
    });
}

/// Kills the proxy in a step: the agent starts it again with the same listener and weights.
fn proxy_comes_back(cluster: &Cluster, port: u16) -> anyhow::Result<()> {
    let rollout = begin(cluster, "4", "by-hand", &[])?;
    weight(cluster, &rollout, 2_000)?;
    let before = cluster.children_of_agent(0);
    let old = proxy(&before)?;
    signal(old.pid, Signal::KILL)?;
    let at = cluster.proxy(0, port);
    poll::until("an answer of the new proxy", PATIENCE, || {
        http::get(at, "/")
    })?;
    let after = cluster.children_of_agent(0);
    ensure!(proxy(&after)?.pid != old.pid, "the old one answers");
    ensure!(instances(&after) == instances(&before), "{after:#?}");
    let load = Load::start(&[at]);
    load.wait_for("3", 80, PATIENCE)?;
    load.wait_for("4", 10, PATIENCE)?;
    let seen = load.stop();
    ensure!(seen.failures == 0, "{seen:#?}");
    // Four of five stay with the old version.
    ensure!(seen.of("3") > 2 * seen.of("4"), "{seen:?}");
    weight(cluster, &rollout, 2_000)?;
    cluster
        .tidegate(&["deployment", "rollback", &rollout])?
        .ok()?;
    ends(cluster, &rollout, "ROLLED_BACK").map(drop)
}

#[test]
fn a_killed_instance_is_started_again_and_a_crash_loop_is_rolled_back() {
    story(ONE, |cluster| {
        let port = shop(cluster)?;
        publish(cluster, "1")?;
        let first = begin(cluster, "1", "at-once", &[])?;
        ends(cluster, &first, "FINALIZED")?;
        let killed = number(&instance_of(cluster, &first)?, "pid");
        signal(u32::try_from(killed)?, Signal::KILL)?;
        let again = poll::until("another process", PATIENCE, || {
            let instance = instance_of(cluster, &first)?;
            let pid = number(&instance, "pid");
            poll::holds(pid != killed, || instance.to_string())?;
            Ok(instance)
        })?;
        ensure!(number(&again, "restarts") == 1, "{again}");
        ensure!(text(&again, "lastExit").contains('9'), "{again}");

        // Healthy for a moment each time, so that the rollout has begun when it dies.
        let script = format!(
            "#!/bin/sh\n{} &\nsleep 1\nkill -9 $!\necho the heap is gone >&2\nexit 9\n",
            run_line()?.replace("${RELEASE_DIR}", "$TIDEGATE_RELEASE_DIR")
        );
        let told = "{\"version\": \"2\", \"error_rate\": 0.0}";
        let files = [("app.json", told, false), ("start", &script, true)];
        publish_files(cluster, "2", &files, "./start")?;
        let looping = begin(cluster, "2", "by-hand", &[])?;
        let ended = ends(cluster, &looping, "ROLLED_BACK")?;
        ensure!(text(&ended, "message").contains("MAX_RESTARTS"), "{ended}");
        let cause = &ended["causes"][0];
        ensure!(text(cause, "agent") == "a1", "{ended}");
        for part in ["exit status 9", "the heap is gone"] {
            ensure!(text(cause, "message").contains(part), "{ended}");
        }
        let untouched = instance_of(cluster, &first)?;
        ensure!(
            number(&untouched, "pid") == number(&again, "pid"),
            "{untouched}"
        );
        let load = Load::start(&[cluster.proxy(0, port)]);
        load.wait_for("1", 20, PATIENCE)?;
        let seen = load.stop();
        ensure!(seen.failures == 0 && seen.of("2") == 0, "{seen:?}");
        Ok(())
    });
}

/// The instance of a deployment on the only agent, as the cluster knows it, once it is healthy.
fn instance_of(cluster: &Cluster, id: &str) -> anyhow::Result<Value> {
    poll::until("a healthy instance", PATIENCE, || {
        let found = get(cluster, id)?;
        let instance = found["participants"][0]["instances"][0].clone();
        let healthy = text(&instance, "state") == "healthy" && number(&instance, "pid") > 0;
        poll::holds(healthy, || found.to_string())?;
        Ok(instance)
    })
}

#[test]
fn an_agent_that_is_cut_off_is_lost_and_converges_when_it_returns() {
    let shape = Shape {
        coordinators: 1,
        agents: 3,
    };
    story(shape, |cluster| {
        let file = cluster.coordinator_dir(0).join("coordinator.toml");
        let written = fs::read_to_string(&file)?;
        let shorter = written.replace("lost_after = \"30s\"", "lost_after = \"2s\"");
        ensure!(written != shorter, "no lost_after in {written}");
        fs::write(&file, shorter)?;
        cluster.stop_coordinator(0)?;
        cluster.start_coordinator(0)?;
        let port = shop(cluster)?;
        establish(cluster, "1")?;
        publish(cluster, "2")?;
        let everywhere = [0, 1, 2].map(|agent| cluster.proxy(agent, port));
        let load = Load::start(&everywhere);
        load.wait_for("1", 20, PATIENCE)?;

        let rollout = begin(cluster, "2", "steps", &[])?;
        weight(cluster, &rollout, 2_500)?;
        cluster.signal_agent(2, Signal::STOP)?;
        poll::until("a3 among the lost agents", PATIENCE, || {
            let view = cluster.tidegate(&["scope", "get", "shop"])?.json()?;
            let lost = view["lostAgents"].as_array().cloned().unwrap_or_default();
            poll::holds(lost == ["a3"], || view.to_string())
        })?;
        let agent = cluster.tidegate(&["agent", "get", "a3"])?.json()?;
        ensure!(agent["lost"] == true, "{agent}");
        ends(cluster, &rollout, "FINALIZED")?;
        let view = cluster.tidegate(&["scope", "get", "shop"])?.json()?;
        ensure!(view["leftovers"].to_string().contains("a3"), "{view}");
        load.wait_for("1", 20, PATIENCE)?;

        cluster.signal_agent(2, Signal::CONT)?;
        poll::until("nothing lost, nothing left", PATIENCE, || {
            let view = cluster.tidegate(&["scope", "get", "shop"])?.json()?;
            let none = |key: &str| view[key].as_array().is_none_or(Vec::is_empty);
            poll::holds(none("lostAgents") && none("leftovers"), || view.to_string())
        })?;
        load.clean("with an agent cut off and back")?;
        drop(load.stop());
        let load = Load::start(&everywhere[2..]);
        load.wait_for("2", 20, PATIENCE)?;
        let seen = load.stop();
        ensure!(seen.failures == 0 && seen.of("1") == 0, "{seen:?}");
        Ok(())
    });
}

#[test]
fn an_agent_that_is_taken_out_drains_and_serves_again_when_it_is_let_in() {
    let shape = Shape {
        coordinators: 1,
        agents: 2,
    };
    story(shape, |cluster| {
        let port = shop(cluster)?;
        establish(cluster, "1")?;
        let (stays, goes) = (cluster.proxy(0, port), cluster.proxy(1, port));
        let load = Load::start(&[stays]);
        let leaving = Load::start(&[goes]);
        leaving.wait_for("1", 20, PATIENCE)?;
        // Whoever still sends requests there meets a closed port, not a failing application.
        drop(leaving.stop());
        let instances = cluster.agent_dir(1).join("instances");
        ensure!(fs::read_dir(&instances)?.count() == 1);

        cluster.tidegate(&["agent", "remove", "a2"])?.ok()?;
        poll::until("the end of the instance", PATIENCE, || {
            let left = fs::read_dir(&instances)?.count();
            poll::holds(left == 0, || format!("{left} places are left"))
        })?;
        poll::until("a closed port", PATIENCE, || {
            let open = std::net::TcpStream::connect(goes).is_ok();
            poll::holds(!open, || format!("{goes} still listens"))
        })?;
        let view = cluster.tidegate(&["scope", "get", "shop"])?.json()?;
        ensure!(!view.to_string().contains("a2"), "{view}");
        load.wait_for("1", 20, PATIENCE)?;

        cluster.stop_agent(1)?;
        let token = cluster.token(&["agent", "--name", "a2"])?;
        let folder = cluster.agent_dir(1).display().to_string();
        let server = cluster.listeners(0).enroll;
        let flags = [
            "join", "--name", "a2", "--server", &server, "--dir", &folder,
        ];
        let environment = [("TIDEGATE_AGENT_TOKEN", token)];
        let flags = flags.map(str::to_owned);
        cluster
            .finish("tidegate-agent", &flags, &environment)?
            .ok()?;
        cluster.start_agent(1)?;
        let back = Load::start(&[goes]);
        back.wait_for("1", 20, PATIENCE)?;
        drop(back.stop());
        let seen = load.stop();
        ensure!(seen.failures == 0, "{seen:?}");
        Ok(())
    });
}

/// An agent whose folder is a small disk of its own, with everything that it started.
struct Confined {
    process: Process,
}

impl Drop for Confined {
    fn drop(&mut self) {
        // The agent ends what it started, and with it the disk goes away.
        self.process.signal(Signal::TERM).ok();
        self.process.wait(PATIENCE).ok();
    }
}

impl Confined {
    /// Starts the only agent again on a disk of this size.
    fn start(cluster: &mut Cluster, size: &str) -> anyhow::Result<Self> {
        cluster.stop_agent(0)?;
        let folder = cluster.agent_dir(0).to_owned();
        let flags = ["stop-all", "--dir", &folder.display().to_string()].map(str::to_owned);
        cluster.finish("tidegate-agent", &flags, &[])?.ok()?;
        let script = "set -e\n\
             cp -a \"$DIR\" \"$DIR.copy\"\n\
             mount -t tmpfs -o size=\"$SIZE\",mode=755 tmpfs \"$DIR\" || {\n\
               echo 'this test needs the right to mount: run it as root in a container that may' >&2\n\
               exit 77\n}\n\
             cp -a \"$DIR.copy/.\" \"$DIR/\"\n\
             exec \"$AGENT\" run --config \"$DIR/agent.toml\" --stop-everything-on-exit\n";
        let agent = programs()?.join("tidegate-agent");
        let environment = [
            ("DIR", folder.display().to_string()),
            ("SIZE", size.to_owned()),
            ("AGENT", agent.display().to_string()),
        ];
        let log = cluster.dir().join("logs").join("a1.log");
        let arguments = ["--mount", "--propagation", "private", "sh", "-c", script];
        let process = Process::start(
            "a1",
            Path::new("/usr/bin/unshare"),
            &arguments,
            &environment,
            &log,
        )?;
        let mut confined = Self { process };
        poll::until("the agent on its small disk", PATIENCE, || {
            let ended = confined.process.ended().ok().flatten();
            let agent = cluster.tidegate(&["agent", "get", "a1"])?.json()?;
            poll::holds(agent["connected"] == true, || {
                format!("ended: {ended:?}; {}", confined.process.output())
            })
        })?;
        Ok(confined)
    }

    /// What lies in a folder of the agent, with sizes.
    fn files(&self, folder: &Path) -> anyhow::Result<Vec<(String, u64)>> {
        let inside = format!("/proc/{}/root{}", self.process.id(), folder.display());
        let mut files = Vec::new();
        let mut folders = vec![PathBuf::from(&inside)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                let path = entry.path();
                let size = if entry.file_type()?.is_dir() {
                    folders.push(path.clone());
                    0
                } else {
                    entry.metadata()?.len()
                };
                let name = path.strip_prefix(&inside)?.display().to_string();
                files.push((name, size));
            }
        }
        files.sort();
        Ok(files)
    }
}

/// A text of a length that shrinks to about a twentieth: an archive of zeros alone would be refused
/// as a bomb.
fn compressible(length: usize) -> String {
    let mut text = String::with_capacity(length);
    let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
    while text.len() < length {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        text.push_str(&format!("{seed:0>256x}"));
    }
    text.truncate(length);
    text
}

#[test]
fn a_full_disk_while_unpacking_fails_the_deployment_alone() {
    story(ONE, |cluster| {
        let port = shop(cluster)?;
        let confined = Confined::start(cluster, "12m")?;
        establish(cluster, "1")?;
        let releases = cluster.agent_dir(0).join("releases");
        let before = confined.files(&releases)?;
        let load = Load::start(&[cluster.proxy(0, port)]);
        load.wait_for("1", 20, PATIENCE)?;

        // A small file that becomes a large one.
        let large = compressible(24 << 20);
        let files = [("app.json", "{}", false), ("large", &large, false)];
        publish_files(cluster, "2", &files, &run_line()?)?;
        let rollout = begin(cluster, "2", "steps", &[])?;
        let ended = ends(cluster, &rollout, "FAILED")?;
        let said = ended.to_string();
        for part in [
            "DISK_FULL",
            "a1",
            "bytes are needed",
            "are free",
            "25165824",
        ] {
            ensure!(said.contains(part), "\"{part}\" is missing: {said}");
        }
        let active = cluster.tidegate(&["scope", "get", "shop"])?.json()?;
        ensure!(text(&active["active"], "version") == "1", "{active}");
        poll::until("no partial files", PATIENCE, || {
            let after = confined.files(&releases)?;
            poll::holds(before == after, || format!("{before:?} became {after:?}"))
        })?;
        load.wait_for("1", 20, PATIENCE)?;
        load.clean("with a full disk")?;

        // The disk is as usable as before.
        drop(load.stop());
        establish(cluster, "3")?;
        drop(confined);
        Ok(())
    });
}
