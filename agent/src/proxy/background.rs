//! Taking over as a command that comes back: starts the successor, waits until it serves, and ends.
//!
//! This is what a service manager runs for a reload, which has to end while the proxy goes on. The
//! successor stays where the command was started, so in the unit, with its user and its sandbox,
//! and tells the manager itself that it is the main process from now on.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use super::ProxyArgs;
use super::control::ControlClient;
use super::table::{ControlReply, ControlRequest};

/// How long a successor may take, and one question to it.
const LIMIT: Duration = Duration::from_secs(45);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// Runs a successor of the proxy in the folder, or the first one, and comes back when it serves.
///
/// # Errors
/// It ended or does not take over; the proxy before it goes on.
pub(super) async fn run(args: &ProxyArgs) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("the path of this program")?;
    let mut command = Command::new(program);
    command
        .arg("proxy")
        .arg("--dir")
        .arg(&args.dir)
        .args(["--take-over", "--detach"])
        .args(["--drain", &args.drain.to_string()])
        .stdin(Stdio::null())
        .kill_on_drop(false);
    if let Some(threads) = args.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    let mut child = command.spawn().context("the successor cannot be started")?;
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait()? {
            bail!("the successor ended ({status}); the proxy before it goes on");
        }
        if let Ok(mut client) = ControlClient::connect(&args.dir).await
            && let Ok(Ok(ControlReply::Pong(running))) =
                timeout(ANSWER_LIMIT, client.ask(&ControlRequest::Ping)).await
            && Some(running.pid) == child.id()
        {
            return Ok(());
        }
        if Instant::now() >= deadline {
            // It would go on trying; two that try are one too many.
            child.start_kill().ok();
            bail!("the successor does not take over; the proxy before it goes on");
        }
        sleep(POLL).await;
    }
}
