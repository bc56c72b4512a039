//! The only serializer of what is kept: log entries, snapshots, and what peers forward.
//!
//! CBOR with named fields behind one version byte, so the bytes describe themselves and old ones
//! decode for ever. Types refuse fields that they do not know (`deny_unknown_fields`): a node that
//! does not understand a field must stop rather than apply half of a command.

use std::io::Write;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_shared::cbor;

/// The version that this program writes.
pub const VERSION: u8 = 1;

/// Why bytes could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// There is not even a version byte.
    #[error("the value is empty")]
    Empty,
    /// The version byte names a version that this program does not know.
    #[error(
        "the value was written in version {0} of the encoding, this program knows up to {VERSION}: run a newer program"
    )]
    Version(u8),
    /// The bytes are no value of the type, or carry a field that this program does not know.
    #[error("the value cannot be read: {0}")]
    Malformed(String),
    /// Bytes follow after the value.
    #[error("{0} bytes follow after the value")]
    Trailing(usize),
    /// The value could not be written.
    #[error("the value cannot be written: {0}")]
    Encode(String),
}

/// The bytes of `value`: a version byte and CBOR.
///
/// # Errors
/// [`CodecError::Encode`] when the value's own `Serialize` fails.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::with_capacity(128);
    encode_into(value, &mut bytes)?;
    Ok(bytes)
}

/// Writes what [`encode`] returns to `writer`.
///
/// # Errors
/// [`CodecError::Encode`] when the value or the writer fails.
pub fn encode_into<T: Serialize + ?Sized, W: Write>(
    value: &T,
    mut writer: W,
) -> Result<(), CodecError> {
    writer
        .write_all(&[VERSION])
        .map_err(|e| CodecError::Encode(e.to_string()))?;
    cbor::write(value, writer).map_err(|e| CodecError::Encode(e.to_string()))
}

/// The value that [`encode`] wrote; all of `bytes` must be used.
///
/// # Errors
/// Every other [`CodecError`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (&version, rest) = bytes.split_first().ok_or(CodecError::Empty)?;
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    match cbor::read(rest).map_err(|e| CodecError::Malformed(e.to_string()))? {
        (value, 0) => Ok(value),
        (_, rest) => Err(CodecError::Trailing(rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::log::{EntryKind, LogEntry};
    use serde::Deserialize;

    #[derive(Serialize)]
    struct Wider {
        index: u64,
        term: u64,
        kind: EntryKind,
        data: bytes::Bytes,
        novelty: bool,
    }

    fn entry() -> LogEntry {
        LogEntry {
            index: 7,
            term: 3,
            kind: EntryKind::Commands,
            data: bytes::Bytes::from_static(b"x\0y"),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = encode(&entry()).unwrap();
        assert_eq!(bytes[0], VERSION);
        assert_eq!(decode::<LogEntry>(&bytes).unwrap(), entry());
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let wider = Wider {
            index: 1,
            term: 1,
            kind: EntryKind::Commands,
            data: bytes::Bytes::new(),
            novelty: true,
        };
        let error = decode::<LogEntry>(&encode(&wider).unwrap()).unwrap_err();
        assert!(error.to_string().contains("novelty"), "{error}");
    }

    #[test]
    fn an_unknown_version_is_refused() {
        let mut bytes = encode(&entry()).unwrap();
        bytes[0] = 9;
        assert!(matches!(
            decode::<LogEntry>(&bytes),
            Err(CodecError::Version(9))
        ));
        assert!(matches!(decode::<LogEntry>(&[]), Err(CodecError::Empty)));
    }

    #[test]
    fn bytes_after_the_value_are_refused() {
        let mut bytes = encode(&entry()).unwrap();
        bytes.push(0);
        assert!(matches!(
            decode::<LogEntry>(&bytes),
            Err(CodecError::Trailing(1))
        ));
    }

    #[test]
    fn every_cut_is_an_error_and_never_a_panic() {
        let bytes = encode(&entry()).unwrap();
        for end in 0..bytes.len() {
            assert!(decode::<LogEntry>(&bytes[..end]).is_err());
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_never_a_stack_overflow() {
        #[derive(Deserialize)]
        #[allow(dead_code, reason = "only its shape matters")]
        enum Nested {
            More(Vec<Nested>),
        }
        let mut bytes = vec![VERSION];
        bytes.extend(std::iter::repeat_n(0x81, 1 << 20));
        assert!(decode::<Vec<Nested>>(&bytes).is_err());
    }
}
