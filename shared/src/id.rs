//! Identifiers: ULIDs in their kinds, and names.
//!
//! Ids are minted at the edge (clients, API front) or derived from the log position; nothing here
//! reads a clock or draws randomness.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use ulid::Ulid;

use crate::text::{self, Held};
use crate::time::Timestamp;

/// An input that is no identifier or name of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct IdError {
    /// What is wrong and what would be right, in one line.
    pub message: String,
}

impl IdError {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
        }
    }
}

/// Characters of a ULID.
const ULID_LEN: usize = ulid::ULID_LEN;

macro_rules! ulid_kind {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Ulid);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut text = [0; ULID_LEN];
                serializer.serialize_str(self.0.array_to_str(&mut text))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                text::parsed(deserializer)
            }
        }

        impl $name {
            /// Wraps a ULID that was minted elsewhere.
            pub const fn new(ulid: Ulid) -> Self {
                Self(ulid)
            }

            /// The ULID itself.
            pub const fn ulid(self) -> Ulid {
                self.0
            }

            /// An id made by the state machine: time from the log, the rest from a hash of the
            /// parent's id and the log position (architecture.md §7.2).
            pub fn derived(at: Timestamp, parent: &str, index: u64, ordinal: u32) -> Self {
                let mut hash = Sha256::new();
                hash.update(parent.as_bytes());
                hash.update([0]);
                hash.update(index.to_be_bytes());
                hash.update(ordinal.to_be_bytes());
                let digest = hash.finalize();
                let mut random = [0_u8; 16];
                random[6..].copy_from_slice(&digest[..10]);
                Self(Ulid::from_parts(at.millis(), u128::from_be_bytes(random)))
            }

            /// The time that the id was minted at.
            pub fn minted_at(self) -> Timestamp {
                Timestamp::from_millis(self.0.timestamp_ms())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Ulid::from_string(text).map(Self).map_err(|_| {
                    IdError::new(format!(
                        "\"{text}\" is not {}: want a ULID of 26 characters",
                        $what
                    ))
                })
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

ulid_kind!(
    /// Identity of a deployment.
    DeploymentId,
    "a deployment id"
);
ulid_kind!(
    /// Identity of a deployment group.
    GroupId,
    "a group id"
);
ulid_kind!(
    /// A client's request, remembered for 24 h so that a retry is safe.
    RequestId,
    "a request id"
);
ulid_kind!(
    /// Identity of a cluster, minted at `init`.
    ClusterId,
    "a cluster id"
);
ulid_kind!(
    /// Identity of a join token; its secret is not part of it.
    TokenId,
    "a token id"
);

impl DeploymentId {
    /// The last eight characters in lower case: part of unit and folder names.
    pub fn short(self) -> ShortId {
        ShortId::of(self.0)
    }
}

impl GroupId {
    /// The last eight characters in lower case: what people call it by.
    pub fn short(self) -> ShortId {
        ShortId::of(self.0)
    }
}

/// The short form of a deployment id: eight lower-case characters of Crockford's base 32.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortId([u8; Self::LEN]);

impl ShortId {
    /// Number of characters.
    pub const LEN: usize = 8;

    fn of(id: Ulid) -> Self {
        let mut text = [0; ULID_LEN];
        id.array_to_str(&mut text).make_ascii_lowercase();
        let mut short = [0; Self::LEN];
        short.copy_from_slice(&text[ULID_LEN - Self::LEN..]);
        Self(short)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // Letters and digits, always.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Serialize for ShortId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ShortId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::parsed(deserializer)
    }
}

impl FromStr for ShortId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        match <[u8; Self::LEN]>::try_from(text.as_bytes()) {
            Ok(mut short) if short.iter().all(u8::is_ascii_alphanumeric) => {
                short.make_ascii_lowercase();
                Ok(Self(short))
            }
            Ok(_) | Err(_) => Err(IdError::new(format!(
                "\"{text}\" is not a short deployment id: want 8 letters and digits"
            ))),
        }
    }
}

impl fmt::Display for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        /// Cheap to clone and to compare: see `Held`.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Held);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                text::parsed(deserializer)
            }
        }

        impl $name {
            /// Checks the text.
            ///
            /// # Errors
            /// Says what is wrong with it and what would be right.
            pub fn new(text: impl AsRef<str>) -> Result<Self, IdError> {
                let text = text.as_ref();
                $check(text)?;
                Ok(Self(Held::new(text)))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }
    };
}

checked_text!(
    /// Name of an object: a DNS label of 1 to 63 characters (RFC 1123).
    Name,
    check_name
);
checked_text!(
    /// Name of a release in its application: `[A-Za-z0-9][A-Za-z0-9._+-]{0,127}`.
    Version,
    check_version
);

fn check_name(text: &str) -> Result<(), IdError> {
    let fits = (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if fits {
        return Ok(());
    }
    Err(IdError::new(format!(
        "\"{text}\" is not a name: want 1 to 63 lower-case letters, digits and inner hyphens"
    )))
}

fn check_version(text: &str) -> Result<(), IdError> {
    let fits = (1..=128).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".-_+".contains(&b));
    if fits {
        return Ok(());
    }
    Err(IdError::new(format!(
        "\"{text}\" is not a version: want a letter or digit, then up to 127 letters, digits and \". _ + -\""
    )))
}
