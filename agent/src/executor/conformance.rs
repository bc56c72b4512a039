//! What every executor must do, told once: the suite that each of them passes.
//!
//! Each task is done twice. `long` is a command that runs until it is told to end, `missing` one
//! that cannot be started.

pub mod systemd;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use tidegate_agent_core::observed::Event;
use tidegate_agent_core::place::{InstanceKey, PlaceKey};
use tidegate_shared::id::{Name, Version};
use tidegate_shared::spec::RunSpec;
use tokio::sync::mpsc::UnboundedReceiver;

use super::{Executor, Launch, Task};

/// Longest wait for an event.
const LIMIT: Duration = Duration::from_secs(20);

/// A launch of instance `ordinal` of a place made for tests.
///
/// # Panics
/// Never: the names are good.
#[allow(clippy::expect_used, reason = "a helper of tests")]
pub fn launch(ordinal: u32, release_dir: &Path, run: RunSpec) -> Launch {
    let name = |text: &str| Name::new(text).expect("a name");
    let deployment = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().expect("an id");
    Launch {
        instance: InstanceKey {
            place: PlaceKey {
                scope: name("shop-eu"),
                deployment,
            },
            ordinal,
        },
        incarnation: 1,
        port: 20_000,
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        agent: name("web-1"),
        release: Version::new("1.0.0").expect("a version"),
        release_dir: release_dir.to_path_buf(),
        run,
        parameters: Vec::new(),
    }
}

/// The next event within the limit.
///
/// # Panics
/// None came.
#[allow(clippy::expect_used, reason = "a helper of tests")]
pub async fn next(events: &mut UnboundedReceiver<Event>) -> Event {
    let event = tokio::time::timeout(LIMIT, events.recv()).await;
    event.expect("an event in time").expect("an executor")
}

