//! What people, tools and agents call: one file per service, all behind one gate.
//!
//! [`Context`] holds the parts that the services use; [`gate`] asks who calls and whether they
//! may; [`convert`] is the only place where wire messages and the core's values meet. Writes go
//! through [`Context::propose`], reads through [`Context::read`]; what only the leader knows is
//! relayed to it by [`relay`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_coordinator_core::command::Command;
use tidegate_coordinator_core::guard::{guard, makes_deployments};
use tidegate_coordinator_core::{Actor, Item, Outcome, Rejection, Reply, RequestKey, State};
use tidegate_shared::error::Reason;
use tidegate_shared::id::RequestId;
use tidegate_shared::time::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::agents::Sessions;
use crate::ca::{Ca, ClusterKey};
use crate::clock::Clock;
use crate::config::Config;
use crate::entropy;
use crate::leader::Live;
use crate::propose::Proposer;
use crate::query::Query;
use crate::raft::membership::Members;
use crate::raft::transport::PeerClients;
use crate::raft::{RaftStatus, Role};
use crate::replica::{AppliedEntries, View};
use crate::storage::blobs::Blobs;
use crate::storage::data_dir::Identity;
use crate::storage::history::HistoryStore;

pub mod agents;
pub mod approvals;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod cluster;
pub mod convert;
pub mod deployments;
pub mod gate;
pub mod governance;
pub mod groups;
pub mod objects;
pub mod paging;
pub mod past;
pub mod people;
pub mod planning;
pub mod relay;
pub mod releases;
pub mod scopes;
pub mod status;
pub mod tokens;
pub mod watching;

use authn::Caller;
use authz::Sight;

/// Asks the node to hand over the lead, to one node if it is named; the answer is whether that one,
/// or any other one, leads.
pub type TransferRequests = mpsc::Sender<(Option<u64>, oneshot::Sender<bool>)>;

/// The parts of a running node that services use.
pub struct Context {
    /// The configuration.
    pub config: Config,
    /// Who this node is.
    pub identity: Identity,
    /// The clocks.
    pub clock: Clock,
    /// The door for commands.
    pub proposer: Proposer,
    /// The way to read.
    pub query: Query,
    /// What has left the state; see [`past`].
    pub history: HistoryStore,
    /// Applied entries as they come.
    pub entries: AppliedEntries,
    /// How replication stands.
    pub status: watch::Receiver<RaftStatus>,
    /// Connections to the other members.
    pub peers: PeerClients,
    /// Changes of the membership.
    pub members: Members,
    /// The store of assets.
    pub blobs: Blobs,
    /// The certificate authority.
    pub authority: Authority,
    /// What the leader knows beyond the state.
    pub live: Live,
    /// Sessions of agents at this node.
    pub sessions: Sessions,
    /// Hands over the lead.
    pub transfers: TransferRequests,
    /// Cancelled when the node stops.
    pub stop: CancellationToken,
}

impl Context {
    /// The present time by this machine's clock; for certificates and messages, never for the log.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.clock.wall_ms())
    }

    /// When a certificate counts as issued: never before its holder's entry in the log, whose time
    /// may be ahead of this machine's clock.
    #[must_use]
    pub fn issue_time(&self, state: &State) -> Timestamp {
        self.now().max(state.at)
    }

    /// The state, at least as new as everything that was answered before.
    ///
    /// # Errors
    /// No leader in time.
    pub async fn read(&self) -> Result<Arc<View>, Status> {
        self.query
            .linearizable()
            .await
            .map_err(|error| status::from_query(&error))
    }

    /// Proposes a command of a caller and waits for its outcome.
    ///
    /// # Errors
    /// The refusal of the state machine, or that there is no outcome.
    pub async fn propose(
        &self,
        actor: Actor,
        request: RequestKey,
        command: Command,
    ) -> Result<Reply, Status> {
        let item = Item {
            actor,
            request,
            command: Box::new(command),
        };
        self.may_give(std::slice::from_ref(&item))
            .await?
            .into_iter()
            .next()
            .unwrap_or(Ok(()))
            .map_err(|rejection| status::from_rejection(&rejection))?;
        self.guard(&item).await?;
        self.proposer
            .propose(item)
            .await
            .map_err(|error| status::from_propose(&error))?
            .map_err(|rejection| status::from_rejection(&rejection))
    }

    /// Whether guardrails, and at a return those who depend, let be what a command would make.
    async fn guard(&self, item: &Item) -> Result<(), Status> {
        if !makes_deployments(&item.command) {
            return Ok(());
        }
        let view = self.read().await?;
        guard(&view.state, view.index + 1, self.now(), item)
            .map_err(|rejection| status::from_rejection(&rejection))
    }

    /// Whether those who ask for commands may, each for itself. This node may be behind: before
    /// somebody is refused, the newest state is asked.
    ///
    /// # Errors
    /// No leader in time.
    pub async fn may_give(&self, items: &[Item]) -> Result<May, Status> {
        let now = self.now();
        let ask = |view: &View| -> May {
            let may = |item: &Item| authz::may_give(&view.state, &item.actor, &item.command, now);
            items.iter().map(may).collect()
        };
        let answers = ask(&self.query.stale());
        if answers.iter().all(Result::is_ok) {
            return Ok(answers);
        }
        let answers = ask(&*self.read().await?);
        for (item, answer) in items.iter().zip(&answers) {
            if let Err(refused) = answer {
                let code = refused.reason.code();
                tracing::warn!(actor = %item.actor, code, "refused: {refused}");
            }
        }
        Ok(answers)
    }

    /// What a caller sees of the objects in a state.
    #[must_use]
    pub fn sight(&self, caller: &Caller, state: &State) -> Sight {
        Sight::of(state, caller)
    }

    /// Proposes a caller's commands, all at one instant, and waits for their outcomes and a state
    /// that holds their effects.
    ///
    /// # Errors
    /// There are no outcomes, or no leader is there to tell the state.
    pub async fn propose_and_see(
        &self,
        items: Vec<Item>,
    ) -> Result<(Vec<Outcome>, Arc<View>), Status> {
        let may = self.may_give(&items).await?;
        let allowed = allowed(items, &may);
        let (mut done, mut view) = (Vec::new(), None);
        if !allowed.is_empty() {
            (done, view) = self
                .proposer
                .propose_and_see(allowed)
                .await
                .map_err(|error| status::from_propose(&error))?;
        }
        let outcomes = every(may, done);
        match view {
            Some(view) => Ok((outcomes, view)),
            None => Ok((outcomes, self.read().await?)),
        }
    }

    /// A request key of this node's own.
    ///
    /// # Errors
    /// No randomness.
    pub fn own_request(&self) -> Result<RequestKey, Status> {
        entropy::ulid(self.clock.wall_ms())
            .map(|ulid| RequestKey::Client(RequestId::new(ulid)))
            .map_err(|error| status::internal(&error))
    }

    /// Whether this node leads.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.status.borrow().role == Role::Leader
    }

    /// The opened certificate authority.
    ///
    /// # Errors
    /// There is no state yet, or the cluster key does not fit.
    pub fn ca(&self, state: &State) -> Result<Arc<Ca>, Status> {
        self.authority.open(state)
    }

    /// Asks the node to hand over the lead to `to`, or to the one that is furthest; whether that
    /// one leads now.
    ///
    /// # Errors
    /// The node is stopping.
    pub async fn transfer(&self, to: Option<u64>, limit: Duration) -> Result<bool, Status> {
        let (answer, receiver) = oneshot::channel();
        let stopping = || status::refusal(Reason::ShuttingDown, "this coordinator is stopping");
        let asked = self.transfers.send((to, answer)).await;
        asked.map_err(|_| stopping())?;
        match tokio::time::timeout(limit, receiver).await {
            Ok(Ok(is_done)) => Ok(is_done),
            Ok(Err(_)) => Err(stopping()),
            Err(_) => Ok(false),
        }
    }
}

