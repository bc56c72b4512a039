//! The agent's configuration: `agent.toml` in its folder, and environment variables above it.
//!
//! `join` writes the file; people edit it. Every wrong value is one line that names the file or
//! variable, the key and what is allowed. The folder's layout is settled here too.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tidegate_shared::error::Reason;
use tidegate_shared::health::HealthListen;
use tidegate_shared::id::Name;

use crate::error::AgentError;
use crate::{files, tls};

/// Port of the health listener on the loopback.
pub const HEALTH_PORT: u16 = 7445;

/// Environment variables above the file: `TIDEGATE_AGENT_<KEY>`.
pub const ENVIRONMENT: &str = "TIDEGATE_AGENT_";

/// The keys of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The agent's name in the cluster, as in its certificate.
    pub name: String,
    /// `host:port` of the coordinators' control listeners, at first; the cluster refreshes them.
    pub coordinators: Vec<String>,
    /// `host:port` of their HTTP listeners, for assets.
    pub http: Vec<String>,
    /// Where the proxy listens for the scopes.
    #[serde(default = "loopback")]
    pub listen_address: String,
    /// Where instances listen and are checked.
    #[serde(default = "loopback")]
    pub instance_address: String,
    /// Ports for instances, as `20000-29999`.
    #[serde(default = "port_range")]
    pub port_range: String,
    /// What runs instances: `auto`, `process` or `systemd`.
    #[serde(default = "executor")]
    pub executor: String,
    /// The unit of systemd that runs the proxy; empty: the agent starts it itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub proxy_unit: String,
    /// PEM file of certificates that web servers of assets may show, beside the system's roots.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source_ca_file: String,
    /// Where health is told, on the loopback; `off`: nowhere. Empty: 127.0.0.1:7445, if it is free.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub health: String,
    /// What is logged, as `info` or `info,tidegate_agent=debug`.
    #[serde(default = "log")]
    pub log: String,
    /// `text` or `json`.
    #[serde(default = "log_format")]
    pub log_format: String,
}

fn loopback() -> String {
    "127.0.0.1".to_owned()
}

fn port_range() -> String {
    "20000-29999".to_owned()
}

fn executor() -> String {
    "auto".to_owned()
}

fn log() -> String {
    "info".to_owned()
}

fn log_format() -> String {
    "text".to_owned()
}

/// The checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The agent's name.
    pub name: Name,
    /// Where its files are.
    pub layout: Layout,
    /// Control addresses.
    pub coordinators: Vec<String>,
    /// HTTP addresses.
    pub http: Vec<String>,
    /// Where the proxy listens.
    pub listen_address: IpAddr,
    /// Where instances listen.
    pub instance_address: IpAddr,
    /// Ports for instances.
    pub ports: PortRange,
    /// What runs instances.
    pub executor: ExecutorChoice,
    /// The unit of systemd that runs the proxy; none: the agent starts it itself.
    pub proxy_unit: Option<String>,
    /// Roots of web servers of assets, beside the system's.
    pub source_roots: Vec<CertificateDer<'static>>,
    /// Where health is told.
    pub health: HealthListen,
    /// Filter of the log.
    pub log: String,
    /// The log is JSON.
    pub log_json: bool,
}

/// What runs instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecutorChoice {
    /// systemd where it runs the host and may be used by this process, else processes.
    Auto,
    /// Processes of the agent's own.
    Process,
    /// Units of systemd, or the agent does not start.
    Systemd,
}

/// Ports from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// At least 1,024.
    pub first: u16,
    /// Not below the first.
    pub last: u16,
}

/// The folder of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The folder itself.
    pub dir: PathBuf,
}

