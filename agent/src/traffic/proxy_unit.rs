//! The proxy as a unit of systemd of its own: started and replaced through the manager, never as a
//! child of the agent, so that it has its own user, its own sandbox, and nothing of the agent's end
//! reaches it. [`super::proxy`] uses it in place of starting processes; it talks to the proxy
//! itself no more than to see that it answers.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::info;

use crate::proxy::control::ControlClient;
use crate::proxy::table::{ControlReply, ControlRequest};
use crate::systemd::Manager;

/// The name of the unit that packages and `install` bring.
const SHIPPED: &str = "tidegate-proxy.service";

const POLL: Duration = Duration::from_millis(20);

/// How long one question may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The unit that runs the proxy.
pub(super) struct ProxyUnit {
    name: String,
    manager: Manager,
}

impl ProxyUnit {
    pub fn new(name: String) -> Self {
        Self {
            name,
            manager: Manager::default(),
        }
    }

    /// The unit of the proxy that answers in a folder, if it is the one that Tidegate brings.
    pub async fn of_proxy_in(dir: &Path) -> Option<Self> {
        let mut client = ControlClient::connect(dir).await.ok()?;
        let pid = pid_of(&mut client).await?;
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let is_ours = groups
            .lines()
            .any(|line| line.rsplit('/').next() == Some(SHIPPED));
        is_ours.then(|| Self::new(SHIPPED.to_owned()))
    }

    /// Starts the unit and waits until its proxy answers.
    pub async fn start(&self, dir: &Path, limit: Duration) -> Result<ControlClient, String> {
        self.manager
            .start(&self.name)
            .await
            .map_err(|error| format!("{} cannot be started: {error}", self.name))?;
        info!(unit = self.name, "the proxy's unit was started");
        self.wait(dir, None, limit).await
    }

    /// Has the unit hand over to a new process of the program on disk, and waits until that one
    /// answers.
    pub async fn replace(&self, dir: &Path, limit: Duration) -> Result<ControlClient, String> {
        let old = match ControlClient::connect(dir).await {
            Ok(mut client) => pid_of(&mut client).await,
            Err(_) => None,
        };
        if old.is_none() {
            return self.start(dir, limit).await;
        }
        self.manager
            .reload(&self.name)
            .await
            .map_err(|error| format!("{} cannot be reloaded: {error}", self.name))?;
        self.wait(dir, old, limit).await
    }

    /// Waits until a proxy other than `old` answers.
    async fn wait(
        &self,
        dir: &Path,
        old: Option<u32>,
        limit: Duration,
    ) -> Result<ControlClient, String> {
        let deadline = Instant::now() + limit;
        loop {
            if let Ok(mut client) = ControlClient::connect(dir).await
                && let Some(pid) = pid_of(&mut client).await
                && Some(pid) != old
            {
                return Ok(client);
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "no new process of {} answers within {} s; see journalctl -u {}",
                    self.name,
                    limit.as_secs(),
                    self.name
                ));
            }
            sleep(POLL).await;
        }
    }
}

async fn pid_of(client: &mut ControlClient) -> Option<u32> {
    match timeout(ANSWER_LIMIT, client.ask(&ControlRequest::Ping)).await {
        Ok(Ok(ControlReply::Pong(running))) => Some(running.pid),
        Ok(_) | Err(_) => None,
    }
}
