//! The agent's certificate on disk: `identity/{key.pem,cert.pem,roots.pem}`, its making and its
//! renewal. Where a certificate comes from (enrolment, renewal over the session) is not settled here.

use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tidegate_shared::error::Reason;

use crate::error::AgentError;
use crate::files;
use crate::tls::Material;

/// A fresh key with a request for its certificate.
pub struct Request {
    /// The key, PEM.
    pub key: String,
    /// The request, DER.
    pub csr: Vec<u8>,
}

impl Request {
    /// Makes an ECDSA P-256 key and its request. The subject is the issuer's to settle.
    ///
    /// # Errors
    /// The machine gives no randomness.
    pub fn new() -> Result<Self, AgentError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| failed(&error))?;
        Self::of(&key)
    }

    /// A request for the key that is in use: at a renewal only the certificate changes, so that no
    /// crash can leave a key and a certificate that do not fit.
    ///
    /// # Errors
    /// The key cannot be read.
    pub fn again(folder: &Path) -> Result<Self, AgentError> {
        let path = folder.join("key.pem");
        let wrong = |why: String| {
            let message = format!("{} cannot be used: {why}", path.display());
            AgentError::new(Reason::Credentials, message)
        };
        let pem = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
        let key = KeyPair::from_pem(&pem).map_err(|error| wrong(error.to_string()))?;
        Self::of(&key)
    }

    fn of(key: &KeyPair) -> Result<Self, AgentError> {
        let params = CertificateParams::new(Vec::new()).map_err(|error| failed(&error))?;
        let csr = params
            .serialize_request(key)
            .map_err(|error| failed(&error))?;
        Ok(Self {
            key: key.serialize_pem(),
            csr: csr.der().to_vec(),
        })
    }
}

fn failed(error: &rcgen::Error) -> AgentError {
    AgentError::new(Reason::Internal, format!("no key can be made: {error}"))
}

/// Checks the three parts and writes them, the key for the owner alone.
///
/// # Errors
/// The parts do not fit, or the folder cannot be written; then nothing is used.
pub fn store(
    folder: &Path,
    key: &str,
    chain: &str,
    roots: &str,
) -> Result<Arc<Material>, AgentError> {
    let material = Material::from_pem(chain.as_bytes(), key.as_bytes(), roots.as_bytes())
        .map_err(|error| AgentError::new(Reason::Credentials, error.to_string()))?;
    let failed = |error: std::io::Error| {
        let message = format!("{} cannot be written: {error}", folder.display());
        AgentError::new(Reason::DataFolder, message)
    };
    files::make_folder(folder, 0o700).map_err(failed)?;
    let key_path = folder.join("key.pem");
    if std::fs::read(&key_path).ok().as_deref() != Some(key.as_bytes()) {
        files::replace(&key_path, key.as_bytes(), 0o600).map_err(failed)?;
    }
    files::replace(&folder.join("roots.pem"), roots.as_bytes(), 0o644).map_err(failed)?;
    files::replace(&folder.join("cert.pem"), chain.as_bytes(), 0o644).map_err(failed)?;
    Ok(Arc::new(material))
}

/// Reads what [`store`] wrote.
///
/// # Errors
/// The file that is missing or wrong.
pub fn load(folder: &Path) -> Result<Arc<Material>, AgentError> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).map_err(|error| {
            let message = format!(
                "{} cannot be read: {error}; `tidegate-agent join` makes it",
                path.display()
            );
            AgentError::new(Reason::Credentials, message)
        })
    };
    let (chain, key, roots) = (read("cert.pem")?, read("key.pem")?, read("roots.pem")?);
    let material = Material::from_pem(&chain, &key, &roots).map_err(|error| {
        let message = format!("in {}: {error}", folder.display());
        AgentError::new(Reason::Credentials, message)
    })?;
    Ok(Arc::new(material))
}

/// When a certificate should be renewed: at two thirds of its life, unix seconds.
pub const fn renew_at(material: &Material) -> i64 {
    let life = material.not_after - material.not_before;
    material.not_before + life / 3 * 2
}
