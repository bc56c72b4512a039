//! Programs are replaced while they work: the agent with its proxy under real load, and the coordinators one
//! by one while a rollout runs and commands come in. No request fails and no command is lost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tidegate_e2e::story;
use tidegate_e2e::support::{
    apply, begin, ends, establish, instances, proxy, publish, shop, weight,
};
use tidegate_harness::cluster::control::{Found, signal};
use tidegate_harness::cluster::{PATIENCE, number, text};
use tidegate_harness::load::Load;
use tidegate_harness::{Cluster, Shape, http, poll};

const ONE: Shape = Shape {
    coordinators: 1,
    agents: 1,
};

/// The proxy that serves among the processes of an agent, when it is another one than before.
fn next_proxy(cluster: &Cluster, old: &Found) -> anyhow::Result<Found> {
    poll::until("another proxy", PATIENCE, || {
        let found = cluster.children_of_agent(0);
        let mut proxies = found
            .iter()
            .filter(|found| found.command.contains(" proxy --dir "));
        let next = proxies.rfind(|found| found.pid != old.pid);
        next.cloned().with_context(|| format!("{found:#?}"))
    })
}

/// What the cluster knows of an agent's proxy.
fn told(cluster: &Cluster) -> anyhow::Result<Value> {
    let agent = cluster.tidegate(&["agent", "get", "a1"])?.json()?;
    Ok(agent["proxy"].clone())
}

#[test]
fn the_agent_and_its_proxy_are_replaced_under_load() {
    story(ONE, |cluster| {
        cluster.own_programs()?;
        cluster.stop_agent(0)?;
        cluster.start_agent(0)?;
        let port = shop(cluster)?;
        establish(cluster, "1")?;
        publish(cluster, "2")?;
        let at = cluster.proxy(0, port);
        let load = Load::at_rate(&[at], 500);
        load.wait_for("1", 200, PATIENCE)?;
        let before = cluster.children_of_agent(0);
        let old = proxy(&before)?;

        // The same program again: the agent alone is another one.
        cluster.stop_agent(0)?;
        load.wait_for("1", 200, PATIENCE)?;
        cluster.start_agent(0)?;
        load.wait_for("1", 200, PATIENCE)?;
        ensure!(
            cluster.children_of_agent(0) == before,
            "not the same children"
        );

        // In the middle of a rollout: another build.
        let rollout = begin(cluster, "2", "steps", &[])?;
        weight(cluster, &rollout, 2_500)?;
        cluster.replace_agent_program()?;
        cluster.stop_agent(0)?;
        load.wait_for("1", 100, PATIENCE)?;
        cluster.start_agent(0)?;
        let second = next_proxy(cluster, &old)?;
        poll::until("the new proxy in the agent's report", PATIENCE, || {
            let proxy = told(cluster)?;
            poll::holds(number(&proxy, "pid") == u64::from(second.pid), || {
                proxy.to_string()
            })
        })?;
        ends(cluster, &rollout, "FINALIZED")?;
        load.wait_for("2", 300, PATIENCE)?;
        let left = instances(&cluster.children_of_agent(0));
        ensure!(left.len() == 1, "{left:#?}");
        poll::until("the old proxy is gone", PATIENCE, || {
            let found = cluster.children_of_agent(0);
            poll::holds(!found.contains(&old), || format!("{found:#?}"))
        })?;
        load.clean("with the agent and the proxy replaced")?;

        // A killed agent, and its next build: kill -9 takes nothing from anybody.
        cluster.replace_agent_program()?;
        cluster.kill_agent(0)?;
        load.wait_for("2", 100, PATIENCE)?;
        cluster.start_agent(0)?;
        let third = next_proxy(cluster, &second)?;
        ensure!(third.pid != second.pid, "the same proxy");
        load.wait_for("2", 300, PATIENCE)?;
        let seen = load.stop();
        ensure!(seen.failures == 0, "{seen:#?}");
        ensure!(seen.good() > 1_000, "{seen:?}");
        counts_are_whole(cluster, &seen.versions)
    });
}

/// The cluster's counts of the version that serves are at least what the load has seen of it since the
/// last restart of an instance's counts, and not more than all: nothing lost, nothing doubled.
fn counts_are_whole(cluster: &Cluster, seen: &BTreeMap<String, u64>) -> anyhow::Result<()> {
    let total: u64 = seen.values().sum();
    let newest = cluster.newest("shop")?;
    let id = text(&newest, "id").to_owned();
    poll::until("all requests in the proxy's counts", PATIENCE, || {
        let dir = cluster.agent_dir(0).display().to_string();
        let flags = ["proxy", "status", "--dir", &dir].map(str::to_owned);
        let told = cluster.finish("tidegate-agent", &flags, &[])?.ok()?.stdout;
        let line = told.lines().find(|line| line.contains(&id));
        let line = line.with_context(|| told.clone())?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| word.starts_with("requests"));
        let counted: u64 = words[at.context("no requests")? - 1].parse()?;
        // The load saw version 2 alone; one request may have been made by hand.
        let of_load = seen.get("2").copied().unwrap_or(0);
        poll::holds(counted >= of_load && counted <= total, || {
            format!("{counted} counted, {of_load} of {total} seen: {told}")
        })
    })
}

