//! Joining: a token becomes a certificate.
//!
//! The server is trusted only if its chain holds the CA certificate whose fingerprint stands in the
//! token and that CA signed the server's own certificate; nothing of the token is sent before.
//! Refused with the word that tells the cause, and without a change on disk.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tidegate_proto::enroll::v1 as wire;
use tidegate_proto::enroll::v1::enroll_client::EnrollClient;
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::token::JoinToken;
use tonic::transport::{Channel, Endpoint};

use crate::config::{Config, Layout, PortRange, check_address};
use crate::error::AgentError;
use crate::tls::{self, provider, root_cause};
use crate::{files, identity, telemetry};

/// What a person gives to `join`.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// The token as it was printed.
    pub token: String,
    /// Enrolment listeners of coordinators.
    pub servers: Vec<String>,
    /// The name that is wished for; none: the token's, or this host's.
    pub name: Option<String>,
    /// The agent's folder.
    pub dir: PathBuf,
    /// Where the proxy will listen.
    pub listen_address: Option<std::net::IpAddr>,
    /// Where instances will listen.
    pub instance_address: Option<std::net::IpAddr>,
    /// Ports for instances.
    pub port_range: Option<PortRange>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The agent's name in the cluster.
    pub name: Name,
    /// The cluster.
    pub cluster: String,
    /// The configuration that was written.
    pub config: PathBuf,
}

/// Joins a cluster.
///
/// # Errors
/// Why not; then nothing was written.
pub async fn join(options: &JoinOptions) -> Result<Joined, AgentError> {
    let token: JoinToken = options
        .token
        .parse()
        .map_err(|error| AgentError::new(Reason::TokenMalformed, format!("{error}")))?;
    if options.servers.is_empty() {
        return Err(AgentError::new(
            Reason::InvalidRequest,
            "--server is missing",
        ));
    }
    for server in &options.servers {
        check_address(server)
            .map_err(|why| AgentError::new(Reason::InvalidRequest, format!("--server: {why}")))?;
    }
    let request = identity::Request::new()?;
    let names = wished_names(options)?;
    let listen = options.listen_address.unwrap_or([127, 0, 0, 1].into());
    let message = |name: &String| wire::EnrollRequest {
        token: options.token.trim().to_owned(),
        csr: request.csr.clone().into(),
        name: name.clone(),
        facts: telemetry::host::facts(listen).into_iter().collect(),
        addresses: None,
    };
    let mut last = None;
    for server in &options.servers {
        for (position, name) in names.iter().enumerate() {
            match enroll(server, token.fingerprint, message(name)).await {
                Ok(response) => return write(options, &request.key, &response),
                Err(error) if error.reason == Reason::Unreachable => {
                    last = Some(error);
                    break;
                }
                // The token settles no name: the host's is tried.
                Err(error)
                    if error.reason == Reason::InvalidField && position + 1 < names.len() => {}
                Err(error) => return Err(error),
            }
        }
    }
    Err(last.unwrap_or_else(|| AgentError::new(Reason::Unreachable, "no server was asked")))
}

/// The names to ask for, in that order: the given one; else the token's own, then the host's.
fn wished_names(options: &JoinOptions) -> Result<Vec<String>, AgentError> {
    if let Some(name) = &options.name {
        return match Name::new(name.clone()) {
            Ok(name) => Ok(vec![name.to_string()]),
            Err(error) => Err(AgentError::new(
                Reason::InvalidField,
                format!("--name: {error}"),
            )),
        };
    }
    let mut names = vec![String::new()];
    let host = sysinfo::System::host_name()
        .unwrap_or_default()
        .to_lowercase();
    let label = host.split('.').next().unwrap_or_default().to_owned();
    // A host's name that is no name of the cluster is not sent.
    names.extend(Name::new(label).ok().map(|name| name.to_string()));
    Ok(names)
}

async fn enroll(
    server: &str,
    fingerprint: Digest,
    request: wire::EnrollRequest,
) -> Result<wire::EnrollResponse, AgentError> {
    let refusal = Arc::new(Mutex::new(None));
    let channel = channel(server, fingerprint, Arc::clone(&refusal)).await;
    let channel = channel.map_err(|why| {
        let refused = refusal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match refused {
            Some(why) => AgentError::new(Reason::WrongServer, format!("{server}: {why}")),
            None => {
                let message = format!("the server {server} cannot be reached: {why}");
                AgentError::new(Reason::Unreachable, message)
            }
        }
    })?;
    let response = EnrollClient::new(channel).enroll(request).await;
    response
        .map(tonic::Response::into_inner)
        .map_err(|status| refused(server, &status))
}

