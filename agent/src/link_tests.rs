//! Joining and the session against a server in this process, over real TLS.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
    SanType,
};
use rustls::pki_types::{CertificateSigningRequestDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tidegate_proto::agent::v1 as wire;
use tidegate_proto::agent::v1::agent_link_server::{AgentLink, AgentLinkServer};
use tidegate_proto::enroll::v1 as enroll_wire;
use tidegate_proto::enroll::v1::enroll_server::{Enroll, EnrollServer};
use tidegate_shared::assignment::Report;
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::token::JoinToken;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::asset::ReleaseStore;
use crate::config::{Config, Layout};
use crate::enroll::{JoinOptions, join};
use crate::executor::fake::FakeExecutor;
use crate::identity;
use crate::session::{self, Coordinators, SessionParts, Wish};
use crate::tls::{Tls, provider};

const LIMIT: Duration = Duration::from_secs(20);

struct Ca {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    fn fingerprint(&self) -> Digest {
        Digest::of(self.certificate.der())
    }

    fn sign(&self, csr: &[u8], uri: &str) -> String {
        let csr = CertificateSigningRequestDer::from(csr.to_vec());
        let mut csr = CertificateSigningRequestParams::from_der(&csr).unwrap();
        let uri = SanType::URI(Ia5String::try_from(uri).unwrap());
        csr.params.subject_alt_names = vec![uri];
        csr.signed_by(&self.issuer).unwrap().pem()
    }

    /// The settings of a server that names itself by `uri` and shows its CA too.
    fn server(&self, uri: &str, mutual: bool) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri).unwrap())];
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap();
        let builder = if mutual {
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let chain = vec![leaf.der().clone(), self.certificate.der().clone()];
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

type Connections = Pin<
    Box<dyn tokio_stream::Stream<Item = std::io::Result<TlsStream<tokio::net::TcpStream>>> + Send>,
>;

async fn listen(config: Arc<ServerConfig>) -> (String, Connections) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let acceptor = TlsAcceptor::from(config);
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut incoming = TcpListenerStream::new(listener);
        while let Some(Ok(stream)) = incoming.next().await {
            // A refused handshake is the client's business.
            if let Ok(stream) = acceptor.accept(stream).await {
                sender.send(Ok(stream)).await.ok();
            }
        }
    });
    (address, Box::pin(ReceiverStream::new(receiver)))
}

struct Office {
    ca: Arc<Ca>,
    refuse: Option<Reason>,
}

#[tonic::async_trait]
impl Enroll for Office {
    async fn enroll(
        &self,
        request: Request<enroll_wire::EnrollRequest>,
    ) -> Result<Response<enroll_wire::EnrollResponse>, Status> {
        if let Some(reason) = self.refuse {
            let message = format!("the token has no use left [{}]", reason.code());
            return Err(Status::unauthenticated(message));
        }
        let request = request.into_inner();
        let name = request.name;
        let uri = format!("spiffe://td/agent/{name}");
        Ok(Response::new(enroll_wire::EnrollResponse {
            cluster_id: "c".into(),
            trust_domain: "td".into(),
            certificate_chain: self.ca.sign(&request.csr, &uri),
            roots: self.ca.certificate.pem(),
            coordinators: vec![enroll_wire::CoordinatorAddresses {
                control: "127.0.0.1:7400".into(),
                http: "127.0.0.1:7402".into(),
                ..enroll_wire::CoordinatorAddresses::default()
            }],
            name,
            ..enroll_wire::EnrollResponse::default()
        }))
    }
}

