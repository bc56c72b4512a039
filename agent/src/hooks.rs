//! Runs the hooks of an asset: programs around the starts and stops of an instance.
//!
//! One place for every executor: [`Prepared`](crate::executor::prepared::Prepared) calls it. A hook
//! runs with the environment of its instance and `TIDEGATE_HOOK`, in the release's folder, in a
//! process group of its own that is ended with it. What it prints goes, bounded and without the
//! instance's secrets, into a file beside the instance's output. While hooks of a kind run, a mark
//! lies on disk: an agent that starts and finds one knows that they were interrupted and has them
//! run again. So hooks have to be idempotent.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_shared::spec::{Hook, HookKind};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tracing::{info, warn};

use crate::executor::process::{Refusal, describe, end_group};
use crate::executor::{Launch, output, procfs};
use crate::files;
use crate::ledger::ProcessId;

/// The variable that tells a program which hook it is run as.
pub const HOOK_VARIABLE: &str = "TIDEGATE_HOOK";

/// Bytes of one hook's output that are kept.
const KEPT_BYTES: usize = 64 << 10;
/// Lines that go into the story of a failure.
const LAST_LINES: usize = 10;
/// Longest line that is held before it is written.
const MAX_LINE: usize = 4_096;
/// Between SIGTERM and SIGKILL when a hook's time is over.
const GRACE: Duration = Duration::from_secs(5);
/// What is left of a hook's group after it has ended gets less.
const REST_GRACE: Duration = Duration::from_millis(500);
/// How long the last words are waited for.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// A hook that did not end well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Trying again will not help.
    pub permanent: bool,
    /// Which hook, how it ended and its last words.
    pub message: String,
}

/// The mark of hooks under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    kind: HookKind,
    incarnation: u32,
}

fn beside(instance_dir: &Path, suffix: &str) -> PathBuf {
    let mut name = instance_dir.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    instance_dir.with_file_name(name)
}

fn mark_path(instance_dir: &Path) -> PathBuf {
    beside(instance_dir, ".hook")
}

/// The kind of hooks that an earlier process of the agent left unfinished for an instance.
pub fn interrupted(instance_dir: &Path) -> Option<HookKind> {
    let bytes = std::fs::read(mark_path(instance_dir)).ok()?;
    let mark: Mark = serde_json::from_slice(&bytes).ok()?;
    Some(mark.kind)
}

/// Takes the mark away: nothing is unfinished any more.
pub fn settle(instance_dir: &Path) {
    if let Err(error) = files::remove(&mark_path(instance_dir)) {
        warn!(dir = %instance_dir.display(), %error, "the mark of a hook stays");
    }
}

/// Ends the programs of hooks that an earlier process of the agent left behind.
pub async fn end_leftovers(instance: &str, instance_dir: &Path) {
    for process in procfs::find_hooks(instance, instance_dir) {
        info!(instance, pid = process.pid, "an interrupted hook is ended");
        end_group(&process, REST_GRACE).await;
    }
}

/// Runs the hooks of a kind in their order, each after the one before it ended well.
///
/// # Errors
/// The first that did not.
pub async fn run(kind: HookKind, launch: &Launch, instance_dir: &Path) -> Result<(), Failure> {
    let hooks = launch.run.hooks.of(kind);
    if hooks.is_empty() {
        return Ok(());
    }
    mark(kind, launch, instance_dir)?;
    let mut outcome = Ok(());
    for hook in hooks {
        outcome = run_one(kind, hook, launch, instance_dir).await;
        if outcome.is_err() {
            break;
        }
    }
    settle(instance_dir);
    outcome
}

