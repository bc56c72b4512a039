//! Values that are a text: how they are held, and how they are read, without a copy in between where
//! the format allows it.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::{Deserializer, Error, Visitor};

/// Bytes that fit beside the length where a text is held.
const HERE: usize = 22;

/// A text that never changes. Most names are short: these lie where they are held, so that looking
/// one up in a table follows no pointer and copying a row of it counts nothing. Longer ones are
/// shared.
#[derive(Clone)]
pub(crate) enum Held {
    Here { length: u8, bytes: [u8; HERE] },
    Shared(Arc<str>),
}

impl Held {
    pub(crate) fn new(text: &str) -> Self {
        let mut bytes = [0; HERE];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(text.as_bytes());
                Self::Here { length, bytes }
            }
            (_, _) => Self::Shared(Arc::from(text)),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Here { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Self::Shared(text) => text.as_bytes(),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        match self {
            // It was a text.
            Self::Here { .. } => std::str::from_utf8(self.bytes()).unwrap_or_default(),
            Self::Shared(text) => text,
        }
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// That of texts.
impl Ord for Held {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bytes().cmp(other.bytes())
    }
}

impl Hash for Held {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes().hash(state);
    }
}

/// Reads a text and parses it.
///
/// # Errors
/// Those of the format, and of the value's own reading.
pub(crate) fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    struct Text<T>(PhantomData<T>);

    impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_string(Text(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_texts_are_held_alike() {
        let texts: Vec<String> = ["", "a", "ab", "b", "ä"]
            .map(str::to_owned)
            .into_iter()
            .chain([HERE - 1, HERE, HERE + 1, 63].map(|length| "a".repeat(length)))
            .collect();
        for one in &texts {
            let held = Held::new(one);
            assert_eq!(held.as_str(), one);
            assert_eq!(matches!(held, Held::Here { .. }), one.len() <= HERE);
            for other in &texts {
                let second = Held::new(other);
                assert_eq!(held.cmp(&second), one.cmp(other), "{one} {other}");
                assert_eq!(held == second, one == other, "{one} {other}");
            }
        }
        assert_eq!(std::mem::size_of::<Held>(), 24);
    }
}
