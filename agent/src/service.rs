//! The agent as a service: what it tells systemd, and what SIGHUP makes it read again.
//!
//! Everything that is told goes to the socket that the service manager names in its environment;
//! without one, nothing is told and nothing changes. READY comes when the ledger is open and the
//! session has begun to try: an agent without coordinators is at work, it keeps applications up.
//! The watchdog is fed while the reconcile loop answers. [`crate::run`] starts it; the
//! proxy tells its own READY through [`tell`].

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tidegate_shared::assignment::Report;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use crate::config::Settings;
use crate::error::AgentError;
use crate::identity;
use crate::session::Coordinators;
use crate::tls::Material;

/// Status lines follow one another at least so far apart.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// Environment variables by which the service manager is found. Processes that are started are not
/// told them: they would speak in the agent's name.
pub const MANAGER_VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Puts a log filter into force.
pub type SetFilter = Box<dyn Fn(&str) -> Result<(), String> + Send>;

/// Reads the configuration again, as at the start.
pub type ReadSettings = Box<dyn Fn() -> Result<Settings, AgentError> + Send>;

/// What a reload needs of the program.
pub struct Reload {
    /// Reads the configuration again.
    pub read: ReadSettings,
    /// For the key `log`.
    pub set_filter: SetFilter,
}

/// What is watched and changed while the agent runs.
pub struct Attended {
    /// The configuration of the start.
    pub settings: Settings,
    /// The latest report.
    pub reports: watch::Receiver<Option<Arc<Report>>>,
    /// The coordinator of the session that is up.
    pub connected: watch::Receiver<Option<String>>,
    /// The list that the session tries.
    pub coordinators: watch::Sender<Coordinators>,
    /// The certificate that the session shows.
    pub material: watch::Sender<Arc<Material>>,
}

/// Tells the service manager something; a manager that does not listen is no reason to stop.
pub fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "the service manager was not told");
    }
}

/// Tells that the stop has begun.
pub fn stopping() {
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("stopping; applications and the proxy go on"),
    ]);
}

/// Serves the service manager: ready, status, watchdog, reloads. `pulse` asks the loop whether it
/// turns. Dropping the answer ends it all.
pub fn attend(
    attended: Attended,
    pulse: mpsc::Sender<oneshot::Sender<()>>,
    reload: Reload,
    hang_up: Signal,
) -> tokio::task::JoinSet<()> {
    tell(&[
        NotifyState::Ready,
        NotifyState::Status("looking for a coordinator"),
    ]);
    let mut tasks = tokio::task::JoinSet::new();
    let (reports, connected) = (attended.reports.clone(), attended.connected.clone());
    tasks.spawn(tell_status(reports, connected));
    if let Some(period) = sd_notify::watchdog_enabled() {
        tasks.spawn(feed_watchdog(pulse, period));
    }
    tasks.spawn(take_reloads(attended, reload, hang_up));
    tasks
}

