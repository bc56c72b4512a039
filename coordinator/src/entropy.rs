//! The only file that draws random numbers.

use ring::rand::{SecureRandom, SystemRandom};

/// The system has no randomness to give; nothing safe can be done then.
#[derive(Debug, thiserror::Error)]
#[error("the system's random number generator failed")]
pub struct EntropyError;

/// Fills `bytes` from the system's generator.
///
/// # Errors
/// [`EntropyError`].
pub fn fill(bytes: &mut [u8]) -> Result<(), EntropyError> {
    SystemRandom::new().fill(bytes).map_err(|_| EntropyError)
}

/// Random bytes, such as keys and token secrets.
///
/// # Errors
/// [`EntropyError`].
pub fn bytes<const N: usize>() -> Result<[u8; N], EntropyError> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

/// A random number.
///
/// # Errors
/// [`EntropyError`].
pub fn number() -> Result<u64, EntropyError> {
    Ok(u64::from_le_bytes(bytes()?))
}

/// A fresh ULID minted at `now_ms` (milliseconds since 1970).
///
/// # Errors
/// [`EntropyError`].
pub fn ulid(now_ms: u64) -> Result<ulid::Ulid, EntropyError> {
    Ok(ulid::Ulid::from_parts(
        now_ms,
        u128::from_le_bytes(bytes()?),
    ))
}
