//! The benches, one file each.

use crate::Effort;
use crate::machine::Machine;
use crate::report::Report;

mod agent;
mod commits;
mod failover;
mod proxy;
mod reads;
mod rollback;
mod state;

/// Time of one tick of Raft as Tidegate ships it; an election begins after ten of them.
const DEFAULT_TICK: &str = "25ms";

/// A bench by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bench {
    /// Replicated writes beside etcd.
    Commits,
    /// Linearizable reads beside etcd.
    Reads,
    /// The leader dies or hands over, beside etcd.
    Failover,
    /// A bad version is taken back.
    Rollback,
    /// The data plane beside HAProxy.
    Proxy,
    /// An idle agent beside the node exporter.
    Agent,
    /// The state machine and the planner, beside themselves where there is little.
    State,
}

impl Bench {
    /// Every bench.
    pub const ALL: [Self; 7] = [
        Self::Commits,
        Self::Reads,
        Self::Failover,
        Self::Rollback,
        Self::Proxy,
        Self::Agent,
        Self::State,
    ];

    /// What it is called by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Commits => "commits",
            Self::Reads => "reads",
            Self::Failover => "failover",
            Self::Rollback => "rollback",
            Self::Proxy => "proxy",
            Self::Agent => "agent",
            Self::State => "state",
        }
    }

    /// What it measures, in one line.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Commits => "replicated, synced writes per second and their p99, beside etcd",
            Self::Reads => "linearizable reads per second, beside etcd",
            Self::Failover => "leader killed or handed over until the next write, beside etcd",
            Self::Rollback => "first bad answer until all traffic is back on the old version",
            Self::Proxy => "requests per second and p99 on one core, beside HAProxy",
            Self::Agent => "memory, processor and network of an idle agent, beside node exporter",
            Self::State => "a command, a look of the planner, a snapshot, at growing sizes",
        }
    }

    /// Measures.
    ///
    /// # Errors
    /// A program is missing or does not start, or nothing at all was answered.
    pub async fn run(self, effort: Effort, machine: &Machine) -> anyhow::Result<Report> {
        match self {
            Self::Commits => commits::run(effort).await,
            Self::Reads => reads::run(effort).await,
            Self::Failover => failover::run(effort).await,
            Self::Rollback => rollback::run(effort).await,
            Self::Proxy => proxy::run(effort, machine).await,
            Self::Agent => agent::run(effort).await,
            Self::State => state::run(effort).await,
        }
    }
}

impl std::str::FromStr for Bench {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|bench| bench.name() == text);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|bench| bench.name()).collect();
            format!("there is no bench \"{text}\": want {}", names.join(", "))
        })
    }
}
