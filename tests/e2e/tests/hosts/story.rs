//! Three hosts from the packages to the purge, in one story: each chapter goes on where the one before
//! ended, as the life of an installation does.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tidegate_e2e::support::{begin, ends, establish, get, publish, publish_files, shop_at, weight};
use tidegate_harness::cluster::{PATIENCE, number, programs, text};
use tidegate_harness::load::Load;
use tidegate_harness::nspawn::Host;
use tidegate_harness::{Client as _, poll};

use crate::service::{AGENT, COORDINATOR, Packages, Service, journal, main_pid, property};

/// The port of the scope `shop`.
const PORT: u16 = 8080;

#[test]
fn three_hosts_in_service() {
    let mut service = match Service::boot(3, "1.0.0") {
        Ok(service) => service,
        Err(error) => panic!("{error:?}"),
    };
    if let Err(error) = tell(&mut service) {
        let tails = service.hosts().tails();
        let kept = service.hosts().keep();
        panic!("{error:?}\n\n{tails}\neverything is in {}", kept.display());
    }
}

fn tell(service: &mut Service) -> anyhow::Result<()> {
    installed_and_idle(service).context("installed and idle")?;
    service.found().context("the cluster is founded")?;
    the_daemons_speak_to_systemd(service).context("the daemons speak to systemd")?;
    shop_at(service, PORT)?;
    establish(service, "1").context("the first version")?;
    let first = active(service)?;
    a_crash_is_mended(service, &first).context("a crash is mended")?;
    a_crash_loop_is_rolled_back(service).context("a crash loop is rolled back")?;
    a_host_reboots_in_a_step(service).context("a host reboots in a step")?;
    a_host_loses_its_power_in_a_step(service).context("a host loses its power")?;
    everything_is_upgraded_in_a_rollout(service).context("everything is upgraded")?;
    a_hanging_agent_is_killed(service).context("a hanging agent is killed")?;
    the_executor_conforms(service.host(1)).context("the executor conforms")?;
    a_host_is_purged(service).context("a host is purged")
}

/// The deployment that the shop's scope is on.
fn active(service: &Service) -> anyhow::Result<String> {
    let view = service.tidegate(&["scope", "get", "shop"])?.json()?;
    let id = text(&view["active"], "id");
    ensure!(!id.is_empty(), "no active deployment: {view}");
    Ok(id.to_owned())
}

/// The packages bring units that wait for a configuration.
fn installed_and_idle(service: &Service) -> anyhow::Result<()> {
    let host = service.host(0);
    for unit in [AGENT, COORDINATOR] {
        let enabled = host.run(&["systemctl", "is-enabled", unit])?;
        ensure!(enabled.stdout.trim() == "enabled", "{enabled}");
        let state = property(host, unit, "ActiveState")?;
        ensure!(
            state == "inactive",
            "{unit} is {state} before it is configured"
        );
    }
    let checked = host.shell("systemd-analyze verify /lib/systemd/system/tidegate-*.service")?;
    checked.ok()?;
    Ok(())
}

/// `systemctl status` says something, and a reload leaves the process in its place.
fn the_daemons_speak_to_systemd(service: &Service) -> anyhow::Result<()> {
    let host = service.host(0);
    for unit in [AGENT, COORDINATOR] {
        let told = property(host, unit, "StatusText")?;
        ensure!(!told.is_empty(), "{unit} tells no status");
        let before = main_pid(host, unit)?;
        host.run(&["systemctl", "reload", unit])?.ok()?;
        ensure!(
            main_pid(host, unit)? == before,
            "the reload of {unit} began anew"
        );
        let state = property(host, unit, "ActiveState")?;
        ensure!(
            state == "active",
            "{unit} is {state}: {}",
            journal(host, unit)
        );
    }
    Ok(())
}

