//! TLS towards coordinators: TLS 1.3 only, and identities instead of host names.
//!
//! A coordinator is accepted by its chain to the cluster's roots and the URI in its certificate,
//! `spiffe://<trust domain>/coordinator/<name>`, whatever its address. At enrolment, when no root
//! is known yet, the chain must hold the certificate whose fingerprint the token carries.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::context::{CERTIFICATE, Context, KEY, ROOTS};
use crate::errors::{Failure, Result};

/// What a certificate says about its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `spiffe://…`.
    pub uri: String,
    /// Start of its life, milliseconds since 1970.
    pub not_before_ms: u64,
    /// End of its life, milliseconds since 1970.
    pub not_after_ms: u64,
}

/// Whom a server must be proved by.
#[derive(Debug, Clone)]
enum Trust {
    /// The roots that are known, and the trust domain.
    Roots(Arc<RootCertStore>, String),
    /// The root with this fingerprint, which the server must show.
    Fingerprint(Digest),
}

#[derive(Debug)]
struct CoordinatorVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn config(
    trust: Trust,
    credentials: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    alpn: &[u8],
) -> std::result::Result<Arc<ClientConfig>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(CoordinatorVerifier {
            trust,
            provider: provider(),
        }));
    let mut config = match credentials {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// Settings for a person's connections, with the context's certificate.
///
/// # Errors
/// A file of the context is no PEM of its kind, or certificate and key do not fit.
pub fn mutual(context: &Context, alpn: &[u8]) -> Result<Arc<ClientConfig>> {
    let wrong = |name: &str, message: String| {
        Failure::new(
            Reason::Credentials,
            format!(
                "{} cannot be used: {message}",
                context.folder.join(name).display()
            ),
        )
    };
    let mut store = RootCertStore::empty();
    for root in certificates(&context.roots).map_err(|message| wrong(ROOTS, message))? {
        store
            .add(root)
            .map_err(|error| wrong(ROOTS, error.to_string()))?;
    }
    let chain =
        certificates(&context.certificate).map_err(|message| wrong(CERTIFICATE, message))?;
    let key = PrivateKeyDer::from_pem_slice(&context.key)
        .map_err(|_| wrong(KEY, "it holds no private key in PEM".to_owned()))?;
    let trust = Trust::Roots(Arc::new(store), context.description.trust_domain.clone());
    config(trust, Some((chain, key)), alpn).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            wrong(KEY, "the key does not belong to the certificate".to_owned())
        }
        other => wrong(CERTIFICATE, other.to_string()),
    })
}

/// Settings for enrolment: no certificate of our own, the server proved by the token.
///
/// # Errors
/// A bug of ours.
pub fn enrolling(fingerprint: Digest) -> Result<Arc<ClientConfig>> {
    config(Trust::Fingerprint(fingerprint), None, b"h2")
        .map_err(|error| Failure::new(Reason::Internal, format!("TLS cannot be set up: {error}")))
}

/// The certificates of a PEM text; at least one.
fn certificates(pem: &[u8]) -> std::result::Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|_| "it holds no certificate in PEM".to_owned())?;
    if found.is_empty() {
        return Err("it holds no certificate in PEM".to_owned());
    }
    Ok(found)
}

/// Who the certificate of a context names, and for how long.
///
/// # Errors
/// The file is no certificate, or one without an identity.
pub fn identity(context: &Context) -> Result<Identity> {
    let path = context.folder.join(CERTIFICATE);
    let wrong = |message: &str| {
        Failure::new(
            Reason::Credentials,
            format!("{} cannot be used: {message}", path.display()),
        )
    };
    let chain = certificates(&context.certificate).map_err(|message| wrong(&message))?;
    let leaf = chain.first().ok_or_else(|| wrong("it is empty"))?;
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|_| wrong("its certificate cannot be read"))?;
    let uri = uri_of(leaf).ok_or_else(|| wrong("its certificate names nobody"))?;
    let millis = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000);
    Ok(Identity {
        uri,
        not_before_ms: millis(parsed.validity().not_before.timestamp()),
        not_after_ms: millis(parsed.validity().not_after.timestamp()),
    })
}

/// The one SPIFFE URI of a certificate.
fn uri_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with("spiffe://") => Some((*uri).to_owned()),
            _ => None,
        });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Some(uri),
        _ => None,
    }
}

/// Trust domain, kind and name of `spiffe://domain/kind/name`.
pub fn parts_of(uri: &str) -> Option<(&str, &str, &str)> {
    let mut parts = uri.strip_prefix("spiffe://")?.splitn(3, '/');
    let found = (parts.next()?, parts.next()?, parts.next()?);
    let whole = !found.0.is_empty() && !found.1.is_empty() && !found.2.is_empty();
    whole.then_some(found)
}

impl CoordinatorVerifier {
    /// The anchors to check the chain against, and the trust domain if it is known.
    fn anchors(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> std::result::Result<(Arc<RootCertStore>, Option<&str>), rustls::Error> {
        match &self.trust {
            Trust::Roots(store, domain) => Ok((store.clone(), Some(domain))),
            Trust::Fingerprint(wanted) => {
                let shown = std::iter::once(end_entity)
                    .chain(intermediates)
                    .find(|certificate| Digest::of(certificate) == *wanted)
                    .ok_or_else(|| {
                        rustls::Error::General(
                            "the server does not show the authority that the token was made by"
                                .to_owned(),
                        )
                    })?;
                let mut store = RootCertStore::empty();
                store.add(shown.clone().into_owned())?;
                Ok((Arc::new(store), None))
            }
        }
    }
}

impl ServerCertVerifier for CoordinatorVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let (anchors, domain) = self.anchors(end_entity, intermediates)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &anchors,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let uri = uri_of(end_entity).unwrap_or_default();
        let fits = parts_of(&uri).is_some_and(|(found, kind, _)| {
            kind == "coordinator" && domain.is_none_or(|domain| domain == found)
        });
        if fits {
            Ok(ServerCertVerified::assertion())
        } else {
            let shown = if uri.is_empty() { "nobody" } else { &uri };
            Err(rustls::Error::General(format!(
                "the server's certificate names {shown}, not a coordinator of this cluster"
            )))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_have_three_parts() {
        assert_eq!(
            parts_of("spiffe://example/user/ann"),
            Some(("example", "user", "ann"))
        );
        for bad in [
            "",
            "spiffe://",
            "spiffe://a/b",
            "spiffe://a//c",
            "https://a/b/c",
        ] {
            assert_eq!(parts_of(bad), None, "{bad}");
        }
    }
}
