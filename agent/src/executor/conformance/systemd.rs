//! The suite over the systemd executor, and what only it can do. Needs a host that systemd runs:
//! the example `systemd_conformance` runs the cases there.

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use tidegate_agent_core::observed::Event;
use tidegate_shared::secret::Secret;
use tidegate_shared::spec::RunSpec;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::super::systemd::{SystemdExecutor, journal, unit_name};
use super::super::{Executor as _, Launch, Parameter, Running, Task, instance_dir, procfs};
use super::{LIMIT, launch, next, suite};
use crate::systemd::{Active, Manager};

/// Between SIGTERM and SIGKILL, in most cases.
const GRACE: Duration = Duration::from_secs(10);

type Answer<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
type Case = fn(&Path) -> Answer<'_>;

/// Every case, by name.
pub const CASES: [(&str, Case); 14] = [
    ("the_suite", |root| Box::pin(the_suite(root))),
    ("an_end_is_told_with_its_status_and_last_words", |root| {
        Box::pin(an_end_is_told(root))
    }),
    ("what_ignores_sigterm_is_killed_with_its_children", |root| {
        Box::pin(stubborn(root))
    }),
    ("refusals_say_what_is_wrong_with_the_command", |root| {
        Box::pin(refusals(root))
    }),
    (
        "another_executor_adopts_and_sees_status_and_words",
        |root| Box::pin(adoption(root)),
    ),
    (
        "an_instance_sees_its_release_and_its_folder_alone",
        |root| Box::pin(what_it_sees(root)),
    ),
    ("variables_arrive_as_they_were_given", |root| {
        Box::pin(variables(root))
    }),
    ("a_watchdog_that_is_not_fed_ends_it", |root| {
        Box::pin(watchdog(root))
    }),
    ("one_that_tells_when_it_is_ready_is_up_then", |root| {
        Box::pin(ready(root))
    }),
    ("a_left_over_unit_gives_way_to_a_new_start", |root| {
        Box::pin(left_over(root))
    }),
    ("a_reload_of_systemd_leaves_a_unit_whole", |root| {
        Box::pin(reloaded(root))
    }),
    ("limits_hold_or_are_refused", |root| Box::pin(limits(root))),
    ("secrets_and_files_reach_the_program_alone", |root| {
        Box::pin(secrets(root))
    }),
    ("the_journal_is_read_back", |root| Box::pin(logs(root))),
];

/// Runs one case in a folder of its own.
///
/// # Errors
/// What failed.
pub async fn run_case(name: &str, root: &Path) -> Result<(), String> {
    let Some((_, case)) = CASES.iter().find(|(known, _)| *known == name) else {
        return Err("no such case".to_owned());
    };
    let (case, root) = (*case, root.to_path_buf());
    let done = tokio::spawn(async move { case(&root).await }).await;
    done.map_err(|error| error.to_string())
}

fn shell(script: &str) -> RunSpec {
    RunSpec {
        command: "/bin/sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        ..RunSpec::default()
    }
}

/// An agent's folder and an executor of it.
struct Bench {
    root: PathBuf,
    release: PathBuf,
    executor: SystemdExecutor,
    events: UnboundedReceiver<Event>,
}

#[allow(clippy::expect_used, reason = "a helper of tests")]
fn bench(root: &Path, grace: Duration) -> Bench {
    let release = root.join("releases/r1");
    let mut folders = std::fs::DirBuilder::new();
    folders.recursive(true);
    folders
        .mode(0o700)
        .create(root)
        .expect("the agent's folder");
    folders
        .mode(0o755)
        .create(&release)
        .expect("the release's folder");
    let (sender, events) = unbounded_channel();
    let executor = SystemdExecutor::new(root.to_path_buf(), root.join("instances"), grace, sender);
    Bench {
        root: root.to_path_buf(),
        release,
        executor,
        events,
    }
}

impl Bench {
    fn launch(&self, run: RunSpec) -> Launch {
        launch(0, &self.release, run)
    }

    async fn start(&mut self, launch: Launch) -> u32 {
        self.executor.perform(Task::Start(Box::new(launch)));
        match next(&mut self.events).await {
            Event::Started { pid, .. } => pid,
            other => panic!("want started, got {other:?}"),
        }
    }

    async fn exited(&mut self) -> String {
        match next(&mut self.events).await {
            Event::Exited { how, .. } => how,
            other => panic!("want an end, got {other:?}"),
        }
    }

    async fn stop(&mut self, launch: &Launch) -> Option<String> {
        self.executor.perform(Task::Stop {
            instance: launch.instance.clone(),
            incarnation: launch.incarnation,
            launch: None,
        });
        match next(&mut self.events).await {
            Event::Stopped { how, .. } => how,
            other => panic!("want stopped, got {other:?}"),
        }
    }
}

