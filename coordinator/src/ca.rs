//! The embedded certificate authority and the cluster key.
//!
//! The CA is ECDSA P-256 and stands in the log with its private key sealed by the cluster key
//! (AES-256-GCM); the cluster key itself is a 0600 file on every coordinator and is never in the
//! log. Certificates name their holder by a SPIFFE URI and nothing else that counts. Called by
//! `init`, by enrolment and by the renewals; reads no clock: the caller says what time it is.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tidegate_coordinator_core::state::{CaRecord, SealedKey};
use tidegate_shared::digest::Digest;
use tidegate_shared::time::{Span, Timestamp};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::entropy;
use crate::tls::SpiffeId;

/// Certificates are valid from so long before their issue, for hosts whose clock is behind.
pub const BACKDATED: Span = Span::from_mins(10);

/// A certificate may look older than its holder's entry by so much: certificates know whole
/// seconds, and clocks of two coordinators differ.
const ISSUE_SLACK: Span = Span::from_secs(5);

/// Life of the CA certificate.
const CA_LIFE: Span = Span::from_days(3_653);

/// What the sealed CA key is bound to.
const CA_KEY_PURPOSE: &[u8] = b"tidegate ca key v1";

/// Why a certificate or key cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The request is not an acceptable PKCS#10 request.
    #[error("the certificate request is not acceptable: {0}")]
    BadCsr(String),
    /// The sealed CA key does not open with this cluster key.
    #[error(
        "the CA key does not open with this node's cluster key: {0} belongs to another cluster, or is damaged"
    )]
    WrongClusterKey(PathBuf),
    /// The library refused.
    #[error("a certificate cannot be made: {0}")]
    Library(#[from] rcgen::Error),
    /// The record in the state cannot be read.
    #[error("the CA certificate cannot be read: {0}")]
    Record(String),
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] entropy::EntropyError),
    /// The key file cannot be used.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The key file is not what it should be.
    #[error("{path} is no cluster key: {reason}")]
    KeyFile {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The key that every coordinator holds. Seals the CA key; never printed.
#[derive(Clone)]
pub struct ClusterKey {
    bytes: [u8; 32],
    /// Where it was read from, for messages.
    path: PathBuf,
}

impl std::fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterKey(withheld)")
    }
}

impl ClusterKey {
    /// A fresh key.
    ///
    /// # Errors
    /// [`CaError::Entropy`].
    pub fn generate() -> Result<Self, CaError> {
        Ok(Self::from_bytes(entropy::bytes()?))
    }

