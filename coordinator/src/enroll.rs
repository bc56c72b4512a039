//! Joining: the enrolment service, and the side of a coordinator that joins.
//!
//! A newcomer checks the server by the CA fingerprint in its token and is checked by the token's
//! secret; the log decides whether the token counts, then this node signs. A coordinator gets the
//! cluster key afterwards from a member, over mutual TLS with its new certificate.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tidegate_coordinator_core::command::{Command, Join, TokenKind};
use tidegate_coordinator_core::{Actor, Reply, RequestKey, State};
use tidegate_proto::enroll::v1::enroll_client::EnrollClient;
use tidegate_proto::enroll::v1::enroll_server::Enroll;
use tidegate_proto::enroll::v1::{EnrollRequest, EnrollResponse, Member};
use tidegate_proto::peer::v1::peer_client::PeerClient;
use tidegate_proto::peer::v1::{AskRequest, Envelope};
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{Name, RequestId};
use tidegate_shared::token::JoinToken;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::api::convert::{self, link};
use crate::api::{Context, caller, status};
use crate::ca::Subject;
use crate::raft::peer_service::{AskFuture, AskHandler};
use crate::storage::data_dir::Peer;
use crate::tls::{Expected, SpiffeId, Tls};

/// The topic under which a coordinator that joins asks for the cluster key.
pub const KEY_TOPIC: &str = "cluster-key";
/// Refused attempts of one address per minute.
const MOST_REFUSALS: u32 = 20;
const MINUTE: Duration = Duration::from_secs(60);
/// Addresses whose refusals are remembered.
const MOST_ADDRESSES: usize = 10_000;
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The service.
pub struct EnrollApi {
    context: Arc<Context>,
    refusals: Mutex<HashMap<IpAddr, (Duration, u32)>>,
}

