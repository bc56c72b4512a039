//! Keeps a started cluster up as a service manager would: what ends is started again, so that
//! people can kill anything and see what goes on without it. Used by `tidegate dev` without
//! `--demo`; the demo itself treats any end as a failure.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::process::Process;
use super::{Cluster, admin_session};
use crate::commands::{agent, cluster as cluster_command};
use crate::connect::Client;
use crate::context::Context;
use crate::errors::{Failure, Result};
use crate::output::{Output, Tone, shortened};
use crate::{rpc, time};
use tidegate_proto::control::v1 as api;

/// Pause between an end and the next start.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// More ends of one process within [`DEATHS_WINDOW`] end everything.
const MAX_DEATHS: usize = 5;
/// See [`MAX_DEATHS`].
const DEATHS_WINDOW: Duration = Duration::from_secs(60);
/// A process that was started again is waited for so long.
const BACK_LIMIT: Duration = Duration::from_secs(60);
/// The cluster has so long to say whether somebody was removed.
const ASK_LIMIT: Duration = Duration::from_secs(3);
/// How often the processes are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Lines of a log that are told at an end.
const TOLD_LINES: usize = 3;

/// When each process ended lately.
#[derive(Debug, Default)]
struct Deaths(BTreeMap<String, VecDeque<Instant>>);

impl Deaths {
    /// Takes note; true: it ends too often.
    fn are_too_many(&mut self, name: &str, now: Instant) -> bool {
        let times = self.0.entry(name.to_owned()).or_default();
        times.push_back(now);
        while times
            .front()
            .is_some_and(|first| now.duration_since(*first) > DEATHS_WINDOW)
        {
            times.pop_front();
        }
        times.len() > MAX_DEATHS
    }
}

/// What a process is to the cluster.
#[derive(Debug, Clone)]
enum Role {
    /// With its control address.
    Coordinator(String),
    Agent,
}

impl Cluster {
    /// Starts again what ends; comes back only when that does not help.
    pub async fn supervise(&mut self) -> Failure {
        let mut deaths = Deaths::default();
        let mut due: Vec<(Instant, String)> = Vec::new();
        // Dropped with this future: nothing is told any more while everything is stopped.
        let mut returns = JoinSet::new();
        loop {
            tokio::time::sleep(LOOK).await;
            while returns.try_join_next().is_some() {}
            while let Some(mut process) = self.take_ended() {
                let how = process.end().await;
                if deaths.are_too_many(&process.name, Instant::now()) {
                    return process.unexpected_end().await.hint(format!(
                        "it ended more than {MAX_DEATHS} times within {} s: see its whole log in {}",
                        DEATHS_WINDOW.as_secs(),
                        self.dir.join("logs").display()
                    ));
                }
                let was_removed = self.was_removed(&process.name).await;
                tell_end(self.output, &process, &how, was_removed);
                if was_removed {
                    self.removed.insert(process.name.clone());
                } else {
                    due.push((Instant::now() + RESTART_AFTER, process.name.clone()));
                }
            }
            let now = Instant::now();
            let (ready, later): (Vec<_>, Vec<_>) = due.into_iter().partition(|(at, _)| *at <= now);
            due = later;
            for (_, name) in ready {
                match self.start_again(&name) {
                    Ok(role) => {
                        returns.spawn(watch_return(self.dir.clone(), self.output, name, role));
                    }
                    Err(failure) => return failure,
                }
            }
        }
    }

    /// One that has ended.
    fn take_ended(&mut self) -> Option<Process> {
        [&mut self.coordinators, &mut self.agents]
            .into_iter()
            .find_map(|processes| {
                let at = processes.iter_mut().position(Process::has_ended)?;
                Some(processes.remove(at))
            })
    }

    /// Whether somebody took it out of the cluster; not, when nobody can tell.
    async fn was_removed(&self, name: &str) -> bool {
        let asked = async {
            let session = admin_session(&self.dir);
            let status = cluster_command::status(&session).await?;
            let agents = agent::all(&session, "").await?;
            let is_member = status.members.iter().any(|member| member.name == name);
            let is_agent = agents.iter().any(|agent| is_called(agent, name));
            Result::Ok(!is_member && !is_agent)
        };
        matches!(tokio::time::timeout(ASK_LIMIT, asked).await, Ok(Ok(true)))
    }