    /// A key that came from another coordinator.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self {
            bytes,
            path: PathBuf::from("cluster.key"),
        }
    }

    /// The bytes, for another coordinator.
    #[must_use]
    pub fn reveal(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// Reads the file; it must belong to its owner alone.
    ///
    /// # Errors
    /// [`CaError::File`], [`CaError::KeyFile`].
    pub fn read(path: &Path) -> Result<Self, CaError> {
        let file = |action| {
            let path = path.to_owned();
            move |source| CaError::File {
                action,
                path,
                source,
            }
        };
        let wrong = |reason: String| CaError::KeyFile {
            path: path.to_owned(),
            reason,
        };
        let mode = std::fs::metadata(path)
            .map_err(file("read"))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            return Err(wrong(format!(
                "others may read it (mode {:o}); run `chmod 600` on it",
                mode & 0o777
            )));
        }
        let text = std::fs::read_to_string(path).map_err(file("read"))?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes)
            .map_err(|_| wrong("want 64 hexadecimal characters".to_owned()))?;
        Ok(Self {
            bytes,
            path: path.to_owned(),
        })
    }

    /// Writes the file, 0600; refuses to replace one.
    ///
    /// # Errors
    /// [`CaError::File`].
    pub fn write(&self, path: &Path) -> Result<(), CaError> {
        write_private(path, format!("{}\n", hex::encode(self.bytes)).as_bytes()).map_err(|source| {
            CaError::File {
                action: "write",
                path: path.to_owned(),
                source,
            }
        })
    }

    fn cipher(&self) -> Result<LessSafeKey, CaError> {
        UnboundKey::new(&AES_256_GCM, &self.bytes)
            .map(LessSafeKey::new)
            .map_err(|_| CaError::WrongClusterKey(self.path.clone()))
    }

    fn seal(&self, plain: &[u8]) -> Result<SealedKey, CaError> {
        let nonce: [u8; 12] = entropy::bytes()?;
        let mut sealed = plain.to_vec();
        self.cipher()?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(CA_KEY_PURPOSE),
                &mut sealed,
            )
            .map_err(|_| CaError::WrongClusterKey(self.path.clone()))?;
        Ok(SealedKey {
            nonce: nonce.to_vec(),
            sealed,
        })
    }

    fn open(&self, key: &SealedKey) -> Result<Vec<u8>, CaError> {
        let wrong = || CaError::WrongClusterKey(self.path.clone());
        let nonce: [u8; 12] = key.nonce.as_slice().try_into().map_err(|_| wrong())?;
        let mut bytes = key.sealed.clone();
        let plain = self
            .cipher()?
            .open_in_place(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(CA_KEY_PURPOSE),
                &mut bytes,
            )
            .map_err(|_| wrong())?;
        Ok(plain.to_vec())
    }
}

/// Writes a file that only its owner may read, through a temporary name so that it is never half
/// there.
///
/// # Errors
/// The system's.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// How long certificates live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateLife {
    /// Agents.
    pub agent: Span,
    /// People.
    pub user: Span,
    /// Coordinators.
    pub coordinator: Span,
}

impl Default for CertificateLife {
    fn default() -> Self {
        Self {
            agent: Span::from_hours(24),
            user: Span::from_hours(12),
            coordinator: Span::from_days(30),
        }
    }
}

/// A certificate as it is handed out.
#[derive(Clone, Debug)]
pub struct Issued {
    /// PEM: the leaf, then the CA certificate.
    pub chain: String,
    /// PEM: every root that is trusted now.
    pub roots: String,
    /// Its end.
    pub not_after: Timestamp,
}

/// What a certificate is to say.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// Who.
    pub identity: &'a SpiffeId,
    /// Coordinators: names and addresses of their listeners, for clients that check host names.
    pub hosts: &'a [String],
    /// From now.
    pub life: Span,
}

/// The opened certificate authority.
pub struct Ca {
    certificate: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// A fresh authority for a trust domain.
    ///
    /// # Errors
    /// [`CaError::Library`], [`CaError::Entropy`].
    pub fn generate(
        trust_domain: &str,
        key: &ClusterKey,
        now: Timestamp,
    ) -> Result<CaRecord, CaError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = common_name(&format!("Tidegate CA of {trust_domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial()?);
        set_validity(&mut params, now - BACKDATED, now + CA_LIFE);
        let certificate = params.self_signed(&pair)?;
        Ok(CaRecord {
            certificate: certificate.pem(),
            key: key.seal(&pair.serialize_der())?,
        })
    }

    /// Opens the authority of the state.
    ///
    /// # Errors
    /// [`CaError::WrongClusterKey`], [`CaError::Record`].
    pub fn open(record: &CaRecord, key: &ClusterKey) -> Result<Self, CaError> {
        let plain = key.open(&record.key)?;
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(plain),
            &PKCS_ECDSA_P256_SHA256,
        )
        .map_err(|error| CaError::Record(error.to_string()))?;
        Ok(Self {
            der: root_der(&record.certificate)?,
            issuer: Issuer::from_ca_cert_pem(&record.certificate, pair)?,
            certificate: record.certificate.clone(),
        })
    }

