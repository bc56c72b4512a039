//! Join tokens as text: `tg1_<token id>_<secret, 64 hex>_<fingerprint of the CA, 64 hex>`.
//!
//! The token tells the joiner which server to trust; the cluster keeps only a hash of the secret.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::id::TokenId;

/// A join token. Its secret shows only through [`JoinToken::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Which token.
    pub id: TokenId,
    /// SHA-256 over the DER of the CA certificate.
    pub fingerprint: Digest,
    secret: [u8; 32],
}

/// A text that is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a token: want the whole text that starts with tg1_")]
pub struct TokenError;

impl JoinToken {
    /// Puts a token together.
    pub const fn new(id: TokenId, secret: [u8; 32], fingerprint: Digest) -> Self {
        Self {
            id,
            fingerprint,
            secret,
        }
    }

    /// What the cluster keeps of the secret.
    pub fn secret_hash(&self) -> Digest {
        Digest::of(&self.secret)
    }

    /// The whole token, for the person who asked for it.
    pub fn reveal(&self) -> String {
        let Self {
            id,
            fingerprint,
            secret,
        } = self;
        format!("tg1_{id}_{}_{fingerprint}", hex::encode(secret))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, secret withheld)", self.id)
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('_');
        let fields = [parts.next(), parts.next(), parts.next(), parts.next()];
        let ([Some("tg1"), Some(id), Some(secret), Some(fingerprint)], None) =
            (fields, parts.next())
        else {
            return Err(TokenError);
        };
        let mut bytes = [0; 32];
        hex::decode_to_slice(secret, &mut bytes).map_err(|_| TokenError)?;
        Ok(Self {
            id: id.parse().map_err(|_| TokenError)?,
            fingerprint: fingerprint.parse().map_err(|_| TokenError)?,
            secret: bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back_and_hide_their_secret() {
        let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
        let token = JoinToken::new(id, [7; 32], Digest::of(b"ca"));
        assert_eq!(token.reveal().parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&hex::encode([7; 32])));
        for wrong in ["", "tg1_", "tg2_x_y_z", "tg1_a_b_c_d"] {
            assert_eq!(wrong.parse::<JoinToken>(), Err(TokenError));
        }
    }
}
