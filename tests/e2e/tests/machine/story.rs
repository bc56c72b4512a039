//! The story of one machine: limits under `systemd`, limits under `process`, a power cut.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tidegate_e2e::support::{begin, ends, shop_at, weight};
use tidegate_harness::cluster::{PATIENCE, number, text};
use tidegate_harness::{Client as _, Output, poll};

use crate::guest::{COORDINATOR_DIR, Guest};

/// What a good release does.
const SERVES: &str = "exec /usr/bin/tidegate demo-app --release \"$TIDEGATE_RELEASE_DIR/app.json\"";
/// A child takes all the memory there is while its parent would go on.
const GREEDY: &str = "tail /dev/zero\nexec sleep 600";
/// More processes than it may have.
const BREEDS: &str = "for child in 1 2 3 4 5 6 7 8 9 10; do sleep 600 & done\nexec sleep 600";

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

const LIMITS: &str = "{memory: 96MiB, cpu: 0.75, processes: 40}";

#[test]
fn limits_hold_and_a_power_cut_is_survived() {
    let mut guest = match Guest::found() {
        Ok(guest) => guest,
        Err(error) => panic!("{error:?}"),
    };
    if let Err(error) = tell(&mut guest) {
        let tail = guest.machine().tail();
        let kept = guest.machine_mut().keep();
        panic!("{error:?}\n\n{tail}\neverything is in {}", kept.display());
    }
}

fn tell(guest: &mut Guest) -> anyhow::Result<()> {
    shop_at(guest, 8080)?;
    limits_hold(guest, "s").context("under the executor systemd")?;
    trouble_is_told_before(guest).context("in the agent's unit itself")?;
    guest.supervise()?;
    limits_hold(guest, "p").context("under the executor process")?;
    another_agent_tells_the_end(guest).context("an instance of an earlier agent")?;
    the_power_is_cut_in_a_step(guest).context("the power is cut")
}

/// Each limit is the kernel's, and what goes beyond it ends with that cause.
fn limits_hold(guest: &Guest, executor: &str) -> anyhow::Result<()> {
    let named = |version: &str| format!("{executor}-{version}");
    let good = guest.deploy((&named("good"), SERVES), LIMITS, "FINALIZED")?;
    let instance = guest.instance(text(&good, "id"))?;
    let group = guest.group(number(&instance, "pid"))?;
    for (file, wanted) in [
        ("memory.max", "100663296"),
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("cpu.max", "75000 100000"),
        ("pids.max", "40"),
    ] {
        let held = guest.read(&format!("{group}/{file}"))?;
        ensure!(held == wanted, "{group}/{file}: want {wanted}, have {held}");
    }
    let greedy = guest.deploy((&named("greedy"), GREEDY), "{memory: 32MiB}", "ROLLED_BACK")?;
    tells(
        &greedy,
        &["MAX_RESTARTS", "out of memory", "limits.memory is 32MiB"],
    )?;
    let breeds = guest.deploy((&named("breeds"), BREEDS), "{processes: 5}", "ROLLED_BACK")?;
    tells(&breeds, &["MAX_RESTARTS", "fork"])?;
    // Nothing of that came near the one that serves.
    let now = guest.instance(text(&good, "id"))?;
    ensure!(
        number(&now, "pid") == number(&instance, "pid"),
        "{instance}\n{now}"
    );
    Ok(())
}

fn check(guest: &Guest) -> anyhow::Result<Output> {
    guest.tidegate(&["scope", "check", "shop", "--release", "s-good"])
}

