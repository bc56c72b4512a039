//! TLS at a listener: a certificate and key in PEM become what accepts handshakes.
//!
//! The key lives in memory alone: it comes with the table and is left out of the stored one. The engine
//! calls this when a table names another certificate; connections that are open keep what they began with.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::table::{Protocol, TlsRoute};

/// What accepts handshakes.
///
/// # Errors
/// What is wrong with certificate or key, without a word of either.
pub(super) fn config(route: &TlsRoute, protocol: Protocol) -> Result<Arc<ServerConfig>, String> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(route.certificate.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| format!("its certificate cannot be read: {error}"))?;
    if chain.is_empty() {
        return Err("its certificate is not PEM: no BEGIN CERTIFICATE".to_owned());
    }
    // The reason may quote what was read.
    let key = PrivateKeyDer::from_pem_slice(route.key.as_bytes())
        .map_err(|_| "its private key is not PEM: no BEGIN PRIVATE KEY".to_owned())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| format!("its certificate and private key cannot be used: {error}"))?;
    config.alpn_protocols = match protocol {
        Protocol::Http => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Protocol::Tcp => Vec::new(),
    };
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> TlsRoute {
        let key = rcgen::KeyPair::generate().expect("a key");
        let names = vec!["shop.test".to_owned()];
        let made = rcgen::CertificateParams::new(names).expect("names");
        TlsRoute {
            certificate: made.self_signed(&key).expect("a certificate").pem(),
            key: key.serialize_pem(),
        }
    }

    #[test]
    fn a_pair_is_taken_and_everything_else_says_why_not() {
        let good = made();
        let accepts = config(&good, Protocol::Http).expect("good");
        assert_eq!(accepts.alpn_protocols.len(), 2);
        let other = made();
        let cases = [
            (String::new(), good.key.clone(), "no BEGIN CERTIFICATE"),
            (
                good.certificate.clone(),
                "secret".to_owned(),
                "no BEGIN PRIVATE KEY",
            ),
            (good.certificate.clone(), other.key, "cannot be used"),
        ];
        for (certificate, key, words) in cases {
            let route = TlsRoute { certificate, key };
            let why = config(&route, Protocol::Http).expect_err(words);
            assert!(why.contains(words) && !why.contains("secret"), "{why}");
        }
        assert!(!format!("{good:?}").contains("PRIVATE"));
    }
}
