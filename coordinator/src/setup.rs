//! Making a node: `init` begins a cluster, `join` adds a coordinator to one, `admin` lets an
//! administrator in again.
//!
//! Both fill a data folder: `identity.json` (last, so that a folder with one is complete),
//! `coordinator.toml`, `cluster.key`, and `tls/` with `node.pem` (key and certificate, one file so
//! that they always fit) and `roots.pem`. [`crate::node`] runs what they made.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_coordinator_core::command::{Command, InitCluster};
use tidegate_coordinator_core::state::Addresses;
use tidegate_coordinator_core::{Actor, Entry, Item, RequestKey};
use tidegate_proto::enroll::v1::EnrollRequest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{ClusterId, Name, RequestId};
use tidegate_shared::time::Timestamp;
use tokio::sync::watch;

use crate::api::convert;
use crate::ca::{self, Ca, CaError, CertificateLife, ClusterKey, Issued, Subject};
use crate::clock::Clock;
use crate::config::{self, Config, Listen};
use crate::enroll::{self, JoinError};
use crate::entropy;
use crate::raft::membership;
use crate::raft::snapshot::read_state;
use crate::storage::data_dir::{self, DataDir, Identity, Peer};
use crate::storage::disk::FolderDisk;
use crate::storage::snapshot::SnapshotStore;
use crate::tls::{SpiffeId, Tls, TlsError, TlsMaterial};

/// The cluster level that this program supports. 2: rows leave the state for the history; 3: people
/// have roles; 4: dependency rules hold on to the applications that they name, gradual rollout rules
/// have an order of their own, and snapshots are packed.
pub const LEVEL: u32 = 4;

/// The file of the cluster key in a data folder.
pub const KEY_FILE: &str = "cluster.key";

/// Why a node was not made or does not start; one line for a person.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SetupError {
    /// Stable code.
    pub code: String,
    /// What is wrong, and where.
    pub message: String,
    /// The next step.
    pub hint: String,
}

impl SetupError {
    /// With the reason's own hint.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            code: reason.code().to_owned(),
            message: message.into(),
            hint: reason.hint().to_owned(),
        }
    }

    fn folder(error: &dyn std::fmt::Display) -> Self {
        Self::new(Reason::DataFolder, error.to_string())
    }

    fn credentials(error: &dyn std::fmt::Display) -> Self {
        Self::new(Reason::Credentials, error.to_string())
    }
}

impl From<CaError> for SetupError {
    fn from(error: CaError) -> Self {
        match &error {
            CaError::File { .. } => Self::folder(&error),
            CaError::WrongClusterKey(_)
            | CaError::KeyFile { .. }
            | CaError::BadCsr(_)
            | CaError::Record(_) => Self::credentials(&error),
            CaError::Library(_) | CaError::Entropy(_) => {
                Self::new(Reason::Internal, error.to_string())
            }
        }
    }
}

impl From<JoinError> for SetupError {
    fn from(error: JoinError) -> Self {
        Self {
            code: error.code,
            message: error.message,
            hint: error.hint,
        }
    }
}

impl From<TlsError> for SetupError {
    fn from(error: TlsError) -> Self {
        Self::credentials(&error)
    }
}

impl From<config::ConfigError> for SetupError {
    fn from(error: config::ConfigError) -> Self {
        Self::new(error.reason, error.message)
    }
}

impl From<entropy::EntropyError> for SetupError {
    fn from(error: entropy::EntropyError) -> Self {
        Self::new(Reason::Internal, error.to_string())
    }
}

/// Where a node is to listen and be reached, as given on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Address of every listener; default `127.0.0.1`.
    pub listen: Option<IpAddr>,
    /// Host under which others reach the node; default: where it listens.
    pub advertise: Option<String>,
    /// Other places of single listeners.
    pub control: Option<SocketAddr>,
    /// See `control`.
    pub peer: Option<SocketAddr>,
    /// See `control`.
    pub http: Option<SocketAddr>,
    /// See `control`.
    pub enroll: Option<SocketAddr>,
}

impl Places {
    fn listen(&self) -> Listen {
        let host = self.listen.unwrap_or(IpAddr::from([127, 0, 0, 1]));
        let at =
            |given: Option<SocketAddr>, port: u16| given.unwrap_or(SocketAddr::new(host, port));
        Listen {
            control: at(self.control, config::CONTROL_PORT),
            peer: at(self.peer, config::PEER_PORT),
            http: at(self.http, config::HTTP_PORT),
            enroll: at(self.enroll, config::ENROLL_PORT),
        }
    }

