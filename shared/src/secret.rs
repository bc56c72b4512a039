//! Values that must not be seen: [`Secret`] in memory, [`Sealed`] at rest.
//!
//! Nothing here encrypts: the coordinators' and the agent's shells do, each with its own key. A
//! `Secret` cannot be printed or serialized, so that no log, event or error can show it by mistake;
//! whoever needs the value has to say `expose`.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// What stands where a secret's value would be shown. Written back in a manifest it means "leave
/// the value as it is".
pub const WITHHELD: &str = "(secret)";

/// Largest sealed value: the largest plain one with its envelope.
pub const MAX_SEALED_BYTES: usize = 33 * 1024;

/// A text that is wiped when it is dropped, and that shows only through [`Secret::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the value over.
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The value.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// A text with every line of the value taken out: for output of programs that were given it.
    /// Lines of fewer than four bytes stay, or every other word would go.
    pub fn mask(&self, text: &str) -> String {
        let mut masked = text.to_owned();
        for line in self.0.lines().map(str::trim).filter(|line| line.len() >= 4) {
            if masked.contains(line) {
                masked = masked.replace(line, WITHHELD);
            }
        }
        masked
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(withheld)")
    }
}

/// An encrypted value; as text hexadecimal.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sealed(Vec<u8>);

/// A text that is no sealed value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no sealed value")]
pub struct SealedError;

impl Sealed {
    /// Bytes that were encrypted.
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

impl From<Sealed> for String {
    fn from(sealed: Sealed) -> Self {
        hex::encode(sealed.0)
    }
}

impl TryFrom<String> for Sealed {
    type Error = SealedError;

    fn try_from(text: String) -> Result<Self, SealedError> {
        if text.len() > 2 * MAX_SEALED_BYTES {
            return Err(SealedError);
        }
        hex::decode(text).map(Self).map_err(|_| SealedError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show_and_is_taken_out_of_text() {
        let secret = Secret::new("hunter22\nab\n".to_owned());
        assert!(!format!("{secret:?}").contains("hunter22"));
        assert_eq!(
            secret.mask("+ login hunter22 ab"),
            "+ login (secret) ab",
            "short lines stay"
        );
    }

    #[test]
    fn sealed_bytes_read_back_and_show_only_their_length() {
        let sealed = Sealed::new(vec![1, 2, 254]);
        let text = serde_json::to_string(&sealed).unwrap();
        assert_eq!(text, "\"0102fe\"");
        assert_eq!(serde_json::from_str::<Sealed>(&text).unwrap(), sealed);
        assert_eq!(format!("{sealed:?}"), "Sealed(3 bytes)");
        assert!(serde_json::from_str::<Sealed>("\"xy\"").is_err());
    }
}
