//! Mutual TLS of the coordinators: certificates that are replaced while the process runs, and
//! identities instead of host names.
//!
//! A certificate names its holder by a SPIFFE URI, `spiffe://<trust domain>/<kind>/<name>`.
//! Servers hand the URI of the client's certificate to the services ([`ConnectionInfo`] in the
//! request's extensions); clients accept a server by its chain to the cluster's CA and its URI,
//! whatever its address. [`Tls`] reads the present [`TlsMaterial`] at every handshake, so a
//! renewed certificate is used from the next connection on.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

pub use self::connection::TlsConnection;
use self::handshakes::{Handshakes, Refusals};
use crate::ca::{self, Validity};
use crate::clock::Clock;

mod connection;
mod handshakes;

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
const HANDSHAKES_AT_ONCE: usize = 256;
/// Open connections of callers without a certificate: they must not use up what the others need.
const STRANGERS_AT_ONCE: usize = 256;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file is not what it should be.
    #[error("the {what} cannot be read: {reason}")]
    Pem {
        /// Which of the three parts.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The parts do not fit together.
    #[error("the certificate cannot be used: {0}")]
    Unusable(String),
    /// An address that is no address.
    #[error("`{0}` is not an address of the form host:port")]
    Address(String),
}

/// What one process shows and trusts.
pub struct TlsMaterial {
    /// The own certificate, followed by intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// The own key.
    pub key: PrivateKeyDer<'static>,
    /// The cluster's CA certificates; during a change of CA there are two.
    pub roots: Vec<CertificateDer<'static>>,
}

impl TlsMaterial {
    /// Reads the three parts from PEM text.
    ///
    /// # Errors
    /// [`TlsError::Pem`] naming the part.
    pub fn from_pem(chain: &[u8], key: &[u8], roots: &[u8]) -> Result<TlsMaterial, TlsError> {
        let certificates = |what: &'static str, pem: &[u8]| {
            let found = CertificateDer::pem_slice_iter(pem)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| TlsError::Pem {
                    what,
                    reason: e.to_string(),
                })?;
            if found.is_empty() {
                return Err(TlsError::Pem {
                    what,
                    reason: "it holds no certificate".to_owned(),
                });
            }
            Ok(found)
        };
        Ok(TlsMaterial {
            chain: certificates("certificate", chain)?,
            key: PrivateKeyDer::from_pem_slice(key).map_err(|e| TlsError::Pem {
                what: "private key",
                reason: e.to_string(),
            })?,
            roots: certificates("CA certificate", roots)?,
        })
    }

    fn root_store(&self) -> Result<RootCertStore, TlsError> {
        let mut store = RootCertStore::empty();
        for root in &self.roots {
            store
                .add(root.clone())
                .map_err(|e| TlsError::Unusable(format!("a CA certificate: {e}")))?;
        }
        Ok(store)
    }
}

/// The holder of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    /// The cluster's trust domain.
    pub trust_domain: String,
    /// `coordinator`, `agent` or `user`.
    pub kind: String,
    /// The name within its kind.
    pub name: String,
}

impl SpiffeId {
    /// Parses `spiffe://<trust domain>/<kind>/<name>`: three parts, no more, of characters that
    /// need no escape.
    #[must_use]
    pub fn parse(uri: &str) -> Option<SpiffeId> {
        let mut parts = uri.strip_prefix("spiffe://")?.split('/');
        let (trust_domain, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
        let is_plain = |part: &str| {
            let fits = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
            !part.is_empty() && part.bytes().all(fits)
        };
        if parts.next().is_some() || ![trust_domain, kind, name].into_iter().all(is_plain) {
            return None;
        }
        Some(SpiffeId {
            trust_domain: trust_domain.to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
        })
    }

    /// The identity in a certificate; `None` unless it has exactly one SPIFFE URI.
    #[must_use]
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<SpiffeId> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok()??;
        let mut found = names.value.general_names.iter().filter_map(|n| match n {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        match (found.next(), found.next()) {
            (Some(uri), None) => SpiffeId::parse(uri),
            _ => None,
        }
    }
}

impl std::fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let SpiffeId {
            trust_domain,
            kind,
            name,
        } = self;
        write!(f, "spiffe://{trust_domain}/{kind}/{name}")
    }
}

