//! The coordinator's configuration: a TOML file, then environment variables, each value checked.
//!
//! Every key may be given as `TIDEGATE_COORDINATOR_<KEY>` with points as underscores, which wins
//! over the file. A wrong value gives one line that names where it stands, the key, and what would
//! be right. Reads no clock and opens no socket; `main.rs` and `node.rs` use the result.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tidegate_coordinator_core::state::Addresses;
use tidegate_shared::error::Reason;
use tidegate_shared::health::HealthListen;
use tidegate_shared::id::Name;
use tidegate_shared::time::Span;

use crate::ca::CertificateLife;

/// Port of the listener for people and agents.
pub const CONTROL_PORT: u16 = 7440;
/// Port of the listener for other coordinators.
pub const PEER_PORT: u16 = 7441;
/// Port of the HTTP listener: blobs, health.
pub const HTTP_PORT: u16 = 7442;
/// Port of the listener for newcomers.
pub const ENROLL_PORT: u16 = 7443;

/// Port of the health listener on the loopback.
pub const HEALTH_PORT: u16 = 7444;

/// Name of the file in a data folder.
pub const FILE_NAME: &str = "coordinator.toml";

const ENVIRONMENT: &str = "TIDEGATE_COORDINATOR_";

/// Every key, with what it takes.
const KEYS: [(&str, &str); 24] = [
    ("name", "this node's name, as in its certificate"),
    (
        "data_dir",
        "the data folder; default: the folder of this file",
    ),
    ("listen.control", "IP:PORT"),
    ("listen.peer", "IP:PORT"),
    ("listen.http", "IP:PORT"),
    ("listen.enroll", "IP:PORT"),
    ("listen.health", "a loopback IP:PORT, or off"),
    ("advertise.control", "HOST:PORT"),
    ("advertise.peer", "HOST:PORT"),
    ("advertise.http", "HOST:PORT"),
    ("advertise.enroll", "HOST:PORT"),
    ("certificate_life.agent", "10s to 366d"),
    ("certificate_life.user", "10s to 366d"),
    ("certificate_life.coordinator", "10s to 366d"),
    ("raft.tick", "5ms to 1s"),
    ("raft.snapshot_entries", "10 to 10000000"),
    ("agents.lost_after", "1s to 1h"),
    ("agents.sessions_per_second", "1 to 100000"),
    ("blobs.max_bytes", "1 to 4294967296"),
    ("blobs.keep", "1s to 3660d"),
    ("blobs.unclaimed", "1s to 366d"),
    ("log.format", "text or json"),
    (
        "log.filter",
        "levels, such as info or tidegate_coordinator=debug,warn",
    ),
    ("shutdown_timeout", "1s to 10m"),
];

/// A wrong configuration, as one line for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConfigError {
    /// Stable reason.
    pub reason: Reason,
    /// What is wrong, where, and what would be right.
    pub message: String,
}

impl ConfigError {
    fn new(message: impl Into<String>) -> Self {
        Self {
            reason: Reason::Config,
            message: message.into(),
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Where this node listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// People and agents.
    pub control: SocketAddr,
    /// Other coordinators.
    pub peer: SocketAddr,
    /// Blobs, health.
    pub http: SocketAddr,
    /// Newcomers.
    pub enroll: SocketAddr,
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node's name.
    pub name: Name,
    /// The data folder.
    pub data_dir: PathBuf,
    /// Where this node listens. Port 0: any free one.
    pub listen: Listen,
    /// Where others reach it. Port 0: the one that was bound.
    pub advertise: Addresses,
    /// Where health is told.
    pub health: HealthListen,
    /// How long certificates live.
    pub certificate_life: CertificateLife,
    /// Length of a Raft tick.
    pub tick: Span,
    /// Entries of the log after which a snapshot is written.
    pub snapshot_entries: u64,
    /// How long an agent's contact lasts after a lease.
    pub lost_after: Span,
    /// New agent sessions that are admitted per second.
    pub sessions_per_second: u32,
    /// Largest blob that is taken.
    pub max_blob_bytes: u64,
    /// How long the store keeps the assets of a release that no scope runs or could return to.
    pub keep_blobs: Span,
    /// How long the store keeps a blob that no release names.
    pub keep_unclaimed: Span,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Which of them are written.
    pub log_filter: String,
    /// How long a graceful stop may take.
    pub shutdown_timeout: Span,
}

/// Where a value came from.
#[derive(Clone, Debug)]
enum Origin {
    File(PathBuf),
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
        }
    }
}

