//! Wrong input of every kind gets one clear line with a stable code and changes nothing; and the
//! verbs of people do what they say, with the exit statuses that scripts rely on.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use tidegate_e2e::support::{apply, begin, ends, establish, get, publish, shop, status, weight};
use tidegate_e2e::{answers, story};
use tidegate_harness::cluster::{Output, PATIENCE, number, programs, text};
use tidegate_harness::{Cluster, Process, Shape, poll};

const ONE: Shape = Shape {
    coordinators: 1,
    agents: 1,
};

/// A refusal of the command line: this exit status, a code, a next step, these parts.
fn refused(output: &Output, exit: i32, parts: &[&str]) -> anyhow::Result<()> {
    output.refused(exit, parts)?;
    output.refused(exit, &["error: ", "hint: ", "code: TG-"])
}

/// Manifests with their mistakes: what must be told of each.
const MALFORMED: [(&str, &[&str]); 10] = [
    ("kind: application\nname: [open\nspec: {}\n", &["bad.yaml:"]),
    (
        "kind: aplication\nname: a\nspec: {}\n",
        &["bad.yaml:1:7", "kind", "did you mean", "application"],
    ),
    (
        "kind: application\nname: Not A Name\nspec: {}\n",
        &["bad.yaml:2:7", "name"],
    ),
    (
        "kind: environment\nname: e\nspec:\n  teir: 1\n",
        &["bad.yaml:4:3", "teir"],
    ),
    (
        "kind: environment\nname: e\nspec:\n  tier: many\n",
        &["bad.yaml:4:9", "tier"],
    ),
    (
        "kind: scope\nname: s\nspec:\n  application: shop\n  environment: test\n  port: 70000\n",
        &["bad.yaml:6:9", "port", "70000"],
    ),
    (
        "kind: scope\nname: s\nspec:\n  application: shop\n  port: 80\n",
        &["bad.yaml:", "environment"],
    ),
    (
        "kind: strategy\nname: s\nspec:\n  bake: 10 parsecs\n",
        &["bad.yaml:4:9", "bake"],
    ),
    (
        "kind: strategy\nname: s\nspec:\n  traffic:\n    steps:\n    - {percent: 50, hold: 1s}\n    \
         - {percent: 20, hold: 1s}\n",
        &["bad.yaml:", "traffic.steps"],
    ),
    (
        "kind: application\nname: twin\nspec: {}\n---\nkind: application\nname: twin\nspec: {}\n",
        &["bad.yaml:", "described already"],
    ),
];

#[test]
fn what_is_wrong_is_told_by_place_and_changes_nothing() {
    story(ONE, |cluster| {
        shop(cluster)?;
        publish(cluster, "1.0.0")?;
        let objects = |cluster: &Cluster| -> anyhow::Result<String> {
            Ok(cluster.tidegate(&["export"])?.ok()?.stdout)
        };
        let before = objects(cluster)?;
        let file = cluster.dir().join("bad.yaml");
        let path = file.display().to_string();
        for (manifest, parts) in MALFORMED {
            // A good object beside the bad one must not be made either.
            let good = "---\nkind: environment\nname: beside\nspec: {tier: 1}\n";
            fs::write(&file, format!("{manifest}{good}"))?;
            let output = cluster.tidegate(&["apply", "-f", &path])?;
            refused(&output, 1, parts).with_context(|| manifest.to_owned())?;
        }
        for judge in ["evidence", "worse_than_baseline"] {
            fs::write(&file, strategy_judged_by(judge))?;
            let output = cluster.tidegate(&["apply", "-f", &path])?;
            refused(&output, 1, &["bad.yaml:", judge])?;
        }
        unknown_names(cluster)?;
        wrong_settings(cluster)?;
        let after = objects(cluster)?;
        ensure!(before == after, "{before}\nbecame\n{after}");
        let none = cluster.tidegate(&["deployment", "list"])?.json()?;
        let list = none["deployments"].as_array().map_or(0, Vec::len);
        ensure!(list == 0, "{none}");
        stale_revisions(cluster)
    });
}

fn strategy_judged_by(judge: &str) -> String {
    let rule = if judge == "evidence" {
        "{metric: http.error_rate, comparison: greater_than, threshold: 0.1, judge: evidence}"
    } else {
        "{metric: http.error_rate, worse_than_baseline: 0.1}"
    };
    format!("kind: strategy\nname: s\nspec:\n  rollback:\n    rules:\n    - {rule}\n")
}

