//! How an asset is run: its command, its hooks, its limits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{FieldErrors, HealthCheck, check_variable};
use crate::decimal::Decimal;
use crate::time::Span;

/// How an asset is run. In `command`, `args` and the values of `env`, `${PORT}`, `${RELEASE_DIR}`,
/// `${INSTANCE_DIR}` and `${INSTANCE}` stand for the instance's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// The program. Absolute: on the host; with a slash: inside the release; a bare name: inside
    /// the release if it is there, else found through `PATH`.
    pub command: String,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment variables; parameters go before them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Used by scopes that have no check of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Programs that run around starts and stops.
    #[serde(default, skip_serializing_if = "Hooks::is_empty")]
    pub hooks: Hooks,
    /// What an instance may use; a scope's own go before these.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// It tells by `sd_notify` when it is ready, and a start lasts until then: systemd's
    /// `Type=notify`. Only the executor `systemd` can.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub notify: bool,
}

/// Programs that run around the starts and stops of an instance, in the order of their list, each
/// after the one before it has ended well. They have to be idempotent: one that was interrupted
/// runs again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hooks {
    /// Before the process of an instance starts. A failure fails the start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub before_start: Vec<Hook>,
    /// Once the process runs, before its health is asked. A failure ends the process.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after_start: Vec<Hook>,
    /// Before the process is told to end. A failure is reported and changes nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub before_stop: Vec<Hook>,
    /// After the process has ended. A failure is reported and changes nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after_stop: Vec<Hook>,
}

/// One program of a hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// The program, found as the asset's own.
    pub command: String,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// It is ended after so long; 1 s to 15 min.
    #[serde(default = "minute")]
    pub timeout: Span,
}

const fn minute() -> Span {
    Span::from_secs(60)
}

/// Most hooks of one kind.
pub const MAX_HOOKS: usize = 8;

/// What hooks run around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookKind {
    /// See [`Hooks::before_start`].
    BeforeStart,
    /// See [`Hooks::after_start`].
    AfterStart,
    /// See [`Hooks::before_stop`].
    BeforeStop,
    /// See [`Hooks::after_stop`].
    AfterStop,
}

impl HookKind {
    /// Every kind, in the order of an instance's life.
    pub const ALL: [Self; 4] = [
        Self::BeforeStart,
        Self::AfterStart,
        Self::BeforeStop,
        Self::AfterStop,
    ];

    /// The word in manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BeforeStart => "before_start",
            Self::AfterStart => "after_start",
            Self::BeforeStop => "before_stop",
            Self::AfterStop => "after_stop",
        }
    }

    /// Whether it belongs to the end of an instance.
    pub const fn is_of_stop(self) -> bool {
        matches!(self, Self::BeforeStop | Self::AfterStop)
    }
}

impl Hooks {
    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.before_start.is_empty()
            && self.after_start.is_empty()
            && self.before_stop.is_empty()
            && self.after_stop.is_empty()
    }

    /// The hooks of a kind, in their order.
    pub fn of(&self, kind: HookKind) -> &[Hook] {
        match kind {
            HookKind::BeforeStart => &self.before_start,
            HookKind::AfterStart => &self.after_start,
            HookKind::BeforeStop => &self.before_stop,
            HookKind::AfterStop => &self.after_stop,
        }
    }

    fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        for kind in HookKind::ALL {
            let hooks = self.of(kind);
            errors.require(
                hooks.len() <= MAX_HOOKS,
                kind.as_str(),
                format!("{} hooks: want at most {MAX_HOOKS}", hooks.len()),
            );
            for (position, hook) in hooks.iter().enumerate() {
                let field = format!("{}[{position}]", kind.as_str());
                errors.require(
                    !hook.command.trim().is_empty(),
                    format!("{field}.command"),
                    "is empty",
                );
                let sound =
                    !hook.command.contains('\0') && hook.args.iter().all(|arg| !arg.contains('\0'));
                errors.require(sound, &field, "has a NUL in it");
                errors.require(
                    hook.timeout >= Span::from_secs(1) && hook.timeout <= Span::from_mins(15),
                    format!("{field}.timeout"),
                    "want 1s to 15m",
                );
            }
        }
        errors
    }
}

