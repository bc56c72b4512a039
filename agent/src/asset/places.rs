//! Every kind of place behind one source: the release's own places in their order, then the
//! coordinators.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use tidegate_shared::assignment::AssetWish;

use super::coordinated::Coordinated;
use super::fetch::{Answer, Opened, Part, Pieces, Source};
use super::web::Web;

/// Bytes of a file that are read at once.
const PIECE: usize = 256 * 1024;

/// Where assets come from.
pub struct Places {
    /// The coordinators' store.
    pub store: Coordinated,
    /// Web servers.
    pub web: Web,
}

impl Source for Places {
    fn places(&self, wish: &AssetWish) -> Vec<String> {
        let store = self.store.addresses();
        in_order(&wish.sources, &store)
    }

    fn open<'a>(&'a self, place: &'a str, part: Part<'a>) -> Answer<'a, Opened> {
        match place.split_once("://") {
            None => self.store.open(place, part),
            Some(("http" | "https", _)) => self.web.open(place, part),
            Some(("file", path)) => Box::pin(async move { open_file(path, part.from).await }),
            Some((scheme, _)) => {
                let why = format!("this agent cannot fetch from {scheme}:// places");
                Box::pin(async move { Opened::Failed(why) })
            }
        }
    }
}

/// The word `store` stands for the coordinators; where it is not said, they come last.
fn in_order(sources: &[String], store: &[String]) -> Vec<String> {
    let mut places = Vec::new();
    for source in sources {
        if source == "store" {
            places.extend_from_slice(store);
        } else {
            places.push(source.clone());
        }
    }
    if !sources.iter().any(|source| source == "store") {
        places.extend_from_slice(store);
    }
    places
}

/// A file of this host. Only a plain file is opened, and never waited for.
async fn open_file(path: &str, from: u64) -> Opened {
    let Some(path) = decode(path) else {
        return Opened::Failed("has a %XX that is none".to_owned());
    };
    let opened = tokio::task::spawn_blocking(move || -> std::io::Result<(std::fs::File, u64)> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = std::fs::File::from(rustix::fs::open(&path, flags, Mode::empty())?);
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(std::io::Error::other("is no plain file"));
        }
        file.seek(SeekFrom::Start(from))?;
        Ok((file, found.len()))
    });
    match opened.await {
        Ok(Ok((file, size))) => Opened::Body {
            from,
            size: Some(size),
            version: None,
            body: Box::new(FilePieces(Some(file))),
        },
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Opened::Missing,
        Ok(Err(error)) => Opened::Failed(error.to_string()),
        Err(error) => Opened::Failed(error.to_string()),
    }
}

/// `%XX` as bytes.
fn decode(text: &str) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let (digits, after) = tail.split_at_checked(2)?;
            let mut byte = [0];
            hex::decode_to_slice(digits, &mut byte).ok()?;
            bytes.extend(byte);
            rest = after;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    Some(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

struct FilePieces(Option<std::fs::File>);

impl Pieces for FilePieces {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, String>>> {
        let file = self.0.take();
        Box::pin(async move {
            let mut file = file?;
            let reading = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; PIECE];
                let read = file.read(&mut piece)?;
                piece.truncate(read);
                std::io::Result::Ok((file, Bytes::from(piece)))
            });
            match reading.await {
                Ok(Ok((_, piece))) if piece.is_empty() => None,
                Ok(Ok((file, piece))) => {
                    self.0 = Some(file);
                    Some(Ok(piece))
                }
                Ok(Err(error)) => Some(Err(error.to_string())),
                Err(error) => Some(Err(error.to_string())),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coordinators_come_where_they_are_named_or_last() {
        let texts = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let store = texts(&["a:1", "b:1"]);
        for (sources, order) in [
            (texts(&[]), texts(&["a:1", "b:1"])),
            (
                texts(&["https://x/y"]),
                texts(&["https://x/y", "a:1", "b:1"]),
            ),
            (
                texts(&["store", "https://x/y"]),
                texts(&["a:1", "b:1", "https://x/y"]),
            ),
        ] {
            assert_eq!(in_order(&sources, &store), order);
        }
    }

    #[tokio::test]
    async fn files_are_read_from_a_byte_on_and_what_is_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("an asset"), b"content").unwrap();
        let path = format!("{}/an%20asset", dir.path().display());
        let Opened::Body { mut body, size, .. } = open_file(&path, 3).await else {
            panic!("not opened");
        };
        assert_eq!(size, Some(7));
        assert_eq!(body.next().await.unwrap().unwrap(), "tent");
        assert!(body.next().await.is_none());
        let folder = dir.path().display().to_string();
        assert!(matches!(open_file(&folder, 0).await, Opened::Failed(_)));
        assert!(matches!(open_file("/dev/zero", 0).await, Opened::Failed(_)));
        assert!(matches!(open_file("/no/such", 0).await, Opened::Missing));
        assert!(matches!(open_file("/a%2", 0).await, Opened::Failed(_)));
    }
}