/// With `Delegate=yes` alone systemd could not start the agent a second time.
fn trouble_is_told_before(guest: &Guest) -> anyhow::Result<()> {
    let good = check(guest)?;
    ensure!(good.status == Some(0), "{good}");
    ensure!(good.stdout.contains("held to their limits"), "{good}");
    guest.change_agent(&[
        "Environment=TIDEGATE_AGENT_EXECUTOR=process",
        "Delegate=yes",
        "ProtectControlGroups=no",
    ])?;
    let told = check(guest)?;
    ensure!(told.status == Some(1), "{told}");
    for part in [
        "limits.memory, limits.cpu, limits.processes",
        "DelegateSubgroup=agent",
    ] {
        ensure!(told.stdout.contains(part), "\"{part}\" is missing: {told}");
    }
    Ok(())
}

/// The agent is killed; the next one takes the instance up, tells why it ended, and leaves no group.
fn another_agent_tells_the_end(guest: &Guest) -> anyhow::Result<()> {
    let script =
        format!("({SERVES}) &\nwhile [ ! -e /run/eat ]; do sleep 0.2; done\nrm /run/eat\n{GREEDY}");
    let late = guest.deploy(("late", &script), "{memory: 96MiB}", "FINALIZED")?;
    let before = guest.instance(text(&late, "id"))?;
    let agent = guest.agent()?;
    guest
        .machine()
        .run(&["kill", "-KILL", &agent.to_string()])?
        .ok()?;
    poll::until("another agent that has taken it up", PATIENCE, || {
        let now = guest.agent()?;
        poll::holds(now != agent, || format!("still {now}"))?;
        let own = format!("_PID={now}");
        let journal = ["journalctl", "--no-pager", "--grep", "adopted", &own];
        guest.machine().run(&journal)?.ok()
    })?;
    guest.connected()?;
    let adopted = guest.instance(text(&late, "id"))?;
    ensure!(
        number(&adopted, "pid") == number(&before, "pid"),
        "{before}\n{adopted}"
    );
    let group = guest.group(number(&before, "pid"))?;
    guest.machine().run(&["touch", "/run/eat"])?.ok()?;
    poll::until("its end and its next start", PATIENCE, || {
        let now = guest.instance(text(&late, "id"))?;
        let told = text(&now, "lastExit").contains("out of memory; its limits.memory is 96MiB");
        poll::holds(told, || now.to_string())
    })?;
    let left = guest.machine().run(&["test", "-e", &group])?;
    ensure!(left.status == Some(1), "{group} is still there");
    Ok(())
}

fn tells(ended: &Value, parts: &[&str]) -> anyhow::Result<()> {
    let told = ended.to_string();
    for part in parts {
        ensure!(told.contains(part), "\"{part}\" is missing: {told}");
    }
    Ok(())
}

/// What was acknowledged is there after the power comes back, and is carried out.
fn the_power_is_cut_in_a_step(guest: &mut Guest) -> anyhow::Result<()> {
    guest.publish("cut", SERVES, LIMITS)?;
    let rollout = begin(guest, "cut", "by-hand", &[])?;
    weight(guest, &rollout, 2_000)?;
    let boot = guest.read(BOOT_ID)?;
    // What nobody synced has to be gone, or the cut would prove nothing.
    let last = format!(
        "echo here >/root/unsynced\n\
         TIDEGATE_CONTEXT={COORDINATOR_DIR}/admin tidegate deployment promote {rollout}"
    );
    guest.machine().shell(&last)?.ok()?;
    guest.machine_mut().cut_power()?;
    guest.machine_mut().switch_on()?;
    ensure!(guest.read(BOOT_ID)? != boot, "the same boot");
    let unsynced = guest.read("/root/unsynced").unwrap_or_default();
    ensure!(unsynced.is_empty(), "nothing was lost");
    guest.connected()?;
    let found = weight(guest, &rollout, 6_000)?;
    ensure!(number(&found["traffic"], "actual") == 6_000, "{found}");
    guest.instance(&rollout)?;
    guest.tidegate(&["deployment", "promote", &rollout])?.ok()?;
    weight(guest, &rollout, 10_000)?;
    guest
        .tidegate(&["deployment", "finalize", &rollout])?
        .ok()?;
    ends(guest, &rollout, "FINALIZED").map(drop)
}