/// What an instance may use. A limit that a host cannot enforce keeps the instance from starting
/// there, with that reason.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of memory, as `512MiB`, `2GiB` or a plain number; 4 MiB to 1 PiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Processor cores, as `0.5` or `2`; 0.01 to 1,024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cores>,
    /// Files and sockets that a process may hold open; 16 to 1,048,576.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    /// Processes and threads of the instance; 1 to 4,194,304.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
}

impl Limits {
    /// Whether nothing is limited.
    pub const fn is_empty(&self) -> bool {
        self.memory.is_none()
            && self.cpu.is_none()
            && self.open_files.is_none()
            && self.processes.is_none()
    }

    /// These, and where they say nothing the others.
    #[must_use]
    pub fn or(&self, others: &Self) -> Self {
        Self {
            memory: self.memory.or(others.memory),
            cpu: self.cpu.or(others.cpu),
            open_files: self.open_files.or(others.open_files),
            processes: self.processes.or(others.processes),
        }
    }

    /// What is wrong with them.
    pub fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let memory = self
            .memory
            .is_none_or(|m| (4 << 20..=1 << 50).contains(&m.0));
        errors.require(memory, "memory", "want 4MiB to 1PiB, such as 512MiB");
        let cpu = self.cpu.is_none_or(|c| (100..=10_240_000).contains(&c.0));
        errors.require(cpu, "cpu", "want 0.01 to 1024 cores, such as 0.5");
        let files = self.open_files.is_none_or(|n| (16..=1 << 20).contains(&n));
        errors.require(files, "open_files", "want 16 to 1048576");
        let processes = self.processes.is_none_or(|n| (1..=1 << 22).contains(&n));
        errors.require(processes, "processes", "want 1 to 4194304");
        errors
    }
}

/// A size in bytes; people may write `KiB`, `MiB`, `GiB`, `TiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Cores in basis points: 10,000 is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cores(pub u32);

const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

impl Bytes {
    /// The largest unit that leaves a whole number, with that number.
    fn in_units(self) -> Option<(u64, &'static str)> {
        let fits = |shift: u32| self.0 > 0 && self.0.trailing_zeros() >= shift;
        let (unit, shift) = UNITS.iter().find(|(_, shift)| fits(*shift))?;
        Some((self.0 >> shift, unit))
    }
}

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.in_units() {
            Some((count, unit)) => write!(f, "{count}{unit}"),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return serializer.serialize_u64(self.0);
        }
        match self.in_units() {
            Some(_) => serializer.collect_str(self),
            None => serializer.serialize_u64(self.0),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        if !deserializer.is_human_readable() {
            return u64::deserialize(deserializer).map(Self);
        }
        let wrong =
            || D::Error::custom("this is not a size: want bytes, or such as 512MiB or 2GiB");
        match NumberOrText::deserialize(deserializer).map_err(|_| wrong())? {
            NumberOrText::Number(bytes) => Ok(Self(bytes)),
            NumberOrText::Text(text) => Self::parse(&text).ok_or_else(wrong),
        }
    }
}

impl Bytes {
    /// Reads a size as people write it.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (digits, shift) = UNITS
            .iter()
            .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))
            .unwrap_or((text, 0));
        let number: u64 = digits.trim().parse().ok()?;
        number.checked_mul(1 << shift).map(Self)
    }
}

impl Serialize for Cores {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return serializer.serialize_u32(self.0);
        }
        let (whole, fraction) = (self.0 / 10_000, self.0 % 10_000);
        let text = format!("{whole}.{fraction:04}");
        let text = text.trim_end_matches('0').trim_end_matches('.');
        serializer.serialize_str(text)
    }
}