async fn office(ca: &Arc<Ca>, refuse: Option<Reason>) -> String {
    let (address, incoming) = listen(ca.server("spiffe://td/coordinator/a", false)).await;
    let office = Office {
        ca: Arc::clone(ca),
        refuse,
    };
    let server = tonic::transport::Server::builder().add_service(EnrollServer::new(office));
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

fn options(dir: &std::path::Path, server: String, fingerprint: Digest) -> JoinOptions {
    let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
    JoinOptions {
        token: JoinToken::new(id, [7; 32], fingerprint).reveal(),
        servers: vec![server],
        name: Some("web-1".into()),
        dir: dir.join("agent"),
        listen_address: Some([127, 0, 1, 1].into()),
        instance_address: None,
        port_range: None,
    }
}

#[tokio::test]
async fn joining_writes_what_the_agent_needs() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Arc::new(Ca::new());
    let server = office(&ca, None).await;
    let joined = join(&options(dir.path(), server.clone(), ca.fingerprint()))
        .await
        .unwrap();
    assert_eq!(joined.name.as_str(), "web-1");
    // Joining again changes the certificate and the coordinators, not the host's own settings.
    let again = JoinOptions {
        listen_address: None,
        ..options(dir.path(), server, ca.fingerprint())
    };
    join(&again).await.unwrap();
    let settings = Config::load(&joined.config, |_| None).unwrap();
    assert_eq!(settings.coordinators, ["127.0.0.1:7400"]);
    assert_eq!(settings.listen_address.to_string(), "127.0.1.1");
    let material = identity::load(&settings.layout.identity()).unwrap();
    assert_eq!(material.identity.name, "web-1");
    use std::os::unix::fs::PermissionsExt as _;
    let key = std::fs::metadata(settings.layout.identity().join("key.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn refused_joins_say_why_and_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, other) = (Arc::new(Ca::new()), Ca::new());
    let server = office(&ca, None).await;
    let used_up = office(&ca, Some(Reason::TokenUsedUp)).await;
    // A server that shows the right CA without being signed by it.
    let mut stolen = (*other.server("spiffe://td/coordinator/a", false)).clone();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(Vec::new()).unwrap();
    let leaf = params.signed_by(&key, &other.issuer).unwrap();
    let chain = vec![leaf.der().clone(), ca.certificate.der().clone()];
    let certified = rustls::sign::CertifiedKey::from_der(
        chain,
        PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        &provider(),
    );
    stolen.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified.unwrap()));
    let (impostor, _incoming) = listen(Arc::new(stolen)).await;
    let nobody = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();

    let good = ca.fingerprint();
    let mut torn = options(dir.path(), server.clone(), good);
    torn.token.truncate(40);
    let cases = [
        (torn, Reason::TokenMalformed, "not a token"),
        (
            options(dir.path(), server, other.fingerprint()),
            Reason::WrongServer,
            "does not have the CA",
        ),
        (
            options(dir.path(), impostor, good),
            Reason::WrongServer,
            "did not sign the server",
        ),
        (
            options(dir.path(), used_up, good),
            Reason::TokenUsedUp,
            "no use left",
        ),
        (
            options(dir.path(), nobody.to_string(), good),
            Reason::Unreachable,
            "cannot be reached",
        ),
        (
            options(dir.path(), "nowhere".into(), good),
            Reason::InvalidRequest,
            "is not an address",
        ),
    ];
    for (options, reason, words) in cases {
        let error = join(&options).await.unwrap_err();
        assert_eq!(error.reason, reason, "{error}");
        assert!(error.message.contains(words), "{error} lacks {words}");
        assert!(!options.dir.exists());
    }
}

/// A coordinator that sends what it is told and keeps what it hears.
struct Scripted {
    ca: Arc<Ca>,
    downs: Mutex<Vec<Vec<wire::Down>>>,
    heard: mpsc::UnboundedSender<wire::Up>,
}

#[tonic::async_trait]
impl AgentLink for Scripted {
    type SessionStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<wire::Down, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<wire::Up>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut ups = request.into_inner();
        let heard = self.heard.clone();
        tokio::spawn(async move {
            while let Some(Ok(up)) = ups.next().await {
                heard.send(up).ok();
            }
        });
        let mut sessions = self.downs.lock().unwrap();
        let downs = if sessions.is_empty() {
            Vec::new()
        } else {
            sessions.remove(0)
        };
        let stream = tokio_stream::iter(downs.into_iter().map(Ok));
        Ok(Response::new(Box::pin(
            stream.chain(tokio_stream::pending()),
        )))
    }

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::RenewResponse>, Status> {
        let csr = request.into_inner().csr;
        Ok(Response::new(wire::RenewResponse {
            certificate_chain: self.ca.sign(&csr, "spiffe://td/agent/web-1"),
            roots: self.ca.certificate.pem(),
            not_after_ms: 0,
        }))
    }

    async fn answer(
        &self,
        _: Request<Streaming<wire::AnswerChunk>>,
    ) -> Result<Response<wire::AnswerResponse>, Status> {
        Ok(Response::new(wire::AnswerResponse {}))
    }
}

fn down(kind: wire::down::Kind) -> wire::Down {
    wire::Down { kind: Some(kind) }
}

