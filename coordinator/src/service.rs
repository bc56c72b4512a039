//! The coordinator as a service: what it tells systemd, and what SIGHUP makes it read again.
//!
//! Everything that is told goes to the socket that the service manager names in its environment;
//! without one, nothing is told and nothing changes. READY comes when the listeners are bound and
//! the log is open, not when a majority is there: a cluster that boots as a whole must not be shot
//! down for waiting on itself. The watchdog is fed only while the Raft thread and the replica's
//! thread answer. `main.rs` starts it.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::Signal;

use crate::api::Context;
use crate::config::{Config, ConfigError};
use crate::node::Node;
use crate::raft::driver::Pulse;
use crate::raft::{RaftStatus, Role};
use crate::setup::SetupError;

/// Status lines follow one another at least so far apart.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// Puts a log filter into force.
pub type SetFilter = Box<dyn Fn(&str) -> Result<(), String> + Send>;

/// Reads the configuration again, as at the start.
pub type ReadConfig = Box<dyn Fn() -> Result<Config, ConfigError> + Send>;

/// What a reload needs.
pub struct Reload {
    /// The configuration as it was read at the start.
    pub config: Config,
    /// Reads it again.
    pub read: ReadConfig,
    /// For the key `log.filter`.
    pub set_filter: SetFilter,
}

/// Tells the service manager something; a manager that does not listen is no reason to stop.
pub fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

/// Serves the service manager until the node stops: ready, status, watchdog, reloads.
pub fn attend(node: &Node, reload: Reload, hang_up: Signal) {
    tell(&[
        NotifyState::Ready,
        NotifyState::Status("waiting for a majority"),
    ]);
    let context = node.context();
    tokio::spawn(tell_status(context.clone()));
    tokio::spawn(take_reloads(
        reload,
        Box::new(node.certificate_reader()),
        hang_up,
        context.clone(),
    ));
    if let Some(period) = sd_notify::watchdog_enabled() {
        tokio::spawn(feed_watchdog(node.pulse().clone(), period, context.clone()));
    }
}

/// Tells that the stop has begun.
pub fn stopping(why: &str) {
    let status = format!("stopping: {why}");
    tell(&[NotifyState::Stopping, NotifyState::Status(&status)]);
}

async fn tell_status(context: Arc<Context>) {
    let mut status = context.status.clone();
    let mut told = String::new();
    loop {
        let line = describe(&status.borrow_and_update());
        if line != told {
            tell(&[NotifyState::Status(&line)]);
            told = line;
        }
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = context.stop.cancelled() => return,
        }
        tokio::time::sleep(STATUS_EVERY).await;
    }
}

/// The line that `systemctl status` shows.
fn describe(status: &RaftStatus) -> String {
    let RaftStatus {
        node_id,
        role,
        leader,
        term,
        clock_skewed,
        ..
    } = status;
    let standing = match (role, leader) {
        (Role::Leader, _) => "leads".to_owned(),
        (Role::Learner, Some(leader)) => format!("learns from node {leader}"),
        (_, Some(leader)) => format!("follows node {leader}"),
        (_, None) => "no leader is known".to_owned(),
    };
    let clock = if *clock_skewed {
        "; this machine's clock is off, so it does not lead"
    } else {
        ""
    };
    format!("node {node_id}, {standing}, term {term}{clock}")
}

/// Pings while replication turns. Three questions fit into one period, so that a single slow round
/// is no reason for the manager to end the process.
async fn feed_watchdog(pulse: Pulse, period: Duration, context: Arc<Context>) {
    let step = period / 3;
    let mut is_fed = true;
    loop {
        let beats = pulse.beats_within(step).await;
        if beats {
            tell(&[NotifyState::Watchdog]);
        } else if is_fed && !context.stop.is_cancelled() {
            tracing::error!(
                "replication does not turn; without a turn the watchdog ends this process"
            );
        }
        is_fed = beats;
        tokio::select! {
            () = tokio::time::sleep(step) => {}
            // The stop has a limit of its own, and feeding goes on until the manager knows of it.
            () = context.stop.cancelled() => return,
        }
    }
}