fn unknown_names(cluster: &Cluster) -> anyhow::Result<()> {
    let cases: [(&[&str], &[&str]); 9] = [
        (
            &["application", "get", "shap"],
            &["did you mean", "\"shop\""],
        ),
        (
            &["deploy", "shop", "1.0.1", "--scope", "shop"],
            &["1.0.1", "1.0.0"],
        ),
        (
            &["deploy", "shop", "1.0.0", "--scope", "shoop"],
            &["did you mean", "\"shop\""],
        ),
        (
            &[
                "deploy",
                "shop",
                "1.0.0",
                "--scope",
                "shop",
                "--strategy",
                "stepps",
            ],
            &["did you mean", "\"steps\""],
        ),
        (&["scope", "get", "shp"], &["did you mean", "\"shop\""]),
        (&["rollback", "shp"], &["did you mean", "\"shop\""]),
        (&["deployment", "get", "nothing"], &["nothing"]),
        (
            &["environment", "get", "tests"],
            &["did you mean", "\"test\""],
        ),
        (&["agent", "get", "a2"], &["a2"]),
    ];
    for (arguments, parts) in cases {
        let output = cluster.tidegate(arguments)?;
        refused(&output, 1, parts)?;
        refused(&output, 1, &["code: TG-1101"])?;
    }
    let other = cluster.tidegate(&["deploy", "shap", "1.0.0", "--scope", "shop"])?;
    refused(&other, 1, &["\"shap\"", "runs application \"shop\""])
}

fn wrong_settings(cluster: &Cluster) -> anyhow::Result<()> {
    let cases = [
        ("bake", "PATH=VALUE"),
        ("bakes=1s", "did you mean \"bake\""),
        ("bake=soon", "bake"),
        ("traffic.steps=50:1s,20:1s", "traffic.steps"),
        ("traffic.steps=120:1s", "120"),
        ("traffic.steps[=1", "["),
        ("keep_releases=0", "keep_releases"),
        ("on_stall=panic", "panic"),
    ];
    for (setting, part) in cases {
        let output = cluster.tidegate(&[
            "deploy", "shop", "1.0.0", "--scope", "shop", "--set", setting,
        ])?;
        let exit = output.status.unwrap_or_default();
        ensure!(exit == 1 || exit == 2, "{output}");
        refused(&output, exit, &[part])?;
    }
    let flags: [&[&str]; 5] = [
        &["deploy", "shop", "1.0.0"],
        &["deploy", "shop", "1.0.0", "--scope", "shop", "--wiat"],
        &[
            "deploy",
            "shop",
            "1.0.0",
            "--scope",
            "shop",
            "--timeout",
            "1m",
        ],
        &["depoly"],
        &["token", "create", "agent", "--ttl", "0s"],
    ];
    for arguments in flags {
        refused(&cluster.tidegate(arguments)?, 2, &["TG-1003"])?;
    }
    Ok(())
}

fn stale_revisions(cluster: &Cluster) -> anyhow::Result<()> {
    let read = cluster.tidegate(&["environment", "get", "test"])?.json()?;
    let revision = number(&read["metadata"], "revision").to_string();
    let update = |tier: &str| {
        cluster.tidegate(&[
            "environment",
            "update",
            "test",
            "--tier",
            tier,
            "--revision",
            &revision,
        ])
    };
    update("2")?.ok()?;
    let output = update("3")?;
    refused(&output, 1, &["code: TG-1104", &revision])?;
    let read = cluster.tidegate(&["environment", "get", "test"])?.json()?;
    ensure!(read.to_string().contains("\\\"tier\\\":2"), "{read}");
    Ok(())
}