    fn start_again(&mut self, name: &str) -> Result<Role> {
        let mut coordinators = self.plan.coordinators.iter();
        if let Some(position) = coordinators.position(|plan| plan.name == name) {
            let process = self.run_coordinator(position)?;
            self.coordinators.push(process);
            let control = self.plan.coordinators[position].control.to_string();
            return Ok(Role::Coordinator(control));
        }
        if let Some(position) = self.plan.agents.iter().position(|plan| plan.name == name) {
            let process = self.run_agent(position)?;
            self.agents.push(process);
        }
        Ok(Role::Agent)
    }
}

/// Tells when a process does its work again.
async fn watch_return(dir: PathBuf, output: Output, name: String, role: Role) {
    let start = Instant::now();
    while start.elapsed() < BACK_LIMIT {
        let back = match &role {
            Role::Coordinator(control) => coordinator_works(&dir, control).await,
            Role::Agent => agent_is_connected(&dir, &name).await,
        };
        if back.unwrap_or(false) {
            tell(output, Tone::Good, &format!("{name} is back"));
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    let log = dir.join("logs").join(format!("{name}.log"));
    let line = format!(
        "{name} is not back after {} s; see {}",
        BACK_LIMIT.as_secs(),
        log.display()
    );
    tell(output, Tone::Bad, &line);
}

fn is_called(agent: &api::Agent, name: &str) -> bool {
    let metadata = agent.metadata.as_ref();
    metadata.is_some_and(|metadata| metadata.name == name)
}

/// Whether the coordinator itself answers and is a member of a cluster that has a leader.
async fn coordinator_works(dir: &Path, control: &str) -> Result<bool> {
    let mut context = Context::read(&dir.join("admin"))?;
    context.description.control = vec![control.to_owned()];
    let client = Client::to_one(context).await?;
    let request = api::ClusterStatusRequest {};
    let status = rpc!(client, cluster_client::ClusterClient, status, request).await?;
    let works = status.members.iter().any(|member| {
        member.control == control && (member.role == "leader" || member.role == "follower")
    });
    Ok(status.leader != 0 && works)
}

async fn agent_is_connected(dir: &Path, name: &str) -> Result<bool> {
    let session = admin_session(dir);
    // Asked for so that a cluster without a leader does not count.
    cluster_command::status(&session).await?;
    let agents = agent::all(&session, "").await?;
    Ok(agents
        .iter()
        .any(|agent| agent.connected && is_called(agent, name)))
}

fn tell_end(output: Output, process: &Process, how: &str, was_removed: bool) {
    let name = &process.name;
    let next = if was_removed {
        "it was removed from the cluster and stays away"
    } else {
        "it is started again after a second"
    };
    let line = format!("{name} {how}; {next}");
    tell(output, Tone::Bad, &line);
    let words = process.last_words();
    let width = output.width().saturating_sub(4);
    for words in &words[words.len().saturating_sub(TOLD_LINES)..] {
        let words = output.paint(Tone::Faint, &shortened(words, width));
        // The cluster is kept up even if nobody reads any more.
        output.note(&format!("  | {words}")).ok();
    }
}

fn tell(output: Output, tone: Tone, line: &str) {
    let clock = output.paint(Tone::Faint, &time::clock(time::now_ms()));
    let line = output.paint(tone, line);
    // As above.
    output.note(&format!("{clock} {line}")).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_many_ends_in_a_short_time_are_too_many() {
        let start = Instant::now();
        let mut deaths = Deaths::default();
        for second in 0..5 {
            let at = start + Duration::from_secs(second);
            assert!(!deaths.are_too_many("a", at), "{second}");
            assert!(!deaths.are_too_many("b", at), "{second}");
        }
        assert!(!deaths.are_too_many("a", start + Duration::from_secs(61)));
        assert!(deaths.are_too_many("b", start + Duration::from_secs(59)));
    }
}