impl Settings {
    /// The keys whose values differ and that a running agent cannot change.
    #[must_use]
    pub fn differences_for_restart(&self, fresh: &Self) -> Vec<&'static str> {
        // A reload takes these, or they do not change: the folder is that of the file.
        let Self {
            name,
            layout: _,
            coordinators: _,
            http: _,
            listen_address,
            instance_address,
            ports,
            executor,
            proxy_unit,
            source_roots,
            health,
            log: _,
            log_json,
        } = self;
        let changed = [
            ("name", *name != fresh.name),
            ("listen_address", *listen_address != fresh.listen_address),
            (
                "instance_address",
                *instance_address != fresh.instance_address,
            ),
            ("port_range", *ports != fresh.ports),
            ("executor", *executor != fresh.executor),
            ("proxy_unit", *proxy_unit != fresh.proxy_unit),
            ("source_ca_file", *source_roots != fresh.source_roots),
            ("health", *health != fresh.health),
            ("log_format", *log_json != fresh.log_json),
        ];
        let changed = changed.into_iter().filter(|(_, changed)| *changed);
        changed.map(|(key, _)| key).collect()
    }
}

impl Layout {
    /// `agent.toml`.
    pub fn config(&self) -> PathBuf {
        self.dir.join("agent.toml")
    }

    /// Key, certificate and roots.
    pub fn identity(&self) -> PathBuf {
        self.dir.join("identity")
    }

    /// What the agent must not forget.
    pub fn ledger(&self) -> PathBuf {
        self.dir.join("ledger")
    }

    /// The coordinators as the cluster told them last.
    pub fn coordinators(&self) -> PathBuf {
        self.dir.join("coordinators.json")
    }

    /// Unpacked releases, by digest.
    pub fn releases(&self) -> PathBuf {
        self.dir.join("releases")
    }

    /// Working files of instances, by place.
    pub fn instances(&self) -> PathBuf {
        self.dir.join("instances")
    }

    /// The data plane's folder.
    pub fn proxy(&self) -> PathBuf {
        self.dir.join("proxy")
    }

    /// Held by the one agent that uses the folder.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("agent.lock")
    }
}

impl std::str::FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is not a range of ports: want FIRST-LAST within 1024 to 65535, such as 20000-29999"
            )
        };
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let parse = |part: &str| part.trim().parse::<u16>().map_err(|_| wrong());
        let (first, last) = (parse(first)?, parse(last)?);
        if first < 1_024 || last < first {
            return Err(wrong());
        }
        Ok(Self { first, last })
    }
}

/// Whether a text is `host:port`.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn check_address(text: &str) -> Result<(), String> {
    let wrong = || format!("\"{text}\" is not an address: want host:port, such as 10.0.0.5:7400");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let bare = host.starts_with('[') && host.ends_with(']');
    let fits = !host.is_empty() && (bare || !host.contains(':')) && !host.contains(' ');
    match port.parse::<u16>() {
        Ok(port) if port > 0 && fits => Ok(()),
        Ok(_) | Err(_) => Err(wrong()),
    }
}

impl Config {
    /// What `join` writes.
    pub fn new(name: &Name, coordinators: Vec<String>, http: Vec<String>) -> Self {
        Self {
            name: name.to_string(),
            coordinators,
            http,
            listen_address: loopback(),
            instance_address: loopback(),
            port_range: port_range(),
            executor: executor(),
            proxy_unit: String::new(),
            source_ca_file: String::new(),
            health: String::new(),
            log: log(),
            log_format: log_format(),
        }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), AgentError> {
        let failed = |why: String| {
            let message = format!("{} cannot be written: {why}", path.display());
            AgentError::new(Reason::DataFolder, message)
        };
        let text = toml::to_string(self).map_err(|e| failed(e.to_string()))?;
        files::replace(path, text.as_bytes(), 0o644).map_err(|e| failed(e.to_string()))
    }