#[test]
fn one_deployment_at_a_time_and_what_becomes_of_the_second() {
    story(ONE, |cluster| {
        let port = shop(cluster)?;
        establish(cluster, "1")?;
        for version in ["2", "3", "4"] {
            publish(cluster, version)?;
        }
        let first = begin(cluster, "2", "by-hand", &[])?;
        weight(cluster, &first, 2_000)?;
        let second = [
            "deploy",
            "shop",
            "3",
            "--scope",
            "shop",
            "--strategy",
            "at-once",
        ];
        let output = cluster.tidegate(&second)?;
        refused(&output, 1, &["code: TG-1201", &first, "user:ann"])?;

        let queued = begin(cluster, "3", "at-once", &["--on-conflict", "queue"])?;
        status(cluster, &queued, "PENDING")?;
        let stale = ["deployment", "pause", &first, "--revision", "1"];
        refused(&cluster.tidegate(&stale)?, 1, &["code: TG-1104"])?;
        // The first one goes on until its good end; then it is the second one's turn.
        for verb in [&["promote", "--full"][..], &["finalize"]] {
            if verb == ["finalize"] {
                weight(cluster, &first, 10_000)?;
            }
            act(cluster, verb, &first)?.ok()?;
        }
        ends(cluster, &first, "FINALIZED")?;
        ends(cluster, &queued, "FINALIZED")?;
        answers(cluster.proxy(0, port), "x-demo-version: 3")?;

        let third = begin(cluster, "2", "by-hand", &[])?;
        weight(cluster, &third, 2_000)?;
        let newest = begin(cluster, "4", "at-once", &["--on-conflict", "supersede"])?;
        let taken_back = ends(cluster, &third, "ROLLED_BACK")?;
        ensure!(text(&taken_back, "outcome") == "superseded", "{taken_back}");
        ends(cluster, &newest, "FINALIZED")?;
        answers(cluster.proxy(0, port), "x-demo-version: 4")?;
        for verb in [
            &["pause"][..],
            &["promote"],
            &["traffic"],
            &["cancel"],
            &["finalize"],
        ] {
            let output = if verb == ["traffic"] {
                cluster.tidegate(&["deployment", "traffic", &newest, "10"])?
            } else {
                act(cluster, verb, &newest)?
            };
            refused(&output, 1, &["code: TG-1202", "FINALIZED"])?;
        }
        let share = cluster.tidegate(&["deployment", "traffic", &newest, "101"])?;
        refused(&share, 2, &["101", "0 to 100"])
    });
}

/// `tidegate deployment VERB … ID`.
fn act(cluster: &Cluster, verb: &[&str], id: &str) -> anyhow::Result<Output> {
    let mut arguments = vec!["deployment"];
    arguments.extend(verb);
    arguments.push(id);
    cluster.tidegate(&arguments)
}

#[test]
fn people_steer_a_rollout_and_a_scope_by_hand() {
    story(ONE, |cluster| {
        let port = shop(cluster)?;
        let at = cluster.proxy(0, port);
        establish(cluster, "1")?;
        publish(cluster, "2")?;
        let id = begin(cluster, "2", "by-hand", &[])?;
        weight(cluster, &id, 2_000)?;
        let early = act(cluster, &["finalize"], &id)?;
        refused(&early, 1, &["code: TG-1207", "promote it first"])?;
        act(cluster, &["pause", "--reason", "lunch"], &id)?.ok()?;
        let paused = get(cluster, &id)?;
        ensure!(text(&paused["paused"], "by") == "user:ann", "{paused}");
        let history = act(cluster, &["history"], &id)?.ok()?;
        ensure!(history.stdout.contains("lunch"), "{history}");
        act(cluster, &["resume"], &id)?.ok()?;
        act(cluster, &["promote"], &id)?.ok()?;
        weight(cluster, &id, 6_000)?;
        // Lowering really lowers, and holds.
        cluster
            .tidegate(&["deployment", "traffic", &id, "12.5"])?
            .ok()?;
        let lowered = poll::until("12.5 %", PATIENCE, || {
            let found = get(cluster, &id)?;
            let actual = number(&found["traffic"], "actual");
            poll::holds(actual == 1_250, || found.to_string())?;
            Ok(found)
        })?;
        ensure!(lowered["paused"].is_object(), "{lowered}");
        act(cluster, &["resume"], &id)?.ok()?;
        weight(cluster, &id, 2_000)?;
        act(cluster, &["promote", "--full"], &id)?.ok()?;
        weight(cluster, &id, 10_000)?;
        poll::until("the end by hand", PATIENCE, || {
            act(cluster, &["finalize"], &id)?.ok()
        })?;
        ends(cluster, &id, "FINALIZED")?;
        answers(at, "x-demo-version: 2")?;
        a_scope_stops_and_starts(cluster)?;
        a_bad_end_is_retried(cluster)
    });
}

