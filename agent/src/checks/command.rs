//! One run of a program in the surroundings of an instance, as hooks run: the same environment with
//! its secrets, the same folder, the same user, a process group of its own that is ended with it.

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_shared::id::Name;
use tidegate_shared::measurement::{MOST_BYTES, Sample};
use tidegate_shared::spec::CommandMeasurement;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::task::JoinHandle;

use super::{TargetInstance, text};
use crate::executor::process::{Refusal, describe, end_group};
use crate::executor::procfs;
use crate::hooks::HOOK_VARIABLE;
use crate::ledger::ProcessId;

/// The variable with the name of the check. [`HOOK_VARIABLE`] is set too: what runs around an
/// instance is told from the instance by it.
const CHECK_VARIABLE: &str = "TIDEGATE_CHECK";
/// Between SIGTERM and SIGKILL when its time is over.
const GRACE: Duration = Duration::from_secs(5);
/// What is left of its group after it has ended gets less.
const REST_GRACE: Duration = Duration::from_millis(500);
/// How long the last words are waited for.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// One sample.
pub(super) async fn sample(
    check: &Name,
    wanted: &CommandMeasurement,
    instance: &TargetInstance,
) -> Sample {
    let (launch, dir) = (&instance.launch, &instance.dir);
    if let Some(lacking) = launch.parameters.iter().find(|p| p.value.is_none()) {
        return Sample::NotMade(format!(
            "the value of {} has not come to this host yet",
            lacking.variable
        ));
    }
    let program = launch.program(&wanted.command, dir);
    let spawned = Command::new(&program)
        .args(wanted.args.iter().map(|arg| launch.substitute(arg, dir)))
        .env_clear()
        .envs(launch.environment(dir))
        .envs(launch.secret_environment().map(|(k, v)| (k, v.expose())))
        .env(HOOK_VARIABLE, "verification")
        .env(CHECK_VARIABLE, check.as_str())
        .current_dir(&launch.release_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let refusal = Refusal::of(&error, &program, launch);
            return Sample::NotMade(refusal.message);
        }
    };
    let process = ProcessId {
        pid: child.id().unwrap_or_default(),
        started: child.id().and_then(procfs::stat).map_or(0, |s| s.started),
        boot: procfs::boot(),
    };
    let printed = Printed::default();
    let readers = [
        child.stdout.take().map(|pipe| printed.clone().follow(pipe)),
        child.stderr.take().map(|pipe| printed.clone().follow(pipe)),
    ];
    let ended = match tokio::time::timeout(wanted.timeout.to_std(), child.wait()).await {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(error)) => Err(Sample::NotMade(format!(
            "its exit status cannot be read: {error}"
        ))),
        Err(_) => {
            // The leader is reaped meanwhile, or it would count as a living member.
            tokio::join!(end_group(&process, GRACE), child.wait())
                .1
                .ok();
            Err(Sample::Unanswered(format!(
                "took longer than its time-out of {}",
                wanted.timeout
            )))
        }
    };
    // It is over when its first program is; it leaves nothing behind.
    end_group(&process, REST_GRACE).await;
    for mut reader in readers.into_iter().flatten() {
        if tokio::time::timeout(DRAIN_LIMIT, &mut reader)
            .await
            .is_err()
        {
            reader.abort();
        }
    }
    match ended {
        Ok(status) => of_end(status, &printed),
        Err(sample) => sample,
    }
}

fn of_end(status: ExitStatus, printed: &Printed) -> Sample {
    use std::os::unix::process::ExitStatusExt as _;
    let (output, cut) = printed.take();
    match (status.code(), status.signal()) {
        (Some(exit_code), _) => Sample::Command {
            exit_code,
            output,
            cut,
        },
        // Somebody ended it: the agent's own stop, an administrator, the host.
        (None, Some(2 | 9 | 15)) => Sample::NotMade(describe(status)),
        (None, _) => Sample::Unanswered(describe(status)),
    }
}

/// What a program prints on both outputs: the first part is kept, the rest is read and dropped.
#[derive(Debug, Clone, Default)]
struct Printed(Arc<Mutex<(Vec<u8>, bool)>>);

impl Printed {
    fn add(&self, bytes: &[u8]) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (kept, more) = &mut *held;
        let room = MOST_BYTES - kept.len();
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        *more |= bytes.len() > room;
    }

    fn take(&self) -> (String, bool) {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (text, cut) = text(&held.0, MOST_BYTES);
        (text, cut || held.1)
    }

    fn follow(self, mut pipe: impl AsyncRead + Unpin + Send + 'static) -> JoinHandle<()> {
        tokio::spawn(async move {
            let mut buffer = vec![0; 8 << 10];
            while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
                self.add(&buffer[..count]);
            }
        })
    }
}
