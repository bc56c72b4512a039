//! The composition root: puts a running coordinator together and takes it apart again.
//!
//! Nothing is decided here. [`Node::start`] binds the listeners, starts replication and the tasks
//! around it; [`Node::shutdown`] hands the lead over, closes the streams and then the log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidegate_coordinator_core::Actor;
use tidegate_coordinator_core::command::{Command, UpdateMember};
use tidegate_coordinator_core::state::Addresses;
use tidegate_proto::agent::v1::agent_link_server::AgentLinkServer;
use tidegate_proto::control::v1::agents_server::AgentsServer;
use tidegate_proto::control::v1::approvals_server::ApprovalsServer;
use tidegate_proto::control::v1::audit_server::AuditServer;
use tidegate_proto::control::v1::cluster_server::ClusterServer;
use tidegate_proto::control::v1::deployments_server::DeploymentsServer;
use tidegate_proto::control::v1::governance_server::GovernanceServer;
use tidegate_proto::control::v1::groups_server::GroupsServer;
use tidegate_proto::control::v1::objects_server::ObjectsServer;
use tidegate_proto::control::v1::people_server::PeopleServer;
use tidegate_proto::control::v1::planning_server::PlanningServer;
use tidegate_proto::control::v1::releases_server::ReleasesServer;
use tidegate_proto::control::v1::scopes_server::ScopesServer;
use tidegate_proto::control::v1::tokens_server::TokensServer;
use tidegate_proto::enroll::v1::enroll_server::EnrollServer;
use tidegate_shared::error::Reason;
use tidegate_shared::health::HealthListen;
use tidegate_shared::time::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::agents::session::{self, AgentLinkApi};
use crate::agents::{Sessions, forward, host_check};
use crate::api::agents::AgentsApi;
use crate::api::approvals::ApprovalsApi;
use crate::api::audit::AuditApi;
use crate::api::authz::Door;
use crate::api::cluster::ClusterApi;
use crate::api::deployments::DeploymentsApi;
use crate::api::gate::{Gate, LateRoutes};
use crate::api::governance::GovernanceApi;
use crate::api::groups::GroupsApi;
use crate::api::objects::ObjectsApi;
use crate::api::people::PeopleApi;
use crate::api::planning::PlanningApi;
use crate::api::releases::ReleasesApi;
use crate::api::scopes::ScopesApi;
use crate::api::tokens::TokensApi;
use crate::api::{Authority, Context};
use crate::blob_gc;
use crate::blob_sync::{self, BlobClient};
use crate::ca::{self, ClusterKey, Subject};
use crate::clock::Clock;
use crate::config::{Config, HEALTH_PORT, Listen, split_address};
use crate::enroll::{self, EnrollApi};
use crate::health;
use crate::http;
use crate::leader::{self, Live, planner};
use crate::port_holder;
use crate::raft::driver::Pulse;
use crate::raft::{OnFatal, RaftSettings};
use crate::replica::{Glimpses, View};
use crate::replication::{Replication, ReplicationConfig};
use crate::setup::{self, KEY_FILE, LEVEL, SetupError};
use crate::storage::blobs::Blobs;
use crate::storage::data_dir::DataDir;
use crate::tls::{ClientAuth, SpiffeId, Tls, TlsMaterial};

/// Largest request of a person.
const MAX_REQUEST: usize = 8 * 1024 * 1024;
const KEEPALIVE: Duration = Duration::from_secs(5);
/// How long a newcomer's connection lasts.
const ENROLL_CONNECTION: Duration = Duration::from_secs(20);
/// Between two looks at whether this node was taken out.
const OUT_REST: Duration = Duration::from_millis(100);
/// How long a stop waits for another member to lead.
const HAND_OVER: Duration = Duration::from_secs(2);

/// A running coordinator.
pub struct Node {
    context: Arc<Context>,
    listen: Listen,
    pulse: Pulse,
    material: Arc<watch::Sender<Arc<TlsMaterial>>>,
    tasks: TaskTracker,
    replication: tokio::task::JoinHandle<Option<Replication>>,
    end: oneshot::Sender<()>,
}

struct Listeners {
    control: TcpListener,
    peer: TcpListener,
    http: TcpListener,
    enroll: TcpListener,
}