/// Whether a listener asks for client certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// No connection without a certificate of the cluster's CA.
    Required,
    /// Only the server shows one: enrolment.
    None,
}

/// The process's certificates, as they are at the moment.
#[derive(Clone)]
pub struct Tls {
    material: watch::Receiver<Arc<TlsMaterial>>,
    trust_domain: Arc<str>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Tls {
    /// Follows `material`, whose sender renews it. Identities of other trust domains are refused.
    #[must_use]
    pub fn new(material: watch::Receiver<Arc<TlsMaterial>>, trust_domain: &str) -> Tls {
        Tls {
            material,
            trust_domain: Arc::from(trust_domain),
        }
    }

    /// The trust domain of the cluster.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The material of this moment.
    #[must_use]
    pub fn material(&self) -> Arc<TlsMaterial> {
        self.material.borrow().clone()
    }

    /// The server's settings with the certificate of this moment.
    ///
    /// # Errors
    /// [`TlsError::Unusable`].
    pub fn server_config(&self, auth: ClientAuth) -> Result<Arc<ServerConfig>, TlsError> {
        let material = self.material();
        let unusable = |e: &dyn std::fmt::Display| TlsError::Unusable(e.to_string());
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| unusable(&e))?;
        let builder = match auth {
            ClientAuth::Required => {
                let verifier = WebPkiClientVerifier::builder_with_provider(
                    Arc::new(material.root_store()?),
                    provider(),
                )
                .build()
                .map_err(|e| unusable(&e))?;
                builder.with_client_cert_verifier(verifier)
            }
            ClientAuth::None => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(material.chain.clone(), material.key.clone_key())
            .map_err(|e| unusable(&e))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// The client's settings with the certificate of this moment; the server must be `expected`.
    ///
    /// # Errors
    /// [`TlsError::Unusable`].
    pub fn client_config(&self, expected: &Expected) -> Result<Arc<ClientConfig>, TlsError> {
        let material = self.material();
        let unusable = |e: rustls::Error| TlsError::Unusable(e.to_string());
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(IdentityVerifier {
                roots: material.root_store()?,
                trust_domain: self.trust_domain.clone(),
                expected: expected.clone(),
                provider: provider(),
            }))
            .with_client_auth_cert(material.chain.clone(), material.key.clone_key())
            .map_err(unusable)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.enable_sni = false;
        Ok(Arc::new(config))
    }

    /// Accepts on `listener` for ever, until the stream is dropped. Handshakes run beside each
    /// other, and a slow or refused one disturbs nobody.
    pub fn incoming(
        &self,
        listener: TcpListener,
        auth: ClientAuth,
    ) -> ReceiverStream<io::Result<TlsConnection>> {
        let (sender, receiver) = mpsc::channel(64);
        let slots = Arc::new(Semaphore::new(match auth {
            ClientAuth::Required => HANDSHAKES_AT_ONCE,
            ClientAuth::None => STRANGERS_AT_ONCE,
        }));
        tokio::spawn(accept_loop(self.clone(), listener, auth, slots, sender));
        ReceiverStream::new(receiver)
    }

    /// A channel to the coordinator at `address` (`host:port`), which must be `expected`. It
    /// connects when it is first used and again when the connection is lost, each time with the
    /// certificate of that moment.
    ///
    /// # Errors
    /// [`TlsError::Address`].
    pub fn channel(&self, address: &str, expected: Expected) -> Result<Channel, TlsError> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| TlsError::Address(address.to_owned()))?
            .connect_timeout(Duration::from_secs(3))
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(4 * 1024 * 1024)
            .initial_connection_window_size(16 * 1024 * 1024)
            .tcp_nodelay(true);
        let tls = self.clone();
        let address: Arc<str> = Arc::from(address);
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(
            move |_: tonic::codegen::http::Uri| {
                let (tls, address, expected) = (tls.clone(), address.clone(), expected.clone());
                async move { tls.connect(&address, &expected).await }
            },
        )))
    }

    async fn connect(
        &self,
        address: &str,
        expected: &Expected,
    ) -> io::Result<hyper_util::rt::TokioIo<tokio_rustls::client::TlsStream<TcpStream>>> {
        let config = self.client_config(expected).map_err(io::Error::other)?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // The name is not looked at: the certificate's URI is.
        let name = ServerName::try_from("tidegate").map_err(io::Error::other)?;
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        Ok(hyper_util::rt::TokioIo::new(stream))
    }
}