impl EnrollApi {
    /// For a running node.
    #[must_use]
    pub fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            refusals: Mutex::default(),
        }
    }

    fn is_blocked(&self, address: IpAddr) -> bool {
        let now = self.context.clock.monotonic();
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.get(&address).is_some_and(|(since, count)| {
            now.saturating_sub(*since) < MINUTE && *count >= MOST_REFUSALS
        })
    }

    fn count_refusal(&self, address: IpAddr, refused: &Status) {
        tracing::warn!(%address, "enrolment refused: {}", refused.message());
        let now = self.context.clock.monotonic();
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.len() >= MOST_ADDRESSES {
            refusals.retain(|_, (since, _)| now.saturating_sub(*since) < MINUTE);
            if refusals.len() >= MOST_ADDRESSES {
                return;
            }
        }
        let (since, count) = refusals.entry(address).or_insert((now, 0));
        if now.saturating_sub(*since) >= MINUTE {
            (*since, *count) = (now, 0);
        }
        *count += 1;
    }

    async fn enroll_checked(&self, message: EnrollRequest) -> Result<EnrollResponse, Status> {
        let token: JoinToken =
            message
                .token
                .parse()
                .map_err(|error: tidegate_shared::token::TokenError| {
                    status::refusal(Reason::TokenMalformed, error.to_string())
                })?;
        let facts = link::facts(message.facts)
            .map_err(|error| status::wrong_field(&error.field, error.message))?;
        let view = self.context.read().await?;
        let ca = self.context.ca(&view.state)?;
        if ca.fingerprint() != token.fingerprint {
            return Err(status::refusal(
                Reason::WrongServer,
                "the token was made by another cluster",
            ));
        }
        // The log is not for everyone to write to: whoever has no token stops here. Whether it
        // still counts is the log's to say.
        let known = view.state.tokens.get(&token.id);
        let Some(known) = known.filter(|known| known.secret_hash == token.secret_hash()) else {
            return Err(status::refusal(
                Reason::TokenUnknown,
                "this token is not one of this cluster, or was taken back",
            ));
        };
        // Who logs in by a token that was made for one name need not say it again.
        let name = match &known.name {
            Some(bound) if message.name.is_empty() => bound.clone(),
            Some(_) | None => convert::name("name", &message.name)?,
        };
        let kind = known.kind;
        let addresses = match kind {
            TokenKind::Coordinator => Some(convert::addresses_from(message.addresses)?),
            TokenKind::Agent | TokenKind::User => None,
        };
        let hosts = addresses.as_ref().map_or_else(Vec::new, hosts_of);
        // The request has to be good before the token's use is spent.
        let probe = SpiffeId {
            trust_domain: self.context.identity.trust_domain.clone(),
            kind: convert::token_word(kind).to_owned(),
            name: name.to_string(),
        };
        let life = self.context.config.certificate_life;
        let life = match kind {
            TokenKind::User => life.user,
            TokenKind::Coordinator => life.coordinator,
            TokenKind::Agent => life.agent,
        };
        let subject = Subject {
            identity: &probe,
            hosts: &hosts,
            life,
        };
        ca.sign_request(&message.csr, &subject, self.context.now())
            .map_err(|error| status::from_ca(&error))?;
        let command = Command::Join(Join {
            token: token.id,
            secret_hash: token.secret_hash(),
            name,
            facts,
            addresses,
        });
        let request = request_of(&token, &message.csr, self.context.clock.wall_ms());
        let reply = self
            .context
            .propose(Actor::Token(token.id), request, command)
            .await?;
        let Reply::Joined { name, kind, node } = reply else {
            return Err(status::internal(&"a join without its answer"));
        };
        let identity = SpiffeId {
            trust_domain: self.context.identity.trust_domain.clone(),
            kind: convert::token_word(kind).to_owned(),
            name: name.to_string(),
        };
        let subject = Subject {
            identity: &identity,
            ..subject
        };
        // Signed after the entry: never older than it.
        let view = self.context.read().await?;
        if !is_still_in(&view.state, request, kind, &name, node) {
            return Err(status::refusal(
                Reason::Revoked,
                format!("{identity} joined by this request and was removed since"),
            ));
        }
        let issued = ca
            .sign_request(&message.csr, &subject, self.context.issue_time(&view.state))
            .map_err(|error| status::from_ca(&error))?;
        tracing::info!(%identity, token = %token.id, "joined");
        let members = members_of(&view.state);
        Ok(EnrollResponse {
            cluster_id: self.context.identity.cluster_id.clone(),
            trust_domain: self.context.identity.trust_domain.clone(),
            name: name.to_string(),
            certificate_chain: issued.chain,
            roots: issued.roots,
            not_after_ms: issued.not_after.millis(),
            coordinators: members
                .iter()
                .filter(|member| Some(member.node_id) != node)
                .filter_map(|member| member.addresses.clone())
                .collect(),
            node_id: node.unwrap_or(0),
            members: if node.is_some() { members } else { Vec::new() },
        })
    }
}

#[tonic::async_trait]
impl Enroll for EnrollApi {
    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        let address = caller(&request)?.remote.ip();
        if self.is_blocked(address) {
            return Err(status::refusal(
                Reason::QueueFull,
                "too many refused attempts from this address; wait a minute",
            ));
        }
        let answer = self.enroll_checked(request.into_inner()).await;
        if let Err(refused) = &answer
            && !matches!(
                refused.code(),
                tonic::Code::Unavailable | tonic::Code::Internal
            )
        {
            self.count_refusal(address, refused);
        }
        answer.map(Response::new)
    }
}

/// Whether who joined by a request is in the cluster since then. The answer of a request that is
/// repeated comes from memory: it must not bring back who was removed meanwhile, least of all
/// under a name that belongs to somebody else by now.
fn is_still_in(
    state: &State,
    request: RequestKey,
    kind: TokenKind,
    name: &Name,
    node: Option<u64>,
) -> bool {
    let Some(joined) = state.requests.get(&request).map(|known| known.at) else {
        return false;
    };
    let since = match kind {
        TokenKind::Agent => state.agents.get(name).map(|agent| agent.meta.created_at),
        TokenKind::User => state.people.get(name).map(|person| person.meta.created_at),
        TokenKind::Coordinator => {
            let members = state.cluster.as_ref().map(|cluster| &cluster.members);
            let member = members.and_then(|members| members.get(&node?));
            return member.is_some_and(|member| member.name == *name);
        }
    };
    since.is_some_and(|since| since <= joined)
}

