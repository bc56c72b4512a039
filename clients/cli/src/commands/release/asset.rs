//! What `--asset` and `--source` say: what is delivered, what kind of thing it is, and where agents
//! get it. What it is, is found by its content; its name gives only a name.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use tidegate_shared::archive::{Format, START};
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::spec::{AssetKind, AssetSource, Place};

use super::CreateArgs;
use crate::errors::{Failure, Result};
use crate::{names, pack as packing};

/// Zip files that are run as they are.
const RUN_PACKED: [&str; 3] = [".jar", ".war", ".pyz"];
/// What is not part of a name.
const SUFFIXES: [&str; 6] = [".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar", ".zip"];

/// One asset of the release to be.
#[derive(Debug)]
pub struct Deliverable {
    /// Its name in the release.
    pub name: Name,
    /// What it is.
    pub kind: AssetKind,
    /// `os/arch`, or `any`.
    pub platform: String,
    /// Where agents get it.
    pub source: AssetSource,
    /// Its bytes.
    pub content: Content,
}

/// The bytes of an asset.
#[derive(Debug)]
pub enum Content {
    /// A file here.
    File(PathBuf),
    /// A folder here, to be packed.
    Folder(PathBuf),
    /// Not here; this is said of them.
    Known {
        /// SHA-256.
        sha256: Digest,
        /// Bytes.
        size: u64,
    },
}

/// Everything that the arguments name.
///
/// # Errors
/// A file that is not there or not what it should be, or arguments that do not fit together.
pub fn gather(args: &CreateArgs) -> Result<Vec<Deliverable>> {
    let source = source(&args.sources)?;
    if !args.sources.is_empty() && args.assets.len() > 1 {
        return Err(
            Failure::usage("--source is of one asset, and there are several --asset")
                .hint("give one --asset with its --source"),
        );
    }
    let known = match (&args.sha256, args.size) {
        (Some(sha256), Some(size)) => {
            let sha256 = sha256
                .parse()
                .map_err(|error| Failure::usage(format!("--sha256: {error}")))?;
            Some(Content::Known { sha256, size })
        }
        (_, _) => None,
    };
    let Some(content) = known else {
        if args.assets.is_empty() {
            return Err(Failure::usage(
                "--source without a file needs --sha256 and --size: agents use nothing that they cannot check",
            )
            .hint("both are told by `sha256sum FILE` and `stat -c %s FILE`; or name the file with --asset"));
        }
        let flags = args.assets.iter().map(|text| Flag::parse(text, true));
        return flags
            .map(|flag| flag?.local(source.clone()))
            .collect::<Result<_>>();
    };
    let flag = match args.assets.as_slice() {
        [] => Flag::default(),
        [one, ..] => Flag::parse(one, false)?,
    };
    if source.needs_store() {
        return Err(Failure::usage(
            "--source store needs the file itself: name it with --asset FILE",
        ));
    }
    let address = args.sources.first().map_or("", String::as_str);
    flag.remote(address, source, content).map(|one| vec![one])
}

/// Packs a folder.
///
/// # Errors
/// See [`packing::pack`].
pub async fn pack(folder: PathBuf) -> Result<NamedTempFile> {
    tokio::task::spawn_blocking(move || packing::pack(&folder))
        .await
        .unwrap_or_else(|error| Err(Failure::new(Reason::Internal, error.to_string())))
}