impl Node {
    /// Starts a node from its data folder; inside a tokio runtime.
    ///
    /// # Errors
    /// [`SetupError`], in one line for the person who starts it.
    pub async fn start(
        config: Config,
        clock: Clock,
        on_fatal: OnFatal,
    ) -> Result<Self, SetupError> {
        let folder =
            |error: &dyn std::fmt::Display| SetupError::new(Reason::DataFolder, error.to_string());
        let data = DataDir::open(&config.data_dir).map_err(|error| folder(&error))?;
        let identity = data.identity().map_err(|error| folder(&error))?;
        if identity.name != config.name.as_str() {
            return Err(SetupError::new(
                Reason::Config,
                format!(
                    "name: \"{}\" is not the node in {}, which is \"{}\"; a node keeps its name",
                    config.name,
                    config.data_dir.display(),
                    identity.name
                ),
            ));
        }
        let key = ClusterKey::read(&config.data_dir.join(KEY_FILE))?;
        let (material, received) =
            watch::channel(Arc::new(setup::read_material(&config.data_dir)?));
        let material = Arc::new(material);
        let tls = Tls::new(received, &identity.trust_domain);
        tls.server_config(ClientAuth::Required)?;
        let blobs = Blobs::open(&config.data_dir.join("blobs"), config.max_blob_bytes)
            .map_err(|error| folder(&error))?;
        let (config, listeners, listen) = bind_all(config).await?;
        let health = bind_health(config.health).await?;

        let late = LateRoutes::default();
        let mut parts = ReplicationConfig::new(
            data,
            tls.clone(),
            listeners.peer,
            config.advertise.peer.clone(),
            tidegate_coordinator_core::apply,
        );
        let usual = RaftSettings::default();
        parts.raft = RaftSettings {
            tick: config.tick.to_std(),
            snapshot_entries: config.snapshot_entries,
            keep_entries: usual.keep_entries.min(config.snapshot_entries),
            ..usual
        };
        parts.services = late.routes();
        parts.clock = clock.clone();
        parts.on_fatal = on_fatal;
        let replication = Replication::start(parts).map_err(|error| folder(&error))?;

        let (sessions, heard) = Sessions::new(clock.clone(), config.sessions_per_second);
        let (transfers, transfer_requests) = mpsc::channel(4);
        let context = Arc::new(Context {
            identity,
            clock,
            proposer: replication.proposer.clone(),
            query: replication.query.clone(),
            history: replication.history.clone(),
            entries: replication.entries.clone(),
            status: replication.status.clone(),
            peers: replication.peers.clone(),
            members: replication.members.clone(),
            blobs,
            authority: Authority::new(key),
            live: Live::default(),
            sessions,
            transfers,
            stop: CancellationToken::new(),
            config,
        });
        let asks = &replication.asks;
        asks.register(forward::TOPIC, leader::take_batch(context.clone()));
        asks.register(blob_sync::TOPIC, blob_sync::tell_sizes(context.clone()));
        asks.register(host_check::TOPIC, host_check::answer_here(context.clone()));
        asks.register(enroll::KEY_TOPIC, enroll::give_key(context.clone()));
        late.set(context.clone(), relayed_routes(&context));

        let client = BlobClient::new(tls.clone());
        let tasks = TaskTracker::new();
        tasks.spawn(planner::run(context.clone()));
        tasks.spawn(forward::run(context.clone(), heard));
        tasks.spawn(forward::stamp_leases(context.clone()));
        tasks.spawn(blob_sync::catch_up(context.clone(), client.clone()));
        tasks.spawn(blob_gc::run(context.clone()));
        tasks.spawn(announce(context.clone()));
        tasks.spawn(renew(context.clone(), material.clone()));
        if let Some(listener) = health {
            tasks.spawn(health::serve(context.clone(), listener));
        }
        tasks.spawn(http::serve(
            context.clone(),
            tls.clone(),
            listeners.http,
            client,
        ));
        tasks.spawn(serve_control(
            context.clone(),
            tls.clone(),
            listeners.control,
        ));
        tasks.spawn(serve_enroll(context.clone(), tls, listeners.enroll));
        let (end, ended) = oneshot::channel();
        let pulse = replication.pulse.clone();
        let replication = tokio::spawn(keep(replication, transfer_requests, ended));
        Ok(Self {
            context,
            listen,
            pulse,
            material,
            tasks,
            replication,
            end,
        })
    }