    /// SHA-256 over the DER of the CA certificate: what tokens carry.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&self.der)
    }

    /// PEM of the roots that are trusted now.
    #[must_use]
    pub fn roots(&self) -> &str {
        &self.certificate
    }

    /// A certificate for the public key of a PKCS#10 request (DER). Nothing else of the request is
    /// used.
    ///
    /// # Errors
    /// [`CaError::BadCsr`], [`CaError::Library`].
    pub fn sign_request(
        &self,
        csr: &[u8],
        subject: &Subject<'_>,
        now: Timestamp,
    ) -> Result<Issued, CaError> {
        if csr.len() > 16 * 1024 {
            return Err(CaError::BadCsr("it is longer than 16 KiB".to_owned()));
        }
        let request = CertificateSigningRequestParams::from_der(&csr.to_vec().into())
            .map_err(|error| CaError::BadCsr(error.to_string()))?;
        self.sign(&request.public_key, subject, now)
    }

    /// A certificate for a public key.
    ///
    /// # Errors
    /// [`CaError::Library`], [`CaError::Entropy`].
    pub fn sign(
        &self,
        key: &impl PublicKeyData,
        subject: &Subject<'_>,
        now: Timestamp,
    ) -> Result<Issued, CaError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = common_name(&subject.identity.name);
        params.subject_alt_names = vec![SanType::URI(ia5(&subject.identity.to_string())?)];
        for host in subject.hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(ia5(host)?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if subject.identity.kind == "coordinator" {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        let not_after = now + subject.life;
        set_validity(&mut params, now - BACKDATED, not_after);
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(Issued {
            chain: format!("{}{}", certificate.pem(), self.certificate),
            roots: self.certificate.clone(),
            // Certificates carry whole seconds.
            not_after: Timestamp::from_millis(not_after.millis() / 1_000 * 1_000),
        })
    }
}

/// Makes a key and a request for it: (private key PEM, request DER).
///
/// # Errors
/// [`CaError::Library`].
pub fn key_and_request() -> Result<(String, Vec<u8>), CaError> {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&pair)?;
    Ok((pair.serialize_pem(), request.der().to_vec()))
}

/// When a certificate was issued and when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Its issue; the certificate itself begins [`BACKDATED`] earlier.
    pub issued_at: Timestamp,
    /// Its end.
    pub not_after: Timestamp,
}

impl Validity {
    /// Whether the certificate can be of a holder whose entry in the state is of `since`, and not
    /// of an earlier holder of the name.
    #[must_use]
    pub fn is_since(&self, since: Timestamp) -> bool {
        self.issued_at + ISSUE_SLACK >= since
    }
}

/// Reads the validity of a certificate; none if it cannot be parsed.
#[must_use]
pub fn validity(certificate: &CertificateDer<'_>) -> Option<Validity> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let millis = |seconds: i64| u64::try_from(seconds).ok()?.checked_mul(1_000);
    let validity = parsed.validity();
    Some(Validity {
        issued_at: Timestamp::from_millis(millis(validity.not_before.timestamp())?) + BACKDATED,
        not_after: Timestamp::from_millis(millis(validity.not_after.timestamp())?),
    })
}

/// The DER of the first certificate of a PEM text.
///
/// # Errors
/// [`CaError::Record`].
pub fn root_der(pem: &str) -> Result<CertificateDer<'static>, CaError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| CaError::Record(error.to_string()))
}

