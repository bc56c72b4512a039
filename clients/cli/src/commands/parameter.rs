//! `tidegate parameter`.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value};
use tidegate_shared::error::Reason;
use tidegate_shared::secret::Secret;
use tidegate_shared::spec::Kind;

use super::objects::SpecFlags;
use crate::errors::{Failure, Result};
use crate::manifest::value;
use crate::session;

/// What describes a parameter.
#[derive(Debug, Args)]
#[command(
    after_help = "A secret's value is read from standard input, asked for, or taken from --value-file or --value-env;\nit is encrypted before it is stored and is never shown again.\n\nExamples:\n  tidegate parameter create web-color --application web --variable COLOR --value blue\n  tidegate parameter create eu-color --dimension region=eu --variable COLOR --value green\n  pass show db | tidegate parameter create db-password --application web --variable DB_PASSWORD --secret\n  tidegate parameter create web-tls --scope web-prod --variable TLS_KEY --secret --value-file key.pem --path tls/key.pem\n  tidegate parameter update db-password --secret"
)]
pub struct ParameterFlags {
    /// Name of the environment variable
    #[arg(long, value_name = "NAME")]
    variable: Option<String>,
    /// Its value
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with_all = ["value_file", "value_env"])]
    value: Option<String>,
    /// Read the value from a file; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "value_env")]
    value_file: Option<PathBuf>,
    /// Read the value from an environment variable of this command
    #[arg(long, value_name = "NAME")]
    value_env: Option<String>,
    /// The value is a secret: encrypted at rest, shown to nobody; asks for the value
    #[arg(long)]
    secret: bool,
    /// A return to an earlier release takes this secret as it was then (keep) or as it is now (latest)
    #[arg(long, value_name = "keep|latest")]
    on_rollback: Option<String>,
    /// The value is a file of this path in the instance's folder; the variable holds where it is
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Permissions of the file, such as 0640; default 0600
    #[arg(long, value_name = "MODE", requires = "path")]
    mode: Option<String>,
    /// Owner of the file: user or user:group; default: the agent's user
    #[arg(long, value_name = "USER[:GROUP]", requires = "path")]
    owner: Option<String>,
    /// When something else lies where the file should: refuse (default), overwrite or retain
    #[arg(long, value_name = "WHAT", requires = "path")]
    on_collision: Option<String>,
    /// For every scope of this application
    #[arg(long, value_name = "NAME")]
    application: Option<String>,
    /// For every scope of this environment
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,
    /// For every scope with this dimension
    #[arg(long = "dimension", value_name = "K=V")]
    dimensions: Vec<String>,
    /// For one scope alone
    #[arg(long, value_name = "NAME", conflicts_with_all = ["application", "environment", "dimensions"])]
    scope: Option<String>,
}

impl ParameterFlags {
    /// The value that `--value-file` or `--value-env` names.
    fn read_value(&self) -> Result<Option<Secret>> {
        let read = match (&self.value_file, &self.value_env) {
            (Some(path), _) => value::of_file(path),
            (None, Some(name)) => value::of_env(name),
            (None, None) => return Ok(None),
        };
        read.map(Some)
            .map_err(|message| Failure::new(Reason::InvalidField, message))
    }

    fn fill_value(&self, spec: &mut Map<String, Value>) -> Result<()> {
        let mut set = |name: &str, text: String| spec.insert(name.to_owned(), Value::from(text));
        if self.secret {
            if self.value.is_some() {
                return Err(Failure::usage(
                    "a secret is not taken from the command line: other users of this machine could read it, and the shell would keep it",
                )
                .hint("pipe it into standard input, or say --value-file FILE or --value-env NAME"));
            }
            set("kind", "secret".to_owned());
            spec.remove("value");
        } else if let Some(text) = &self.value {
            set("value", text.clone());
        } else if spec.get("kind").and_then(Value::as_str) == Some("secret") {
            if self.value_file.is_some() || self.value_env.is_some() {
                return Err(Failure::usage(
                    "this parameter is a secret; say --secret too",
                ));
            }
        } else if let Some(value) = self.read_value()? {
            spec.insert("value".to_owned(), Value::from(value.expose()));
        }
        Ok(())
    }

    fn fill_file(&self, spec: &mut Map<String, Value>) {
        let Some(path) = &self.path else { return };
        let mut file = match spec.remove("file") {
            Some(Value::Object(present)) => present,
            Some(_) | None => Map::new(),
        };
        for (name, value) in [
            ("path", Some(path)),
            ("mode", self.mode.as_ref()),
            ("owner", self.owner.as_ref()),
            ("on_collision", self.on_collision.as_ref()),
        ] {
            if let Some(value) = value {
                file.insert(name.to_owned(), Value::from(value.clone()));
            }
        }
        spec.insert("file".to_owned(), Value::Object(file));
    }
}

impl SpecFlags for ParameterFlags {
    const KIND: Kind = Kind::Parameter;

    fn fill(&self, spec: &mut Map<String, Value>) -> Result<()> {
        for (name, value) in [
            ("variable", &self.variable),
            ("on_rollback", &self.on_rollback),
        ] {
            if let Some(value) = value {
                spec.insert(name.to_owned(), Value::from(value.clone()));
            }
        }
        self.fill_value(spec)?;
        self.fill_file(spec);
        let mut target = Map::new();
        for (name, value) in [
            ("application", &self.application),
            ("environment", &self.environment),
            ("scope", &self.scope),
        ] {
            if let Some(value) = value {
                target.insert(name.to_owned(), Value::from(value.clone()));
            }
        }
        let dimensions = session::pairs("--dimension", &self.dimensions, true)?;
        if !dimensions.is_empty() {
            let fields = dimensions.into_iter().map(|(k, v)| (k, Value::from(v)));
            target.insert("dimensions".to_owned(), Value::Object(fields.collect()));
        }
        if !target.is_empty() {
            spec.insert("target".to_owned(), Value::Object(target));
        }
        Ok(())
    }

    fn secret(&self, name: &str) -> Result<Option<Secret>> {
        if !self.secret {
            return Ok(None);
        }
        match self.read_value()? {
            Some(value) => Ok(Some(value)),
            None => value::asked(name).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: ParameterFlags,
    }

    fn flags(words: &[&str]) -> ParameterFlags {
        Line::try_parse_from([&["x"], words].concat())
            .unwrap()
            .flags
    }

    #[test]
    fn a_secret_is_not_taken_from_the_command_line() {
        let refusal = flags(&["--secret", "--value", "hunter2"])
            .fill(&mut Map::new())
            .unwrap_err();
        assert!(!refusal.render(false).contains("hunter2"));
        assert!(refusal.render(false).contains("--value-file"));
    }

    #[test]
    fn a_secret_value_stands_beside_the_spec() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v");
        std::fs::write(&path, "hunter2\n").unwrap();
        let given = flags(&[
            "--secret",
            "--variable",
            "A",
            "--scope",
            "s",
            "--path",
            "conf/a",
            "--value-file",
            path.to_str().unwrap(),
        ]);
        let mut spec = Map::new();
        spec.insert("value".to_owned(), Value::from("old"));
        given.fill(&mut spec).unwrap();
        assert_eq!(
            Value::Object(spec).to_string(),
            r#"{"file":{"path":"conf/a"},"kind":"secret","target":{"scope":"s"},"variable":"A"}"#
        );
        assert_eq!(given.secret("x").unwrap().unwrap().expose(), "hunter2");
    }
}