fn a_scope_stops_and_starts(cluster: &Cluster) -> anyhow::Result<()> {
    let again = cluster.tidegate(&["scope", "restart", "shop"])?.json()?;
    let id = text(&again, "id").to_owned();
    let busy = cluster.tidegate(&["scope", "stop", "shop"])?;
    refused(&busy, 1, &["code: TG-1201", &id, "--cancel"])?;
    act(cluster, &["cancel"], &id)?.ok()?;
    poll::until("the end of the restart", PATIENCE, || {
        let found = get(cluster, &id)?;
        let over = ["CANCELLED", "ROLLED_BACK"].contains(&text(&found, "status"));
        poll::holds(over, || found.to_string())
    })?;
    cluster.tidegate(&["scope", "stop", "shop"])?.ok()?;
    poll::until("nothing that runs", PATIENCE, || {
        let view = cluster.tidegate(&["scope", "get", "shop"])?.json()?;
        poll::holds(view["active"].is_null(), || view.to_string())?;
        let left = tidegate_e2e::support::instances(&cluster.children_of_agent(0));
        poll::holds(left.is_empty(), || format!("{left:#?}"))
    })?;
    let started = cluster.tidegate(&["scope", "start", "shop"])?.json()?;
    let id = text(&started, "id").to_owned();
    let ended = poll::until("the end of the start", PATIENCE, || {
        // Too early or too late it is refused, which is of no interest here.
        act(cluster, &["finalize"], &id)?;
        let found = get(cluster, &id)?;
        poll::holds(text(&found, "status") == "FINALIZED", || found.to_string())?;
        Ok(found)
    })?;
    ensure!(ended["initial"] == true, "{ended}");
    ensure!(text(&ended, "version") == "2", "{ended}");
    Ok(())
}

fn a_bad_end_is_retried(cluster: &Cluster) -> anyhow::Result<()> {
    publish(cluster, "3")?;
    let id = begin(cluster, "3", "by-hand", &[])?;
    weight(cluster, &id, 2_000)?;
    let good = act(cluster, &["retry"], &id)?;
    refused(&good, 1, &["code: TG-1202"])?;
    act(cluster, &["rollback"], &id)?.ok()?;
    ends(cluster, &id, "ROLLED_BACK")?;
    let retried = act(cluster, &["retry"], &id)?.json()?;
    ensure!(text(&retried, "linkedTo") == id, "{retried}");
    let next = text(&retried, "id").to_owned();
    weight(cluster, &next, 2_000)?;
    act(cluster, &["cancel"], &next)?.ok()?;
    let ended = ends(cluster, &next, "ROLLED_BACK")?;
    ensure!(text(&ended, "outcome") == "cancelled", "{ended}");
    Ok(())
}

/// `tidegate deploy … --wait` as a process of its own.
struct Waiting {
    process: Process,
    /// The deployment that it waits for.
    id: String,
}

impl Waiting {
    fn start(cluster: &Cluster, version: &str, strategy: &str) -> anyhow::Result<Self> {
        let before = cluster.newest("shop").ok();
        let before = before.as_ref().map(|found| text(found, "id").to_owned());
        let log = cluster
            .dir()
            .join("logs")
            .join(format!("wait-{version}.log"));
        let environment = [
            ("TIDEGATE_CONTEXT", "people".to_owned()),
            ("TIDEGATE_CONFIG_DIR", cluster.dir().display().to_string()),
        ];
        let arguments = [
            "deploy",
            "shop",
            version,
            "--scope",
            "shop",
            "--strategy",
            strategy,
            "--wait",
        ];
        let program = programs()?.join("tidegate");
        let process = Process::start("deploy --wait", &program, &arguments, &environment, &log)?;
        let id = poll::until("the deployment", PATIENCE, || {
            let newest = cluster.newest("shop")?;
            let id = text(&newest, "id").to_owned();
            poll::holds(before.as_deref() != Some(&id), || newest.to_string())?;
            Ok(id)
        })?;
        let mut waiting = Self { process, id };
        // It follows already once it has told where the deployment stands.
        poll::until("the first line", PATIENCE, || {
            let said = waiting.process.output();
            let ended = waiting.process.ended()?;
            poll::holds(said.lines().count() > 1 && ended.is_none(), || {
                format!("{ended:?}: {said}")
            })
        })?;
        Ok(waiting)
    }

    fn ends_with(&mut self, wanted: i32, part: &str) -> anyhow::Result<()> {
        let status = self.process.wait(PATIENCE)?;
        let said = self.process.output();
        ensure!(
            status.code() == Some(wanted),
            "want {wanted}: {status}\n{said}"
        );
        ensure!(said.contains(part), "\"{part}\" is missing: {said}");
        Ok(())
    }
}

