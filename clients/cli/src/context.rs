//! Contexts: which cluster, as whom. `config.toml` names them; each is a folder with
//! `context.toml`, `cert.pem`, `key.pem` (0600) and `roots.pem`.
//!
//! Every write is a new file that takes the old one's place, so that a reader or a crash never
//! meets half of one.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidegate_shared::error::Reason;

use crate::errors::{Failure, Result};
use crate::names;

const CONFIG: &str = "config.toml";
const CONTEXT: &str = "context.toml";
/// The certificate chain, leaf first.
pub const CERTIFICATE: &str = "cert.pem";
/// The private key, readable by its owner only.
pub const KEY: &str = "key.pem";
/// The roots of the cluster.
pub const ROOTS: &str = "roots.pem";

/// `config.toml`: the contexts by name and the one in use.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Config {
    /// The one in use unless `--context` or `TIDEGATE_CONTEXT` says otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub current: String,
    /// Folder of each; relative ones stand in the configuration folder.
    #[serde(default)]
    pub contexts: BTreeMap<String, PathBuf>,
}

/// `context.toml`: a cluster's identity and addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Description {
    /// What the person calls it.
    pub name: String,
    /// ULID of the cluster.
    pub cluster_id: String,
    /// Trust domain of its identities.
    pub trust_domain: String,
    /// Whom the certificate names.
    pub user: String,
    /// `host:port` of the control listeners.
    pub control: Vec<String>,
    /// `host:port` of the HTTP listeners (assets).
    #[serde(default)]
    pub http: Vec<String>,
    /// `host:port` of the enrolment listeners.
    #[serde(default)]
    pub enroll: Vec<String>,
}

/// A context that was read: its folder and what stands in it.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where it lives.
    pub folder: PathBuf,
    /// `context.toml`.
    pub description: Description,
    /// PEM.
    pub certificate: Vec<u8>,
    /// PEM.
    pub key: Vec<u8>,
    /// PEM.
    pub roots: Vec<u8>,
}

/// The configuration folder: `--config-dir`, `$XDG_CONFIG_HOME/tidegate`, `~/.config/tidegate`.
///
/// # Errors
/// None of them is known.
pub fn config_folder(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let set = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    set("XDG_CONFIG_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".config")))
        .map(|base| base.join("tidegate"))
        .ok_or_else(|| {
            Failure::new(
                Reason::Config,
                "no folder for the configuration is known: neither HOME nor XDG_CONFIG_HOME is set",
            )
            .hint("set TIDEGATE_CONFIG_DIR to a folder of yours")
        })
}

impl Config {
    /// Reads `config.toml`; none yet is an empty one.
    ///
    /// # Errors
    /// The file cannot be read or is no such file; names line and column.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        match std::fs::read_to_string(&path) {
            Ok(text) => parse_toml(&path, &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Failure::file(Reason::Config, &path, "read", &error)),
        }
    }

    /// Writes `config.toml`.
    ///
    /// # Errors
    /// The folder or the file cannot be written.
    pub fn store(&self, folder: &Path) -> Result<()> {
        make_folder(folder)?;
        write(&folder.join(CONFIG), to_toml(self)?.as_bytes(), 0o600)
    }

    /// Folder of a context by name.
    fn find(&self, folder: &Path, name: &str) -> Result<PathBuf> {
        if let Some(path) = self.contexts.get(name) {
            return Ok(folder.join(path));
        }
        let known = self.contexts.keys().map(String::as_str);
        let hint = match names::nearest(name, known) {
            Some(near) => format!("did you mean \"{near}\"? `tidegate context list` shows all"),
            None => "`tidegate context list` shows what is there".to_owned(),
        };
        Err(Failure::new(
            Reason::Credentials,
            format!("there is no context \"{name}\""),
        )
        .hint(hint))
    }
}

/// The context that is to be used: a name, or the path of a context's folder.
///
/// # Errors
/// None was chosen, it is not there, or its files cannot be used.
pub fn select(folder: &Path, wanted: Option<&str>) -> Result<Context> {
    if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) {
        if wanted.contains('/') || Path::new(wanted).join(CONTEXT).is_file() {
            return Context::read(Path::new(wanted));
        }
        let path = Config::load(folder)?.find(folder, wanted)?;
        return Context::read(&path);
    }
    let config = Config::load(folder)?;
    if config.current.is_empty() {
        return Err(Failure::new(
            Reason::Credentials,
            "no context is in use: which cluster is meant is not known",
        )
        .hint("log in with `tidegate login --token TOKEN --server HOST:PORT`, import a folder with `tidegate context add DIR`, or try `tidegate dev`"));
    }
    let path = config.find(folder, &config.current)?;
    Context::read(&path)
}