/// The server's refusal with its own reason, where the answer names one.
fn refused(server: &str, status: &tonic::Status) -> AgentError {
    let text = status.message();
    let details = String::from_utf8_lossy(status.details());
    let told = |reason: &&Reason| text.contains(reason.code()) || details.contains(reason.code());
    let reason = Reason::ALL
        .iter()
        .find(told)
        .copied()
        .unwrap_or(match status.code() {
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => Reason::Unreachable,
            tonic::Code::PermissionDenied => Reason::PermissionDenied,
            tonic::Code::Unauthenticated => Reason::TokenUnknown,
            tonic::Code::InvalidArgument => Reason::InvalidField,
            _ => Reason::Internal,
        });
    AgentError::new(reason, format!("{server} refuses: {text}"))
}

fn write(
    options: &JoinOptions,
    key: &str,
    response: &wire::EnrollResponse,
) -> Result<Joined, AgentError> {
    let strange = |why: String| {
        AgentError::new(
            Reason::Internal,
            format!("the server's answer cannot be used: {why}"),
        )
    };
    let name = Name::new(response.name.clone()).map_err(|error| strange(error.to_string()))?;
    let layout = Layout {
        dir: options.dir.clone(),
    };
    files::make_folder(&layout.dir, 0o755).map_err(|error| {
        let message = format!("{} cannot be made: {error}", layout.dir.display());
        AgentError::new(Reason::DataFolder, message)
    })?;
    let of = |pick: fn(&wire::CoordinatorAddresses) -> &String| -> Vec<String> {
        let all = response.coordinators.iter().map(pick);
        all.filter(|address| !address.is_empty()).cloned().collect()
    };
    let control = of(|addresses| &addresses.control);
    if control.is_empty() {
        return Err(strange("it names no coordinator".to_owned()));
    }
    let (chain, roots) = (&response.certificate_chain, &response.roots);
    identity::store(&layout.identity(), key, chain, roots)?;
    // A list of an earlier cluster must not win over the new one.
    if let Err(error) = files::remove(&layout.coordinators()) {
        tracing::warn!(%error, "the old list of coordinators stays");
    }
    let http = of(|addresses| &addresses.http);
    // A host that joins again, as after its certificate has ended, keeps its own settings.
    let kept = std::fs::read_to_string(layout.config()).ok();
    let kept = kept.and_then(|text| toml::from_str::<Config>(&text).ok());
    let mut config = match kept {
        Some(kept) => Config {
            name: name.to_string(),
            coordinators: control,
            http,
            ..kept
        },
        None => Config::new(&name, control, http),
    };
    if let Some(address) = options.listen_address {
        config.listen_address = address.to_string();
    }
    if let Some(address) = options.instance_address {
        config.instance_address = address.to_string();
    }
    if let Some(PortRange { first, last }) = options.port_range {
        config.port_range = format!("{first}-{last}");
    }
    config.write(&layout.config())?;
    Ok(Joined {
        name,
        cluster: response.cluster_id.clone(),
        config: layout.config(),
    })
}

/// A connected channel to a server that has the fingerprint.
async fn channel(
    server: &str,
    fingerprint: Digest,
    refusal: Arc<Mutex<Option<String>>>,
) -> Result<Channel, String> {
    let verifier = FingerprintVerifier {
        fingerprint,
        refusal,
        provider: provider(),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    let config = Arc::new(config);
    let endpoint = Endpoint::from_shared(format!("http://{server}"))
        .map_err(|_| format!("\"{server}\" is not an address"))?;
    let target = server.to_owned();
    let connector = tower::service_fn(move |_: hyper::Uri| {
        let (target, config) = (target.clone(), Arc::clone(&config));
        async move { tls::connect(&target, config).await.map(TokioIo::new) }
    });
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|error| root_cause(&error))
}

/// Accepts a server whose certificate is signed by the CA of the fingerprint.
#[derive(Debug)]
struct FingerprintVerifier {
    fingerprint: Digest,
    refusal: Arc<Mutex<Option<String>>>,
    provider: Arc<CryptoProvider>,
}

impl FingerprintVerifier {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), String> {
        let parsed = ParsedCertificate::try_from(leaf).map_err(|error| error.to_string())?;
        let ca = chain
            .iter()
            .find(|certificate| Digest::of(certificate) == self.fingerprint)
            .ok_or("the server does not have the CA that the token names")?;
        let mut roots = RootCertStore::empty();
        roots
            .add(ca.clone().into_owned())
            .map_err(|error| error.to_string())?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &roots,
            chain,
            now,
            self.provider.signature_verification_algorithms.all,
        )
        .map_err(|error| format!("the CA that the token names did not sign the server: {error}"))
    }
}

impl ServerCertVerifier for FingerprintVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.judge(leaf, chain, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(why) => {
                let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
                *refusal = Some(why.clone());
                Err(rustls::Error::General(why))
            }
        }
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