fn source(texts: &[String]) -> Result<AssetSource> {
    let places = texts
        .iter()
        .map(|text| {
            Place::new(text.as_str()).map_err(|why| Failure::usage(format!("--source: {why}")))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(match places.as_slice() {
        [] => AssetSource::Store,
        [only] if only.as_str() == "store" => AssetSource::Store,
        _ => AssetSource::Places(places),
    })
}

/// One `--asset` as given.
#[derive(Debug, Default, PartialEq, Eq)]
struct Flag {
    text: String,
    path: PathBuf,
    kind: Option<AssetKind>,
    platform: Option<String>,
    name: Option<Name>,
}

impl Flag {
    fn wrong(&self, message: &str) -> Failure {
        Failure::usage(format!("--asset {}: {message}", self.text))
            .hint("for example --asset dist.tar.gz,platform=linux/amd64,name=server")
    }

    /// `with_file`: the first piece is a file, else all are KEY=VALUE.
    fn parse(text: &str, with_file: bool) -> Result<Self> {
        let mut flag = Self {
            text: text.to_owned(),
            ..Self::default()
        };
        let mut pieces = text.split(',');
        if with_file {
            flag.path = PathBuf::from(pieces.next().unwrap_or_default());
            if flag.path.as_os_str().is_empty() {
                return Err(flag.wrong("names no file"));
            }
        }
        for piece in pieces {
            let Some((key, value)) = piece.split_once('=') else {
                return Err(flag.wrong(&format!("\"{piece}\" is not KEY=VALUE")));
            };
            match key {
                "kind" => {
                    flag.kind = match value {
                        "archive" => Some(AssetKind::Archive),
                        "binary" => Some(AssetKind::Binary),
                        other => {
                            return Err(flag.wrong(&format!(
                                "\"{other}\" is not a kind: want archive or binary"
                            )));
                        }
                    }
                }
                "platform" => flag.platform = Some(value.to_owned()),
                "name" => {
                    let name = Name::new(value).map_err(|error| flag.wrong(&error.to_string()))?;
                    flag.name = Some(name);
                }
                other => {
                    let near = names::nearest(other, ["kind", "platform", "name"])
                        .map(|near| format!(", did you mean {near}?"))
                        .unwrap_or_default();
                    return Err(flag.wrong(&format!(
                        "\"{other}\" is not known: want kind, platform or name{near}"
                    )));
                }
            }
        }
        Ok(flag)
    }

    fn named(&self, file: &str) -> Result<Name> {
        match &self.name {
            Some(name) => Ok(name.clone()),
            None => default_name(file).map_err(|why| self.wrong(&why)),
        }
    }

    /// What it is, here.
    fn local(self, source: AssetSource) -> Result<Deliverable> {
        let unreadable = |error: std::io::Error| {
            Failure::file(Reason::InvalidRequest, &self.path, "read", &error)
        };
        // A path such as `.` has its name from where it leads.
        let file = match self.path.file_name() {
            Some(name) => name.to_string_lossy().into_owned(),
            None => {
                let whole = self.path.canonicalize().map_err(unreadable)?;
                let name = whole.file_name().unwrap_or_default();
                name.to_string_lossy().into_owned()
            }
        };
        let name = self.named(&file)?;
        let is_folder = std::fs::metadata(&self.path).map_err(unreadable)?.is_dir();
        let kind = if is_folder {
            if self.kind == Some(AssetKind::Binary) {
                return Err(self.wrong("a folder is packed as an archive, it cannot be a binary"));
            }
            if !source.needs_store() {
                return Err(self.wrong(
                    "a folder is packed and uploaded; with --source name the file that lies there",
                ));
            }
            AssetKind::Archive
        } else {
            kind_of(&self.path, &file, self.kind)?
        };
        let content = if is_folder {
            Content::Folder(self.path)
        } else {
            Content::File(self.path)
        };
        Ok(Deliverable {
            name,
            kind,
            platform: self.platform.unwrap_or_else(|| "any".to_owned()),
            source,
            content,
        })
    }

    /// What is said to lie at an address.
    fn remote(self, address: &str, source: AssetSource, content: Content) -> Result<Deliverable> {
        let path = address.split('?').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        let lower = file.to_lowercase();
        let is_archive = SUFFIXES.iter().any(|suffix| lower.ends_with(suffix));
        let kind = self.kind.unwrap_or(if is_archive {
            AssetKind::Archive
        } else {
            AssetKind::Binary
        });
        Ok(Deliverable {
            name: self.named(file)?,
            kind,
            platform: self.platform.unwrap_or_else(|| "any".to_owned()),
            source,
            content,
        })
    }
}

/// What a file is by its content; what is plainly not what it is said to be is refused.
fn kind_of(path: &Path, file: &str, said: Option<AssetKind>) -> Result<AssetKind> {
    let mut start = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(START as u64).read_to_end(&mut start))
        .map_err(|error| Failure::file(Reason::InvalidRequest, path, "read", &error))?;
    let format = Format::recognise(&start);
    let place = path.display();
    let wrong = |message: String| Failure::new(Reason::MalformedFile, message);
    let lower = file.to_lowercase();
    let is_run_packed =
        format == Some(Format::Zip) && RUN_PACKED.iter().any(|suffix| lower.ends_with(suffix));
    match (said, format) {
        (_, Some(format)) if !format.is_read() && said != Some(AssetKind::Binary) => {
            Err(wrong(format!(
                "{place} is a {}, which agents cannot unpack",
                format.as_str()
            ))
            .hint("pack it as tar.zst, tar.gz or zip"))
        }
        (Some(AssetKind::Archive), None) => Err(wrong(format!(
            "{place} is neither tar, tar.gz, tar.zst nor zip"
        ))
        .hint("pack it with `tar czf`, name the folder itself, or say kind=binary")),
        (Some(AssetKind::Binary), Some(format)) if format != Format::Zip => Err(wrong(format!(
            "{place} is a {}, so it cannot be run as a binary",
            format.as_str()
        ))
        .hint("say kind=archive, or leave the kind out")),
        (Some(kind), _) => Ok(kind),
        (None, Some(_)) if is_run_packed => Ok(AssetKind::Binary),
        (None, Some(_)) => Ok(AssetKind::Archive),
        (None, None) if SUFFIXES.iter().any(|suffix| lower.ends_with(suffix)) => Err(wrong(
            format!("{place} is called an archive, but is neither tar, tar.gz, tar.zst nor zip"),
        )
        .hint("pack it again, or say kind=binary")),
        (None, None) => Ok(AssetKind::Binary),
    }
}

/// A name from the file's: what a DNS label cannot hold becomes a hyphen.
fn default_name(file: &str) -> std::result::Result<Name, String> {
    let lower = file.to_lowercase();
    let stem = SUFFIXES
        .iter()
        .find_map(|suffix| lower.strip_suffix(suffix))
        .unwrap_or(&lower);
    let fitting: String = stem
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    Name::new(fitting.trim_matches('-'))
        .map_err(|_| "no name can be made of the file's; say name=NAME".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(folder: &tempfile::TempDir, name: &str, content: &[u8]) -> String {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    fn local(text: &str) -> Result<Deliverable> {
        Flag::parse(text, true)?.local(AssetSource::Store)
    }

    #[test]
    fn kinds_come_from_the_content_and_names_from_the_file() {
        let folder = tempfile::tempdir().unwrap();
        for (file, content, kind, name) in [
            (
                "My_App-1.2.tar.gz",
                &b"\x1f\x8b\x08"[..],
                AssetKind::Archive,
                "my-app-1-2",
            ),
            ("a.zip", b"PK\x03\x04", AssetKind::Archive, "a"),
            ("b.tar.zst", b"\x28\xb5\x2f\xfd", AssetKind::Archive, "b"),
            ("no-suffix", b"PK\x03\x04", AssetKind::Archive, "no-suffix"),
            ("app.jar", b"PK\x03\x04", AssetKind::Binary, "app-jar"),
            ("server", b"\x7fELF", AssetKind::Binary, "server"),
        ] {
            let found = local(&at(&folder, file, content)).unwrap();
            assert_eq!((found.kind, found.name.as_str()), (kind, name), "{file}");
        }
        let text = format!("{},platform=linux/amd64,name=api", folder.path().display());
        let found = local(&text).unwrap();
        assert!(matches!(found.content, Content::Folder(_)));
        assert_eq!(
            (found.platform.as_str(), found.name.as_str()),
            ("linux/amd64", "api")
        );
    }

    #[test]
    fn wrong_assets_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let plain = at(&folder, "plain", b"#!/bin/sh\n");
        let called = at(&folder, "called.zip", b"plain");
        let xz = at(&folder, "a.tar.xz", b"\xfd7zXZ\0");
        let gzip = at(&folder, "a.tgz", b"\x1f\x8b\x08");
        for (text, says) in [
            (format!("{plain},kind=image"), "\"image\" is not a kind"),
            (format!("{plain},plattform=x"), "did you mean platform?"),
            (format!("{plain},x"), "is not KEY=VALUE"),
            (String::new(), "names no file"),
            (format!("{plain},name=A_B"), "is not a name"),
            (format!("{plain}.gone"), "there is no such file"),
            (
                format!("{plain},kind=archive"),
                "neither tar, tar.gz, tar.zst nor zip",
            ),
            (called, "is called an archive"),
            (xz, "is a tar.xz, which agents cannot unpack"),
            (format!("{gzip},kind=binary"), "cannot be run as a binary"),
            (
                format!("{},kind=binary", folder.path().display()),
                "a folder is packed",
            ),
        ] {
            let failure = local(&text).unwrap_err();
            assert!(failure.message().contains(says), "{text}: {failure}");
        }
    }

    #[test]
    fn addresses_give_names_and_kinds() {
        let known = || Content::Known {
            sha256: Digest::ZERO,
            size: 1,
        };
        let places = source(&["https://a/b/web-1.zip?sig=x".to_owned()]).unwrap();
        let found = Flag::default()
            .remote("https://a/b/web-1.zip?sig=x", places.clone(), known())
            .unwrap();
        assert_eq!(
            (found.kind, found.name.as_str()),
            (AssetKind::Archive, "web-1")
        );
        let flag = Flag::parse("kind=binary,name=web", false).unwrap();
        let found = flag.remote("https://a/b", places, known()).unwrap();
        assert_eq!(
            (found.kind, found.name.as_str()),
            (AssetKind::Binary, "web")
        );
        assert!(source(&["ftp://a".to_owned()]).is_err());
        assert_eq!(source(&["store".to_owned()]).unwrap(), AssetSource::Store);
    }
}
