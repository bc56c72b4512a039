//! The only file of the command line that draws random numbers: request ids and names of folders.

use ring::rand::{SecureRandom, SystemRandom};
use tidegate_shared::error::Reason;
use tidegate_shared::id::RequestId;

use crate::errors::{Failure, Result};
use crate::time;

/// A fresh request id: system time and randomness. One invocation uses one id for one mutation,
/// however often it is retried.
///
/// # Errors
/// The system has no randomness to give.
pub fn request_id() -> Result<RequestId> {
    let random = u128::from_le_bytes(bytes()?);
    let ulid = ulid::Ulid::from_parts(time::now_ms(), random);
    Ok(RequestId::new(ulid))
}

/// Eight hexadecimal characters for the name of a folder.
///
/// # Errors
/// The system has no randomness to give.
pub fn suffix() -> Result<String> {
    Ok(hex::encode(bytes::<4>()?))
}

fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| {
        Failure::new(
            Reason::Internal,
            "the system's random number generator failed",
        )
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_carry_the_time_and_differ() {
        let before = time::now_ms();
        let (one, two) = (request_id().unwrap(), request_id().unwrap());
        assert_ne!(one, two);
        assert!((before..=time::now_ms()).contains(&one.minted_at().millis()));
        assert_eq!(one.to_string().len(), 26);
        assert_eq!(one.to_string().parse::<RequestId>().unwrap(), one);
    }
}