    fn addresses(&self, listen: &Listen) -> Result<Addresses, SetupError> {
        let all = [listen.control, listen.peer, listen.http, listen.enroll];
        if self.advertise.is_none() && all.iter().any(|at| at.ip().is_unspecified()) {
            return Err(SetupError::new(
                Reason::Config,
                "--advertise HOST is missing, and must be given when the node listens on every address",
            ));
        }
        let at = |listen: SocketAddr| match &self.advertise {
            Some(host) if host.contains(':') => format!("[{host}]:{}", listen.port()),
            Some(host) => format!("{host}:{}", listen.port()),
            None => listen.to_string(),
        };
        Ok(Addresses {
            control: at(listen.control),
            peer: at(listen.peer),
            http: at(listen.http),
            enroll: at(listen.enroll),
        })
    }
}

/// What `init` makes a cluster from.
#[derive(Clone, Debug)]
pub struct Init {
    /// The data folder.
    pub dir: PathBuf,
    /// Name of the first node.
    pub name: Name,
    /// Host part of every identity, for ever.
    pub trust_domain: String,
    /// Where it listens.
    pub places: Places,
    /// Name of the first administrator.
    pub admin: Name,
    /// Where the administrator's context goes; default: `admin` in the data folder.
    pub admin_out: Option<PathBuf>,
}

/// Checks a trust domain as SPIFFE wants it.
///
/// # Errors
/// What would be right.
pub fn check_trust_domain(text: &str) -> Result<(), SetupError> {
    let fits = (1..=255).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b));
    if fits {
        Ok(())
    } else {
        Err(SetupError::new(
            Reason::Config,
            format!(
                "--trust-domain: \"{text}\" is not a trust domain: want 1 to 255 lower-case letters, digits and . - _, such as example.com"
            ),
        ))
    }
}

/// Begins a cluster; the folder of the administrator's context.
///
/// # Errors
/// [`SetupError`]; then the folder may be used again.
pub fn init(init: &Init, clock: &Clock) -> Result<PathBuf, SetupError> {
    check_trust_domain(&init.trust_domain)?;
    let data = DataDir::open(&init.dir).map_err(|error| SetupError::folder(&error))?;
    data.require_empty()
        .map_err(|error| SetupError::folder(&error))?;
    let listen = init.places.listen();
    let addresses = init.places.addresses(&listen)?;
    let config = Config::new(
        init.name.clone(),
        init.dir.clone(),
        listen,
        addresses.clone(),
    );
    let now = Timestamp::from_millis(clock.wall_ms());
    let cluster = ClusterId::new(entropy::ulid(now.millis())?);
    let key = ClusterKey::generate()?;
    let record = Ca::generate(&init.trust_domain, &key, now)?;
    let authority = Ca::open(&record, &key)?;
    key.write(&init.dir.join(KEY_FILE))?;
    let life = CertificateLife::default();
    let (node_key, request) = ca::key_and_request()?;
    let identity = SpiffeId {
        trust_domain: init.trust_domain.clone(),
        kind: "coordinator".to_owned(),
        name: init.name.to_string(),
    };
    let subject = Subject {
        identity: &identity,
        hosts: &config.advertised_hosts(),
        life: life.coordinator,
    };
    let issued = authority.sign_request(&request, &subject, now)?;
    write_material(&init.dir, &node_key, &issued.chain, &issued.roots)?;
    write_config(&config)?;
    let admin_out = init
        .admin_out
        .clone()
        .unwrap_or_else(|| init.dir.join("admin"));
    let context = AdminContext {
        name: &init.admin,
        trust_domain: &init.trust_domain,
        cluster,
        addresses: std::slice::from_ref(&addresses),
    };
    write_admin(&admin_out, &context, &authority, now)?;
    let entry = Entry {
        at: now,
        items: vec![Item {
            actor: Actor::System,
            request: RequestKey::Client(RequestId::new(entropy::ulid(now.millis())?)),
            command: Box::new(Command::InitCluster(InitCluster {
                cluster,
                trust_domain: init.trust_domain.clone(),
                name: init.name.clone(),
                addresses: addresses.clone(),
                ca: record,
                admin: init.admin.clone(),
                level: LEVEL,
            })),
        }],
    };
    let node = Identity {
        cluster_id: cluster.to_string(),
        trust_domain: init.trust_domain.clone(),
        node_id: 1,
        name: init.name.to_string(),
        peers: vec![Peer {
            node_id: 1,
            name: init.name.to_string(),
            address: addresses.peer,
        }],
    };
    membership::bootstrap(&data, &node, tidegate_coordinator_core::apply, &entry)
        .map_err(|error| SetupError::folder(&error))?;
    Ok(admin_out)
}

/// What the context of an administrator says.
struct AdminContext<'a> {
    name: &'a Name,
    trust_domain: &'a str,
    cluster: ClusterId,
    /// Of every coordinator that is known.
    addresses: &'a [Addresses],
}