async fn accept_loop(
    tls: Tls,
    listener: TcpListener,
    auth: ClientAuth,
    slots: Arc<Semaphore>,
    sender: mpsc::Sender<io::Result<TlsConnection>>,
) {
    let refusals = Arc::new(Refusals::default());
    let handshakes = Handshakes::default();
    // For the log alone.
    let clock = Clock::system();
    let mut current: Option<(Arc<TlsMaterial>, Arc<ServerConfig>)> = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, as a rule: wait for some to come back.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Before anything is waited for: whoever has too many open must not hold up the others.
        let Some(place) = handshakes.begin(remote.ip()) else {
            tracing::debug!(%remote, "too many handshakes of this address are open");
            continue;
        };
        let material = tls.material();
        let fits = current
            .as_ref()
            .is_some_and(|(used, _)| Arc::ptr_eq(used, &material));
        if !fits {
            match tls.server_config(auth) {
                Ok(config) => current = Some((material, config)),
                Err(error) => tracing::error!(%error, "the renewed certificate is not used"),
            }
        }
        let Some((_, config)) = &current else {
            continue;
        };
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let acceptor = TlsAcceptor::from(config.clone());
        let (sender, refusals, clock) = (sender.clone(), refusals.clone(), clock.clone());
        tokio::spawn(async move {
            let done = handshake(acceptor, stream, remote).await;
            drop(place);
            match done {
                Ok(mut connection) => {
                    let slot = match auth {
                        ClientAuth::Required => Some(slot),
                        ClientAuth::None => {
                            connection.slot = Some(slot);
                            None
                        }
                    };
                    sender.send(Ok(connection)).await.ok();
                    drop(slot);
                }
                Err(error) if refusals.is_worth_telling(&error, clock.instant()) => {
                    tracing::warn!(%remote, %error, "a connection was refused");
                }
                Err(error) => {
                    tracing::debug!(%remote, %error, "a connection was refused");
                }
            }
        });
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    remote: SocketAddr,
) -> io::Result<TlsConnection> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|c| c.clone().into_owned());
    let info = ConnectionInfo {
        identity: certificate
            .as_ref()
            .and_then(SpiffeId::of_certificate)
            .map(Arc::new),
        validity: certificate.as_ref().and_then(ca::validity),
        certificate: certificate.map(Arc::new),
        remote,
    };
    Ok(TlsConnection {
        stream,
        info,
        has_yielded: false,
        slot: None,
    })
}

/// Who is at the other end of a connection; in the extensions of every request.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// The certificate's identity; `None` without a certificate, or without exactly one URI in it.
    pub identity: Option<Arc<SpiffeId>>,
    /// The certificate itself, as it was shown.
    pub certificate: Option<Arc<CertificateDer<'static>>>,
    /// From when to when it counts, read once: every request asks. `None` without a certificate, or
    /// with one that cannot be read.
    pub validity: Option<Validity>,
    /// Where the connection came from.
    pub remote: SocketAddr,
}

/// Who a server must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Any coordinator of the trust domain.
    AnyCoordinator,
    /// The coordinator of this name.
    Coordinator(String),
}