/// Writes down that hooks of a kind are due or under way, if there are any.
///
/// # Errors
/// The mark cannot be written: an interruption would not be noticed.
pub fn mark(kind: HookKind, launch: &Launch, instance_dir: &Path) -> Result<(), Failure> {
    if launch.run.hooks.of(kind).is_empty() {
        return Ok(());
    }
    let mark = Mark {
        kind,
        incarnation: launch.incarnation,
    };
    files::make_folder(instance_dir, 0o700)
        .and_then(|()| serde_json::to_vec(&mark).map_err(std::io::Error::other))
        .and_then(|bytes| files::replace(&mark_path(instance_dir), &bytes, 0o600))
        .map_err(|error| Failure {
            permanent: false,
            message: format!(
                "the {} hook: its mark is not written: {error}",
                kind.as_str()
            ),
        })
}

async fn run_one(
    kind: HookKind,
    hook: &Hook,
    launch: &Launch,
    instance_dir: &Path,
) -> Result<(), Failure> {
    let word = kind.as_str();
    let program = launch.program(&hook.command, instance_dir);
    let failed = |permanent: bool, how: String| Failure {
        permanent,
        message: format!("the {word} hook {how}"),
    };
    let log = output::open(&output::Stream::Hooks.path(instance_dir))
        .map_err(|error| failed(false, format!("has no file for its output: {error}")))?;
    let captured = Arc::new(Captured::new(log, launch.clone()));
    captured.say(&format!("== {word}: {}", hook.command));
    let args = hook.args.iter();
    let mut child = Command::new(&program)
        .args(args.map(|arg| launch.substitute(arg, instance_dir)))
        .env_clear()
        .envs(launch.environment(instance_dir))
        .envs(launch.secret_environment().map(|(k, v)| (k, v.expose())))
        .env(HOOK_VARIABLE, word)
        .current_dir(&launch.release_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            let refusal = Refusal::of(&error, &program, launch);
            failed(
                refusal.permanent,
                format!("cannot run: {}", refusal.message),
            )
        })?;
    let process = ProcessId {
        pid: child.id().unwrap_or_default(),
        started: child.id().and_then(procfs::stat).map_or(0, |s| s.started),
        boot: procfs::boot(),
    };
    let readers = [
        child
            .stdout
            .take()
            .map(|pipe| captured.clone().follow(pipe)),
        child
            .stderr
            .take()
            .map(|pipe| captured.clone().follow(pipe)),
    ];
    let limit = hook.timeout.to_std();
    let how = match tokio::time::timeout(limit, child.wait()).await {
        Ok(Ok(status)) if status.success() => None,
        Ok(Ok(status)) => Some(describe(status)),
        Ok(Err(error)) => Some(format!("ended; its exit status cannot be read: {error}")),
        Err(_) => {
            // The leader is reaped meanwhile, or it would count as a living member.
            tokio::join!(end_group(&process, GRACE), child.wait())
                .1
                .ok();
            Some(format!(
                "was ended: it took longer than its time-out of {}",
                hook.timeout
            ))
        }
    };
    // A hook is over when its first program is; it leaves nothing behind.
    end_group(&process, REST_GRACE).await;
    for mut reader in readers.into_iter().flatten() {
        if tokio::time::timeout(DRAIN_LIMIT, &mut reader)
            .await
            .is_err()
        {
            reader.abort();
        }
    }
    let Some(how) = how else {
        captured.say(&format!("== {word}: done"));
        return Ok(());
    };
    captured.say(&format!("== {word}: {how}"));
    let words = captured.last_words();
    let told = if words.is_empty() {
        format!("{} {how}, and said nothing", hook.command)
    } else {
        format!("{} {how}; its last words:\n{words}", hook.command)
    };
    warn!(instance = %launch.instance, hook = word, how, "a hook failed");
    Err(failed(false, told))
}

/// What a hook prints: into the file up to a limit, and the last lines in memory.
struct Captured {
    state: Mutex<State>,
    launch: Launch,
}

struct State {
    log: File,
    left: usize,
    last: VecDeque<String>,
}

impl Captured {
    fn new(log: File, launch: Launch) -> Self {
        let state = State {
            log,
            left: KEPT_BYTES,
            last: VecDeque::new(),
        };
        Self {
            state: Mutex::new(state),
            launch,
        }
    }