#[test]
fn waiting_tells_the_end_by_its_exit_status() {
    story(ONE, |cluster| {
        shop(cluster)?;
        for version in ["1", "2", "3", "4", "5", "6", "7"] {
            publish(cluster, version)?;
        }
        let wait = |version: &str, more: &[&str]| {
            let mut arguments = vec!["deploy", "shop", version, "--scope", "shop", "--wait"];
            arguments.extend(more);
            cluster.tidegate(&arguments)
        };
        let good = wait("1", &["--strategy", "at-once"])?;
        ensure!(good.status == Some(0), "{good}");

        let mut rolled_back = Waiting::start(cluster, "2", "by-hand")?;
        weight(cluster, &rolled_back.id, 2_000)?;
        act(cluster, &["rollback"], &rolled_back.id)?.ok()?;
        rolled_back.ends_with(3, "ROLLED_BACK")?;

        let mut cancelled = Waiting::start(cluster, "3", "by-hand")?;
        weight(cluster, &cancelled.id, 2_000)?;
        act(cluster, &["cancel"], &cancelled.id)?.ok()?;
        cancelled.ends_with(5, "cancelled")?;

        let mut interrupted = Waiting::start(cluster, "4", "by-hand")?;
        weight(cluster, &interrupted.id, 2_000)?;
        interrupted.process.signal(Signal::INT)?;
        interrupted.ends_with(130, "goes on")?;
        let running = get(cluster, &interrupted.id)?;
        ensure!(text(&running, "status") == "RUNNING", "{running}");
        act(cluster, &["rollback"], &interrupted.id)?.ok()?;
        ends(cluster, &interrupted.id, "ROLLED_BACK")?;

        let timed_out = wait("5", &["--strategy", "by-hand", "--timeout", "1s"])?;
        ensure!(timed_out.status == Some(6), "{timed_out}");
        ensure!(timed_out.stderr.contains("goes on"), "{timed_out}");
        let left = cluster.newest("shop")?;
        act(cluster, &["rollback"], text(&left, "id"))?.ok()?;
        ends(cluster, text(&left, "id"), "ROLLED_BACK")?;
        approvals(cluster)
    });
}

fn approvals(cluster: &Cluster) -> anyhow::Result<()> {
    apply(
        cluster,
        "kind: policy\nname: four-eyes\nspec:\n  selector: scope.name == \"shop\"\n  approval: {required: 1}\n",
    )?;
    let mut denied = Waiting::start(cluster, "6", "at-once")?;
    status(cluster, &denied.id, "CREATING_APPROVAL")?;
    let listed = cluster.tidegate(&["approval", "list"])?.json()?;
    ensure!(listed.to_string().contains(&denied.id), "{listed}");
    let deny = [
        "approval",
        "deny",
        &denied.id,
        "--reason",
        "not on a Friday",
    ];
    cluster.tidegate(&deny)?.ok()?;
    denied.ends_with(4, "DENIED")?;
    let ended = get(cluster, &denied.id)?;
    ensure!(ended.to_string().contains("not on a Friday"), "{ended}");
    let late = cluster.tidegate(&["approval", "grant", &denied.id])?;
    refused(&late, 1, &["code: TG-1210"])?;

    let mut granted = Waiting::start(cluster, "7", "at-once")?;
    status(cluster, &granted.id, "CREATING_APPROVAL")?;
    cluster
        .tidegate(&["approval", "grant", &granted.id])?
        .ok()?;
    granted.ends_with(0, "FINALIZED")
}

/// What a program says to a wrong configuration: one line with file or variable, key and what is
/// allowed; no panic; a failure.
fn check_config(
    cluster: &Cluster,
    program: &str,
    arguments: &[&str],
    environment: &[(&str, String)],
    parts: &[&str],
) -> anyhow::Result<()> {
    let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
    let output = cluster.finish(program, &arguments, environment)?;
    output.refused(1, parts)?;
    output.refused(1, &["TG-1501", "hint: "])?;
    let lines = output.stderr.trim_end().lines().count();
    ensure!(lines <= 2, "want one line and a hint: {output}");
    Ok(())
}