#[derive(Debug)]
struct IdentityVerifier {
    roots: RootCertStore,
    trust_domain: Arc<str>,
    expected: Expected,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for IdentityVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let identity = SpiffeId::of_certificate(end_entity).ok_or_else(|| {
            rustls::Error::General("the server's certificate names no one".to_owned())
        })?;
        let name_fits = match &self.expected {
            Expected::AnyCoordinator => true,
            Expected::Coordinator(name) => identity.name == *name,
        };
        if *identity.trust_domain != *self.trust_domain
            || identity.kind != "coordinator"
            || !name_fits
        {
            return Err(rustls::Error::General(format!(
                "the server is {identity}, which is not the coordinator that was asked for"
            )));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
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

/// Certificates for tests of this and other crates.
#[cfg(any(test, feature = "testing"))]
pub mod testing {
    use super::TlsMaterial;
    use rcgen::string::Ia5String;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
    use rustls::pki_types::PrivateKeyDer;

    /// A CA that lives as long as a test.
    pub struct TestCa {
        certificate: rcgen::Certificate,
        issuer: Issuer<'static, KeyPair>,
    }

    impl TestCa {
        /// A fresh CA.
        ///
        /// # Errors
        /// What the certificate library says.
        pub fn new() -> Result<TestCa, rcgen::Error> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(Vec::new())?;
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key)?;
            Ok(TestCa {
                certificate,
                issuer: Issuer::new(params, key),
            })
        }

        /// A certificate for the SPIFFE URI `uri`.
        ///
        /// # Errors
        /// What the certificate library says.
        pub fn issue(&self, uri: &str) -> Result<TlsMaterial, rcgen::Error> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(Vec::new())?;
            params
                .subject_alt_names
                .push(SanType::URI(Ia5String::try_from(uri)?));
            let certificate = params.signed_by(&key, &self.issuer)?;
            Ok(TlsMaterial {
                chain: vec![certificate.der().clone()],
                key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
                roots: vec![self.certificate.der().clone()],
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::TestCa;
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::StreamExt;

    fn tls(ca: &TestCa, uri: &str) -> (watch::Sender<Arc<TlsMaterial>>, Tls) {
        let (sender, receiver) = watch::channel(Arc::new(ca.issue(uri).unwrap()));
        (sender, Tls::new(receiver, "td"))
    }

    async fn serve(tls: &Tls) -> (String, ReceiverStream<io::Result<TlsConnection>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (address, tls.incoming(listener, ClientAuth::Required))
    }

    #[tokio::test]
    async fn both_ends_learn_who_the_other_is() {
        let ca = TestCa::new().unwrap();
        let (_s, server) = tls(&ca, "spiffe://td/coordinator/a");
        let (_c, client) = tls(&ca, "spiffe://td/coordinator/b");
        let (address, mut incoming) = serve(&server).await;
        let expected = Expected::Coordinator("a".to_owned());
        let dial = client.connect(&address, &expected);
        let (stream, accepted) = tokio::join!(dial, incoming.next());
        let mut accepted = accepted.unwrap().unwrap();
        let identity = accepted.info().identity.clone().unwrap();
        assert_eq!(identity.to_string(), "spiffe://td/coordinator/b");
        accepted.write_all(b"x").await.unwrap();
        accepted.flush().await.unwrap();
        let mut byte = [0];
        stream
            .unwrap()
            .into_inner()
            .read_exact(&mut byte)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_server_with_another_identity_is_refused() {
        let ca = TestCa::new().unwrap();
        for uri in [
            "spiffe://td/agent/a",
            "spiffe://elsewhere/coordinator/a",
            "spiffe://td/coordinator/other",
        ] {
            let (_s, server) = tls(&ca, uri);
            let (_c, client) = tls(&ca, "spiffe://td/coordinator/b");
            let (address, _incoming) = serve(&server).await;
            let expected = Expected::Coordinator("a".to_owned());
            let error = client.connect(&address, &expected).await.err().unwrap();
            assert!(error.to_string().contains(uri), "{error}");
        }
    }

    #[tokio::test]
    async fn a_server_of_a_foreign_ca_is_refused() {
        let (_s, server) = tls(&TestCa::new().unwrap(), "spiffe://td/coordinator/a");
        let (_c, client) = tls(&TestCa::new().unwrap(), "spiffe://td/coordinator/b");
        let (address, _incoming) = serve(&server).await;
        assert!(
            client
                .connect(&address, &Expected::AnyCoordinator)
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_used_from_the_next_connection_on() {
        let ca = TestCa::new().unwrap();
        let (renew, server) = tls(&ca, "spiffe://td/coordinator/a");
        let (_c, client) = tls(&ca, "spiffe://td/coordinator/b");
        let (address, mut incoming) = serve(&server).await;
        let mut shown = Vec::new();
        for _ in 0..2 {
            let expected = Expected::AnyCoordinator;
            let (stream, _accepted) =
                tokio::join!(client.connect(&address, &expected), incoming.next());
            let stream = stream.unwrap().into_inner();
            shown.push(stream.get_ref().1.peer_certificates().unwrap()[0].clone());
            renew
                .send(Arc::new(ca.issue("spiffe://td/coordinator/a").unwrap()))
                .unwrap();
        }
        assert_ne!(shown[0], shown[1]);
    }

    #[tokio::test]
    async fn a_stranger_holds_a_place_for_as_long_as_it_is_connected() {
        let ca = TestCa::new().unwrap();
        let (_s, server) = tls(&ca, "spiffe://td/coordinator/a");
        for (auth, held) in [(ClientAuth::None, 1), (ClientAuth::Required, 0)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let slots = Arc::new(Semaphore::new(2));
            let (sender, mut incoming) = mpsc::channel(1);
            let accepting = accept_loop(server.clone(), listener, auth, slots.clone(), sender);
            let accepting = tokio::spawn(accepting);
            let expected = Expected::AnyCoordinator;
            let (_client, accepted) =
                tokio::join!(server.connect(&address, &expected), incoming.recv());
            let accepted = accepted.unwrap().unwrap();
            while slots.available_permits() != 2 - held {
                tokio::task::yield_now().await;
            }
            assert_eq!(accepted.slot.is_some(), held == 1);
            drop(accepted);
            while slots.available_permits() != 2 {
                tokio::task::yield_now().await;
            }
            accepting.abort();
        }
    }

    #[tokio::test]
    async fn stalled_handshakes_of_one_address_are_cut_off() {
        let ca = TestCa::new().unwrap();
        let (_s, server) = tls(&ca, "spiffe://td/coordinator/a");
        let (address, mut incoming) = serve(&server).await;
        let mut stalled = Vec::new();
        for _ in 0..handshakes::OWN_HANDSHAKES {
            stalled.push(TcpStream::connect(&address).await.unwrap());
        }
        let mut surplus = TcpStream::connect(&address).await.unwrap();
        assert_eq!(surplus.read(&mut [0]).await.unwrap(), 0);
        stalled.clear();
        let expected = Expected::AnyCoordinator;
        loop {
            // The places come back when the server notices.
            if server.connect(&address, &expected).await.is_ok() {
                break;
            }
        }
        assert!(incoming.next().await.unwrap().is_ok());
    }

    #[test]
    fn only_complete_uris_are_identities() {
        for bad in [
            "",
            "spiffe://",
            "spiffe://td/coordinator",
            "spiffe://td//a",
            "spiffe://td/coordinator/a/b",
            "spiffe://td/coordinator/a/",
            "spiffe://td/coordinator/a?b",
            "spiffe://td:1/coordinator/a",
            "spiffe://x@td/coordinator/a",
            "spiffe://td/coordinator/*",
            "spiffe://td/coordinator/%61",
            "https://td/a/b",
        ] {
            assert_eq!(SpiffeId::parse(bad), None, "{bad}");
        }
    }
}