/// A fresh certificate of an administrator as a context that clients read.
fn write_admin(
    folder: &Path,
    wish: &AdminContext<'_>,
    authority: &Ca,
    now: Timestamp,
) -> Result<(), SetupError> {
    let (key, request) = ca::key_and_request()?;
    let identity = SpiffeId {
        trust_domain: wish.trust_domain.to_owned(),
        kind: "user".to_owned(),
        name: wish.name.to_string(),
    };
    let subject = Subject {
        identity: &identity,
        hosts: &[],
        life: CertificateLife::default().user,
    };
    let Issued { chain, roots, .. } = authority.sign_request(&request, &subject, now)?;
    let list = |pick: fn(&Addresses) -> &String| {
        let quoted = wish.addresses.iter().map(|at| format!("\"{}\"", pick(at)));
        quoted.collect::<Vec<_>>().join(", ")
    };
    let context = format!(
        "name = \"{}\"\ncluster_id = \"{}\"\ntrust_domain = \"{}\"\nuser = \"{}\"\n\
         control = [{}]\nhttp = [{}]\nenroll = [{}]\n",
        context_name(wish.trust_domain),
        wish.cluster,
        wish.trust_domain,
        wish.name,
        list(|at| &at.control),
        list(|at| &at.http),
        list(|at| &at.enroll),
    );
    make_folder(folder)?;
    for (name, text) in [
        ("key.pem", &key),
        ("cert.pem", &chain),
        ("roots.pem", &roots),
        ("context.toml", &context),
    ] {
        write(&folder.join(name), text)?;
    }
    Ok(())
}

/// What [`admin`] makes a certificate from.
#[derive(Clone, Debug)]
pub struct AdminRequest {
    /// The data folder of a coordinator, which may be running.
    pub dir: PathBuf,
    /// Whom the certificate is for.
    pub name: Name,
    /// Where the context goes; default: `admin` in the data folder.
    pub out: Option<PathBuf>,
}

/// The way back in when nobody's certificate is valid any more: a fresh one for a person of the
/// cluster, made with the cluster key of a data folder. Only reads the folder, and changes nothing
/// in the cluster; somebody who was removed is refused there as before. The folder of the context.
///
/// # Errors
/// [`SetupError`].
pub fn admin(request: &AdminRequest, clock: &Clock) -> Result<PathBuf, SetupError> {
    let identity =
        data_dir::read_identity(&request.dir).map_err(|error| SetupError::folder(&error))?;
    let key = ClusterKey::read(&request.dir.join(KEY_FILE))?;
    let disk = FolderDisk::new(&request.dir.join(data_dir::SNAPSHOTS))
        .map_err(|error| SetupError::folder(&error))?;
    let store = SnapshotStore::new(Arc::new(disk), &identity.cluster_id);
    let found = store
        .usable(|error| tracing::warn!(%error, "passed over for the one before it"))
        .map_err(|error| SetupError::folder(&error))?;
    let newest = found.first().ok_or_else(|| {
        SetupError::folder(&format!(
            "{} holds no state yet: use the folder of another coordinator",
            request.dir.display()
        ))
    })?;
    let state = read_state(&store, newest).map_err(|error| SetupError::folder(&error))?;
    let cluster = state
        .cluster
        .as_ref()
        .ok_or_else(|| SetupError::new(Reason::Internal, "the state belongs to no cluster"))?;
    if !state.people.contains_key(&request.name) {
        let people: Vec<&str> = state.people.keys().map(Name::as_str).collect();
        return Err(SetupError::new(
            Reason::NotFound,
            format!(
                "--name: \"{}\" is not known to this coordinator; known are: {}",
                request.name,
                people.join(", ")
            ),
        ));
    }
    let members = cluster.members.values();
    let addresses: Vec<Addresses> = members.map(|member| member.addresses.clone()).collect();
    let context = AdminContext {
        name: &request.name,
        trust_domain: &cluster.trust_domain,
        cluster: cluster.id,
        addresses: &addresses,
    };
    let out = request.out.clone();
    let out = out.unwrap_or_else(|| request.dir.join("admin"));
    let now = Timestamp::from_millis(clock.wall_ms()).max(state.at);
    write_admin(&out, &context, &Ca::open(&cluster.ca, &key)?, now)?;
    Ok(out)
}

/// A context is called as the trust domain, as far as a name can be: `example-com`.
fn context_name(trust_domain: &str) -> String {
    let text: String = trust_domain
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    let text = text.trim_matches('-');
    if text.is_empty() { "cluster" } else { text }.to_owned()
}