#[test]
fn whichever_proxy_is_killed_in_a_hand_over_one_serves_on() {
    story(ONE, |cluster| {
        cluster.own_programs()?;
        let port = shop(cluster)?;
        establish(cluster, "1")?;
        let at = cluster.proxy(0, port);
        let mut old = proxy(&cluster.children_of_agent(0))?;
        for kill_old in [true, false, true] {
            cluster.replace_agent_program()?;
            cluster.stop_agent(0)?;
            cluster.start_agent(0)?;
            let new = next_proxy(cluster, &old)?;
            signal(if kill_old { old.pid } else { new.pid }, Signal::KILL).ok();
            poll::until("an answer", PATIENCE, || http::get(at, "/"))?;
            let dir = cluster.agent_dir(0).join("proxy").join("lock");
            old = poll::until("one proxy", PATIENCE, || {
                let found = cluster.children_of_agent(0);
                let one = proxy(&found)?;
                let holder = std::fs::read_to_string(&dir)?;
                poll::holds(holder.trim() == one.pid.to_string(), || {
                    format!("{holder} {found:#?}")
                })?;
                Ok(one)
            })?;
        }
        let load = Load::at_rate(&[at], 100);
        load.wait_for("1", 100, PATIENCE)?;
        load.clean("after the hand-overs")
    });
}

/// Commands without a pause from several people, each with request ids of its own.
struct Commands {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Commands {
    /// Runs `tell` while commands come in; gives the names of what was acknowledged.
    fn during(
        cluster: &mut Cluster,
        tell: impl FnOnce(&mut Cluster) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<String>> {
        let commands = Self {
            stop: Arc::new(AtomicBool::new(false)),
            acknowledged: Arc::default(),
            failures: Arc::default(),
        };
        let person = cluster.person();
        let next = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !commands.stop.load(Ordering::SeqCst) {
                        let name = format!("made-{}", next.fetch_add(1, Ordering::SeqCst));
                        let arguments = ["environment", "create", &name, "--tier", "3"];
                        let made = person.tidegate(&arguments).and_then(|output| output.ok());
                        let lock = |list: &Mutex<Vec<String>>, line: String| {
                            list.lock().map(|mut list| list.push(line)).ok();
                        };
                        match made {
                            Ok(_) => lock(&commands.acknowledged, name),
                            Err(error) => lock(&commands.failures, format!("{name}: {error:#}")),
                        }
                    }
                });
            }
            let told = tell(cluster);
            commands.stop.store(true, Ordering::SeqCst);
            told
        })?;
        let failures = commands.failures.lock().map(|list| list.clone());
        let failures = failures.unwrap_or_default();
        ensure!(failures.is_empty(), "commands failed: {failures:#?}");
        let made = commands.acknowledged.lock().map(|list| list.clone());
        Ok(made.unwrap_or_default())
    }
}

#[test]
fn coordinators_are_restarted_one_by_one_while_a_rollout_runs() {
    let shape = Shape {
        coordinators: 3,
        agents: 2,
    };
    story(shape, |cluster| {
        let port = shop(cluster)?;
        // Long enough that every coordinator is restarted within the steps.
        apply(
            cluster,
            "kind: strategy\nname: slow\nspec:\n  traffic: {steps: [{percent: 20, hold: 15s}, \
             {percent: 60, hold: 15s}, {percent: 100, hold: 1s}]}\n  bake: 1s\n  drain: 1s\n",
        )?;
        establish(cluster, "1")?;
        publish(cluster, "2")?;
        let load = Load::at_rate(&[cluster.proxy(0, port), cluster.proxy(1, port)], 200);
        load.wait_for("1", 50, PATIENCE)?;
        let rollout = begin(cluster, "2", "slow", &[])?;
        weight(cluster, &rollout, 2_000)?;
        let made = Commands::during(cluster, |cluster| {
            for position in 0..3 {
                let status = cluster.stop_coordinator(position)?;
                ensure!(status.success(), "{status}");
                load.wait_for("1", 20, PATIENCE)?;
                cluster.start_coordinator(position)?;
                cluster.all_up()?;
            }
            Ok(())
        })?;
        ensure!(made.len() >= 5, "there were hardly any commands: {made:?}");
        ends(cluster, &rollout, "FINALIZED")?;
        load.wait_for("2", 100, PATIENCE)?;
        load.clean("with every coordinator restarted")?;
        cluster.agree()?;
        exactly_once(cluster, &made)
    });
}

/// Each acknowledged command stands once in the audit log, and what it made is there.
fn exactly_once(cluster: &Cluster, made: &[String]) -> anyhow::Result<()> {
    let listed = cluster.tidegate(&["environment", "list"])?.ok()?.stdout;
    let log = cluster
        .tidegate(&["audit", "list", "--limit", "0"])?
        .json()?;
    let events = log["events"].as_array().context("no events")?;
    for name in made {
        ensure!(listed.contains(&format!("\"{name}\"")), "{name} is lost");
        let times = events.iter().filter(|event| text(event, "object") == name);
        let times = times.count();
        ensure!(times == 1, "{name} stands {times} times in the audit log");
    }
    Ok(())
}
