//! Hooks and limits with real processes: their order, whose they are, what a failure comes to, and
//! an agent that is killed in the middle of one.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tidegate_e2e::{answers, deploy, goes_well, reaches, serves, site, story};
use tidegate_harness::cluster::{PATIENCE, text};
use tidegate_harness::{Cluster, Shape, archive, poll};

const SMALL: Shape = Shape {
    coordinators: 1,
    agents: 1,
};

/// Every hook writes down its version and kind; the rest of a release's own script comes after.
fn publish(cluster: &Cluster, version: &str, script: &str, limits: &str) -> anyhow::Result<()> {
    let hook = format!("#!/bin/sh\necho \"{version} $TIDEGATE_HOOK\" >>\"$STORY\"\n{script}\n");
    let start = "#!/bin/sh\nset -eu\nmkdir -p \"$TIDEGATE_INSTANCE_DIR/www\"\n\
                 echo \"version @VERSION@ files $(ulimit -n)\" >\"$TIDEGATE_INSTANCE_DIR/www/index.html\"\n\
                 exec python3 -m http.server \"$PORT\" --directory \"$TIDEGATE_INSTANCE_DIR/www\"\n"
        .replace("@VERSION@", version);
    let file = cluster.dir().join(format!("site-{version}.tar.gz"));
    archive::write(&file, &[("start", &start, true), ("hook", &hook, true)])?;
    let kinds = ["before_start", "after_start", "before_stop", "after_stop"];
    let hooks: Vec<String> = kinds
        .iter()
        .map(|kind| format!("  {kind}: [{{command: ./hook, timeout: 5m}}]\n"))
        .collect();
    let story = cluster.dir().join("story");
    let run = format!(
        "command: ./start\nenv: {{STORY: {}, FLAG: {}}}\nhooks:\n{}{limits}",
        story.display(),
        cluster.dir().join("flag").display(),
        hooks.concat(),
    );
    let run_file = cluster.dir().join("run.yaml");
    fs::write(&run_file, run)?;
    let (asset, run) = (file.display().to_string(), run_file.display().to_string());
    cluster
        .tidegate(&[
            "release",
            "create",
            "site",
            version,
            "--asset",
            &asset,
            "--run-file",
            &run,
        ])?
        .ok()?;
    Ok(())
}