async fn take_reloads(
    mut reload: Reload,
    read_certificate: Box<dyn Fn() -> Result<(), SetupError> + Send>,
    mut hang_up: Signal,
    context: Arc<Context>,
) {
    loop {
        tokio::select! {
            Some(()) = hang_up.recv() => {}
            () = context.stop.cancelled() => return,
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "the monotonic clock cannot be read"),
        }
        reload_now(&mut reload, &read_certificate);
        tell(&[NotifyState::Ready]);
    }
}

/// One reload. Whatever cannot be used is told and leaves everything as it was.
fn reload_now(reload: &mut Reload, read_certificate: &dyn Fn() -> Result<(), SetupError>) {
    let fresh = match (reload.read)() {
        Ok(fresh) => fresh,
        Err(error) => {
            tracing::error!(%error, "the configuration is not reloaded; the old one stays in force");
            return;
        }
    };
    if let Err(error) = read_certificate() {
        tracing::error!(%error, "the certificate is not reloaded; the old one stays in use");
    }
    if fresh.log_filter != reload.config.log_filter {
        match (reload.set_filter)(&fresh.log_filter) {
            Ok(()) => reload.config.log_filter.clone_from(&fresh.log_filter),
            Err(error) => tracing::error!(error, "the log filter is not changed"),
        }
    }
    let waiting = reload.config.differences(&fresh);
    if waiting.is_empty() {
        tracing::info!("reloaded: log filter and certificate");
    } else {
        tracing::warn!(
            keys = waiting.join(", "),
            "reloaded: log filter and certificate; these keys changed too and need a restart"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const TEXT: &str = "name = \"c1\"\n[listen]\ncontrol = \"127.0.0.1:7440\"\n\
        peer = \"127.0.0.1:7441\"\nhttp = \"127.0.0.1:7442\"\nenroll = \"127.0.0.1:7443\"\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("/data/coordinator.toml"), text, [])
    }

    #[test]
    fn a_reload_changes_the_filter_and_names_what_needs_a_restart() {
        let text = Arc::new(Mutex::new(TEXT.to_owned()));
        let filter = Arc::new(Mutex::new(String::new()));
        let (file, set) = (text.clone(), filter.clone());
        let mut reload = Reload {
            config: parse(TEXT).unwrap(),
            read: Box::new(move || parse(&file.lock().unwrap())),
            set_filter: Box::new(move |value| {
                value.clone_into(&mut set.lock().unwrap());
                Ok(())
            }),
        };
        let certificates = AtomicUsize::new(0);
        let read_certificate = || {
            certificates.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        *text.lock().unwrap() =
            format!("{TEXT}[log]\nfilter = \"debug\"\n[raft]\ntick = \"20ms\"\n");
        reload_now(&mut reload, &read_certificate);
        assert_eq!(*filter.lock().unwrap(), "debug");
        assert_eq!(certificates.load(Ordering::Relaxed), 1);
        let fresh = parse(&text.lock().unwrap()).unwrap();
        assert_eq!(reload.config.differences(&fresh), ["raft.tick"]);

        *text.lock().unwrap() = "name = ".to_owned();
        reload_now(&mut reload, &read_certificate);
        assert_eq!(
            certificates.load(Ordering::Relaxed),
            1,
            "a wrong file changes nothing"
        );
        assert_eq!(reload.config.log_filter, "debug");
    }

    #[test]
    fn the_status_says_role_leader_and_term() {
        let mut status = RaftStatus {
            node_id: 2,
            role: Role::Leader,
            leader: Some(2),
            term: 7,
            ..RaftStatus::default()
        };
        assert_eq!(describe(&status), "node 2, leads, term 7");
        status.role = Role::Follower;
        status.leader = Some(1);
        assert_eq!(describe(&status), "node 2, follows node 1, term 7");
        status.leader = None;
        assert_eq!(describe(&status), "node 2, no leader is known, term 7");
    }
}
