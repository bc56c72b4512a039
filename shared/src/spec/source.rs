//! Where the bytes of an asset come from.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeSeq as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::FieldErrors;

/// Most places of an asset.
pub const MAX_PLACES: usize = 8;
/// Longest address, in bytes.
const MAX_LENGTH: usize = 2_048;
/// The word for the coordinators' built-in store.
const STORE: &str = "store";

/// Where an asset is fetched from: `store`, an address, or a list of both in the order in which
/// they are tried. Whatever it comes from, it is used only if its digest is right.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AssetSource {
    /// The coordinators' built-in store.
    #[default]
    Store,
    /// 1 to 8 places in order.
    Places(Vec<Place>),
}

/// One place: `store`, `https://…`, `http://…` or `file:///…` (a file on the agent's host).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(String);

/// What a place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaceKind {
    /// The coordinators' store.
    Store,
    /// A web server.
    Http,
    /// A file on the agent's host.
    File,
}

impl Place {
    /// A place as people write it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        check(&text).map_err(|why| format!("\"{}\" {why}", text.escape_debug()))?;
        Ok(Self(text))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What it is.
    pub fn kind(&self) -> PlaceKind {
        match self.0.split_once("://") {
            Some(("file", _)) => PlaceKind::File,
            Some(_) => PlaceKind::Http,
            None => PlaceKind::Store,
        }
    }
}

fn check(text: &str) -> Result<(), String> {
    if text == STORE {
        return Ok(());
    }
    if text.len() > MAX_LENGTH {
        return Err("is longer than 2,048 bytes".to_owned());
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("has a character that must be written as %XX in an address".to_owned());
    }
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    match scheme {
        "file" if rest.starts_with('/') && rest.len() > 1 => return Ok(()),
        "file" => return Err("is not file:///ABSOLUTE/PATH".to_owned()),
        "http" | "https" => {}
        _ => return Err("is none of store, https://…, http://…, file:///…".to_owned()),
    }
    if text.contains('#') {
        return Err("has a fragment (#…), which no server sees".to_owned());
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if authority.contains('@') {
        let why = "holds a user name or password, which everybody who sees the release could read";
        return Err(why.to_owned());
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0)) {
        return Err("has a port that is none".to_owned());
    }
    if host.is_empty() {
        return Err("names no host".to_owned());
    }
    Ok(())
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AssetSource {
    /// Whether the built-in store has to hold it.
    pub fn needs_store(&self) -> bool {
        match self {
            Self::Store => true,
            Self::Places(places) => places.iter().any(|place| place.kind() == PlaceKind::Store),
        }
    }

    /// The places in order, as written; empty: the store alone.
    pub fn texts(&self) -> Vec<String> {
        match self {
            Self::Store => Vec::new(),
            Self::Places(places) => places.iter().map(|place| place.0.clone()).collect(),
        }
    }

    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        if let Self::Places(places) = self {
            errors.require(
                (1..=MAX_PLACES).contains(&places.len()),
                "source",
                "a list has 1 to 8 places",
            );
            let twice = |(at, place)| places.iter().take(at).any(|other| other == place);
            if let Some((_, place)) = places.iter().enumerate().find(|found| twice(*found)) {
                errors.add("source", format!("\"{place}\" stands there twice"));
            }
        }
        errors
    }
}

impl fmt::Display for AssetSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store => f.write_str(STORE),
            Self::Places(places) => {
                for (position, place) in places.iter().enumerate() {
                    let comma = if position > 0 { ", " } else { "" };
                    write!(f, "{comma}{place}")?;
                }
                Ok(())
            }
        }
    }
}

impl Serialize for AssetSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Store => serializer.serialize_str(STORE),
            Self::Places(places) => match places.as_slice() {
                [only] => serializer.serialize_str(&only.0),
                several => {
                    let mut list = serializer.serialize_seq(Some(several.len()))?;
                    for place in several {
                        list.serialize_element(&place.0)?;
                    }
                    list.end()
                }
            },
        }
    }
}

struct SourceVisitor;

impl<'de> Visitor<'de> for SourceVisitor {
    type Value = AssetSource;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("store, an address, or a list of them")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<AssetSource, E> {
        if text == STORE {
            return Ok(AssetSource::Store);
        }
        let place = Place::new(text).map_err(E::custom)?;
        Ok(AssetSource::Places(vec![place]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<AssetSource, A::Error> {
        let mut places = Vec::new();
        while let Some(text) = list.next_element::<String>()? {
            if places.len() == MAX_PLACES {
                return Err(A::Error::custom("more than 8 places"));
            }
            places.push(Place::new(text).map_err(A::Error::custom)?);
        }
        Ok(match places.as_slice() {
            [only] if only.kind() == PlaceKind::Store => AssetSource::Store,
            _ => AssetSource::Places(places),
        })
    }
}

impl<'de> Deserialize<'de> for AssetSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SourceVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<AssetSource, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn sources_read_back_as_they_were_written() {
        for json in [
            "\"store\"",
            "\"https://cdn.example.com/a.tar.gz?v=1\"",
            "[\"http://[::1]:8080/a\",\"file:///srv/a%20b\",\"store\"]",
        ] {
            let source = read(json).unwrap();
            assert_eq!(serde_json::to_string(&source).unwrap(), json);
        }
        assert!(read("\"store\"").unwrap().needs_store());
        assert!(read("[\"https://a/b\",\"store\"]").unwrap().needs_store());
        assert!(!read("\"https://a/b\"").unwrap().needs_store());
    }

    #[test]
    fn wrong_places_are_told() {
        for (text, words) in [
            ("ftp://a/b", "none of store"),
            ("https:///x", "names no host"),
            ("https://u:p@host/x", "user name or password"),
            ("https://host:0/x", "a port that is none"),
            ("https://host:http/x", "a port that is none"),
            ("https://host/a b", "%XX"),
            ("https://host/a#b", "fragment"),
            ("file://a", "file:///ABSOLUTE/PATH"),
            ("", "none of store"),
        ] {
            let error = Place::new(text).unwrap_err();
            assert!(error.contains(words), "{error} lacks {words}");
            assert!(read(&format!("\"{text}\"")).is_err());
        }
        assert!(read("[]").unwrap().validate().into_result().is_err());
        let twice = read("[\"store\",\"store\"]").unwrap();
        assert!(twice.validate().into_result().is_err());
    }
}