/// What the manager knows of the instance of a launch.
#[allow(clippy::expect_used, reason = "a helper of tests")]
async fn active(launch: &Launch) -> Option<Active> {
    let state = Manager::default().state(&unit_name(&launch.instance)).await;
    state.expect("systemd answers").map(|state| state.active)
}

async fn the_suite(root: &Path) {
    let mut bench = bench(root, GRACE);
    let missing = RunSpec {
        command: "./nothing-here".to_owned(),
        ..RunSpec::default()
    };
    let commands = (shell("exec sleep 600"), missing);
    suite(&bench.executor, &mut bench.events, &bench.release, commands).await;
    assert_eq!(active(&bench.launch(shell(""))).await, None, "a unit stays");
    assert!(!bench.root.join("instances/shop-eu-q69g5fav").exists());
}

async fn an_end_is_told(root: &Path) {
    let mut bench = bench(root, GRACE);
    let script = "echo \"$PORT $TIDEGATE_SCOPE $GREETING\" >&2; exit 3";
    for incarnation in 1..=3 {
        let mut launch = bench.launch(shell(script));
        launch.incarnation = incarnation;
        launch
            .run
            .env
            .insert("GREETING".into(), "on ${PORT}".into());
        bench.start(launch).await;
        let how = bench.exited().await;
        assert!(how.contains("exit status 3"), "{how}");
        assert!(how.contains("20000 shop-eu on 20000"), "{how}");
        assert_eq!(
            how.matches("shop-eu on").count(),
            1,
            "words of an earlier run: {how}"
        );
    }
    let launch = bench.launch(shell("kill -KILL $$"));
    bench.start(launch).await;
    let how = bench.exited().await;
    assert!(how.contains("signal 9"), "{how}");
    let launch = bench.launch(shell("exit 0"));
    bench.start(launch.clone()).await;
    let how = bench.exited().await;
    assert!(how.contains("exit status 0"), "{how}");
    assert_eq!(bench.executor.observe(), []);
    assert_eq!(active(&launch).await, None, "a unit stays");
}

async fn stubborn(root: &Path) {
    let mut bench = bench(root, Duration::from_millis(500));
    let script =
        "trap '' TERM; sleep 600 & touch ${INSTANCE_DIR}/ready; while :; do sleep 600; done";
    let launch = bench.launch(shell(script));
    let pid = bench.start(launch.clone()).await;
    let ready = bench.root.join("instances/shop-eu-q69g5fav/0/ready");
    let deadline = std::time::Instant::now() + LIMIT;
    while !ready.exists() && std::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let how = bench.stop(&launch).await.unwrap_or_default();
    assert!(how.contains("signal 9"), "{how}");
    assert!(!procfs::group_lives(pid));
}

#[allow(clippy::expect_used, reason = "a test")]
async fn refusals(root: &Path) {
    let mut bench = bench(root, GRACE);
    let write = |name: &str, text: &str, mode: u32| {
        let path = bench.release.join(name);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set");
    };
    write("plain", "x", 0o644);
    write("strange", "\u{7f}ELF nonsense", 0o755);
    write("orphan", "#!/no/such/interpreter\n", 0o755);
    let cases = [
        ("./plain", "may not be executed"),
        ("strange", "is no program of this machine"),
        ("orphan", "interpreter"),
        ("no-such-program-anywhere", "does not exist"),
    ];
    for (command, words) in cases {
        let run = RunSpec {
            command: command.to_owned(),
            ..RunSpec::default()
        };
        let launch = bench.launch(run);
        bench.executor.perform(Task::Start(Box::new(launch)));
        match next(&mut bench.events).await {
            Event::StartFailed {
                permanent: true,
                message,
                ..
            } => assert!(message.contains(words), "{message} lacks {words}"),
            other => panic!("{command}: {other:?}"),
        }
    }
}

/// Starts an instance as an agent that ends right after it, with its connection to the manager.
#[allow(clippy::expect_used, reason = "a helper of tests")]
async fn start_and_die(root: &Path, launch: Launch) -> u32 {
    let root = root.to_path_buf();
    let agent = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let pid = runtime.block_on(async { bench(&root, GRACE).start(launch).await });
        runtime.shutdown_timeout(LIMIT);
        pid
    });
    agent.await.expect("an agent")
}

#[allow(clippy::expect_used, reason = "a test")]
async fn adoption(root: &Path) {
    let script = "trap 'echo bye; exit 5' TERM; while :; do sleep 0.05; done";
    let launch = bench(root, GRACE).launch(shell(script));
    let pid = start_and_die(root, launch.clone()).await;
    let dir = root.join("instances/shop-eu-q69g5fav/0");
    let process = procfs::find_marked(&launch.instance.id(), &dir);
    assert_eq!(process.as_ref().map(|process| process.pid), Some(pid));
    let running = Running {
        instance: launch.instance.clone(),
        incarnation: launch.incarnation,
        process: process.expect("it runs"),
    };
    let mut second = bench(root, GRACE);
    second.executor.perform(Task::Adopt(running.clone()));
    assert_eq!(second.executor.observe(), [running]);
    let how = second.stop(&launch).await.unwrap_or_default();
    assert!(
        how.contains("exit status 5") && how.contains("bye"),
        "{how}"
    );
}