/// What `join` makes a node from.
#[derive(Clone, Debug)]
pub struct JoinRequest {
    /// The data folder.
    pub dir: PathBuf,
    /// Name of the new node.
    pub name: Name,
    /// The token as printed.
    pub token: String,
    /// `host:port` of a coordinator's enrolment listener.
    pub server: String,
    /// Where the new node listens.
    pub places: Places,
}

/// Enrols a new coordinator; its node id.
///
/// # Errors
/// [`SetupError`]; then the folder may be used again, with a new token if this one was spent.
pub async fn join(join: &JoinRequest, clock: &Clock) -> Result<u64, SetupError> {
    let data = DataDir::open(&join.dir).map_err(|error| SetupError::folder(&error))?;
    data.require_empty()
        .map_err(|error| SetupError::folder(&error))?;
    let listen = join.places.listen();
    let addresses = join.places.addresses(&listen)?;
    let (key, csr) = ca::key_and_request()?;
    let answer = enroll::request_enrolment(
        &join.server,
        EnrollRequest {
            token: join.token.clone(),
            csr: csr.into(),
            name: join.name.to_string(),
            facts: std::collections::HashMap::new(),
            addresses: Some(convert::addresses(&addresses)),
        },
    )
    .await?;
    if answer.node_id == 0 {
        return Err(SetupError::new(
            Reason::InvalidRequest,
            "the token is not for a coordinator: make one with `tidegate token create coordinator`",
        ));
    }
    let name = Name::new(answer.name.clone()).map_err(|error| SetupError::folder(&error))?;
    write_material(&join.dir, &key, &answer.certificate_chain, &answer.roots)?;
    let material = Arc::new(read_material(&join.dir)?);
    let (_material, receiver) = watch::channel(material);
    let tls = Tls::new(receiver, &answer.trust_domain);
    let secret = enroll::fetch_key(&tls, &answer, &addresses.peer, clock.wall_ms()).await?;
    ClusterKey::from_bytes(secret).write(&join.dir.join(KEY_FILE))?;
    write_config(&Config::new(name, join.dir.clone(), listen, addresses))?;
    let peers = answer.members.iter().map(|member| Peer {
        node_id: member.node_id,
        name: member.name.clone(),
        address: member
            .addresses
            .as_ref()
            .map(|addresses| addresses.peer.clone())
            .unwrap_or_default(),
    });
    let identity = Identity {
        cluster_id: answer.cluster_id.clone(),
        trust_domain: answer.trust_domain.clone(),
        node_id: answer.node_id,
        name: answer.name.clone(),
        peers: peers.collect(),
    };
    membership::claim(&data, &identity).map_err(|error| SetupError::folder(&error))?;
    Ok(answer.node_id)
}

fn make_folder(folder: &Path) -> Result<(), SetupError> {
    std::fs::create_dir_all(folder).map_err(|error| {
        SetupError::folder(&format!("cannot create {}: {error}", folder.display()))
    })
}

fn write(path: &Path, text: &str) -> Result<(), SetupError> {
    ca::write_private(path, text.as_bytes())
        .map_err(|error| SetupError::folder(&format!("cannot write {}: {error}", path.display())))
}

fn write_config(config: &Config) -> Result<(), SetupError> {
    write(&config.data_dir.join(config::FILE_NAME), &config.to_toml())
}

/// Writes key and certificate of a node, so that they always fit each other.
///
/// # Errors
/// [`SetupError`].
pub fn write_material(dir: &Path, key: &str, chain: &str, roots: &str) -> Result<(), SetupError> {
    let folder = dir.join("tls");
    make_folder(&folder)?;
    write(&folder.join("roots.pem"), roots)?;
    write(&folder.join("node.pem"), &format!("{key}{chain}"))
}

/// Reads what [`write_material`] wrote.
///
/// # Errors
/// [`SetupError`].
pub fn read_material(dir: &Path) -> Result<TlsMaterial, SetupError> {
    let read = |name: &str| {
        let path = dir.join("tls").join(name);
        std::fs::read(&path).map_err(|error| {
            SetupError::credentials(&format!("cannot read {}: {error}", path.display()))
        })
    };
    let node = read("node.pem")?;
    Ok(TlsMaterial::from_pem(&node, &node, &read("roots.pem")?)?)
}

#[cfg(test)]
mod tests {
    use super::LEVEL;

    #[test]
    fn the_newest_level_has_a_log_that_apply_is_held_to() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/apply");
        let log = format!("{folder}/level-{LEVEL}.log");
        assert!(
            std::fs::exists(&log).unwrap(),
            "{log} is missing: run `NEW_LEVEL={LEVEL} cargo test -p tidegate-coordinator-core --test compat`"
        );
    }
}