/// The suite.
///
/// # Panics
/// The executor does not conform.
pub async fn suite(
    executor: &dyn Executor,
    events: &mut UnboundedReceiver<Event>,
    release_dir: &Path,
    (long, missing): (RunSpec, RunSpec),
) {
    let first = launch(0, release_dir, long.clone());
    let key = first.instance.clone();
    for _ in 0..2 {
        executor.perform(Task::Start(Box::new(first.clone())));
    }
    let mut pids = Vec::new();
    for _ in 0..2 {
        match next(events).await {
            Event::Started { instance, pid, .. } if instance == key => pids.push(pid),
            other => panic!("want started, got {other:?}"),
        }
    }
    assert_eq!(pids[0], pids[1], "two starts made two processes");
    assert_eq!(executor.observe().len(), 1);

    let running = executor.observe().remove(0);
    executor.perform(Task::Adopt(running.clone()));
    assert_eq!(
        executor.observe(),
        [running],
        "adopting twice changes nothing"
    );

    let stop = Task::Stop {
        instance: key.clone(),
        incarnation: 1,
        launch: Some(Box::new(first.clone())),
    };
    executor.perform(stop.clone());
    assert!(matches!(next(events).await, Event::Stopped { instance, .. } if instance == key));
    assert_eq!(executor.observe(), []);
    executor.perform(stop);
    assert!(matches!(next(events).await, Event::Stopped { instance, .. } if instance == key));

    let hopeless = launch(1, release_dir, missing);
    for _ in 0..2 {
        executor.perform(Task::Start(Box::new(hopeless.clone())));
        match next(events).await {
            Event::StartFailed {
                permanent, message, ..
            } => {
                assert!(permanent, "{message}");
                assert!(message.contains(&hopeless.run.command), "{message}");
            }
            other => panic!("want a refusal, got {other:?}"),
        }
    }
    assert_eq!(executor.observe(), []);

    for _ in 0..2 {
        executor.perform(Task::Remove(key.place.clone()));
        assert!(matches!(next(events).await, Event::Removed { place } if place == key.place));
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeExecutor;
    use super::super::process::ProcessExecutor;
    use super::super::{Running, instance_dir, output, procfs};
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;

    fn run(command: &str, args: &[&str]) -> RunSpec {
        RunSpec {
            command: command.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            ..RunSpec::default()
        }
    }

    fn shell(script: &str) -> RunSpec {
        run("/bin/sh", &["-c", script])
    }

    struct Bench {
        _dir: tempfile::TempDir,
        release: std::path::PathBuf,
        instances: std::path::PathBuf,
        executor: ProcessExecutor,
        events: UnboundedReceiver<Event>,
    }

    fn bench(grace: Duration) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let release = dir.path().join("release");
        let instances = dir.path().join("instances");
        std::fs::create_dir(&release).unwrap();
        let (sender, events) = unbounded_channel();
        let executor = ProcessExecutor::new(instances.clone(), grace, sender);
        Bench {
            _dir: dir,
            release,
            instances,
            executor,
            events,
        }
    }

    const GRACE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn the_fake_conforms() {
        let (sender, mut events) = unbounded_channel();
        let executor = FakeExecutor::new(sender);
        executor.refuse("missing");
        let commands = (run("long", &[]), run("missing", &[]));
        suite(&executor, &mut events, Path::new("/"), commands).await;
        executor.perform(Task::Start(Box::new(launch(
            0,
            Path::new("/"),
            run("long", &[]),
        ))));
        let key = launch(0, Path::new("/"), run("long", &[])).instance;
        assert!(matches!(next(&mut events).await, Event::Started { .. }));
        executor.end(&key, "told to");
        assert!(matches!(next(&mut events).await, Event::Exited { .. }));
    }

    #[tokio::test]
    async fn processes_conform() {
        let mut bench = bench(GRACE);
        let commands = (shell("exec sleep 600"), run("./nothing-here", &[]));
        let Bench {
            executor,
            events,
            release,
            ..
        } = &mut bench;
        suite(&*executor, events, release, commands).await;
        assert!(!bench.instances.join("shop-eu-q69g5fav").exists());
    }

    #[tokio::test]
    async fn readiness_that_nobody_hears_is_refused() {
        let mut bench = bench(GRACE);
        let notify = RunSpec {
            notify: true,
            ..shell("exec sleep 600")
        };
        let launch = launch(0, &bench.release, notify);
        bench.executor.perform(Task::Start(Box::new(launch)));
        match next(&mut bench.events).await {
            Event::StartFailed {
                permanent, message, ..
            } => assert!(permanent && message.contains("run.notify"), "{message}"),
            other => panic!("want a refusal, got {other:?}"),
        }
        assert_eq!(bench.executor.observe(), []);
    }

    #[tokio::test]
    async fn an_end_is_told_with_its_status_and_last_words() {
        let mut bench = bench(GRACE);
        let script = shell("echo \"$PORT $TIDEGATE_SCOPE $GREETING\" >&2; exit 3");
        let mut launch = launch(0, &bench.release, script);
        launch
            .run
            .env
            .insert("GREETING".into(), "on ${PORT}".into());
        bench.executor.perform(Task::Start(Box::new(launch)));
        assert!(matches!(
            next(&mut bench.events).await,
            Event::Started { .. }
        ));
        match next(&mut bench.events).await {
            Event::Exited { how, .. } => {
                assert!(how.contains("exit status 3"), "{how}");
                assert!(how.contains("20000 shop-eu on 20000"), "{how}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(bench.executor.observe(), []);
    }

    #[tokio::test]
    async fn what_ignores_sigterm_is_killed_with_its_children() {
        let mut bench = bench(Duration::from_millis(300));
        let script = shell("trap '' TERM; sleep 600 & echo ready; while :; do sleep 600; done");
        let launch = launch(0, &bench.release, script);
        let key = launch.instance.clone();
        bench.executor.perform(Task::Start(Box::new(launch)));
        let Event::Started { pid, .. } = next(&mut bench.events).await else {
            panic!("not started");
        };
        let log = output::Stream::Stdout.path(&instance_dir(&bench.instances, &key));
        let deadline = std::time::Instant::now() + LIMIT;
        while output::tail(&log, 1) != ["ready"] && std::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bench.executor.perform(Task::Stop {
            instance: key,
            incarnation: 1,
            launch: None,
        });
        match next(&mut bench.events).await {
            Event::Stopped { how, .. } => {
                let how = how.unwrap_or_default();
                assert!(how.contains("signal 9"), "{how}");
            }
            other => panic!("{other:?}"),
        }
        assert!(!procfs::group_lives(pid));
    }

    #[tokio::test]
    async fn refusals_say_what_is_wrong_with_the_command() {
        use std::os::unix::fs::PermissionsExt as _;
        let mut bench = bench(GRACE);
        let write = |name: &str, text: &str, mode: u32| {
            let path = bench.release.join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
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
            let launch = launch(0, &bench.release, run(command, &[]));
            bench.executor.perform(Task::Start(Box::new(launch)));
            match next(&mut bench.events).await {
                Event::StartFailed {
                    permanent: true,
                    message,
                    ..
                } => {
                    assert!(message.contains(words), "{message} lacks {words}");
                }
                other => panic!("{command}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn another_executor_adopts_and_sees_the_end() {
        let mut first = bench(GRACE);
        let launch = launch(0, &first.release, shell("exec sleep 600"));
        let key = launch.instance.clone();
        first.executor.perform(Task::Start(Box::new(launch)));
        assert!(matches!(
            next(&mut first.events).await,
            Event::Started { .. }
        ));
        let running = first.executor.observe().remove(0);
        let dir = instance_dir(&first.instances, &key);
        // A process that becomes another program has no environment for a moment.
        let deadline = std::time::Instant::now() + LIMIT;
        while procfs::find_marked(&key.id(), &dir).as_ref() != Some(&running.process) {
            assert!(std::time::Instant::now() < deadline, "it is never found");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(
            procfs::find_marked(&key.id(), Path::new("/elsewhere")),
            None
        );

        let (sender, mut events) = unbounded_channel();
        let second = ProcessExecutor::new(first.instances.clone(), GRACE, sender);
        second.perform(Task::Adopt(running.clone()));
        assert_eq!(second.observe(), [running]);
        second.perform(Task::Stop {
            instance: key.clone(),
            incarnation: 1,
            launch: None,
        });
        match next(&mut events).await {
            Event::Stopped { how, .. } => {
                let how = how.unwrap_or_default();
                assert!(how.contains("exit status is unknown"), "{how}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_process_number_that_is_somebody_elses_now_is_not_adopted() {
        let (sender, mut events) = unbounded_channel();
        let dir = tempfile::tempdir().unwrap();
        let executor = ProcessExecutor::new(dir.path().to_path_buf(), GRACE, sender);
        let mut process = procfs::identify(std::process::id()).unwrap();
        process.started -= 1;
        let key = launch(0, dir.path(), shell("")).instance;
        executor.perform(Task::Adopt(Running {
            instance: key,
            incarnation: 4,
            process,
        }));
        match next(&mut events).await {
            Event::Exited {
                incarnation: 4,
                how,
                ..
            } => assert!(how.contains("unknown"), "{how}"),
            other => panic!("{other:?}"),
        }
    }
}