/// Keys of the coordinator, values that they do not take, and what must be told.
const COORDINATOR: [(&str, &str, &str); 24] = [
    ("name", "Not A Name", "lower-case"),
    ("data_dir", "", "empty"),
    ("listen.health", "0.0.0.0:7444", "loopback"),
    ("listen.control", "here", "IP:PORT"),
    ("listen.peer", "127.0.0.1", "IP:PORT"),
    ("listen.http", "127.0.0.1:99999", "IP:PORT"),
    ("listen.enroll", ":80", "IP:PORT"),
    ("advertise.control", "nowhere", "HOST:PORT"),
    ("advertise.peer", "a b:1", "HOST:PORT"),
    ("advertise.http", "host:port", "HOST:PORT"),
    ("advertise.enroll", ":1", "HOST:PORT"),
    ("certificate_life.agent", "1s", "10s to 366d"),
    ("certificate_life.user", "soon", "10s to 366d"),
    ("certificate_life.coordinator", "400d", "10s to 366d"),
    ("raft.tick", "1ms", "5ms to 1s"),
    ("raft.snapshot_entries", "9", "10 to 10000000"),
    ("agents.lost_after", "2h", "1s to 1h"),
    ("agents.sessions_per_second", "0", "1 to 100000"),
    ("blobs.max_bytes", "-1", "1 to 4294967296"),
    ("blobs.keep", "0s", "1s to 3660d"),
    ("blobs.unclaimed", "for ever", "1s to 366d"),
    ("log.format", "xml", "text or json"),
    ("log.filter", "a=b=c", "levels"),
    ("shutdown_timeout", "1h", "1s to 10m"),
];

#[test]
fn every_wrong_key_of_a_configuration_is_told() {
    story(ONE, |cluster| {
        let folder = cluster.dir().join("spare");
        let dir = folder.display().to_string();
        let init = [
            "init",
            "--dir",
            &dir,
            "--name",
            "c1",
            "--trust-domain",
            "spare",
        ];
        let init = init.map(str::to_owned);
        cluster.finish("tidegate-coordinator", &init, &[])?.ok()?;
        let run = ["run", "--dir", &dir];
        let program = "tidegate-coordinator";
        for (key, value, allowed) in COORDINATOR {
            let variable = format!(
                "TIDEGATE_COORDINATOR_{}",
                key.replace('.', "_").to_uppercase()
            );
            let environment = [(variable.as_str(), value.to_owned())];
            check_config(
                cluster,
                program,
                &run,
                &environment,
                &[&variable, key, allowed],
            )?;
            let file = folder.join("wrong.toml");
            fs::write(&file, with_key(&folder, key, value)?)?;
            let path = file.display().to_string();
            let run = ["run", "--config", &path];
            check_config(cluster, program, &run, &[], &[&path, key, allowed])?;
        }
        let file = folder.join("wrong.toml");
        let path = file.display().to_string();
        let run = ["run", "--config", &path];
        for (content, parts) in [
            ("nmae = \"c1\"\n", ["nmae", "is not a key"]),
            ("name = \"c1\n", [":1:", "TOML"]),
        ] {
            fs::write(&file, content)?;
            check_config(cluster, program, &run, &[], &[&path, parts[0], parts[1]])?;
        }
        let unknown = [("TIDEGATE_COORDINATOR_NMAE", "c1".to_owned())];
        let good = ["run", "--dir", &dir];
        check_config(cluster, program, &good, &unknown, &["NMAE"])?;
        let nowhere = ["run", "--dir", "/nowhere"];
        check_config(cluster, program, &nowhere, &[], &["/nowhere", "init"])?;
        wrong_keys_of_the_agent(cluster)?;
        taken_ports_and_folders(cluster, &folder)
    });
}

/// The configuration of a folder with another value for a key.
fn with_key(folder: &Path, key: &str, value: &str) -> anyhow::Result<String> {
    let written = fs::read_to_string(folder.join("coordinator.toml"))?;
    let (section, name) = key.split_once('.').unwrap_or(("", key));
    let mut table = String::new();
    let mut here = String::new();
    let line = format!("{name} = \"{value}\"\n");
    let mut done = false;
    for old in written.lines() {
        if old.starts_with('[') && here == section && !done {
            table.push_str(&line);
            done = true;
        }
        if let Some(next) = old.strip_prefix('[') {
            here = next.trim_end_matches(']').to_owned();
        }
        let is_it = here == section && old.split('=').next().map(str::trim) == Some(name);
        if !is_it {
            table.push_str(old);
            table.push('\n');
        }
    }
    if !done && here == section {
        table.push_str(&line);
    } else if !done {
        table.push_str(&format!("[{section}]\n{line}"));
    }
    Ok(table)
}