#[allow(clippy::expect_used, reason = "a test")]
async fn what_it_sees(root: &Path) {
    let mut bench = bench(root, GRACE);
    std::fs::write(bench.root.join("ledger"), "not for instances").expect("written");
    std::fs::write(bench.release.join("page"), "of the release").expect("written");
    let script = "set -e; test \"$(cat page)\" = 'of the release'; test ! -e ${INSTANCE_DIR}/../0.env; \
        test \"$(ls ${INSTANCE_DIR}/../../..)\" = \"$(printf 'instances\\nreleases')\"; \
        echo mine >${INSTANCE_DIR}/note; test \"$(id -u)\" != 0; test \"$PWD\" = ${RELEASE_DIR}; \
        if touch page 2>/dev/null; then exit 8; fi; if touch /etc/x 2>/dev/null; then exit 9; fi; exit 42";
    let launch = bench.launch(shell(script));
    bench.start(launch).await;
    let how = bench.exited().await;
    assert!(how.contains("exit status 42"), "{how}");
    let note = bench.root.join("instances/shop-eu-q69g5fav/0/note");
    assert_eq!(std::fs::read_to_string(note).expect("its note"), "mine\n");
}

async fn variables(root: &Path) {
    let mut bench = bench(root, GRACE);
    let value = "a \"b\" 'c' \\ $HOME `d` %n\nsecond line";
    let mut run = shell("printf '%s' \"$VALUE$0\" | od -An -tx1 | tr -d ' \\n'; echo; exit 1");
    let argument = "${NOT_OURS} $$ 100%";
    run.args.push(argument.to_owned());
    run.env.insert("VALUE".into(), value.into());
    let launch = bench.launch(run);
    bench.start(launch).await;
    let how = bench.exited().await;
    let whole = hex::encode(format!("{value}{argument}"));
    assert!(how.contains(&whole), "{how}");
}

async fn watchdog(root: &Path) {
    let mut bench = bench(root, GRACE);
    let script = "command -v systemd-notify >/dev/null || exit 0; \
        systemd-notify --pid=$$ WATCHDOG_USEC=300000 WATCHDOG=1; while :; do sleep 1; done";
    let launch = bench.launch(shell(script));
    bench.start(launch).await;
    let how = bench.exited().await;
    assert!(how.contains("watchdog"), "{how}");
}

