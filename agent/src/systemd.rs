//! systemd over D-Bus: the few calls that the agent makes of the manager. The only file that names
//! the bus crate.
//!
//! It knows units and nothing of instances. [`crate::executor::systemd`] runs instances with it,
//! [`crate::traffic::proxy`] starts and reloads the proxy's unit. A connection that has ended, as
//! when the bus daemon was restarted, is made anew at the next call.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;
pub use zbus::Variant;
use zbus::{Connection, Message, OwnedObjectPath, OwnedVariant};

const SERVICE: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE_UNIT: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// The names of errors that mean "there is no such unit".
const NO_UNIT: [&str; 2] = [
    "org.freedesktop.systemd1.NoSuchUnit",
    "org.freedesktop.systemd1.UnitNotFound",
];

/// The name of the error that means "there is such a unit".
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

/// How long the manager may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(25);

/// Why the manager did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// No connection, or no answer.
    #[error("systemd cannot be reached: {0}")]
    Unreachable(String),
    /// No such unit.
    #[error("systemd has no unit {0}")]
    NoUnit(String),
    /// There is such a unit already.
    #[error("systemd has such a unit already: {0}")]
    Exists(String),
    /// It said no.
    #[error("systemd refuses: {0}")]
    Refused(String),
}

/// The name of a property and its value.
pub type Property = (&'static str, Variant<'static>);

/// Where a unit is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Active {
    /// Not running, and nothing to say of it.
    Inactive,
    /// On its way up.
    Activating,
    /// Up, also while it reloads.
    Active,
    /// On its way down.
    Deactivating,
    /// Ended with a failure that the manager remembers.
    Failed,
}

/// What the manager says of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitState {
    /// Where it is.
    pub active: Active,
    /// The line that describes it.
    pub description: String,
    /// Whether it has ever been up in this run.
    pub was_up: bool,
    /// Which run, in hexadecimal digits; empty: none yet.
    pub invocation: String,
    /// When its main process was started, in microseconds since 1970; 0: not yet.
    pub started_at: u64,
    /// Its main process; 0: none now.
    pub main_pid: u32,
    /// The main process of the latest run, also after its end; 0: none.
    pub last_pid: u32,
    /// How the main process ended: 1 by itself, 2 by a signal, 3 by a signal with a dump.
    pub code: i32,
    /// Its exit status or the number of the signal.
    pub status: i32,
    /// The manager's word for the run: `success`, `exit-code`, `signal`, `watchdog`, …
    pub result: String,
    /// What the service says of itself (`STATUS=`).
    pub status_text: String,
    /// The most memory that it may use, in bytes; none: no limit.
    pub memory_max: Option<u64>,
}

/// The manager of this host.
#[derive(Default)]
pub struct Manager {
    connection: Mutex<Option<Connection>>,
}

impl Manager {
    /// Whether systemd runs this host. Says nothing about what this process may do with it.
    #[must_use]
    pub fn runs_host() -> bool {
        Path::new("/run/systemd/system").is_dir()
    }

    /// The version of the manager: whether the bus answers.
    ///
    /// # Errors
    /// No bus, or no answer.
    pub async fn version(&self) -> Result<String, BusError> {
        let body = &(MANAGER, "Version");
        let reply = self.call(MANAGER_PATH, PROPERTIES, "Get", body).await?;
        let value: OwnedVariant = decode(&reply)?;
        Ok(text(&value))
    }

    /// Starts a unit that there is, unless it runs. Returns when the start was ordered.
    ///
    /// # Errors
    /// No such unit, or the manager refuses.
    pub async fn start(&self, unit: &str) -> Result<(), BusError> {
        self.job("StartUnit", unit).await
    }

    /// Has a unit reload, if it runs. Returns when that was ordered.
    ///
    /// # Errors
    /// No such unit, it does not run, or the manager refuses.
    pub async fn reload(&self, unit: &str) -> Result<(), BusError> {
        self.job("ReloadUnit", unit).await
    }

    /// Stops a unit. Returns when that was ordered.
    ///
    /// # Errors
    /// No such unit, or the manager refuses.
    pub async fn stop(&self, unit: &str) -> Result<(), BusError> {
        self.job("StopUnit", unit).await
    }

    async fn job(&self, method: &str, unit: &str) -> Result<(), BusError> {
        let body = &(unit, "replace");
        self.call(MANAGER_PATH, MANAGER, method, body).await?;
        Ok(())
    }

    /// Makes a service that lives until it ends, and starts it. The manager keeps it for this
    /// process until [`forget`](Self::forget), so that its end can be read.
    ///
    /// # Errors
    /// A unit of that name is there, or a property is refused.
    pub async fn start_transient(
        &self,
        unit: &str,
        properties: Vec<Property>,
    ) -> Result<(), BusError> {
        let mut all = properties;
        all.push(("AddRef", Variant::from(true)));
        let others: Vec<(&str, Vec<Property>)> = Vec::new();
        let body = &(unit, "fail", all, others);
        self.call(MANAGER_PATH, MANAGER, "StartTransientUnit", body)
            .await?;
        Ok(())
    }

    /// Has the manager keep a unit for this process, so that its end can be read.
    ///
    /// # Errors
    /// No such unit.
    pub async fn keep(&self, unit: &str) -> Result<(), BusError> {
        self.call(MANAGER_PATH, MANAGER, "RefUnit", &(unit,))
            .await?;
        Ok(())
    }