    /// Reads the file, lets the environment replace keys, and checks everything.
    ///
    /// # Errors
    /// The first thing that is wrong: file or variable, key, what is allowed.
    pub fn load(
        path: &Path,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Settings, AgentError> {
        let place = path.display().to_string();
        let wrong = |message: String| AgentError::new(Reason::Config, message);
        let text = std::fs::read_to_string(path).map_err(|error| {
            wrong(format!(
                "{place} cannot be read: {error}; `tidegate-agent join` makes it"
            ))
        })?;
        let mut config: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| {
                1 + text[..span.start.min(text.len())].matches('\n').count()
            });
            wrong(format!(
                "{place}, line {line}: {}",
                error.message().replace('\n', " ")
            ))
        })?;
        let overridden = config.override_by(environment);
        let origin = |key: &str| match overridden.iter().find(|(name, _)| *name == key) {
            Some((_, variable)) => variable.clone(),
            None => format!("{place}, key {key}"),
        };
        let dir = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            Some(_) | None => PathBuf::from("."),
        };
        let dir = dir.canonicalize().unwrap_or(dir);
        config.check(Layout { dir }, |key, message| {
            wrong(format!("{}: {message}", origin(key)))
        })
    }

    /// Replaces keys; answers with the keys and the variables that did.
    fn override_by(
        &mut self,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Vec<(&'static str, String)> {
        let mut done = Vec::new();
        let mut take = |key: &'static str| {
            let variable = format!("{ENVIRONMENT}{}", key.to_uppercase());
            let value = environment(&variable)?;
            done.push((key, variable));
            Some(value)
        };
        let list = |text: String| text.split(',').map(|part| part.trim().to_owned()).collect();
        if let Some(value) = take("name") {
            self.name = value;
        }
        if let Some(value) = take("coordinators") {
            self.coordinators = list(value);
        }
        if let Some(value) = take("http") {
            self.http = list(value);
        }
        let texts: [(&'static str, &mut String); 9] = [
            ("health", &mut self.health),
            ("listen_address", &mut self.listen_address),
            ("instance_address", &mut self.instance_address),
            ("port_range", &mut self.port_range),
            ("executor", &mut self.executor),
            ("proxy_unit", &mut self.proxy_unit),
            ("source_ca_file", &mut self.source_ca_file),
            ("log", &mut self.log),
            ("log_format", &mut self.log_format),
        ];
        for (key, field) in texts {
            if let Some(value) = take(key) {
                *field = value;
            }
        }
        done
    }

    fn check(
        self,
        layout: Layout,
        wrong: impl Fn(&str, String) -> AgentError,
    ) -> Result<Settings, AgentError> {
        let name = Name::new(self.name).map_err(|e| wrong("name", e.to_string()))?;
        if self.coordinators.is_empty() {
            return Err(wrong(
                "coordinators",
                "is empty: want at least one host:port".into(),
            ));
        }
        for (key, list) in [("coordinators", &self.coordinators), ("http", &self.http)] {
            for address in list {
                check_address(address).map_err(|e| wrong(key, e))?;
            }
        }
        let ip = |key: &str, text: &str| {
            text.parse::<IpAddr>().map_err(|_| {
                wrong(
                    key,
                    format!("\"{text}\" is not an IP address, such as 127.0.0.1 or 0.0.0.0"),
                )
            })
        };
        let ports = self
            .port_range
            .parse()
            .map_err(|e| wrong("port_range", e))?;
        if tracing_subscriber::EnvFilter::try_new(&self.log).is_err() {
            let message = format!(
                "\"{}\" is not a log filter: want trace, debug, info, warn or error, or module=level pairs",
                self.log
            );
            return Err(wrong("log", message));
        }
        let log_json = match self.log_format.as_str() {
            "text" => false,
            "json" => true,
            other => {
                let message = format!("\"{other}\" is not a format: want text or json");
                return Err(wrong("log_format", message));
            }
        };
        let executor = match self.executor.as_str() {
            "auto" => ExecutorChoice::Auto,
            "process" => ExecutorChoice::Process,
            "systemd" => ExecutorChoice::Systemd,
            other => {
                let message =
                    format!("\"{other}\" is not an executor: want auto, process or systemd");
                return Err(wrong("executor", message));
            }
        };
        let proxy_unit = Some(self.proxy_unit.clone()).filter(|unit| !unit.is_empty());
        if proxy_unit
            .as_ref()
            .is_some_and(|unit| !unit.ends_with(".service"))
        {
            let message = format!(
                "\"{}\" is not a service of systemd, such as tidegate-proxy.service",
                self.proxy_unit
            );
            return Err(wrong("proxy_unit", message));
        }
        let source_roots = match self.source_ca_file.as_str() {
            "" => Vec::new(),
            path => std::fs::read(path)
                .map_err(|error| error.to_string())
                .and_then(|pem| {
                    let found = tls::certificates("certificates", &pem);
                    found.map_err(|error| error.to_string())
                })
                .map_err(|why| wrong("source_ca_file", format!("{path}: {why}")))?,
        };
        let health = match self.health.as_str() {
            "" => HealthListen::default(),
            text => text.parse().map_err(|why| wrong("health", why))?,
        };
        Ok(Settings {
            name,
            health,
            source_roots,
            layout,
            listen_address: ip("listen_address", &self.listen_address)?,
            instance_address: ip("instance_address", &self.instance_address)?,
            coordinators: self.coordinators,
            http: self.http,
            ports,
            executor,
            proxy_unit,
            log: self.log,
            log_json,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "name = \"web-1\"\ncoordinators = [\"127.0.0.1:7400\"]\nhttp = [\"127.0.0.1:7402\"]\n";

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Settings, AgentError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path, |name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn what_join_writes_reads_back() {
        let config = Config::new(
            &Name::new("web-1").unwrap(),
            vec!["a:1".into()],
            vec!["a:2".into()],
        );
        let settings = load(&toml::to_string(&config).unwrap(), &[]).unwrap();
        assert_eq!(settings.coordinators, ["a:1"]);
        assert_eq!(
            settings.ports,
            PortRange {
                first: 20_000,
                last: 29_999
            }
        );
    }

    #[test]
    fn a_reload_knows_which_keys_need_a_restart() {
        let settings = load(GOOD, &[]).unwrap();
        let fresh = format!(
            "{}log = \"debug\"\nport_range = \"2000-3000\"\nexecutor = \"process\"\n",
            GOOD.replace("7400", "7500")
        );
        let fresh = load(&fresh, &[]).unwrap();
        let mut waiting = settings.differences_for_restart(&fresh);
        waiting.retain(|key| *key != "name");
        assert_eq!(waiting, ["port_range", "executor"]);
    }

    #[test]
    fn the_environment_stands_above_the_file() {
        let settings = load(GOOD, &[("TIDEGATE_AGENT_LISTEN_ADDRESS", "127.0.1.1")]).unwrap();
        assert_eq!(settings.listen_address.to_string(), "127.0.1.1");
    }

    #[test]
    fn every_wrong_value_names_its_place_and_what_is_allowed() {
        let cases = [
            (
                "port_range = \"9-8\"",
                &[][..],
                "key port_range: \"9-8\" is not a range of ports",
            ),
            (
                "listen_address = \"here\"",
                &[],
                "key listen_address: \"here\" is not an IP address",
            ),
            (
                "log_format = \"xml\"",
                &[],
                "key log_format: \"xml\" is not a format: want text or json",
            ),
            (
                "log = \"a=b=c\"",
                &[],
                "key log: \"a=b=c\" is not a log filter",
            ),
            (
                "executor = \"docker\"",
                &[],
                "key executor: \"docker\" is not an executor: want auto, process or systemd",
            ),
            (
                "",
                &[("TIDEGATE_AGENT_PROXY_UNIT", "proxy")],
                "TIDEGATE_AGENT_PROXY_UNIT: \"proxy\" is not a service of systemd",
            ),
            ("colour = 1", &[], "line 4: unknown field `colour`"),
            (
                "",
                &[("TIDEGATE_AGENT_COORDINATORS", "nowhere")],
                "TIDEGATE_AGENT_COORDINATORS: \"nowhere\" is not an address",
            ),
            (
                "",
                &[("TIDEGATE_AGENT_NAME", "Web 1")],
                "TIDEGATE_AGENT_NAME: \"Web 1\" is not a name",
            ),
        ];
        for (line, variables, words) in cases {
            let error = load(&format!("{GOOD}{line}\n"), variables).unwrap_err();
            assert_eq!(error.reason, Reason::Config);
            assert!(error.to_string().contains(words), "{error} lacks {words}");
        }
        let error = Config::load(Path::new("/nowhere/agent.toml"), |_| None).unwrap_err();
        assert!(error.message.contains("/nowhere/agent.toml cannot be read"));
    }
}