impl<'de> Deserialize<'de> for Cores {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        if !deserializer.is_human_readable() {
            return u32::deserialize(deserializer).map(Self);
        }
        let decimal = Decimal::deserialize(deserializer)?;
        Self::parse(decimal.as_str())
            .ok_or_else(|| D::Error::custom(format!("\"{decimal}\" is not a number of cores: want 0.01 to 1024 with at most four decimals")))
    }
}

impl Cores {
    /// Reads cores as people write them; exact, no float takes part.
    pub fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if fraction.len() > 4 {
            return None;
        }
        let whole: u32 = whole.parse().ok()?;
        let fraction: u32 = format!("{fraction:0<4}").parse().ok()?;
        whole.checked_mul(10_000)?.checked_add(fraction).map(Self)
    }
}

impl RunSpec {
    /// What is wrong with it.
    pub fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require(!self.command.is_empty(), "command", "is empty");
        for (variable, value) in &self.env {
            if let Err(message) = check_variable(variable, value) {
                errors.add("env", message);
            }
        }
        if let Some(check) = &self.health_check {
            errors.nest("health_check", check.validate());
        }
        errors.nest("hooks", self.hooks.validate());
        errors.nest("limits", self.limits.validate());
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(json: &str) -> Result<RunSpec, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    fn fields(json: &str) -> Vec<String> {
        let errors = run(json).unwrap().validate().0.into_iter();
        errors.map(|e| e.field).collect()
    }

    #[test]
    fn an_unknown_hook_is_named_with_those_that_exist() {
        let told = run(r#"{"command": "a", "hooks": {"before_install": []}}"#).unwrap_err();
        assert!(told.contains("before_install"), "{told}");
        for kind in HookKind::ALL {
            assert!(told.contains(kind.as_str()), "{told}");
        }
    }

    #[test]
    fn hooks_and_limits_are_checked() {
        let good = r#"{"command": "a", "hooks": {"before_start": [{"command": "b"}], "after_stop": [{"command": "c", "timeout": "2m"}]},
            "limits": {"memory": "512MiB", "cpu": 0.5, "open_files": 1024, "processes": 64}}"#;
        assert_eq!(fields(good), [""; 0]);
        let spec = run(good).unwrap();
        assert_eq!(spec.hooks.before_start[0].timeout, Span::from_secs(60));
        assert_eq!(spec.limits.memory, Some(Bytes(512 << 20)));
        assert_eq!(spec.limits.cpu, Some(Cores(5_000)));
        let again = run(&serde_json::to_string(&spec).unwrap()).unwrap();
        assert_eq!(again, spec);
        let bad = r#"{"command": "a", "hooks": {"before_stop": [{"command": " ", "timeout": "1h"}]},
            "limits": {"memory": 7, "cpu": "0.001", "open_files": 1, "processes": 0}}"#;
        assert_eq!(
            fields(bad),
            [
                "hooks.before_stop[0].command",
                "hooks.before_stop[0].timeout",
                "limits.memory",
                "limits.cpu",
                "limits.open_files",
                "limits.processes"
            ]
        );
        assert!(
            run(r#"{"command": "a", "limits": {"memory": "much"}}"#)
                .unwrap_err()
                .contains("512MiB")
        );
    }

    #[test]
    fn a_scopes_limits_go_before_the_assets() {
        let of = |json: &str| serde_json::from_str::<Limits>(json).unwrap();
        let scope = of(r#"{"memory": "1GiB"}"#);
        let asset = of(r#"{"memory": "2GiB", "cpu": "2"}"#);
        let both = scope.or(&asset);
        assert_eq!(both, of(r#"{"memory": "1GiB", "cpu": "2"}"#));
        assert_eq!(
            serde_json::to_string(&both).unwrap(),
            r#"{"memory":"1GiB","cpu":"2"}"#
        );
    }
}
