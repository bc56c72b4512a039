//! Seals the values of secret parameters, and opens them for the agents that run them.
//!
//! The front that takes a secret seals it before it becomes a command, so that the log, snapshots
//! and other members only ever hold sealed bytes. A session opens it when it sends assignments to
//! the agent that they are for. Nobody else calls this.
//!
//! Each pair of parameter and target has a key of its own, derived from the cluster key by
//! HKDF-SHA256; the value is encrypted with AES-256-GCM, bound to the pair as associated data. The
//! nonce is a keyed hash of the value (a synthetic nonce): the same value of the same parameter
//! always seals to the same bytes. So a request that is repeated is the same command, applying a
//! manifest again changes nothing, and assignments of equal generation have equal content; a nonce
//! never serves two values. What this tells a reader of the log is whether a parameter was given a
//! value that it had before (docs/decisions/0009-sealed-parameters.md).

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::{hkdf, hmac};
use tidegate_shared::id::Name;
use tidegate_shared::secret::{Sealed, Secret};
use tidegate_shared::spec::ParameterTarget;

use crate::ca::ClusterKey;

/// First byte of sealed values: this way of sealing.
const VERSION: u8 = 1;

/// Sets these keys apart from every other use of the cluster key.
const PURPOSE: &[u8] = b"tidegate secret parameters v1";

/// A value that cannot be sealed or opened. Tells nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Another cluster key, another parameter or target, or damaged bytes.
    #[error("the sealed value does not open with this node's cluster key")]
    DoesNotOpen,
    /// The library refused.
    #[error("the value cannot be sealed")]
    Library,
}

/// Seals a value for its parameter and target.
///
/// # Errors
/// [`SecretError::Library`].
pub fn seal(
    key: &ClusterKey,
    parameter: &Name,
    target: &ParameterTarget,
    value: &Secret,
) -> Result<Sealed, SecretError> {
    let bound = bound_to(parameter, target);
    let nonce_key: [u8; 32] = derive(key, &[b"nonce", &bound])?;
    let tag = hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, &nonce_key),
        value.expose().as_bytes(),
    );
    let mut nonce = [0; NONCE_LEN];
    nonce.copy_from_slice(&tag.as_ref()[..NONCE_LEN]);
    let mut bytes = value.expose().as_bytes().to_vec();
    cipher(key, &bound)?
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(&bound),
            &mut bytes,
        )
        .map_err(|_| SecretError::Library)?;
    let mut sealed = vec![VERSION];
    sealed.extend(nonce);
    sealed.extend(bytes);
    Ok(Sealed::new(sealed))
}

/// Opens a value that was sealed for this parameter and target.
///
/// # Errors
/// [`SecretError::DoesNotOpen`].
pub fn open(
    key: &ClusterKey,
    parameter: &Name,
    target: &ParameterTarget,
    sealed: &Sealed,
) -> Result<Secret, SecretError> {
    let wrong = SecretError::DoesNotOpen;
    let Some((&VERSION, rest)) = sealed.as_bytes().split_first() else {
        return Err(wrong);
    };
    let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or(wrong)?;
    let bound = bound_to(parameter, target);
    let mut bytes = rest.to_vec();
    let length = cipher(key, &bound)?
        .open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(&bound),
            &mut bytes,
        )
        .map_err(|_| wrong)?
        .len();
    bytes.truncate(length);
    String::from_utf8(bytes).map(Secret::new).map_err(|_| wrong)
}

/// What a seal is bound to, as bytes: name, NUL, the target as canonical JSON.
fn bound_to(parameter: &Name, target: &ParameterTarget) -> Vec<u8> {
    let mut bytes = parameter.as_str().as_bytes().to_vec();
    bytes.push(0);
    // Names and ordered text maps: this cannot fail.
    bytes.extend(serde_json::to_vec(target).unwrap_or_default());
    bytes
}

fn cipher(key: &ClusterKey, bound: &[u8]) -> Result<LessSafeKey, SecretError> {
    let bytes: [u8; 32] = derive(key, &[b"encrypt", bound])?;
    UnboundKey::new(&AES_256_GCM, &bytes)
        .map(LessSafeKey::new)
        .map_err(|_| SecretError::Library)
}

fn derive(key: &ClusterKey, info: &[&[u8]]) -> Result<[u8; 32], SecretError> {
    let mut bytes = [0; 32];
    hkdf::Salt::new(hkdf::HKDF_SHA256, PURPOSE)
        .extract(key.reveal())
        .expand(info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut bytes))
        .map_err(|_| SecretError::Library)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn of(application: &str) -> ParameterTarget {
        ParameterTarget {
            application: Some(name(application)),
            ..ParameterTarget::default()
        }
    }

    fn key(byte: u8) -> ClusterKey {
        ClusterKey::from_bytes([byte; 32])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_sealed_opens_and_hides_the_value(value in "\\PC{8,200}") {
            let secret = Secret::new(value.clone());
            let sealed = seal(&key(1), &name("db"), &of("web"), &secret).unwrap();
            prop_assert_eq!(open(&key(1), &name("db"), &of("web"), &sealed).unwrap(), secret);
            let bytes = sealed.as_bytes();
            prop_assert!(!bytes.windows(value.len().min(8)).any(|w| value.as_bytes().starts_with(w)));
        }

        #[test]
        fn a_flipped_bit_or_a_cut_does_not_open(position in 0_usize..60, bit in 0_u8..8) {
            let secret = Secret::new("correct horse battery".to_owned());
            let sealed = seal(&key(1), &name("db"), &of("web"), &secret).unwrap();
            let mut bytes = sealed.as_bytes().to_vec();
            let position = position % bytes.len();
            bytes[position] ^= 1 << bit;
            let opened = open(&key(1), &name("db"), &of("web"), &Sealed::new(bytes.clone()));
            prop_assert_eq!(opened, Err(SecretError::DoesNotOpen));
            bytes.truncate(position);
            let opened = open(&key(1), &name("db"), &of("web"), &Sealed::new(bytes));
            prop_assert_eq!(opened, Err(SecretError::DoesNotOpen));
        }
    }

    #[test]
    fn a_seal_is_bound_to_key_parameter_and_target_and_repeats_for_equal_values() {
        let secret = Secret::new("s3cret".to_owned());
        let sealed = seal(&key(1), &name("db"), &of("web"), &secret).unwrap();
        assert_eq!(
            seal(&key(1), &name("db"), &of("web"), &secret).unwrap(),
            sealed
        );
        let others = [
            (key(2), name("db"), of("web")),
            (key(1), name("db2"), of("web")),
            (key(1), name("db"), of("shop")),
        ];
        for (key, parameter, target) in others {
            assert_eq!(
                open(&key, &parameter, &target, &sealed),
                Err(SecretError::DoesNotOpen)
            );
            assert_ne!(seal(&key, &parameter, &target, &secret).unwrap(), sealed);
        }
        let other = Secret::new("s3cres".to_owned());
        let other = seal(&key(1), &name("db"), &of("web"), &other).unwrap();
        assert_ne!(
            other.as_bytes()[1..13],
            sealed.as_bytes()[1..13],
            "a nonce of its own"
        );
        for odd in [vec![], vec![9], vec![1; 12], vec![1; 13]] {
            let opened = open(&key(1), &name("db"), &of("web"), &Sealed::new(odd));
            assert_eq!(opened, Err(SecretError::DoesNotOpen));
        }
    }
}