fn ia5(text: &str) -> Result<Ia5String, CaError> {
    Ia5String::try_from(text.to_owned()).map_err(CaError::Library)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes: [u8; 16] = entropy::bytes()?;
    // Positive and not shortened by DER.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Sets both dates; the library does not export the name of their type.
fn set_validity(params: &mut CertificateParams, from: Timestamp, to: Timestamp) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from.millis() / 1_000);
    params.not_after = epoch + Duration::from_secs(to.millis() / 1_000);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::UnixTime;
    use rustls::server::WebPkiClientVerifier;
    use std::sync::Arc;

    const NOW: Timestamp = Timestamp::from_millis(1_760_000_000_000);

    fn ca() -> (ClusterKey, CaRecord, Ca) {
        let key = ClusterKey::generate().unwrap();
        let record = Ca::generate("example", &key, NOW).unwrap();
        let ca = Ca::open(&record, &key).unwrap();
        (key, record, ca)
    }

    fn verify(ca: &Ca, issued: &Issued, at: Timestamp) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root_der(ca.roots()).unwrap()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::new(rustls::crypto::ring::default_provider()),
        )
        .build()
        .unwrap();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(issued.chain.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(chain.len(), 2);
        verifier
            .verify_client_cert(
                &chain[0],
                &chain[1..],
                UnixTime::since_unix_epoch(at.since(Timestamp::ZERO).to_std()),
            )
            .is_ok()
    }

    #[test]
    fn certificates_verify_while_they_live_and_name_their_holder() {
        let (_, _, ca) = ca();
        let identity = SpiffeId::parse("spiffe://example/agent/host-1").unwrap();
        let (_, request) = key_and_request().unwrap();
        let subject = Subject {
            identity: &identity,
            hosts: &[],
            life: Span::from_hours(24),
        };
        let issued = ca.sign_request(&request, &subject, NOW).unwrap();
        assert!(verify(&ca, &issued, NOW));
        assert!(!verify(&ca, &issued, NOW + Span::from_hours(25)));
        let leaf = root_der(&issued.chain).unwrap();
        assert_eq!(SpiffeId::of_certificate(&leaf), Some(identity));
        let validity = validity(&leaf).unwrap();
        assert_eq!(validity.issued_at, NOW);
        assert_eq!(validity.not_after, issued.not_after);
    }

    #[test]
    fn a_foreign_authority_does_not_verify() {
        let (_, _, ours) = ca();
        let (_, _, theirs) = ca();
        let identity = SpiffeId::parse("spiffe://example/user/eve").unwrap();
        let (_, request) = key_and_request().unwrap();
        let subject = Subject {
            identity: &identity,
            hosts: &[],
            life: Span::from_hours(1),
        };
        let issued = theirs.sign_request(&request, &subject, NOW).unwrap();
        assert!(!verify(&ours, &issued, NOW));
    }

    #[test]
    fn the_ca_key_opens_only_with_its_cluster_key() {
        let (key, record, _) = ca();
        let other = ClusterKey::generate().unwrap();
        assert!(matches!(
            Ca::open(&record, &other),
            Err(CaError::WrongClusterKey(_))
        ));
        let mut damaged = record.clone();
        damaged.key.sealed[3] ^= 1;
        assert!(matches!(
            Ca::open(&damaged, &key),
            Err(CaError::WrongClusterKey(_))
        ));
        let text = format!("{:?}", record.key.sealed);
        assert!(!text.contains(&format!("{:?}", key.reveal())));
    }

    #[test]
    fn a_request_with_a_wrong_signature_is_refused() {
        let (_, _, ca) = ca();
        let (_, mut request) = key_and_request().unwrap();
        if let Some(last) = request.last_mut() {
            *last ^= 1;
        }
        let identity = SpiffeId::parse("spiffe://example/agent/a").unwrap();
        let subject = Subject {
            identity: &identity,
            hosts: &[],
            life: Span::from_hours(1),
        };
        for wrong in [request, b"no request".to_vec(), vec![0; 20_000]] {
            assert!(matches!(
                ca.sign_request(&wrong, &subject, NOW),
                Err(CaError::BadCsr(_))
            ));
        }
    }

    #[test]
    fn the_key_file_must_be_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cluster.key");
        let key = ClusterKey::generate().unwrap();
        key.write(&path).unwrap();
        assert_eq!(ClusterKey::read(&path).unwrap().reveal(), key.reveal());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = ClusterKey::read(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }
}