async fn tell_status(
    mut reports: watch::Receiver<Option<Arc<Report>>>,
    mut connected: watch::Receiver<Option<String>>,
) {
    let mut told = String::new();
    loop {
        let line = describe(
            connected.borrow_and_update().as_deref(),
            reports.borrow_and_update().as_deref(),
        );
        if line != told {
            tell(&[NotifyState::Status(&line)]);
            told = line;
        }
        let changed = tokio::select! {
            changed = reports.changed() => changed,
            changed = connected.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
        tokio::time::sleep(STATUS_EVERY).await;
    }
}

/// The line that `systemctl status` shows.
fn describe(connected: Option<&str>, report: Option<&Report>) -> String {
    let session = connected.map_or_else(
        || "no session with a coordinator".to_owned(),
        |address| format!("in session with {address}"),
    );
    let places = report.map_or(&[][..], |report| &report.places[..]);
    let instances: usize = places.iter().map(|place| place.instances.len()).sum();
    let of = |count: usize, word: &str| match count {
        1 => format!("1 {word}"),
        more => format!("{more} {word}s"),
    };
    let mut line = format!(
        "{session}; {} of {}",
        of(instances, "instance"),
        of(places.len(), "version")
    );
    if let Some(complaint) = report.and_then(|report| report.complaints.first()) {
        line.push_str("; ");
        line.push_str(&complaint.replace('\n', " "));
    }
    line
}

/// Pings while the loop answers: three questions fit into one period, so that a single slow turn is
/// no reason for the manager to end the process.
async fn feed_watchdog(pulse: mpsc::Sender<oneshot::Sender<()>>, period: Duration) {
    let step = period / 3;
    let mut is_fed = true;
    loop {
        let beat = tokio::time::timeout(step, async {
            let (sender, receiver) = oneshot::channel();
            pulse.send(sender).await.ok();
            receiver.await.is_ok()
        });
        let beats = matches!(beat.await, Ok(true));
        if beats {
            tell(&[NotifyState::Watchdog]);
        } else if is_fed {
            error!("the agent's loop does not turn; without a turn the watchdog ends this process");
        }
        is_fed = beats;
        tokio::time::sleep(step).await;
    }
}

async fn take_reloads(attended: Attended, reload: Reload, mut hang_up: Signal) {
    let mut log = attended.settings.log.clone();
    while hang_up.recv().await.is_some() {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => debug!(%error, "the monotonic clock cannot be read"),
        }
        reload_now(&attended, &reload, &mut log);
        tell(&[NotifyState::Ready]);
    }
}

/// One reload. Whatever cannot be used is told and leaves everything as it was.
fn reload_now(attended: &Attended, reload: &Reload, log: &mut String) {
    let fresh = match (reload.read)() {
        Ok(fresh) => fresh,
        Err(error) => {
            error!(%error, "the configuration is not reloaded; the old one stays in force");
            return;
        }
    };
    if fresh.log != *log {
        match (reload.set_filter)(&fresh.log) {
            Ok(()) => log.clone_from(&fresh.log),
            Err(error) => error!(error, "the log filter is not changed"),
        }
    }
    let configured = Coordinators {
        control: fresh.coordinators.clone(),
        http: fresh.http.clone(),
    };
    attended
        .coordinators
        .send_if_modified(|list| list.add(configured));
    reload_certificate(attended);
    let waiting = attended.settings.differences_for_restart(&fresh);
    if waiting.is_empty() {
        info!("reloaded: log filter, coordinators and certificate");
    } else {
        warn!(
            keys = waiting.join(", "),
            "reloaded: log filter, coordinators and certificate; these keys changed too and need a restart"
        );
    }
}

/// Takes the certificate that `join` wrote again into use, from the next connection on.
fn reload_certificate(attended: &Attended) {
    let held = attended.material.borrow().identity.clone();
    match identity::load(&attended.settings.layout.identity()) {
        Ok(fresh) if fresh.identity == held => {
            attended.material.send_replace(fresh);
        }
        Ok(fresh) => error!(
            certificate = %fresh.identity.name,
            "the certificate is not reloaded: it is for another name, which needs a restart"
        ),
        Err(error) => error!(%error, "the certificate is not reloaded; the old one stays in use"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_shared::assignment::Report;

    #[test]
    fn the_status_says_session_instances_and_what_is_wrong() {
        assert_eq!(
            describe(None, None),
            "no session with a coordinator; 0 instances of 0 versions"
        );
        let report = Report {
            complaints: vec!["port 80 on 0.0.0.0 is held by nginx\n(pid 812)".to_owned()],
            ..Report::default()
        };
        assert_eq!(
            describe(Some("c1:7440"), Some(&report)),
            "in session with c1:7440; 0 instances of 0 versions; port 80 on 0.0.0.0 is held by nginx (pid 812)"
        );
    }
}