    /// Where it listens, with the ports that were bound.
    #[must_use]
    pub const fn listen(&self) -> Listen {
        self.listen
    }

    /// Its parts, as the services use them.
    #[must_use]
    pub const fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Whether its replication still turns.
    #[must_use]
    pub const fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// A way to put the certificate of the data folder into use again, after somebody replaced it.
    /// Connections from then on use it.
    pub fn certificate_reader(&self) -> impl Fn() -> Result<(), SetupError> + Send + 'static {
        let (material, folder) = (self.material.clone(), self.context.config.data_dir.clone());
        move || {
            material.send_replace(Arc::new(setup::read_material(&folder)?));
            Ok(())
        }
    }

    /// Returns once a majority confirms a read: requests are answered from now on.
    pub async fn ready(&self) {
        while self.context.query.linearizable().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns once the state says that this node was taken out of the cluster. Node ids are
    /// counted up and never used again, so a state that is merely old is told apart. A node that is
    /// taken out while it is cut off does not hear of it and goes on looking for a leader.
    pub async fn removed(&self) {
        let own = self.context.identity.node_id;
        let views = self.context.query.views();
        let is_out = |view: &View| {
            let cluster = view.state.cluster.as_ref();
            cluster.is_some_and(|cluster| {
                cluster.next_node > own && !cluster.members.contains_key(&own)
            })
        };
        if is_out(&views.borrow()) {
            return;
        }
        let mut views = Glimpses::new(views, OUT_REST);
        while let Ok(view) = views.next().await {
            if is_out(&view) {
                return;
            }
        }
        // The replica has ended, which is told elsewhere.
        std::future::pending().await
    }

    /// Hands the lead over, closes every stream, then the log.
    pub async fn shutdown(self) {
        let limit = self.context.config.shutdown_timeout.to_std();
        let has_others = !self.context.peers.directory().others().is_empty();
        if self.context.leads() && has_others {
            match self.context.transfer(None, HAND_OVER).await {
                Ok(true) => tracing::info!("the lead was handed over"),
                Ok(false) | Err(_) => tracing::warn!("nobody took over the lead"),
            }
        }
        self.context.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(limit, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("some streams did not end in time");
        }
        // The keeper may have ended with a panic, which was reported.
        self.end.send(()).ok();
        if let Ok(Some(replication)) = self.replication.await {
            replication.shutdown().await;
        }
    }

    /// Stops as a killed process does.
    #[cfg(any(test, feature = "testing"))]
    pub async fn kill(self) {
        self.context.stop.cancel();
        self.end.send(()).ok();
        if let Ok(Some(replication)) = self.replication.await {
            replication.kill().await;
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Owns the replication: only here the lead can be handed over.
async fn keep(
    replication: Replication,
    mut transfers: mpsc::Receiver<(Option<u64>, oneshot::Sender<bool>)>,
    mut ended: oneshot::Receiver<()>,
) -> Option<Replication> {
    loop {
        tokio::select! {
            Some((to, answer)) = transfers.recv() => {
                let is_done = replication.transfer_leadership(to, HAND_OVER).await;
                // Whoever asked may have given up.
                answer.send(is_done).ok();
            }
            _ = &mut ended => return Some(replication),
        }
    }
}

async fn bind(key: &str, address: SocketAddr) -> Result<TcpListener, SetupError> {
    TcpListener::bind(address).await.map_err(|error| {
        if error.kind() == std::io::ErrorKind::AddrInUse {
            SetupError::new(
                Reason::AddressInUse,
                format!("listen.{key}: {}", port_holder::message(address)),
            )
        } else {
            SetupError::new(
                Reason::Config,
                format!("listen.{key}: cannot listen on {address}: {error}"),
            )
        }
    })
}

/// Binds the health listener. The usual address may be another coordinator's of this host, which is
/// no reason not to start.
async fn bind_health(wish: HealthListen) -> Result<Option<TcpListener>, SetupError> {
    let (address, is_usual) = match wish {
        HealthListen::Off => return Ok(None),
        HealthListen::At(address) => (address, false),
        HealthListen::Usual => (SocketAddr::from(([127, 0, 0, 1], HEALTH_PORT)), true),
    };
    match bind("health", address).await {
        Ok(listener) => {
            if let Ok(address) = listener.local_addr() {
                tracing::info!(%address, "health is told");
            }
            Ok(Some(listener))
        }
        Err(error) if is_usual => {
            tracing::warn!(%error, "health is told nowhere; listen.health may name another address, or off");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Binds every listener; port 0 becomes the one that was bound, also where it is advertised.
async fn bind_all(mut config: Config) -> Result<(Config, Listeners, Listen), SetupError> {
    let Listen {
        control,
        peer,
        http,
        enroll,
    } = config.listen;
    let listeners = Listeners {
        control: bind("control", control).await?,
        peer: bind("peer", peer).await?,
        http: bind("http", http).await?,
        enroll: bind("enroll", enroll).await?,
    };
    let at = |listener: &TcpListener| {
        listener
            .local_addr()
            .map_err(|error| SetupError::new(Reason::Internal, error.to_string()))
    };
    let listen = Listen {
        control: at(&listeners.control)?,
        peer: at(&listeners.peer)?,
        http: at(&listeners.http)?,
        enroll: at(&listeners.enroll)?,
    };
    let bound = |address: &str, listen: SocketAddr| match split_address(address) {
        Some((host, 0)) if host.contains(':') => format!("[{host}]:{}", listen.port()),
        Some((host, 0)) => format!("{host}:{}", listen.port()),
        Some(_) | None => address.to_owned(),
    };
    config.advertise = Addresses {
        control: bound(&config.advertise.control, listen.control),
        peer: bound(&config.advertise.peer, listen.peer),
        http: bound(&config.advertise.http, listen.http),
        enroll: bound(&config.advertise.enroll, listen.enroll),
    };
    Ok((config, listeners, listen))
}

/// Services that other coordinators reach in a person's name.
fn relayed_routes(context: &Arc<Context>) -> Routes {
    Routes::new(DeploymentsServer::new(DeploymentsApi(context.clone())))
        .add_service(PlanningServer::new(PlanningApi(context.clone())))
        .add_service(GroupsServer::new(GroupsApi(context.clone())))
        .add_service(ApprovalsServer::new(ApprovalsApi(context.clone())))
        .add_service(ScopesServer::new(ScopesApi(context.clone())))
        .add_service(AgentsServer::new(AgentsApi(context.clone())))
        .add_service(ClusterServer::new(ClusterApi(context.clone())))
}

async fn control_routes(context: &Arc<Context>) -> Result<Routes, tonic_reflection::server::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ObjectsServer<ObjectsApi>>().await;
    health
        .set_serving::<DeploymentsServer<DeploymentsApi>>()
        .await;
    health.set_serving::<GroupsServer<GroupsApi>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tidegate_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let link = AgentLinkServer::new(AgentLinkApi(context.clone()))
        .max_decoding_message_size(session::MAX_MESSAGE);
    Ok(Routes::new(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(
            ObjectsServer::new(ObjectsApi(context.clone())).max_decoding_message_size(MAX_REQUEST),
        )
        .add_service(
            ReleasesServer::new(ReleasesApi(context.clone()))
                .max_decoding_message_size(MAX_REQUEST),
        )
        .add_service(DeploymentsServer::new(DeploymentsApi(context.clone())))
        .add_service(PlanningServer::new(PlanningApi(context.clone())))
        .add_service(GroupsServer::new(GroupsApi(context.clone())))
        .add_service(ApprovalsServer::new(ApprovalsApi(context.clone())))
        .add_service(GovernanceServer::new(GovernanceApi(context.clone())))
        .add_service(ScopesServer::new(ScopesApi(context.clone())))
        .add_service(AgentsServer::new(AgentsApi(context.clone())))
        .add_service(TokensServer::new(TokensApi(context.clone())))
        .add_service(ClusterServer::new(ClusterApi(context.clone())))
        .add_service(PeopleServer::new(PeopleApi(context.clone())))
        .add_service(AuditServer::new(AuditApi(context.clone())))
        .add_service(link))
}

async fn serve_control(context: Arc<Context>, tls: Tls, listener: TcpListener) {
    let routes = match control_routes(&context).await {
        Ok(routes) => routes,
        Err(error) => {
            tracing::error!(%error, "the control services cannot be described");
            return;
        }
    };
    let incoming = tls.incoming(listener, ClientAuth::Required);
    let stop = context.stop.clone();
    let result = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(1_024)
        .layer(Gate::new(context, Door::Control))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await;
    if let Err(error) = result {
        tracing::error!(%error, "the control listener ended");
    }
}

async fn serve_enroll(context: Arc<Context>, tls: Tls, listener: TcpListener) {
    let incoming = tls.incoming(listener, ClientAuth::None);
    let stop = context.stop.clone();
    let service =
        EnrollServer::new(EnrollApi::new(context.clone())).max_decoding_message_size(128 * 1024);
    let result = tonic::transport::Server::builder()
        .timeout(Duration::from_secs(15))
        // Anybody may connect here, and nobody has business here for long.
        .max_connection_age(ENROLL_CONNECTION)
        .max_connection_age_grace(ENROLL_CONNECTION)
        .max_concurrent_streams(16)
        .layer(Gate::new(context, Door::Enroll))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await;
    if let Err(error) = result {
        tracing::error!(%error, "the enrolment listener ended");
    }
}

/// Tells the member table where this node listens and what it supports, when that changed.
async fn announce(context: Arc<Context>) {
    let node = context.identity.node_id;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    loop {
        let view = tokio::select! {
            view = context.query.linearizable() => view,
            () = context.stop.cancelled() => return,
        };
        let member = view.ok().and_then(|view| {
            let cluster = view.state.cluster.as_ref()?;
            cluster.members.get(&node).cloned()
        });
        if let Some(member) = member {
            let is_told = member.addresses == context.config.advertise
                && member.version == version
                && member.level == LEVEL;
            if is_told {
                return;
            }
            let command = Command::UpdateMember(UpdateMember {
                node,
                addresses: context.config.advertise.clone(),
                version: version.clone(),
                level: LEVEL,
            });
            let actor = Actor::Coordinator(context.config.name.clone());
            if let Ok(key) = context.own_request() {
                match context.propose(actor, key, command).await {
                    Ok(_) => continue,
                    Err(error) => tracing::debug!(%error, "the member table waits"),
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
            () = context.stop.cancelled() => return,
        }
    }
}

/// Renews this node's certificate at two thirds of its life; connections from then on use it.
async fn renew(context: Arc<Context>, material: Arc<watch::Sender<Arc<TlsMaterial>>>) {
    loop {
        let due = material
            .borrow()
            .chain
            .first()
            .and_then(ca::validity)
            .map_or(Timestamp::ZERO, |validity| {
                let life = validity.not_after.since(validity.issued_at);
                validity.issued_at + tidegate_shared::time::Span::from_millis(life.millis() / 3 * 2)
            });
        let left = due.since(context.now()).to_std();
        let pause = if left.is_zero() {
            match renew_now(&context) {
                Ok(fresh) => {
                    tracing::info!("this node's certificate was renewed");
                    material.send_replace(Arc::new(fresh));
                    Duration::from_secs(1)
                }
                Err(error) => {
                    tracing::warn!(%error, "this node's certificate is not renewed yet");
                    Duration::from_secs(2)
                }
            }
        } else {
            // A clock that is set must not put it off for long.
            left.min(Duration::from_secs(60))
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = context.stop.cancelled() => return,
        }
    }
}

fn renew_now(context: &Context) -> Result<TlsMaterial, SetupError> {
    let view = context.query.stale();
    let ca = context
        .ca(&view.state)
        .map_err(|status| SetupError::new(Reason::Credentials, status.message()))?;
    let (key, request) = ca::key_and_request()?;
    let identity = SpiffeId {
        trust_domain: context.identity.trust_domain.clone(),
        kind: "coordinator".to_owned(),
        name: context.identity.name.clone(),
    };
    let subject = Subject {
        identity: &identity,
        hosts: &context.config.advertised_hosts(),
        life: context.config.certificate_life.coordinator,
    };
    let issued = ca.sign_request(&request, &subject, context.issue_time(&view.state))?;
    setup::write_material(&context.config.data_dir, &key, &issued.chain, &issued.roots)?;
    setup::read_material(&context.config.data_dir)
}