/// The same for a retry with the same request within the hour, so that an answer that got lost does
/// not spend the token.
fn request_of(token: &JoinToken, csr: &[u8], now_ms: u64) -> RequestKey {
    const HOUR: u64 = 3_600_000;
    let mut bytes = token.secret_hash().as_bytes().to_vec();
    bytes.extend(csr);
    let digest = Digest::of(&bytes);
    let mut random = [0; 16];
    random[6..].copy_from_slice(&digest.as_bytes()[..10]);
    RequestKey::Client(RequestId::new(ulid::Ulid::from_parts(
        now_ms / HOUR * HOUR,
        u128::from_be_bytes(random),
    )))
}

fn hosts_of(addresses: &tidegate_coordinator_core::state::Addresses) -> Vec<String> {
    let all = [
        &addresses.control,
        &addresses.peer,
        &addresses.http,
        &addresses.enroll,
    ];
    let mut hosts: Vec<String> = all
        .into_iter()
        .filter_map(|address| Some(crate::config::split_address(address)?.0.to_owned()))
        .collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

fn members_of(state: &State) -> Vec<Member> {
    let members = state.cluster.iter().flat_map(|cluster| &cluster.members);
    members
        .map(|(node, member)| Member {
            node_id: *node,
            name: member.name.to_string(),
            addresses: Some(convert::addresses(&member.addresses)),
        })
        .collect()
}

/// Gives the cluster key to members, and to nobody else.
#[must_use]
pub fn give_key(context: Arc<Context>) -> Arc<dyn AskHandler> {
    Arc::new(move |from: Peer, _payload: Bytes| -> AskFuture {
        let context = context.clone();
        Box::pin(async move {
            let view = context.read().await?;
            let is_member = view.state.cluster.as_ref().is_some_and(|cluster| {
                cluster
                    .members
                    .get(&from.node_id)
                    .is_some_and(|member| member.name.as_str() == from.name)
            });
            if !is_member {
                return Err(status::refusal(
                    Reason::PermissionDenied,
                    format!("\"{}\" is not a member of this cluster", from.name),
                ));
            }
            tracing::info!(node = from.node_id, name = %from.name, "the cluster key was passed on");
            Ok(Bytes::copy_from_slice(context.authority.key().reveal()))
        })
    })
}

/// Why a coordinator could not join; one line for a person.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct JoinError {
    /// Stable code.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// The next step.
    pub hint: String,
}

impl JoinError {
    /// With the reason's own hint.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            code: reason.code().to_owned(),
            message: message.into(),
            hint: reason.hint().to_owned(),
        }
    }

    fn of_status(status: &Status) -> Self {
        use tonic_types::StatusExt as _;
        let info = status.get_details_error_info();
        let part = |key: &str| {
            info.as_ref()
                .and_then(|info| info.metadata.get(key).cloned())
        };
        Self {
            code: part("code").unwrap_or_else(|| Reason::Unreachable.code().to_owned()),
            message: status.message().to_owned(),
            hint: part("hint").unwrap_or_else(|| Reason::Unreachable.hint().to_owned()),
        }
    }
}

/// Sends an enrolment request to a server that must hold the token's CA.
///
/// # Errors
/// [`JoinError`].
pub async fn request_enrolment(
    server: &str,
    message: EnrollRequest,
) -> Result<EnrollResponse, JoinError> {
    let token: JoinToken =
        message
            .token
            .parse()
            .map_err(|error: tidegate_shared::token::TokenError| {
                JoinError::new(Reason::TokenMalformed, error.to_string())
            })?;
    let channel = connect(server, token.fingerprint).await?;
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(15));
    EnrollClient::new(channel)
        .enroll(request)
        .await
        .map(Response::into_inner)
        .map_err(|status| JoinError::of_status(&status))
}