fn told(cluster: &Cluster) -> Vec<String> {
    let text = fs::read_to_string(cluster.dir().join("story")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn tells(cluster: &Cluster, line: &str) -> anyhow::Result<()> {
    poll::until(&format!("\"{line}\" in the story"), PATIENCE, || {
        let told = told(cluster);
        poll::holds(told.iter().any(|found| found == line), || {
            format!("{told:?}")
        })
    })
}

#[test]
fn each_version_runs_its_own_hooks_and_a_failure_says_why() {
    story(SMALL, |cluster| {
        let port = site(cluster)?;
        let page = cluster.proxy(0, port);
        publish(cluster, "1.0.0", "echo hook of one", "")?;
        goes_well(cluster, "1.0.0")?;
        answers(page, "version 1.0.0")?;
        ensure!(
            told(cluster) == ["1.0.0 before_start", "1.0.0 after_start"],
            "{:?}",
            told(cluster)
        );
        let logs = cluster.tidegate(&["logs", "site"])?.ok()?;
        ensure!(logs.stdout.contains("hook of one"), "{logs}");
        ensure!(logs.stdout.contains("\"hooks\""), "the stream: {logs}");

        // The one that gives way stops with its own hooks, and one that fails changes nothing.
        let failing =
            "case $TIDEGATE_HOOK in before_stop) echo cannot say goodbye >&2; exit 4;; esac";
        publish(cluster, "2.0.0", failing, "")?;
        goes_well(cluster, "2.0.0")?;
        tells(cluster, "1.0.0 after_stop")?;
        let order = told(cluster);
        ensure!(
            order[2..]
                == [
                    "2.0.0 before_start",
                    "2.0.0 after_start",
                    "1.0.0 before_stop",
                    "1.0.0 after_stop"
                ],
            "{order:?}"
        );
        publish(cluster, "3.0.0", "", "")?;
        goes_well(cluster, "3.0.0")?;
        tells(cluster, "2.0.0 after_stop")?;
        poll::until(
            "the failed stop hook in what the agent tells",
            PATIENCE,
            || {
                let agent = cluster.tidegate(&["agent", "get", "a1"])?.ok()?;
                poll::holds(agent.stdout.contains("cannot say goodbye"), || {
                    agent.to_string()
                })
            },
        )?;

        // A start hook that fails turns the deployment back, with its last words.
        publish(
            cluster,
            "4.0.0",
            "echo no database at db.example >&2; exit 9",
            "",
        )?;
        ensure!(deploy(cluster, "4.0.0")? == Some(3));
        let newest = reaches(cluster, "ROLLED_BACK")?;
        let found = cluster.tidegate(&["deployment", "get", text(&newest, "id")])?;
        for words in [
            "MAX_RESTARTS",
            "before_start hook",
            "exit status 9",
            "no database at db.example",
        ] {
            ensure!(found.stdout.contains(words), "{words}: {found}");
        }
        answers(page, "version 3.0.0")
    });
}

#[test]
fn a_hook_that_the_agent_is_killed_in_runs_again_at_once() {
    story(SMALL, |cluster| {
        let port = site(cluster)?;
        let page = cluster.proxy(0, port);
        // The first time each kind runs it hangs; then the flag lets it pass.
        let hangs = "if [ ! -e \"$FLAG.$TIDEGATE_HOOK\" ]; then : >\"$FLAG.$TIDEGATE_HOOK\"; \
                     echo \"hangs $TIDEGATE_HOOK\" >>\"$STORY\"; exec sleep 600; fi";
        publish(cluster, "1.0.0", hangs, "")?;
        let deploy = [
            "deploy",
            "site",
            "1.0.0",
            "--scope",
            "site",
            "--strategy",
            "quick",
        ];
        cluster.tidegate(&deploy)?.ok()?;
        for kind in ["before_start", "after_start"] {
            tells(cluster, &format!("hangs {kind}"))?;
            cluster.kill_agent(0)?;
            cluster.start_agent(0)?;
        }
        serves(page, "version 1.0.0")?;
        reaches(cluster, "FINALIZED")?;

        cluster.tidegate(&["scope", "stop", "site"])?.ok()?;
        for kind in ["before_stop", "after_stop"] {
            tells(cluster, &format!("hangs {kind}"))?;
            cluster.kill_agent(0)?;
            cluster.start_agent(0)?;
        }
        poll::until("the scope is stopped", Duration::from_secs(90), || {
            let scope = cluster.tidegate(&["scope", "get", "site"])?.json()?;
            poll::holds(scope.to_string().contains("\"stopped\""), || {
                scope.to_string()
            })
        })?;
        let told = told(cluster);
        for kind in ["before_start", "after_start", "before_stop", "after_stop"] {
            let line = format!("1.0.0 {kind}");
            let times = told.iter().filter(|found| **found == line).count();
            ensure!(times >= 2, "{kind} ran {times} times: {told:?}");
        }
        Ok(())
    });
}

#[test]
fn limits_hold_or_are_refused_by_name_and_wrong_ones_are_told() {
    story(SMALL, |cluster| {
        let port = site(cluster)?;
        let page = cluster.proxy(0, port);
        publish(cluster, "1.0.0", "", "limits: {open_files: 77}\n")?;
        goes_well(cluster, "1.0.0")?;
        answers(page, "version 1.0.0 files 77")?;

        publish(cluster, "2.0.0", "", "limits: {memory: 256MiB}\n")?;
        let ended = deploy(cluster, "2.0.0")?;
        let newest = cluster.newest("site")?;
        let found = cluster.tidegate(&["deployment", "get", text(&newest, "id")])?;
        if ended == Some(0) {
            // A host with a delegated cgroup v2: then the kernel has it.
            let child = cluster.children_of_agent(0);
            let child = child
                .iter()
                .find(|process| process.command.contains("http.server"))
                .context("the instance")?;
            let group = fs::read_to_string(format!("/proc/{}/cgroup", child.pid))?;
            let path = group.trim().rsplit_once("::").context("v2")?.1.to_owned();
            let limit = fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max"))?;
            ensure!(limit.trim() == "268435456", "{limit}");
        } else {
            ensure!(ended == Some(3), "{ended:?}: {found}");
            for words in [
                "START_FAILED",
                "limits.memory cannot be enforced",
                "Delegate=yes",
            ] {
                ensure!(found.stdout.contains(words), "{words}: {found}");
            }
            answers(page, "version 1.0.0")?;
        }

        let run = cluster.dir().join("wrong.yaml");
        let asset = cluster
            .dir()
            .join("site-1.0.0.tar.gz")
            .display()
            .to_string();
        let cases = [
            ("hooks: {before_boot: [{command: a}]}", "before_start"),
            (
                "hooks: {before_start: [{command: a, timeout: 2h}]}",
                "hooks.before_start[0].timeout",
            ),
            ("hooks: {after_stop: [{args: [a]}]}", "command"),
            ("limits: {memory: lots}", "512MiB"),
            ("limits: {open_files: 1}", "limits.open_files"),
        ];
        for (fields, words) in cases {
            fs::write(&run, format!("command: ./start\n{fields}\n"))?;
            let refused = cluster.tidegate(&[
                "release",
                "create",
                "site",
                "9.0.0",
                "--asset",
                &asset,
                "--run-file",
                &run.display().to_string(),
            ])?;
            refused.refused(1, &["TG-1002", "wrong.yaml:2:", words])?;
        }
        Ok(())
    });
}
