//! CBOR (RFC 8949) of serde's values: what is kept, and what digests are taken of.
//!
//! Structures are maps by field name, enums a name or a map of one name, so that bytes describe
//! themselves. The same value has the same bytes in every version of the program: hashes of the
//! audit log rest on that.

use std::io::Write;

use cbor4ii::core::dec::Read as _;
use cbor4ii::core::utils::SliceReader;
use cbor4ii::serde::Deserializer;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value could not be written, or bytes are no value of the type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CborError(String);

/// Writes a value.
///
/// # Errors
/// The value's own `Serialize` or the writer fails.
pub fn write<T: Serialize + ?Sized>(value: &T, writer: impl Write) -> Result<(), CborError> {
    cbor4ii::serde::to_writer(writer, &value).map_err(|error| CborError(error.to_string()))
}

/// Reads the value that `bytes` begin with, and tells how many bytes follow. Nesting is bounded.
///
/// # Errors
/// The bytes are no value of the type.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), CborError> {
    let mut deserializer = Deserializer::new(SliceReader::new(bytes));
    let value = T::deserialize(&mut deserializer).map_err(|error| CborError(error.to_string()))?;
    // Asked for more than there is, the reader gives what there is.
    let mut reader = deserializer.into_inner();
    let Ok(rest) = reader.fill(usize::MAX);
    Ok((value, rest.as_ref().len()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Kind {
        Plain,
        With(u64),
        Many { of: Vec<i64> },
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Value {
        kinds: Vec<Kind>,
        names: BTreeMap<String, Option<bool>>,
        share: f64,
        pair: (u8, char),
    }

    fn value() -> Value {
        Value {
            kinds: vec![
                Kind::Plain,
                Kind::With(u64::MAX),
                Kind::Many { of: vec![-1, 500] },
            ],
            names: BTreeMap::from([("a".to_owned(), None), ("b".to_owned(), Some(true))]),
            share: 1.5,
            pair: (24, 'ü'),
        }
    }

    fn bytes_of(value: &impl Serialize) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(value, &mut bytes).unwrap();
        bytes
    }

    /// RFC 8949, appendix A, and what serde's enums are by convention.
    #[test]
    fn the_bytes_never_change() {
        let hex = hex::encode(bytes_of(&value()));
        assert_eq!(
            hex,
            "a4656b696e64738365506c61696ea164576974681bffffffffffffffffa1644d616e79a1626f6682\
             201901f4656e616d6573a26161f66162f5657368617265fb3ff800000000000064706169728218\
             1862c3bc"
        );
    }

    #[test]
    fn what_was_written_is_read_and_what_follows_is_told() {
        let mut bytes = bytes_of(&value());
        assert_eq!(read(&bytes), Ok((value(), 0)));
        bytes.extend([0, 0]);
        assert_eq!(read(&bytes), Ok((value(), 2)));
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let bytes = bytes_of(&BTreeMap::from([("novelty", 1)]));
        let error = read::<Value>(&bytes).unwrap_err();
        assert!(error.to_string().contains("novelty"), "{error}");
    }

    #[test]
    fn lengths_that_are_not_there_take_no_memory() {
        // An array and a text of 2^60 elements.
        for first in [0x9b, 0x7b] {
            let mut bytes = vec![first];
            bytes.extend((1_u64 << 60).to_be_bytes());
            assert!(read::<Vec<u64>>(&bytes).is_err());
            assert!(read::<String>(&bytes).is_err());
        }
    }
}