/// A connection without a certificate, to a server of the CA with this fingerprint.
pub(crate) async fn connect(server: &str, fingerprint: Digest) -> Result<Channel, JoinError> {
    let unreachable = |error: &dyn std::fmt::Display| {
        JoinError::new(
            Reason::Unreachable,
            format!("the coordinator at {server} cannot be reached: {error}"),
        )
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(FingerprintVerifier {
        fingerprint,
        provider: provider.clone(),
    });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| JoinError::new(Reason::Internal, error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    let shake_hands = async {
        let stream = TcpStream::connect(server)
            .await
            .map_err(|error| unreachable(&error))?;
        let name = ServerName::try_from("tidegate")
            .map_err(|error| JoinError::new(Reason::Internal, error.to_string()))?;
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map_err(|error| {
                JoinError::new(
                    Reason::WrongServer,
                    format!("{server} is not a coordinator of the token's cluster: {error}"),
                )
            })
    };
    let stream = tokio::time::timeout(CONNECT_LIMIT, shake_hands)
        .await
        .map_err(|_| unreachable(&"it does not answer"))??;
    let mut once = Some(stream);
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = once.take();
        async move {
            stream
                .map(hyper_util::rt::TokioIo::new)
                .ok_or_else(|| std::io::Error::other("the connection was lost"))
        }
    });
    Endpoint::from_static("http://enroll")
        .connect_with_connector(connector)
        .await
        .map_err(|error| unreachable(&error))
}

/// Fetches the cluster key from a member, with the new certificate.
///
/// # Errors
/// [`JoinError`] when no member gives it within some seconds.
pub async fn fetch_key(
    tls: &Tls,
    answer: &EnrollResponse,
    own_address: &str,
    now_ms: u64,
) -> Result<[u8; 32], JoinError> {
    let mut last = JoinError::new(Reason::Unreachable, "there is no other coordinator");
    for attempt in 0..20 {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        for member in &answer.members {
            let Some(addresses) = &member.addresses else {
                continue;
            };
            if member.node_id == answer.node_id {
                continue;
            }
            let channel = tls
                .channel(&addresses.peer, Expected::Coordinator(member.name.clone()))
                .map_err(|error| JoinError::new(Reason::Credentials, error.to_string()))?;
            let mut request = Request::new(AskRequest {
                envelope: Some(Envelope {
                    cluster_id: answer.cluster_id.clone(),
                    from: answer.node_id,
                    to: member.node_id,
                    clock_ms: now_ms,
                    address: own_address.to_owned(),
                }),
                topic: KEY_TOPIC.to_owned(),
                payload: Bytes::new(),
            });
            request.set_timeout(Duration::from_secs(5));
            match PeerClient::new(channel).ask(request).await {
                Ok(reply) => match reply.into_inner().payload.as_ref().try_into() {
                    Ok(key) => return Ok(key),
                    Err(_) => {
                        last =
                            JoinError::new(Reason::Internal, "the cluster key has a wrong length");
                    }
                },
                Err(status) => last = JoinError::of_status(&status),
            }
        }
    }
    Err(JoinError {
        message: format!("no member passed on the cluster key: {}", last.message),
        ..last
    })
}

/// Accepts a server whose chain ends in the certificate of a known fingerprint.
#[derive(Debug)]
struct FingerprintVerifier {
    fingerprint: Digest,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for FingerprintVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let wrong = |message: &str| rustls::Error::General(message.to_owned());
        let root = intermediates
            .iter()
            .find(|certificate| Digest::of(certificate) == self.fingerprint)
            .ok_or_else(|| wrong("it does not show the CA certificate that the token names"))?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &roots,
            &[],
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        match SpiffeId::of_certificate(end_entity) {
            Some(identity) if identity.kind == "coordinator" => Ok(ServerCertVerified::assertion()),
            Some(_) | None => Err(wrong("its certificate is not a coordinator's")),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