struct Values {
    file: PathBuf,
    values: BTreeMap<&'static str, (String, Origin)>,
}

impl Config {
    /// Reads a file and the environment over it.
    ///
    /// # Errors
    /// [`ConfigError`] for the first thing that is wrong.
    pub fn load(
        file: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            ConfigError::new(format!(
                "{}: the configuration cannot be read: {error}; `tidegate-coordinator init` or `join` writes one",
                file.display()
            ))
        })?;
        Self::parse(file, &text, environment)
    }

    /// Reads the text of a file and the environment over it.
    ///
    /// # Errors
    /// [`ConfigError`] for the first thing that is wrong.
    pub fn parse(
        file: &Path,
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut values = Values {
            file: file.to_owned(),
            values: BTreeMap::new(),
        };
        values.take_file(text)?;
        values.take_environment(environment)?;
        values.check()
    }

    /// The file that makes a node start as it was made.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let Listen {
            control,
            peer,
            http,
            enroll,
        } = self.listen;
        let advertise = &self.advertise;
        let life = &self.certificate_life;
        format!(
            "# Configuration of a Tidegate coordinator. Each key may also be given as an environment\n\
             # variable: listen.control as {ENVIRONMENT}LISTEN_CONTROL.\n\
             name = \"{}\"\n\n\
             [listen]\ncontrol = \"{control}\"\npeer = \"{peer}\"\nhttp = \"{http}\"\nenroll = \"{enroll}\"\n\n\
             # Where others reach this node.\n\
             [advertise]\ncontrol = \"{}\"\npeer = \"{}\"\nhttp = \"{}\"\nenroll = \"{}\"\n\n\
             [certificate_life]\nagent = \"{}\"\nuser = \"{}\"\ncoordinator = \"{}\"\n\n\
             [raft]\ntick = \"{}\"\n\n\
             [agents]\nlost_after = \"{}\"\nsessions_per_second = {}\n\n\
             [log]\nformat = \"{}\"\nfilter = \"{}\"\n",
            self.name,
            advertise.control,
            advertise.peer,
            advertise.http,
            advertise.enroll,
            life.agent,
            life.user,
            life.coordinator,
            self.tick,
            self.lost_after,
            self.sessions_per_second,
            match self.log_format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            },
            self.log_filter,
        )
    }

    /// The defaults of a node.
    #[must_use]
    pub fn new(name: Name, data_dir: PathBuf, listen: Listen, advertise: Addresses) -> Self {
        Self {
            name,
            data_dir,
            listen,
            advertise,
            health: HealthListen::default(),
            certificate_life: CertificateLife::default(),
            tick: Span::from_millis(25),
            snapshot_entries: 50_000,
            lost_after: Span::from_secs(30),
            sessions_per_second: 300,
            max_blob_bytes: 4 << 30,
            keep_blobs: Span::from_hours(90 * 24),
            keep_unclaimed: Span::from_hours(24),
            log_format: LogFormat::Text,
            log_filter: "info".to_owned(),
            shutdown_timeout: Span::from_secs(15),
        }
    }

    /// The keys whose values differ, as they are written in the file.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let pairs = self.texts().into_iter().zip(other.texts());
        pairs
            .filter(|((_, one), (_, two))| one != two)
            .map(|((key, _), _)| key)
            .collect()
    }

    /// Every key with its value as a text, in a fixed order.
    fn texts(&self) -> Vec<(&'static str, String)> {
        let Self {
            name,
            data_dir,
            listen,
            advertise,
            health,
            certificate_life: life,
            tick,
            snapshot_entries,
            lost_after,
            sessions_per_second,
            max_blob_bytes,
            keep_blobs,
            keep_unclaimed,
            log_format,
            log_filter,
            shutdown_timeout,
        } = self;
        vec![
            ("name", name.to_string()),
            ("data_dir", data_dir.display().to_string()),
            ("listen", format!("{listen:?}")),
            ("advertise", format!("{advertise:?}")),
            ("listen.health", health.to_string()),
            ("certificate_life", format!("{life:?}")),
            ("raft.tick", tick.to_string()),
            ("raft.snapshot_entries", snapshot_entries.to_string()),
            ("agents.lost_after", lost_after.to_string()),
            (
                "agents.sessions_per_second",
                sessions_per_second.to_string(),
            ),
            ("blobs.max_bytes", max_blob_bytes.to_string()),
            ("blobs.keep", keep_blobs.to_string()),
            ("blobs.unclaimed", keep_unclaimed.to_string()),
            ("log.format", format!("{log_format:?}")),
            ("log.filter", log_filter.clone()),
            ("shutdown_timeout", shutdown_timeout.to_string()),
        ]
    }

    /// Hosts of the addresses that others reach this node at, each once.
    #[must_use]
    pub fn advertised_hosts(&self) -> Vec<String> {
        let Addresses {
            control,
            peer,
            http,
            enroll,
        } = &self.advertise;
        let mut hosts: Vec<String> = [control, peer, http, enroll]
            .into_iter()
            .filter_map(|address| Some(split_address(address)?.0.to_owned()))
            .collect();
        if hosts.iter().any(|host| host.starts_with("127.")) {
            hosts.push("localhost".to_owned());
        }
        hosts.sort();
        hosts.dedup();
        hosts
    }
}