#[tokio::test]
async fn a_session_outlives_bad_messages_refreshes_its_list_and_renews() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Arc::new(Ca::new());
    let (address, incoming) = listen(ca.server("spiffe://td/coordinator/a", true)).await;
    let good = session::convert::tests::good();
    let mut bad = good.clone();
    bad.items[0].weight = 99_999;
    let list = wire::Coordinators {
        control: vec![address.clone()],
        http: vec!["127.0.0.1:9".into()],
    };
    let (heard, mut ups) = mpsc::unbounded_channel();
    let scripted = Scripted {
        ca: Arc::clone(&ca),
        downs: Mutex::new(vec![
            vec![down(wire::down::Kind::Assignments(bad))],
            vec![
                down(wire::down::Kind::Coordinators(list)),
                down(wire::down::Kind::Assignments(good)),
            ],
        ]),
        heard,
    };
    let server = tonic::transport::Server::builder().add_service(AgentLinkServer::new(scripted));
    tokio::spawn(server.serve_with_incoming(incoming));

    let layout = Layout {
        dir: dir.path().to_path_buf(),
    };
    let request = identity::Request::new().unwrap();
    let chain = ca.sign(&request.csr, "spiffe://td/agent/web-1");
    let roots = ca.certificate.pem();
    let material = identity::store(&layout.identity(), &request.key, &chain, &roots).unwrap();
    // The test's certificates live for ever; this one claims to be near its end.
    let mut old =
        crate::tls::Material::from_pem(chain.as_bytes(), request.key.as_bytes(), roots.as_bytes())
            .unwrap();
    old.not_before = 0;
    old.not_after = 1;
    drop(material);
    let (material, material_receiver) = watch::channel(Arc::new(old));
    let mut renewed = material.subscribe();
    let (reports, report_receiver) = watch::channel(Some(Arc::new(Report {
        sequence: 5,
        ..Report::default()
    })));
    let (wishes, mut wish_receiver) = mpsc::channel(4);
    // The first address is no coordinator: the session goes to the next one.
    let coordinators = watch::Sender::new(Coordinators {
        control: vec!["127.0.0.1:1".into(), address],
        http: vec![],
    });
    let known = coordinators.subscribe();
    let session = tokio::spawn(session::run(SessionParts {
        tls: Tls::new(material_receiver),
        material,
        coordinators,
        layout: layout.clone(),
        facts: Default::default(),
        start: 3,
        generation: watch::channel(Default::default()).1,
        reports: report_receiver,
        wishes,
        instances: watch::channel(Default::default()).1,
        store: Arc::new(ReleaseStore::open(layout.releases()).unwrap()),
        listen_address: [127, 0, 0, 1].into(),
        executor: Arc::new(FakeExecutor::new(mpsc::unbounded_channel().0)),
        connected: watch::Sender::new(None),
    }));
    let up = tokio::time::timeout(LIMIT, ups.recv())
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(up.kind, Some(wire::up::Kind::Hello(hello)) if hello.start == 3));
    let wish = tokio::time::timeout(LIMIT, wish_receiver.recv())
        .await
        .unwrap();
    let Some(Wish::Assignments(wish, _)) = wish else {
        panic!("{wish:?} are no assignments");
    };
    assert_eq!(wish.items[0].scope, Name::new("shop-eu").unwrap());
    assert_eq!(known.borrow().http, ["127.0.0.1:9"]);
    let kept = Coordinators::load(&layout, Coordinators::default());
    assert_eq!(kept.http, ["127.0.0.1:9"]);
    tokio::time::timeout(LIMIT, renewed.wait_for(|m| m.not_after > 1))
        .await
        .unwrap()
        .unwrap();
    assert!(identity::load(&layout.identity()).is_ok());

    reports.send_replace(Some(Arc::new(Report {
        sequence: 6,
        ..Report::default()
    })));
    let told = async {
        loop {
            if let Some(wire::up::Kind::Report(report)) = ups.recv().await.unwrap().kind
                && report.sequence == 6
            {
                return;
            }
        }
    };
    tokio::time::timeout(LIMIT, told).await.unwrap();
    session.abort();
}

#[tokio::test]
async fn a_server_that_is_no_coordinator_gets_no_session() {
    let ca = Ca::new();
    let request = identity::Request::new().unwrap();
    let chain = ca.sign(&request.csr, "spiffe://td/agent/web-1");
    let roots = ca.certificate.pem();
    let material =
        crate::tls::Material::from_pem(chain.as_bytes(), request.key.as_bytes(), roots.as_bytes());
    let (_sender, material) = watch::channel(Arc::new(material.unwrap()));
    let tls = Tls::new(material);
    let foreign = Ca::new();
    let cases = [
        (
            ca.server("spiffe://td/agent/web-2", true),
            "not a coordinator",
        ),
        (
            ca.server("spiffe://elsewhere/coordinator/a", true),
            "not a coordinator",
        ),
        (
            foreign.server("spiffe://td/coordinator/a", true),
            "invalid peer certificate",
        ),
    ];
    for (config, words) in cases {
        let (address, _incoming) = listen(config).await;
        let error = tls.channel(&address).await.unwrap_err();
        assert!(error.contains(words), "{error} lacks {words}");
    }
}