/// Whether each of several commands may be given; see [`Context::may_give`].
pub type May = Vec<Result<(), Rejection>>;

/// Those that may be given.
#[must_use]
pub fn allowed(items: Vec<Item>, may: &May) -> Vec<Item> {
    let each = items.into_iter().zip(may);
    each.filter_map(|(item, may)| may.is_ok().then_some(item))
        .collect()
}

/// The outcomes of all commands, from those of the ones that might be given.
#[must_use]
pub fn every(may: May, done: Vec<Outcome>) -> Vec<Outcome> {
    let mut done = done.into_iter();
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(may.len());
    for answer in may {
        match answer {
            Ok(()) => outcomes.extend(done.next()),
            Err(rejection) => outcomes.push(Err(rejection)),
        }
    }
    outcomes
}

/// Opens the certificate authority of the state with the cluster key, once per record.
pub struct Authority {
    key: ClusterKey,
    opened: Mutex<Option<Arc<Ca>>>,
}

impl Authority {
    /// With the key of this node.
    #[must_use]
    pub const fn new(key: ClusterKey) -> Self {
        Self {
            key,
            opened: Mutex::new(None),
        }
    }

    /// The cluster key, for a coordinator that joins.
    #[must_use]
    pub const fn key(&self) -> &ClusterKey {
        &self.key
    }

    /// The authority of the state.
    ///
    /// # Errors
    /// There is no state yet, or the cluster key does not fit.
    pub fn open(&self, state: &State) -> Result<Arc<Ca>, Status> {
        let Some(cluster) = &state.cluster else {
            return Err(status::refusal(
                Reason::NoLeader,
                "this coordinator has not heard from the cluster yet",
            ));
        };
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ca) = opened
            .as_ref()
            .filter(|ca| ca.roots() == cluster.ca.certificate)
        {
            return Ok(ca.clone());
        }
        let ca = Ca::open(&cluster.ca, &self.key).map_err(|error| status::from_ca(&error))?;
        let ca = Arc::new(ca);
        *opened = Some(ca.clone());
        Ok(ca)
    }
}

/// The caller that the gate found.
///
/// # Errors
/// The request did not come through the gate: a bug.
pub fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| status::internal(&"a request came past the gate"))
}

/// Checks the `request_id` of a mutation.
///
/// # Errors
/// It is missing or no ULID.
pub fn request_key(text: &str) -> Result<RequestKey, Status> {
    if text.is_empty() {
        return Err(status::wrong_field(
            "request_id",
            "is missing: want a ULID that is new for each request",
        ));
    }
    let id: RequestId = text
        .parse()
        .map_err(|error: tidegate_shared::id::IdError| {
            status::wrong_field("request_id", error.message)
        })?;
    Ok(RequestKey::Client(id))
}

/// 0 on the wire: any revision.
#[must_use]
pub const fn expected(revision: u64) -> Option<u64> {
    if revision == 0 { None } else { Some(revision) }
}