impl Values {
    fn take_file(&mut self, text: &str) -> Result<(), ConfigError> {
        let file = self.file.clone();
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let place = error.span().map_or(String::new(), |span| {
                let (line, column) = line_and_column(text, span.start);
                format!(":{line}:{column}")
            });
            ConfigError::new(format!(
                "{}{place}: this is not TOML: {}",
                file.display(),
                error.message()
            ))
        })?;
        self.take_table("", &table)
    }

    fn take_table(&mut self, prefix: &str, table: &toml::Table) -> Result<(), ConfigError> {
        for (key, value) in table {
            let path = if prefix.is_empty() {
                key.clone()
            } else {
                format!("{prefix}.{key}")
            };
            let text = match value {
                toml::Value::Table(inner) if is_section(&path) => {
                    self.take_table(&path, inner)?;
                    continue;
                }
                toml::Value::String(text) => text.clone(),
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(flag) => flag.to_string(),
                toml::Value::Float(_)
                | toml::Value::Datetime(_)
                | toml::Value::Array(_)
                | toml::Value::Table(_) => value.to_string(),
            };
            let Some((known, _)) = KEYS.into_iter().find(|(known, _)| *known == path) else {
                return Err(self.unknown(&path));
            };
            let origin = Origin::File(self.file.clone());
            self.values.insert(known, (text, origin));
        }
        Ok(())
    }

    fn unknown(&self, path: &str) -> ConfigError {
        let known: Vec<&str> = KEYS.iter().map(|(key, _)| *key).collect();
        ConfigError::new(format!(
            "{}: \"{path}\" is not a key: want one of {}",
            self.file.display(),
            known.join(", ")
        ))
    }

    fn take_environment(
        &mut self,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), ConfigError> {
        for (variable, value) in environment {
            let Some(rest) = variable.strip_prefix(ENVIRONMENT) else {
                continue;
            };
            let wanted = rest.to_lowercase();
            // These two choose the file itself and are read by the command line.
            if wanted == "config" || wanted == "dir" {
                continue;
            }
            let Some((key, _)) = KEYS
                .into_iter()
                .find(|(key, _)| key.replace('.', "_") == wanted)
            else {
                let known: Vec<String> = KEYS
                    .iter()
                    .map(|(key, _)| {
                        format!("{ENVIRONMENT}{}", key.replace('.', "_").to_uppercase())
                    })
                    .collect();
                return Err(ConfigError::new(format!(
                    "environment variable {variable} is not known: want one of {}",
                    known.join(", ")
                )));
            };
            self.values
                .insert(key, (value, Origin::Environment(variable)));
        }
        Ok(())
    }

    fn wrong(&self, key: &'static str, why: &str) -> ConfigError {
        let want = KEYS
            .iter()
            .find(|(known, _)| *known == key)
            .map_or("", |(_, want)| *want);
        match self.values.get(key) {
            Some((text, origin)) => {
                ConfigError::new(format!("{origin}: {key}: \"{text}\" {why}; want {want}"))
            }
            None => ConfigError::new(format!("{}: {key} {why}; want {want}", self.file.display())),
        }
    }

    fn text(&self, key: &'static str) -> Option<&str> {
        self.values.get(key).map(|(text, _)| text.as_str())
    }

    fn listen(&self, key: &'static str, default: u16) -> Result<SocketAddr, ConfigError> {
        let Some(text) = self.text(key) else {
            return Ok(SocketAddr::from(([0, 0, 0, 0], default)));
        };
        text.parse()
            .map_err(|_| self.wrong(key, "is not an address to listen on"))
    }

    fn advertise(&self, key: &'static str, listen: SocketAddr) -> Result<String, ConfigError> {
        match self.text(key) {
            Some(text) => match split_address(text) {
                Some((host, _)) if is_host(host) => Ok(text.to_owned()),
                Some(_) | None => Err(self.wrong(key, "is not an address that others can reach")),
            },
            None if listen.ip().is_unspecified() => Err(self.wrong(
                key,
                "is missing, and must be given when the node listens on every address",
            )),
            None => Ok(listen.to_string()),
        }
    }

    fn span(
        &self,
        key: &'static str,
        default: Span,
        low: u64,
        high: u64,
    ) -> Result<Span, ConfigError> {
        let Some(text) = self.text(key) else {
            return Ok(default);
        };
        let span: Span = text
            .parse()
            .map_err(|_| self.wrong(key, "is not a length of time"))?;
        if (low..=high).contains(&span.millis()) {
            Ok(span)
        } else {
            Err(self.wrong(key, "is out of range"))
        }
    }

    fn number(
        &self,
        key: &'static str,
        default: u64,
        low: u64,
        high: u64,
    ) -> Result<u64, ConfigError> {
        let Some(text) = self.text(key) else {
            return Ok(default);
        };
        match text.parse() {
            Ok(number) if (low..=high).contains(&number) => Ok(number),
            Ok(_) => Err(self.wrong(key, "is out of range")),
            Err(_) => Err(self.wrong(key, "is not a whole number")),
        }
    }

    fn check(&self) -> Result<Config, ConfigError> {
        const DAY: u64 = 86_400_000;
        let name = self
            .text("name")
            .ok_or_else(|| self.wrong("name", "is missing"))?;
        let name = Name::new(name).map_err(|error| self.wrong("name", &error.message))?;
        let folder = self.file.parent().unwrap_or(Path::new("."));
        let data_dir = match self.text("data_dir") {
            Some("") => return Err(self.wrong("data_dir", "is empty")),
            Some(text) => folder.join(text),
            None => folder.to_owned(),
        };
        let listen = Listen {
            control: self.listen("listen.control", CONTROL_PORT)?,
            peer: self.listen("listen.peer", PEER_PORT)?,
            http: self.listen("listen.http", HTTP_PORT)?,
            enroll: self.listen("listen.enroll", ENROLL_PORT)?,
        };
        self.check_distinct(&listen)?;
        let advertise = Addresses {
            control: self.advertise("advertise.control", listen.control)?,
            peer: self.advertise("advertise.peer", listen.peer)?,
            http: self.advertise("advertise.http", listen.http)?,
            enroll: self.advertise("advertise.enroll", listen.enroll)?,
        };
        let health = match self.text("listen.health") {
            Some(text) => text
                .parse()
                .map_err(|_| self.wrong("listen.health", "is not for this host alone"))?,
            None => HealthListen::default(),
        };
        let defaults = Config::new(name, data_dir, listen, advertise);
        let life = defaults.certificate_life;
        let life_of = |key, default| self.span(key, default, 10_000, 366 * DAY);
        let sessions = self.number(
            "agents.sessions_per_second",
            u64::from(defaults.sessions_per_second),
            1,
            100_000,
        )?;
        Ok(Config {
            health,
            certificate_life: CertificateLife {
                agent: life_of("certificate_life.agent", life.agent)?,
                user: life_of("certificate_life.user", life.user)?,
                coordinator: life_of("certificate_life.coordinator", life.coordinator)?,
            },
            tick: self.span("raft.tick", defaults.tick, 5, 1_000)?,
            snapshot_entries: self.number(
                "raft.snapshot_entries",
                defaults.snapshot_entries,
                10,
                10_000_000,
            )?,
            lost_after: self.span("agents.lost_after", defaults.lost_after, 1_000, DAY / 24)?,
            sessions_per_second: u32::try_from(sessions).unwrap_or(u32::MAX),
            max_blob_bytes: self.number("blobs.max_bytes", defaults.max_blob_bytes, 1, 4 << 30)?,
            keep_blobs: self.span("blobs.keep", defaults.keep_blobs, 1_000, 3_660 * DAY)?,
            keep_unclaimed: self.span(
                "blobs.unclaimed",
                defaults.keep_unclaimed,
                1_000,
                366 * DAY,
            )?,
            log_format: match self.text("log.format") {
                None | Some("text") => LogFormat::Text,
                Some("json") => LogFormat::Json,
                Some(_) => return Err(self.wrong("log.format", "is not a format")),
            },
            log_filter: match self.text("log.filter") {
                None => defaults.log_filter.clone(),
                Some(text) if text.parse::<tracing_subscriber::EnvFilter>().is_ok() => {
                    text.to_owned()
                }
                Some(_) => return Err(self.wrong("log.filter", "is not a filter")),
            },
            shutdown_timeout: self.span(
                "shutdown_timeout",
                defaults.shutdown_timeout,
                1_000,
                600_000,
            )?,
            ..defaults
        })
    }

    fn check_distinct(&self, listen: &Listen) -> Result<(), ConfigError> {
        let all = [
            ("listen.control", listen.control),
            ("listen.peer", listen.peer),
            ("listen.http", listen.http),
            ("listen.enroll", listen.enroll),
        ];
        for (position, (key, address)) in all.iter().enumerate() {
            let twin = all[..position]
                .iter()
                .find(|(_, other)| other == address && address.port() != 0);
            if let Some((other, _)) = twin {
                return Err(self.wrong(key, &format!("is the address of {other} already")));
            }
        }
        Ok(())
    }
}