impl Context {
    /// Reads a context's folder.
    ///
    /// # Errors
    /// A file is missing or wrong; names it.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONTEXT);
        let text = std::fs::read_to_string(&path)
            .map_err(|error| Failure::file(Reason::Credentials, &path, "read", &error))?;
        let description: Description = parse_toml(&path, &text)?;
        if description.control.is_empty() {
            return Err(Failure::new(
                Reason::Config,
                format!("{} names no coordinator", path.display()),
            )
            .at(format!(
                "{}: control: want at least one \"host:port\"",
                path.display()
            ))
            .hint("log in again with `tidegate login --token TOKEN --server HOST:PORT`"));
        }
        for (field, addresses) in [
            ("control", &description.control),
            ("http", &description.http),
            ("enroll", &description.enroll),
        ] {
            for address in addresses {
                check_address(address).map_err(|message| {
                    Failure::new(Reason::Config, format!("{} is wrong", path.display()))
                        .at(format!("{}: {field}: {message}", path.display()))
                })?;
            }
        }
        let file = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|error| {
                Failure::file(Reason::Credentials, &path, "read", &error)
                    .hint(Reason::Credentials.hint())
            })
        };
        Ok(Self {
            folder: folder.to_owned(),
            certificate: file(CERTIFICATE)?,
            key: file(KEY)?,
            roots: file(ROOTS)?,
            description,
        })
    }

    /// Writes all its files into its folder, the key first and for the owner only.
    ///
    /// # Errors
    /// The folder or a file cannot be written.
    pub fn write(&self) -> Result<()> {
        make_folder(&self.folder)?;
        write(&self.folder.join(KEY), &self.key, 0o600)?;
        write(&self.folder.join(ROOTS), &self.roots, 0o644)?;
        write(&self.folder.join(CERTIFICATE), &self.certificate, 0o644)?;
        self.write_description()
    }

    /// Writes `context.toml` alone.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_description(&self) -> Result<()> {
        let text = to_toml(&self.description)?;
        write(&self.folder.join(CONTEXT), text.as_bytes(), 0o644)
    }

    /// Replaces certificate and roots; the key stays, so that no moment has an unfitting pair.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn replace_certificate(&mut self, certificate: Vec<u8>, roots: Vec<u8>) -> Result<()> {
        write(&self.folder.join(ROOTS), &roots, 0o644)?;
        write(&self.folder.join(CERTIFICATE), &certificate, 0o644)?;
        self.certificate = certificate;
        self.roots = roots;
        Ok(())
    }

    /// When `context.toml` was last written, in milliseconds since 1970; 0 if not known.
    pub fn described_at_ms(&self) -> u64 {
        std::fs::metadata(self.folder.join(CONTEXT))
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
            .map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            })
    }
}

/// Takes a context's folder into the configuration: a copy of its files under `contexts/NAME`.
/// It becomes the one in use if there was none or `make_current`.
///
/// # Errors
/// The name is taken by another cluster and `replace` is not said, or files cannot be used.
pub fn adopt(
    folder: &Path,
    mut context: Context,
    name: &str,
    make_current: bool,
    replace: bool,
) -> Result<PathBuf> {
    tidegate_shared::id::Name::new(name)
        .map_err(|error| Failure::usage(format!("a context cannot be called so: {error}")))?;
    let mut config = Config::load(folder)?;
    if let Some(present) = config.contexts.get(name)
        && !replace
        && let Ok(other) = Context::read(&folder.join(present))
        && other.description.cluster_id != context.description.cluster_id
    {
        return Err(Failure::new(
            Reason::AlreadyExists,
            format!("the context \"{name}\" belongs to another cluster"),
        )
        .hint("choose another name, or say --replace"));
    }
    let relative = Path::new("contexts").join(name);
    context.folder = folder.join(&relative);
    name.clone_into(&mut context.description.name);
    make_folder(folder)?;
    make_folder(&folder.join("contexts"))?;
    context.write()?;
    config.contexts.insert(name.to_owned(), relative);
    if make_current || config.current.is_empty() {
        name.clone_into(&mut config.current);
    }
    config.store(folder)?;
    Ok(context.folder)
}