fn wrong_keys_of_the_agent(cluster: &Cluster) -> anyhow::Result<()> {
    let good = cluster.agent_dir(0).join("agent.toml");
    let written = fs::read_to_string(&good)?;
    let file = cluster.agent_dir(0).join("wrong.toml");
    let path = file.display().to_string();
    let run = ["run", "--config", &path];
    let cases = [
        ("name", "\"Not A Name\"", "lower-case"),
        ("coordinators", "[\"nowhere\"]", "host:port"),
        ("http", "[\"nowhere\"]", "host:port"),
        ("listen_address", "\"here\"", "IP address"),
        ("instance_address", "\"there\"", "IP address"),
        ("port_range", "\"9-8\"", "FIRST-LAST"),
        ("log", "\"a=b=c\"", "trace"),
        ("log_format", "\"xml\"", "text or json"),
        ("colour", "1", "unknown field"),
    ];
    for (key, value, allowed) in cases {
        let others = written
            .lines()
            .filter(|line| line.split('=').next().map(str::trim) != Some(key));
        let others: Vec<&str> = others.collect();
        fs::write(&file, format!("{}\n{key} = {value}\n", others.join("\n")))?;
        check_config(cluster, "tidegate-agent", &run, &[], &[&path, key, allowed])?;
        if key == "colour" {
            continue;
        }
        let variable = format!("TIDEGATE_AGENT_{}", key.to_uppercase());
        let bare = value.trim_matches(['[', ']', '"']).to_owned();
        let environment = [(variable.as_str(), bare)];
        let path = good.display().to_string();
        let run = ["run", "--config", &path];
        let parts = [variable.as_str(), allowed];
        check_config(cluster, "tidegate-agent", &run, &environment, &parts)?;
    }
    Ok(())
}

fn taken_ports_and_folders(cluster: &Cluster, spare: &Path) -> anyhow::Result<()> {
    let held = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = held.local_addr()?.to_string();
    let run = ["run", "--dir", &spare.display().to_string()].map(str::to_owned);
    for door in ["CONTROL", "PEER", "HTTP", "ENROLL"] {
        let variable = format!("TIDEGATE_COORDINATOR_LISTEN_{door}");
        let mut environment = vec![(variable.as_str(), taken.clone())];
        let others = ["CONTROL", "PEER", "HTTP", "ENROLL"].map(|other| {
            (
                other != door,
                format!("TIDEGATE_COORDINATOR_LISTEN_{other}"),
            )
        });
        for (is_other, name) in &others {
            if *is_other {
                environment.push((name, "127.0.0.1:0".to_owned()));
            }
        }
        let output = cluster.finish("tidegate-coordinator", &run, &environment)?;
        let pid = format!("pid {}", std::process::id());
        output.refused(1, &["TG-1502", &taken, &pid, "hint: "])?;
    }
    // A folder belongs to one cluster, and to one process at a time.
    let own = cluster.coordinator_dir(0).display().to_string();
    let elsewhere = [
        "init",
        "--dir",
        &own,
        "--name",
        "c1",
        "--trust-domain",
        "other",
    ];
    let output = cluster.finish("tidegate-coordinator", &elsewhere.map(str::to_owned), &[])?;
    output.refused(1, &["TG-1503", &own])?;
    let token = cluster.token(&["coordinator"])?;
    let spare = spare.display().to_string();
    let server = cluster.listeners(0).enroll;
    let join = ["join", "--dir", &spare, "--name", "c2", "--server", &server];
    let environment = [("TIDEGATE_COORDINATOR_TOKEN", token)];
    let join = join.map(str::to_owned);
    let output = cluster.finish("tidegate-coordinator", &join, &environment)?;
    output.refused(1, &["TG-1503", &spare, "cluster"])?;
    let twice = ["run", "--dir", &own].map(str::to_owned);
    let output = cluster.finish("tidegate-coordinator", &twice, &[])?;
    output.refused(1, &["TG-1503", &own])?;
    let agent = cluster
        .agent_dir(0)
        .join("agent.toml")
        .display()
        .to_string();
    let twice = ["run", "--config", &agent].map(str::to_owned);
    let output = cluster.finish("tidegate-agent", &twice, &[])?;
    output.refused(1, &["another tidegate-agent", "TG-"])
}