    /// A line of our own.
    fn say(&self, line: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // What cannot be written is lost; the failure's message does not hang on it.
        writeln!(state.log, "{line}").ok();
    }

    /// A line of the hook's.
    fn take(&self, line: &[u8]) {
        let line = output::shorten(String::from_utf8_lossy(line).trim_end());
        let line = self.launch.mask(&line);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.left > line.len() {
            state.left -= line.len() + 1;
            writeln!(state.log, "{line}").ok();
        } else if state.left > 0 {
            state.left = 0;
            writeln!(state.log, "== more than 64 KiB; the rest is left out").ok();
        }
        state.last.push_back(line);
        if state.last.len() > LAST_LINES {
            state.last.pop_front();
        }
    }

    fn last_words(&self) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = state.last.iter().map(String::as_str).collect();
        lines.join("\n")
    }

    fn follow(
        self: Arc<Self>,
        mut pipe: impl AsyncRead + Unpin + Send + 'static,
    ) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            let mut line = Vec::new();
            let mut buffer = vec![0; 8 << 10];
            while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
                for byte in &buffer[..count] {
                    if *byte != b'\n' {
                        line.push(*byte);
                    }
                    if *byte == b'\n' || line.len() >= MAX_LINE {
                        self.take(&line);
                        line.clear();
                    }
                }
            }
            if !line.is_empty() {
                self.take(&line);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::conformance::launch;
    use crate::executor::{Parameter, instance_dir};
    use tidegate_shared::secret::Secret;
    use tidegate_shared::spec::RunSpec;
    use tidegate_shared::time::Span;

    struct Bench {
        _dir: tempfile::TempDir,
        launch: Launch,
        dir: PathBuf,
    }

    impl Bench {
        fn new(kind: HookKind, scripts: &[&str], timeout: Span) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let release = folder.path().join("release");
            std::fs::create_dir(&release).unwrap();
            let hooks: Vec<Hook> = scripts
                .iter()
                .map(|script| Hook {
                    command: "/bin/sh".to_owned(),
                    args: vec!["-c".to_owned(), (*script).to_owned()],
                    timeout,
                })
                .collect();
            let mut run = RunSpec::default();
            match kind {
                HookKind::BeforeStart => run.hooks.before_start = hooks,
                HookKind::AfterStart => run.hooks.after_start = hooks,
                HookKind::BeforeStop => run.hooks.before_stop = hooks,
                HookKind::AfterStop => run.hooks.after_stop = hooks,
            }
            let launch = launch(0, &release, run);
            let dir = instance_dir(&folder.path().join("instances"), &launch.instance);
            Self {
                _dir: folder,
                launch,
                dir,
            }
        }

        fn log(&self) -> String {
            let path = output::Stream::Hooks.path(&self.dir);
            std::fs::read_to_string(path).unwrap_or_default()
        }
    }

    const MINUTE: Span = Span::from_secs(60);

    #[tokio::test]
    async fn hooks_run_in_order_with_the_environment_of_the_instance() {
        let scripts = [
            "echo one $TIDEGATE_HOOK $PORT >> order; pwd >> order",
            "echo two $TIDEGATE_INSTANCE >> order; echo done",
        ];
        let bench = Bench::new(HookKind::BeforeStart, &scripts, MINUTE);
        run(HookKind::BeforeStart, &bench.launch, &bench.dir)
            .await
            .unwrap();
        let release = &bench.launch.release_dir;
        let order = std::fs::read_to_string(release.join("order")).unwrap();
        let id = bench.launch.instance.id();
        assert_eq!(
            order,
            format!("one before_start 20000\n{}\ntwo {id}\n", release.display())
        );
        assert!(bench.log().contains("\ndone\n"), "{}", bench.log());
        assert_eq!(interrupted(&bench.dir), None);
    }

    #[tokio::test]
    async fn a_failure_ends_the_order_and_has_the_last_words_without_secrets() {
        let scripts = [
            "echo using hunter22secret >&2; exit 3",
            "echo never >> never",
        ];
        let mut bench = Bench::new(HookKind::BeforeStart, &scripts, MINUTE);
        bench.launch.parameters.push(Parameter {
            variable: "DB".to_owned(),
            value: Some(Secret::new("hunter22secret".to_owned())),
            secret: true,
            file: None,
        });
        let failure = run(HookKind::BeforeStart, &bench.launch, &bench.dir)
            .await
            .unwrap_err();
        assert!(!failure.permanent);
        let told = &failure.message;
        assert!(
            told.contains("before_start hook /bin/sh ended with exit status 3"),
            "{told}"
        );
        assert!(told.ends_with("using (secret)"), "{told}");
        assert!(!bench.log().contains("hunter22secret"));
        assert!(!bench.launch.release_dir.join("never").exists());
    }

    #[tokio::test]
    async fn a_hook_that_takes_too_long_is_ended_with_its_children() {
        let script = "trap '' TERM; echo $$ > pid; sleep 600 & wait";
        let bench = Bench::new(HookKind::AfterStop, &[script], Span::from_millis(500));
        let failure = run(HookKind::AfterStop, &bench.launch, &bench.dir)
            .await
            .unwrap_err();
        assert!(
            failure.message.contains("time-out of 500ms"),
            "{}",
            failure.message
        );
        let pid = std::fs::read_to_string(bench.launch.release_dir.join("pid")).unwrap();
        assert!(!procfs::group_lives(pid.trim().parse().unwrap()));
    }

    #[tokio::test]
    async fn what_cannot_be_run_is_permanent_and_named() {
        let mut bench = Bench::new(HookKind::BeforeStart, &["true"], MINUTE);
        bench.launch.run.hooks.before_start[0].command = "./migrate".to_owned();
        let failure = run(HookKind::BeforeStart, &bench.launch, &bench.dir)
            .await
            .unwrap_err();
        assert!(failure.permanent);
        for word in ["before_start", "migrate", "does not exist"] {
            assert!(failure.message.contains(word), "{}", failure.message);
        }
    }

    #[tokio::test]
    async fn output_is_bounded_and_what_a_hook_leaves_behind_is_ended() {
        let script = "i=0; while [ $i -lt 3000 ]; do echo \"$i 0123456789012345678901234567890123456789\"; i=$((i+1)); done; sleep 600 & echo $! > left; echo last";
        let bench = Bench::new(HookKind::AfterStart, &[script], MINUTE);
        run(HookKind::AfterStart, &bench.launch, &bench.dir)
            .await
            .unwrap();
        let log = bench.log();
        assert!(log.len() < KEPT_BYTES + 1_000, "{}", log.len());
        assert!(log.contains("the rest is left out"));
        let left = std::fs::read_to_string(bench.launch.release_dir.join("left")).unwrap();
        let left: u32 = left.trim().parse().unwrap();
        assert!(procfs::identify(left).is_none());
    }

    #[tokio::test]
    async fn hooks_that_were_interrupted_are_known_and_their_programs_ended() {
        let bench = Bench::new(
            HookKind::BeforeStop,
            &["echo up > up; exec sleep 600"],
            MINUTE,
        );
        let (launch, dir) = (bench.launch.clone(), bench.dir.clone());
        let up = bench.launch.release_dir.join("up");
        let task = tokio::spawn(async move { run(HookKind::BeforeStop, &launch, &dir).await });
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while !up.exists() && std::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let id = bench.launch.instance.id();
        let found = procfs::find_hooks(&id, &bench.dir);
        assert_eq!(found.len(), 1);
        assert_eq!(procfs::find_marked(&id, &bench.dir), None, "no instance");
        assert_eq!(interrupted(&bench.dir), Some(HookKind::BeforeStop));
        end_leftovers(&id, &bench.dir).await;
        assert!(procfs::find_hooks(&id, &bench.dir).is_empty());
        assert!(task.await.unwrap().is_err());
    }
}