/// Checks `host:port`.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_address(address: &str) -> std::result::Result<(), String> {
    let wrong =
        || format!("\"{address}\" is not an address: want host:port, such as 10.0.0.1:7440");
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let host_fits = !host.is_empty()
        && !host.contains(char::is_whitespace)
        && !host.contains('/')
        && (!host.contains(':') || (host.starts_with('[') && host.ends_with(']')));
    let port: u16 = port.parse().map_err(|_| wrong())?;
    if host_fits && port > 0 {
        Ok(())
    } else {
        Err(wrong())
    }
}

fn parse_toml<T: for<'de> Deserialize<'de>>(path: &Path, text: &str) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let (line, column) = error
            .span()
            .map_or((1, 1), |span| line_and_column(text, span.start));
        Failure::new(
            Reason::Config,
            format!("{} is not what it should be", path.display()),
        )
        .at(format!(
            "{}:{line}:{column}: {}",
            path.display(),
            error.message().replace('\n', ", ")
        ))
    })
}

/// Line and column, counted from 1, of a byte position.
fn line_and_column(text: &str, position: usize) -> (usize, usize) {
    let before = text.get(..position).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

fn to_toml<T: Serialize>(value: &T) -> Result<String> {
    toml::to_string(value).map_err(|error| {
        Failure::new(
            Reason::Internal,
            format!("the configuration is no TOML: {error}"),
        )
    })
}

/// Makes a folder for the owner only, if it is not there.
///
/// # Errors
/// It cannot be made.
pub fn make_folder(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)))
        .map_err(|error| Failure::file(Reason::Config, path, "made", &error))
}

/// Writes a whole file beside the old one, then puts it in its place.
///
/// # Errors
/// It cannot be written; the old one stays.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&beside)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|error| {
        std::fs::remove_file(&beside).ok();
        Failure::file(Reason::Config, path, "written", &error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(folder: &Path) -> Context {
        Context {
            folder: folder.to_owned(),
            description: Description {
                name: "first".to_owned(),
                cluster_id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
                trust_domain: "example".to_owned(),
                user: "admin".to_owned(),
                control: vec!["127.0.0.1:7400".to_owned()],
                http: Vec::new(),
                enroll: Vec::new(),
            },
            certificate: b"c".to_vec(),
            key: b"k".to_vec(),
            roots: b"r".to_vec(),
        }
    }

    #[test]
    fn adopted_contexts_are_found_by_name_and_by_path() {
        let base = tempfile::tempdir().unwrap();
        let source = base.path().join("source");
        sample(&source).write().unwrap();
        let folder = base.path().join("config");
        let context = Context::read(&source).unwrap();
        let copy = adopt(&folder, context, "prod", false, false).unwrap();
        assert_eq!(
            select(&folder, None).unwrap().description.name,
            "prod",
            "the first one is in use at once"
        );
        assert_eq!(select(&folder, Some("prod")).unwrap().folder, copy);
        let by_path = select(&folder, source.to_str()).unwrap();
        assert_eq!(by_path.description.name, "first");
        let mode = std::fs::metadata(copy.join(KEY))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn another_cluster_does_not_take_a_name_by_accident() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("config");
        adopt(&folder, sample(base.path()), "prod", true, false).unwrap();
        let mut other = sample(base.path());
        other.description.cluster_id = "01ARZ3NDEKTSV4RRFFQ69G5FAW".to_owned();
        let failure = adopt(&folder, other.clone(), "prod", true, false).unwrap_err();
        assert_eq!(failure.code(), "TG-1102");
        assert!(adopt(&folder, other, "prod", true, true).is_ok());
    }

    #[test]
    fn wrong_names_and_files_are_told_with_the_next_step() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("config");
        let failure = select(&folder, None).unwrap_err();
        assert!(failure.render(false).contains("tidegate login"));
        adopt(&folder, sample(base.path()), "production", true, false).unwrap();
        let failure = select(&folder, Some("prodction")).unwrap_err();
        assert!(
            failure
                .render(false)
                .contains("did you mean \"production\"?"),
            "{failure:?}"
        );
        std::fs::write(folder.join(CONFIG), "current = \"a\"\ncontexts = 3\n").unwrap();
        let text = select(&folder, None).unwrap_err().render(false);
        assert!(text.contains("config.toml:2:12: "), "{text}");
        assert!(text.contains("code: TG-1501"), "{text}");
    }

    #[test]
    fn addresses_are_checked() {
        for good in ["127.0.0.1:1", "[::1]:7400", "host.example:65535"] {
            assert_eq!(check_address(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "host",
            "host:",
            ":1",
            "host:0",
            "host:70000",
            "http://a:1",
            "::1:5",
        ] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }
}