#[allow(clippy::expect_used, reason = "a helper of tests")]
async fn ready(root: &Path) {
    let mut bench = bench(root, GRACE);
    let script = "until test -e ${INSTANCE_DIR}/go; do sleep 0.1; done; systemd-notify --ready; exec sleep 600";
    let run = RunSpec {
        notify: true,
        ..shell(script)
    };
    let launch = bench.launch(run);
    bench
        .executor
        .perform(Task::Start(Box::new(launch.clone())));
    let deadline = tokio::time::Instant::now() + LIMIT;
    while active(&launch).await != Some(Active::Activating) {
        assert!(tokio::time::Instant::now() < deadline, "it is never begun");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(bench.events.try_recv().is_err(), "told before it is ready");
    let dir = instance_dir(&root.join("instances"), &launch.instance);
    std::fs::write(dir.join("go"), "").expect("the instance's folder");
    match next(&mut bench.events).await {
        Event::Started { .. } => {}
        other => panic!("want started, got {other:?}"),
    }
    assert_eq!(active(&launch).await, Some(Active::Active));
    bench.stop(&launch).await;
}

/// The agent ended between a start and its note of it, and the wish has moved on since.
async fn left_over(root: &Path) {
    let launch = bench(root, GRACE).launch(shell("exec sleep 600"));
    let pid = start_and_die(root, launch.clone()).await;
    let mut second = bench(root, GRACE);
    let mut again = launch.clone();
    again.incarnation = 2;
    let other = second.start(again.clone()).await;
    assert_ne!(pid, other);
    assert!(
        procfs::identify(pid).is_none(),
        "two processes of one instance"
    );

    let mut foreign = again.clone();
    foreign.incarnation = 3;
    foreign.agent = "web-2".parse().unwrap_or(foreign.agent);
    let mut third = bench(root, GRACE);
    third.executor.perform(Task::Start(Box::new(foreign)));
    match next(&mut third.events).await {
        Event::StartFailed {
            permanent: true,
            message,
            ..
        } => assert!(message.contains("not of this agent"), "{message}"),
        event => panic!("{event:?}"),
    }
    assert!(
        procfs::identify(other).is_some(),
        "another agent's instance was touched"
    );
    second.stop(&again).await;
}

/// Every installation of a package has systemd read its units again, those of instances too.
#[allow(clippy::expect_used, reason = "a test")]
async fn reloaded(root: &Path) {
    let mut bench = bench(root, GRACE);
    let launch = bench.launch(shell("exec sleep 600"));
    let pid = bench.start(launch.clone()).await;
    let systemctl = |arguments: &[&str]| {
        let done = std::process::Command::new("systemctl")
            .args(arguments)
            .output();
        String::from_utf8_lossy(&done.expect("systemctl").stdout).into_owned()
    };
    systemctl(&["daemon-reload"]);
    let unit = unit_name(&launch.instance);
    let loaded = systemctl(&["show", "--value", "--property=LoadState", &unit]);
    assert_eq!(loaded.trim(), "loaded");
    assert!(procfs::identify(pid).is_some(), "the reload ended it");
    bench.stop(&launch).await;
    assert_eq!(active(&launch).await, None, "a unit stays");
}

async fn logs(root: &Path) {
    let mut bench = bench(root, GRACE);
    let script = "echo one; echo two; touch ${INSTANCE_DIR}/said; \
        until test -e ${INSTANCE_DIR}/go; do sleep 0.05; done; echo three; exec sleep 600";
    let launch = bench.launch(shell(script));
    bench.start(launch.clone()).await;
    let deadline = std::time::Instant::now() + LIMIT;
    let lines = loop {
        let lines = journal::tail(&launch.instance, 2).await;
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        if texts == ["one", "two"] {
            break lines;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "the journal has {texts:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let Some(mut follow) = journal::Follow::begin(Some(&lines[1].cursor)) else {
        panic!("no journal");
    };
    let dir = bench.root.join("instances/shop-eu-q69g5fav/0");
    assert!(std::fs::write(dir.join("go"), "").is_ok());
    let line = tokio::time::timeout(LIMIT, follow.next()).await;
    let line = line.ok().flatten();
    assert_eq!(line.map(|line| line.text).as_deref(), Some("three"));
    bench.stop(&launch).await;
}

async fn limits(root: &Path) {
    let mut bench = bench(root, GRACE);
    let script = "test \"$(ulimit -n) $(ulimit -Hn)\" = '64 64' && exit 42; exit 1";
    let mut launch = bench.launch(shell(script));
    launch.run.limits.open_files = Some(64);
    bench.start(launch.clone()).await;
    let how = bench.exited().await;
    assert!(how.contains("exit status 42"), "{how}");

    launch.incarnation = 2;
    launch.run.limits.processes = Some(7);
    bench.executor.perform(Task::Start(Box::new(launch)));
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    let can = controllers.is_ok_and(|all| all.split_ascii_whitespace().any(|one| one == "pids"));
    match next(&mut bench.events).await {
        Event::Started { .. } if can => {
            bench.exited().await;
        }
        Event::StartFailed {
            permanent: true,
            message,
            ..
        } if !can => assert!(message.contains("limits.processes"), "{message}"),
        other => panic!("{other:?}"),
    }
}

#[allow(clippy::expect_used, reason = "a test")]
async fn secrets(root: &Path) {
    let mut bench = bench(root, GRACE);
    // The words are not in the script as they are: it is shown with the unit.
    let script = "until test -e ${INSTANCE_DIR}/go; do sleep 0.05; done; \
        test \"$KEY\" = hid'den' || exit 1; test \"$(cat $CONF)\" = in'side' || exit 2; exit 42";
    let mut launch = bench.launch(shell(script));
    let file = serde_json::from_str(r#"{"path": "conf/key"}"#).expect("a file");
    for (variable, value, file) in [("KEY", "hidden", None), ("CONF", "inside", Some(file))] {
        launch.parameters.push(Parameter {
            variable: variable.to_owned(),
            value: Some(Secret::new(value.to_owned())),
            secret: true,
            file,
        });
    }
    let dir = bench.root.join("instances/shop-eu-q69g5fav/0");
    let written = crate::parameter_files::write(&launch, &dir);
    written.map_err(|refusal| refusal.message).expect("written");
    bench.start(launch.clone()).await;
    let unit = unit_name(&launch.instance);
    let shown = std::process::Command::new("systemctl")
        .args(["show", "--all", &unit])
        .output()
        .expect("systemctl");
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains("ActiveState=active"), "{shown}");
    assert!(
        !shown.contains("hidden") && !shown.contains("inside"),
        "{shown}"
    );
    std::fs::write(dir.join("go"), "").expect("written");
    let how = bench.exited().await;
    assert!(how.contains("exit status 42"), "{how}");
}
