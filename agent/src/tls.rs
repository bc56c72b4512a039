//! TLS of the agent's connections: its certificate, which is replaced while the process runs, and
//! servers that are known by their SPIFFE URI instead of a host name.
//!
//! A coordinator is accepted when its chain ends at a root of the cluster and its certificate names
//! `spiffe://<trust domain>/coordinator/…`. The certificate of this moment is read at every new
//! connection. TLS 1.3 only, with ring.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// For the TCP connection and the handshake together.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Between two signs of life of a connection.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM text is not what it should be.
    #[error("the {what} cannot be read: {reason}")]
    Pem {
        /// Which part.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The parts do not fit together.
    #[error("the certificate cannot be used: {0}")]
    Unusable(String),
}

/// Who a certificate names: `spiffe://<trust domain>/<kind>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpiffeId {
    /// The cluster's trust domain.
    pub trust_domain: String,
    /// `coordinator`, `agent` or `user`.
    pub kind: String,
    /// The name within its kind.
    pub name: String,
}

impl SpiffeId {
    /// Parses the URI.
    pub fn parse(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix("spiffe://")?.splitn(3, '/');
        let parts = [parts.next()?, parts.next()?, parts.next()?];
        let [trust_domain, kind, name] = parts.map(str::to_owned);
        let whole = !trust_domain.is_empty() && !kind.is_empty() && !name.is_empty();
        whole.then_some(Self {
            trust_domain,
            kind,
            name,
        })
    }

    /// The identity in a certificate; none unless it has exactly one URI.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok()??;
        let mut uris = names
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => Self::parse(uri),
            _ => None,
        }
    }
}

/// What the agent shows and trusts.
pub struct Material {
    /// Its certificate, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// The cluster's CA certificates; two during a change of CA.
    pub roots: Vec<CertificateDer<'static>>,
    /// Whom the certificate names.
    pub identity: SpiffeId,
    /// When it starts to count, unix seconds.
    pub not_before: i64,
    /// When it ends, unix seconds.
    pub not_after: i64,
}

impl Material {
    /// Reads the three parts from PEM.
    ///
    /// # Errors
    /// The part that is wrong.
    pub fn from_pem(chain: &[u8], key: &[u8], roots: &[u8]) -> Result<Self, TlsError> {
        let chain = certificates("certificate", chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::Pem {
            what: "private key",
            reason: error.to_string(),
        })?;
        let unusable = |reason: &str| TlsError::Unusable(reason.to_owned());
        let leaf = chain.first().ok_or_else(|| unusable("it is empty"))?;
        let identity = SpiffeId::of(leaf).ok_or_else(|| unusable("it names no one"))?;
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|e| TlsError::Unusable(e.to_string()))?;
        let validity = parsed.validity();
        Ok(Self {
            identity,
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            key,
            roots: certificates("roots", roots)?,
            chain,
        })
    }
}

/// Every certificate of a PEM text, at least one.
///
/// # Errors
/// [`TlsError::Pem`].
pub fn certificates(
    what: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let wrong = |reason: String| TlsError::Pem { what, reason };
    let found = found.map_err(|error| wrong(error.to_string()))?;
    if found.is_empty() {
        return Err(wrong("it holds no certificate".to_owned()));
    }
    Ok(found)
}

/// The provider of all cryptography here.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Makes connections to coordinators with the certificate of the moment.
#[derive(Clone)]
pub struct Tls {
    material: watch::Receiver<Arc<Material>>,
}

impl Tls {
    /// Follows the material, whose sender renews it.
    pub const fn new(material: watch::Receiver<Arc<Material>>) -> Self {
        Self { material }
    }

    /// The material of this moment.
    pub fn material(&self) -> Arc<Material> {
        self.material.borrow().clone()
    }

    fn client_config(&self, alpn: &[u8]) -> Result<Arc<ClientConfig>, TlsError> {
        let material = self.material();
        let unusable = |error: rustls::Error| TlsError::Unusable(error.to_string());
        let mut roots = RootCertStore::empty();
        for root in &material.roots {
            roots.add(root.clone()).map_err(unusable)?;
        }
        let verifier = CoordinatorVerifier {
            roots,
            trust_domain: material.identity.trust_domain.clone(),
            provider: provider(),
        };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(material.chain.clone(), material.key.clone_key())
            .map_err(unusable)?;
        config.alpn_protocols = vec![alpn.to_vec()];
        config.enable_sni = false;
        Ok(Arc::new(config))
    }

    /// A connection to the coordinator at `address`, speaking `alpn`.
    ///
    /// # Errors
    /// It cannot be reached, or is not a coordinator of this cluster.
    pub async fn connect(&self, address: &str, alpn: &[u8]) -> io::Result<TlsStream<TcpStream>> {
        let config = self.client_config(alpn).map_err(io::Error::other)?;
        connect(address, config).await
    }

    /// A channel to the coordinator at `address`, connected.
    ///
    /// # Errors
    /// What the connection or the handshake says.
    pub async fn channel(&self, address: &str) -> Result<Channel, String> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| format!("\"{address}\" is not an address"))?
            .connect_timeout(CONNECT_LIMIT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let tls = self.clone();
        let target = address.to_owned();
        let connector = tower::service_fn(move |_: hyper::Uri| {
            let (tls, target) = (tls.clone(), target.clone());
            async move { tls.connect(&target, b"h2").await.map(TokioIo::new) }
        });
        endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|error| root_cause(&error))
    }
}

/// A TLS connection by any client configuration, within the limit.
///
/// # Errors
/// What the system or the handshake says, or that it took too long.
pub async fn connect(address: &str, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let attempt = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // The name is not looked at: the certificate's URI is.
        let name = ServerName::try_from("tidegate").map_err(io::Error::other)?;
        TlsConnector::from(config).connect(name, stream).await
    };
    tokio::time::timeout(CONNECT_LIMIT, attempt)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s"))?
}

/// The innermost cause of an error: the one that tells something.
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[derive(Debug)]
struct CoordinatorVerifier {
    roots: RootCertStore,
    trust_domain: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for CoordinatorVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let identity = SpiffeId::of(leaf);
        let fits = identity
            .as_ref()
            .is_some_and(|id| id.trust_domain == self.trust_domain && id.kind == "coordinator");
        if fits {
            return Ok(ServerCertVerified::assertion());
        }
        let message = "the server is not a coordinator of this agent's cluster".to_owned();
        Err(rustls::Error::General(message))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