fn is_section(path: &str) -> bool {
    KEYS.iter().any(|(key, _)| {
        key.strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

fn is_host(host: &str) -> bool {
    !host.is_empty()
        && host.len() <= 253
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".-:_".contains(&b))
}

/// Splits `host:port` or `[v6]:port`.
#[must_use]
pub fn split_address(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    Some((host, port.parse().ok()?))
}

fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..offset.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::parse(
            Path::new("/etc/tidegate/coordinator.toml"),
            text,
            environment
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
        )
    }

    const GOOD: &str = "name = \"a\"\n[advertise]\ncontrol = \"a.example:7440\"\npeer = \"a.example:7441\"\nhttp = \"a.example:7442\"\nenroll = \"a.example:7443\"\n";

    #[test]
    fn what_is_written_reads_back() {
        let config = parse(GOOD, &[]).unwrap();
        assert_eq!(config.listen.control.port(), CONTROL_PORT);
        assert_eq!(config.data_dir, Path::new("/etc/tidegate"));
        assert_eq!(parse(&config.to_toml(), &[]).unwrap(), config);
        assert_eq!(config.advertised_hosts(), vec!["a.example".to_owned()]);
    }

    #[test]
    fn the_environment_wins() {
        let environment = [
            ("TIDEGATE_COORDINATOR_LISTEN_PEER", "127.0.0.1:9"),
            ("TIDEGATE_COORDINATOR_RAFT_TICK", "20ms"),
            ("PATH", "/bin"),
        ];
        let config = parse(GOOD, &environment).unwrap();
        assert_eq!(config.listen.peer.port(), 9);
        assert_eq!(config.tick, Span::from_millis(20));
    }

    #[test]
    fn each_wrong_value_names_place_key_and_what_is_wanted() {
        type Row = (
            &'static str,
            &'static [(&'static str, &'static str)],
            &'static [&'static str],
        );
        let table: [Row; 16] = [
            ("name = ", &[], &["coordinator.toml:1:", "not TOML"]),
            ("", &[], &["coordinator.toml", "name is missing"]),
            ("name = \"A b\"", &[], &["name: \"A b\"", "lower-case"]),
            (
                "name = \"a\"",
                &[],
                &["advertise.control is missing", "HOST:PORT"],
            ),
            (
                "nmae = \"a\"",
                &[],
                &["\"nmae\" is not a key", "name, data_dir"],
            ),
            (
                "[listen]\ncontroll = \"x\"",
                &[],
                &["\"listen.controll\" is not a key"],
            ),
            (
                "[listen]\ncontrol = \"localhost\"",
                &[],
                &["listen.control: \"localhost\"", "want IP:PORT"],
            ),
            (
                "[listen]\ncontrol = 7440",
                &[],
                &["listen.control: \"7440\""],
            ),
            (
                "[listen]\ncontrol = \"0.0.0.0:5\"\nhttp = \"0.0.0.0:5\"",
                &[],
                &["listen.http", "address of listen.control"],
            ),
            (
                "[raft]\ntick = \"1h\"",
                &[],
                &["raft.tick: \"1h\" is out of range", "5ms to 1s"],
            ),
            (
                "[raft]\ntick = \"fast\"",
                &[],
                &["raft.tick: \"fast\" is not a length of time"],
            ),
            (
                "[agents]\nsessions_per_second = 0",
                &[],
                &["agents.sessions_per_second: \"0\" is out of range"],
            ),
            (
                "[log]\nformat = \"xml\"",
                &[],
                &["log.format: \"xml\"", "text or json"],
            ),
            (
                "[certificate_life]\nagent = \"1s\"",
                &[],
                &["certificate_life.agent", "10s to 366d"],
            ),
            (
                "",
                &[("TIDEGATE_COORDINATOR_LOG_FORMAT", "xml")],
                &[
                    "environment variable TIDEGATE_COORDINATOR_LOG_FORMAT",
                    "log.format",
                ],
            ),
            (
                "",
                &[("TIDEGATE_COORDINATOR_LOGFORMAT", "json")],
                &["TIDEGATE_COORDINATOR_LOGFORMAT is not known"],
            ),
        ];
        for (text, environment, parts) in table {
            // Sections go behind the good part, plain keys before it.
            let text = if text.starts_with('[') {
                format!("{GOOD}{text}")
            } else if text.is_empty() && !environment.is_empty() {
                GOOD.to_owned()
            } else {
                text.to_owned()
            };
            let error = parse(&text, environment).unwrap_err();
            assert_eq!(error.reason.code(), "TG-1501");
            assert!(!error.message.contains('\n'), "{}", error.message);
            for part in parts {
                assert!(error.message.contains(part), "{}: {part}", error.message);
            }
        }
    }
}