    /// Lets go of a unit that has ended, so that its name can be used again.
    pub async fn forget(&self, unit: &str) {
        // Each fails when there is nothing to forget.
        for method in ["UnrefUnit", "ResetFailedUnit"] {
            self.call(MANAGER_PATH, MANAGER, method, &(unit,))
                .await
                .ok();
        }
    }

    /// What the manager says of a service; nothing: it does not know it.
    ///
    /// # Errors
    /// The manager does not answer.
    pub async fn state(&self, unit: &str) -> Result<Option<UnitState>, BusError> {
        let reply = self.call(MANAGER_PATH, MANAGER, "GetUnit", &(unit,)).await;
        let reply = match reply {
            Err(BusError::NoUnit(_)) => return Ok(None),
            other => other?,
        };
        let path: OwnedObjectPath = decode(&reply)?;
        let mut all: HashMap<String, OwnedVariant> = HashMap::new();
        for interface in [UNIT, SERVICE_UNIT] {
            let reply = self
                .call(path.as_str(), PROPERTIES, "GetAll", &(interface,))
                .await;
            match reply {
                // Forgotten between the two calls.
                Err(BusError::NoUnit(_)) => return Ok(None),
                other => all.extend(decode::<HashMap<String, OwnedVariant>>(&other?)?),
            }
        }
        Ok(Some(state_of(&all)))
    }

    async fn connected(&self) -> Result<Connection, BusError> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|held| !held.is_closed()) {
            return Ok(connection.clone());
        }
        let connecting = timeout(ANSWER_LIMIT, Connection::system()).await;
        let connection = connecting
            .map_err(|_| BusError::Unreachable("the system bus does not answer".to_owned()))?
            .map_err(|error| BusError::Unreachable(error.to_string()))?;
        Ok(held.insert(connection).clone())
    }

    async fn call<B>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) -> Result<Message, BusError>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let connection = self.connected().await?;
        let call = connection.call_method(Some(SERVICE), path, Some(interface), method, body);
        match timeout(ANSWER_LIMIT, call).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(zbus::Error::MethodError(name, words, _))) => {
                let words = words.unwrap_or_else(|| name.to_string());
                if NO_UNIT.contains(&name.as_str()) {
                    Err(BusError::NoUnit(words))
                } else if name.as_str() == UNIT_EXISTS {
                    Err(BusError::Exists(words))
                } else {
                    Err(BusError::Refused(words))
                }
            }
            Ok(Err(zbus::Error::FDO(error))) => match *error {
                zbus::fdo::Error::UnknownObject(words) => Err(BusError::NoUnit(words)),
                other => Err(BusError::Refused(other.to_string())),
            },
            Ok(Err(error)) => Err(BusError::Unreachable(error.to_string())),
            Err(_) => Err(BusError::Unreachable(format!(
                "no answer within {} s",
                ANSWER_LIMIT.as_secs()
            ))),
        }
    }
}

fn decode<T>(reply: &Message) -> Result<T, BusError>
where
    T: for<'d> zbus::wire::DynamicDeserialize<'d>,
{
    let body = reply.body();
    let read: Result<T, zbus::Error> = body.deserialize();
    read.map_err(|error| BusError::Unreachable(format!("an answer cannot be read: {error}")))
}

fn text(value: &Variant<'_>) -> String {
    match value {
        Variant::Str(text) => text.as_str().to_owned(),
        _ => String::new(),
    }
}

fn number(value: &Variant<'_>) -> i64 {
    match value {
        Variant::U32(number) => i64::from(*number),
        Variant::I32(number) => i64::from(*number),
        Variant::U64(number) => i64::try_from(*number).unwrap_or(i64::MAX),
        _ => 0,
    }
}

/// A limit; the manager writes none as the largest number.
fn most(value: &Variant<'_>) -> Option<u64> {
    match value {
        Variant::U64(number) if *number < u64::MAX => Some(*number),
        _ => None,
    }
}

fn hexadecimal(value: &Variant<'_>) -> String {
    let Variant::Array(bytes) = value else {
        return String::new();
    };
    let bytes = bytes.inner().iter().filter_map(|byte| match byte {
        Variant::U8(byte) => Some(*byte),
        _ => None,
    });
    hex::encode(bytes.collect::<Vec<u8>>())
}

fn state_of(all: &HashMap<String, OwnedVariant>) -> UnitState {
    let of_text = |name: &str| all.get(name).map(|value| text(value)).unwrap_or_default();
    let of_number = |name: &str| all.get(name).map_or(0, |value| number(value));
    let small = |name: &str| i32::try_from(of_number(name)).unwrap_or(0);
    let pid = |name: &str| u32::try_from(of_number(name)).unwrap_or(0);
    let active = match of_text("ActiveState").as_str() {
        "active" | "reloading" | "refreshing" => Active::Active,
        "activating" => Active::Activating,
        "deactivating" => Active::Deactivating,
        "failed" => Active::Failed,
        _ => Active::Inactive,
    };
    UnitState {
        active,
        description: of_text("Description"),
        was_up: of_number("ActiveEnterTimestampMonotonic") > 0,
        invocation: all
            .get("InvocationID")
            .map(|value| hexadecimal(value))
            .unwrap_or_default(),
        started_at: u64::try_from(of_number("ExecMainStartTimestamp")).unwrap_or(0),
        main_pid: pid("MainPID"),
        last_pid: pid("ExecMainPID"),
        code: small("ExecMainCode"),
        status: small("ExecMainStatus"),
        result: of_text("Result"),
        status_text: of_text("StatusText"),
        memory_max: all.get("MemoryMax").and_then(|value| most(value)),
    }
}
