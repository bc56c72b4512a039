//! Parameters that are files: where they lie, who may read them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::FieldErrors;

/// A parameter as a file in the folder of each instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Where, relative to the instance's folder: no `..`, no leading slash, at most 8 parts.
    pub path: String,
    /// Who may read and write it; `0600` unless said.
    #[serde(default, skip_serializing_if = "FileMode::is_default")]
    pub mode: FileMode,
    /// `user` or `user:group`, by name or number; none: the agent's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What happens if something that Tidegate did not write lies there.
    #[serde(default, skip_serializing_if = "OnCollision::is_refuse")]
    pub on_collision: OnCollision,
}

/// Permission bits of a file, as `0640`: read and write, never execute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileMode(u32);

/// A text that is no acceptable mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not the mode of a file: want three or four octal digits as text, such as \"0640\", that let the owner read and nobody execute"
)]
pub struct FileModeError(String);

impl FileMode {
    /// The permission bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    const fn is_default(&self) -> bool {
        self.0 == 0o600
    }

    const fn is_for_others(self) -> bool {
        self.0 & 0o007 != 0
    }
}

impl Default for FileMode {
    fn default() -> Self {
        Self(0o600)
    }
}

impl FromStr for FileMode {
    type Err = FileModeError;

    fn from_str(text: &str) -> Result<Self, FileModeError> {
        let bits = u32::from_str_radix(text, 8)
            .ok()
            .filter(|_| (3..=4).contains(&text.len()) && !text.starts_with('+'));
        match bits {
            Some(bits) if bits & !0o666 == 0 && bits & 0o400 != 0 => Ok(Self(bits)),
            Some(_) | None => Err(FileModeError(text.to_owned())),
        }
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl TryFrom<String> for FileMode {
    type Error = FileModeError;

    fn try_from(text: String) -> Result<Self, FileModeError> {
        text.parse()
    }
}

impl From<FileMode> for String {
    fn from(mode: FileMode) -> Self {
        mode.to_string()
    }
}

/// What happens if something that Tidegate did not write lies where a file should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnCollision {
    /// The instance is not started.
    #[default]
    Refuse,
    /// The parameter's content replaces it.
    Overwrite,
    /// It stays, and the parameter is not written.
    Retain,
}

impl OnCollision {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Overwrite => "overwrite",
            Self::Retain => "retain",
        }
    }

    /// By its word.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Refuse, Self::Overwrite, Self::Retain]
            .into_iter()
            .find(|word| word.as_str() == text)
    }

    const fn is_refuse(&self) -> bool {
        matches!(self, Self::Refuse)
    }
}

impl FileSpec {
    /// What is wrong with it; a secret's file is for nobody but owner and group.
    pub fn validate(&self, secret: bool) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let parts: Vec<&str> = self.path.split('/').collect();
        let sound = parts
            .iter()
            .all(|part| !matches!(*part, "" | "." | "..") && part.len() <= 255)
            && parts.len() <= 8
            && self.path.len() <= 1_024
            && !self.path.contains(['\0', '\n', '\\']);
        errors.require(
            sound,
            "path",
            format!(
                "\"{}\" is not a path inside the instance's folder: want a relative path without . or .., such as conf/app.toml",
                self.path.escape_default()
            ),
        );
        errors.require(
            !(secret && self.mode.is_for_others()),
            "mode",
            format!(
                "{} would let everybody on the host read a secret; want 0600, 0400 or 0640",
                self.mode
            ),
        );
        if let Some(owner) = &self.owner {
            let word = |text: &str| {
                !text.is_empty()
                    && text.len() <= 64
                    && text
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"._-$".contains(&b))
            };
            let (user, group) = owner.split_once(':').unwrap_or((owner, "0"));
            errors.require(
                word(user) && word(group),
                "owner",
                "want user or user:group, by name or number",
            );
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(json: &str, secret: bool) -> Vec<String> {
        let spec: FileSpec = serde_json::from_str(json).unwrap();
        let errors = spec.validate(secret).0.into_iter();
        errors.map(|e| e.field).collect()
    }

    #[test]
    fn paths_stay_inside() {
        for path in ["a", "conf/app.toml", ".env", "a/..b"] {
            assert_eq!(wrong(&format!(r#"{{"path": "{path}"}}"#), false), [""; 0]);
        }
        for path in [
            "",
            "/etc/passwd",
            "..",
            "../x",
            "a/../../x",
            "a//b",
            "a/",
            "./a",
            "a\\n",
            "a\\\\b",
            "1/2/3/4/5/6/7/8/9",
        ] {
            assert_eq!(wrong(&format!(r#"{{"path": "{path}"}}"#), false), ["path"]);
        }
    }

    #[test]
    fn modes_let_the_owner_read_and_a_secret_is_not_for_everybody() {
        for good in ["0600", "600", "0400", "0644", "640"] {
            assert!(good.parse::<FileMode>().is_ok(), "{good}");
        }
        for bad in ["", "0755", "4600", "0200", "0o600", "+600", "99", "00600"] {
            assert!(bad.parse::<FileMode>().is_err(), "{bad}");
        }
        let open = r#"{"path": "a", "mode": "0644"}"#;
        assert_eq!(wrong(open, true), ["mode"]);
        assert_eq!(wrong(open, false), [""; 0]);
    }

    #[test]
    fn owners_are_words() {
        for (owner, fields) in [
            ("app", 0),
            ("app:www-data", 0),
            ("0:0", 0),
            ("a b", 1),
            (":x", 1),
        ] {
            let json = format!(r#"{{"path": "a", "owner": "{owner}"}}"#);
            assert_eq!(wrong(&json, false).len(), fields, "{owner}");
        }
    }
}