/// The healthy instance of a deployment on an agent, as the cluster knows it.
fn instance(service: &Service, id: &str, agent: &str) -> anyhow::Result<Value> {
    poll::until(&format!("a healthy instance on {agent}"), PATIENCE, || {
        let found = get(service, id)?;
        let all = found["participants"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let own = all.iter().find(|part| text(part, "agent") == agent);
        let instance = own.map(|part| part["instances"][0].clone());
        let instance = instance.unwrap_or_default();
        let healthy = text(&instance, "state") == "healthy" && number(&instance, "pid") > 0;
        poll::holds(healthy, || found.to_string())?;
        Ok(instance)
    })
}

/// The units of the shop's instances on a host.
fn units(host: &Host) -> anyhow::Result<Vec<String>> {
    let list = [
        "systemctl",
        "list-units",
        "--plain",
        "--no-legend",
        "--state=active",
        "tidegate-shop-*",
    ];
    let listed = host.run(&list)?.ok()?;
    let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
    Ok(listed.stdout.lines().filter_map(first).collect())
}

fn a_crash_is_mended(service: &Service, deployment: &str) -> anyhow::Result<()> {
    let host = service.host(1);
    let before = instance(service, deployment, host.name())?;
    let running = units(host)?;
    ensure!(running.len() == 1, "want one unit: {running:?}");
    let pid = number(&before, "pid");
    ensure!(
        u64::from(main_pid(host, &running[0])?) == pid,
        "{running:?}: {before}"
    );
    // Nothing of it runs as root.
    let user = host
        .run(&["ps", "-o", "user=", "-p", &pid.to_string()])?
        .ok()?;
    ensure!(user.stdout.trim() != "root", "{user}");
    host.run(&["kill", "-KILL", &pid.to_string()])?.ok()?;
    let again = poll::until("another process", PATIENCE, || {
        let now = instance(service, deployment, host.name())?;
        poll::holds(number(&now, "pid") != pid, || now.to_string())?;
        Ok(now)
    })?;
    ensure!(number(&again, "restarts") == 1, "{again}");
    let load = Load::start(&service.doors(PORT));
    load.wait_for("1", 20, PATIENCE)?;
    load.clean("after a crash")
}

fn a_crash_loop_is_rolled_back(service: &Service) -> anyhow::Result<()> {
    let load = Load::start(&service.doors(PORT));
    let script = "#!/bin/sh\necho the heap is gone >&2\nexit 9\n";
    let files = [("start", script, true)];
    publish_files(service, "bad", &files, "./start")?;
    let looping = begin(service, "bad", "by-hand", &[])?;
    let ended = ends(service, &looping, "ROLLED_BACK")?;
    ensure!(text(&ended, "message").contains("MAX_RESTARTS"), "{ended}");
    let causes = ended["causes"].to_string();
    for part in ["exit status 9", "the heap is gone"] {
        ensure!(causes.contains(part), "\"{part}\" is missing: {ended}");
    }
    load.wait_for("1", 20, PATIENCE)?;
    ensure!(load.seen().of("bad") == 0, "{:?}", load.seen());
    load.clean("while a version crashed")?;
    service.converged("shop")?;
    for position in 0..3 {
        let running = units(service.host(position))?;
        ensure!(running.len() == 1, "left over: {running:?}");
    }
    Ok(())
}

/// The position of the host whose coordinator leads.
fn leader(service: &Service) -> anyhow::Result<usize> {
    let status = service.tidegate(&["cluster", "status"])?.json()?;
    let members = status["members"].as_array().cloned().unwrap_or_default();
    let leader = members
        .iter()
        .find(|member| text(member, "role") == "leader");
    let name = leader.map(|member| text(member, "name"));
    (0..3)
        .find(|position| Some(service.host(*position).name()) == name)
        .with_context(|| format!("nobody leads: {status}"))
}

/// The host of the leader goes, with its share of the traffic, in the middle of a step.
fn a_host_reboots_in_a_step(service: &Service) -> anyhow::Result<()> {
    publish(service, "2")?;
    let gone = leader(service)?;
    let mut doors = service.doors(PORT);
    let door = doors.remove(gone);
    let load = Load::start(&doors);
    let rollout = begin(service, "2", "steps", &[])?;
    weight(service, &rollout, 2_500)?;
    let host = service.host(gone);
    host.reboot()?;
    ends(service, &rollout, "FINALIZED")?;
    load.wait_for("2", 20, PATIENCE)?;
    load.clean(&format!("while {} rebooted", host.name()))?;
    drop(load.stop());
    service.all_members()?;
    service.all_connected()?;
    service.converged("shop")?;
    instance(service, &rollout, host.name())?;
    let load = Load::start(&[door]);
    load.wait_for("2", 20, PATIENCE)?;
    let seen = load.stop();
    ensure!(
        seen.failures == 0 && seen.of("1") == 0,
        "{}: {seen:?}",
        host.name()
    );
    Ok(())
}

/// No process of the host ends in order; the rollout waits for a person meanwhile, and is taken back.
fn a_host_loses_its_power_in_a_step(service: &mut Service) -> anyhow::Result<()> {
    let gone = (leader(service)? + 1) % 3;
    let mut doors = service.doors(PORT);
    let door = doors.remove(gone);
    publish(service, "cut")?;
    let rollout = begin(service, "cut", "by-hand", &[])?;
    weight(service, &rollout, 2_000)?;
    let load = Load::start(&doors);
    service.hosts().host_mut(gone).switch_off()?;
    load.wait_for("2", 20, PATIENCE)?;
    service.hosts().host_mut(gone).switch_on()?;
    let host = service.host(gone);
    host.is_up()?;
    service.all_members()?;
    service.all_connected()?;
    instance(service, &rollout, host.name())?;
    // Its proxy is back before its instances are, and says so to whoever asks meanwhile.
    let first = Load::start(std::slice::from_ref(&door));
    first.wait_for("2", 1, PATIENCE)?;
    drop(first.stop());
    let returned = Load::start(&[door]);
    returned.wait_for("2", 40, PATIENCE)?;
    returned.wait_for("cut", 5, PATIENCE)?;
    let back = service.tidegate(&["deployment", "rollback", &rollout])?;
    back.ok()?;
    ends(service, &rollout, "ROLLED_BACK")?;
    service.converged("shop")?;
    returned.clean(&format!("once {} was back", host.name()))?;
    load.clean(&format!("while {} had no power", host.name()))
}

/// Agents, coordinators and proxies are replaced on one host after the other, under load, while a
/// rollout stands at one of its steps; not one request fails and the rollout goes on.
fn everything_is_upgraded_in_a_rollout(service: &Service) -> anyhow::Result<()> {
    publish(service, "3")?;
    let rollout = begin(service, "3", "by-hand", &[])?;
    weight(service, &rollout, 2_000)?;
    // About five hundred requests a second.
    let doors = service.doors(PORT);
    let load = Load::start(&[&doors[..], &doors].concat());
    load.wait_for("3", 5, PATIENCE)?;
    let newer = Packages::build(service.dir(), "1.0.1")?;
    ensure!(newer.version != service.packages().version);
    for position in 0..3 {
        let host = service.host(position);
        let instances = units(host)?;
        let agent = main_pid(host, AGENT)?;
        let coordinator = main_pid(host, COORDINATOR)?;
        newer.install(host)?;
        let shown = host.run(&[
            "dpkg-query",
            "--show",
            "--showformat=${Version}",
            "tidegate-agent",
        ])?;
        ensure!(shown.stdout.starts_with("1.0.1"), "{shown}");
        ensure!(
            main_pid(host, AGENT)? != agent,
            "the old agent runs on {}",
            host.name()
        );
        ensure!(
            main_pid(host, COORDINATOR)? != coordinator,
            "the old coordinator runs"
        );
        ensure!(
            units(host)? == instances,
            "instances were touched: {instances:?}"
        );
        service.all_members()?;
        service.all_connected()?;
        load.clean(&format!("after the upgrade of {}", host.name()))?;
    }
    let act = |verb: &[&str]| {
        service
            .tidegate(&[&["deployment"], verb, &[&rollout]].concat())?
            .ok()
    };
    act(&["promote", "--full"])?;
    weight(service, &rollout, 10_000)?;
    poll::until("the end of the bake", PATIENCE, || act(&["finalize"]))?;
    ends(service, &rollout, "FINALIZED")?;
    load.wait_for("3", 20, PATIENCE)?;
    load.clean("after the upgrade")
}

/// The data plane of a host, once no older one drains beside it.
fn proxy(host: &Host) -> anyhow::Result<u32> {
    poll::until("one proxy", PATIENCE, || {
        let found = host.run(&["pgrep", "--full", "tidegate-agent proxy"])?;
        let pids: Vec<&str> = found.stdout.lines().collect();
        poll::holds(pids.len() == 1, || found.to_string())?;
        Ok(pids[0].parse()?)
    })
}

/// An agent that does nothing any more is killed by systemd, and the next one takes over what runs.
fn a_hanging_agent_is_killed(service: &Service) -> anyhow::Result<()> {
    let host = service.host(0);
    let place = format!("/etc/systemd/system/{AGENT}.d/sooner.conf");
    host.write(&place, b"[Service]\nWatchdogSec=3s\n", 0o644)?;
    host.run(&["systemctl", "daemon-reload"])?.ok()?;
    host.run(&["systemctl", "restart", AGENT])?.ok()?;
    service.all_connected()?;
    let deployment = active(service)?;
    let running = instance(service, &deployment, host.name())?;
    let (hanging, proxy) = (main_pid(host, AGENT)?, proxy(host)?);
    let load = Load::start(&[service.doors(PORT)[0]]);
    host.run(&["kill", "-STOP", &hanging.to_string()])?.ok()?;
    poll::until("another agent", PATIENCE, || {
        let now = main_pid(host, AGENT)?;
        let ready = property(host, AGENT, "ActiveState")? == "active";
        poll::holds(now != hanging && ready, || journal(host, AGENT))
    })?;
    let said = journal(host, AGENT);
    ensure!(said.contains("Watchdog timeout"), "{said}");
    service.all_connected()?;
    let after = instance(service, &deployment, host.name())?;
    ensure!(
        number(&after, "pid") == number(&running, "pid"),
        "{running} became {after}"
    );
    ensure!(self::proxy(host)? == proxy, "another proxy");
    load.wait_for("3", 20, PATIENCE)?;
    load.clean("while the agent hung and was killed")
}

/// The suite that every executor passes, over this host's systemd.
fn the_executor_conforms(host: &Host) -> anyhow::Result<()> {
    let suite: PathBuf = programs()?.join("examples").join("systemd_conformance");
    ensure!(
        suite.is_file(),
        "{} is missing: cargo build -p tidegate-agent --features testing --example systemd_conformance",
        suite.display()
    );
    host.copy_in(&suite, "/root/conformance", 0o755)?;
    let done = host.run(&["/root/conformance"])?.ok()?;
    ensure!(!done.stdout.trim().is_empty(), "it says nothing: {done}");
    host.run(&["rm", "/root/conformance"])?.ok()?;
    Ok(())
}

/// What a purge must not leave: files, users, units, processes. The others go on.
fn a_host_is_purged(service: &Service) -> anyhow::Result<()> {
    let host = service.host(2);
    let load = Load::start(&service.doors(PORT)[..2]);
    let purge = [
        "dpkg",
        "--purge",
        "tidegate-agent",
        "tidegate-coordinator",
        "tidegate",
    ];
    host.run(&purge)?.ok()?;
    let left = [
        (
            "files",
            "find / /run -xdev -iname '*tidegate*' -not -path '/proc/*' -not -path '/sys/*'",
        ),
        ("processes", "ps -eo args= | grep -i '[t]idegate'"),
        (
            "units",
            "systemctl list-units --all --plain --no-legend '*tidegate*'",
        ),
        (
            "users and groups",
            "grep -h tidegate /etc/passwd /etc/group /etc/shadow",
        ),
        ("listeners", "ss -Hltn | grep -E ':(744[0-3]|8080) '"),
    ];
    for (what, line) in left {
        // systemd takes the private folders of ended units away a moment after their end.
        poll::until(&format!("no {what} left"), PATIENCE, || {
            let found = host.shell(line)?;
            poll::holds(found.stdout.trim().is_empty(), || found.to_string())
        })?;
    }
    load.wait_for("3", 20, PATIENCE)?;
    load.clean("while a host was purged")
}
