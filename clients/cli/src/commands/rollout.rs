//! Flags that say in what order and at what pace the members of a group start: a kind, or a file,
//! and single fields that are put over it. Used by what makes groups and what plans them.

use std::path::Path;

use clap::Args;
use serde_json::{Map, Value, json};
use tidegate_shared::error::Reason;
use tidegate_shared::spec::{RolloutSpec, parse_percent};
use tidegate_shared::time::Span;

use crate::errors::{Failure, Result};
use crate::manifest::{self, part::Part};

/// The fields of a rollout, with the file that they come from.
type Base = (Map<String, Value>, Option<Part<RolloutSpec>>);

/// Words of `--rollout` that are no files.
const KINDS: [&str; 4] = ["all_at_once", "linear", "linear_normalized", "waves"];

/// In what order and at what pace.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Rollout of a group")]
pub struct RolloutArgs {
    /// all_at_once, linear, linear_normalized, waves, or a FILE that says all of it; default: the
    /// strategy's, else all at once
    #[arg(long, value_name = "KIND|FILE")]
    rollout: Option<String>,
    /// linear: one member starts every SPAN; linear_normalized: the last one starts within SPAN
    #[arg(long, value_name = "SPAN")]
    interval: Option<String>,
    /// A wave: how many members, or which by a condition in CEL, and how long to wait after it; several
    /// make a sequence
    #[arg(long = "wave", value_name = "NAME=COUNT|PERCENT%|CEL[:BAKE]")]
    waves: Vec<String>,
    /// Who starts first: hash, name, listed, or label:KEY
    #[arg(long, value_name = "ORDER")]
    order: Option<String>,
    /// Before the next member or wave: none, healthy or verified
    #[arg(long, value_name = "GATE")]
    gate: Option<String>,
    /// More failures than these stop the group: a count, or a share such as 10%
    #[arg(long, value_name = "N|PERCENT%")]
    max_failures: Option<String>,
    /// Failures are judged once so many members were executed
    #[arg(long, value_name = "N|PERCENT%")]
    min_executed: Option<String>,
    /// What too many failures do: halt, or rollback of the whole group
    #[arg(long, value_name = "WHAT")]
    on_breach: Option<String>,
    /// Scopes that start before all others, in this order
    #[arg(long, value_name = "SCOPE", value_delimiter = ',')]
    first: Vec<String>,
    /// Scopes that start after all others
    #[arg(long, value_name = "SCOPE", value_delimiter = ',')]
    last: Vec<String>,
}

/// A rollout as it is sent, and where its fields come from.
#[derive(Debug)]
pub struct Rollout {
    /// The manifest's form, as JSON.
    pub json: String,
    file: Option<Part<RolloutSpec>>,
}

impl RolloutArgs {
    /// Whether any of them was given.
    pub fn is_given(&self) -> bool {
        self.rollout.is_some() || !self.settings().is_empty()
    }

    /// The flags that set a field: name, text, field.
    fn settings(&self) -> Vec<(&'static str, String, &'static str)> {
        let mut all = Vec::new();
        let mut one = |flag, text: &Option<String>, field| {
            if let Some(text) = text {
                all.push((flag, text.clone(), field));
            }
        };
        one("--interval", &self.interval, "interval");
        one("--order", &self.order, "order");
        one("--gate", &self.gate, "gate");
        one("--max-failures", &self.max_failures, "budget.max_failures");
        one("--min-executed", &self.min_executed, "budget.min_executed");
        one("--on-breach", &self.on_breach, "budget.on_breach");
        for (flag, list, field) in [
            ("--wave", &self.waves, "waves"),
            ("--first", &self.first, "pinned.first"),
            ("--last", &self.last, "pinned.last"),
        ] {
            if !list.is_empty() {
                all.push((flag, list.join(" "), field));
            }
        }
        all
    }

    /// Reads the file, puts the flags over it and checks the whole; nothing: no flag was given.
    ///
    /// # Errors
    /// Names the flag, or the file with line and column.
    pub fn read(&self) -> Result<Option<Rollout>> {
        if !self.is_given() {
            return Ok(None);
        }
        let (mut fields, file) = self.base()?;
        for (flag, text, field) in self.settings() {
            let value = self.value_of(field, &text)?;
            alone(flag, &text, field, value.clone())?;
            put(&mut fields, field, value);
        }
        let spec: RolloutSpec = serde_json::from_value(Value::Object(fields))
            .map_err(|error| Failure::usage(format!("the rollout is not sound: {error}")))?;
        self.check(&spec, file.as_ref())?;
        let json = serde_json::to_string(&spec)
            .map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
        Ok(Some(Rollout { json, file }))
    }

    /// What the flags are put over.
    fn base(&self) -> Result<Base> {
        let mut fields = Map::new();
        let Some(given) = &self.rollout else {
            if !self.waves.is_empty() {
                fields.insert("kind".to_owned(), json!("waves"));
            }
            return Ok((fields, None));
        };
        let word = given.replace('-', "_");
        if KINDS.contains(&word.as_str()) {
            fields.insert("kind".to_owned(), json!(word));
            return Ok((fields, None));
        }
        let path = Path::new(given);
        if !path.exists() && !given.contains(['/', '.']) {
            let near = crate::names::nearest(&word, KINDS)
                .map_or_else(String::new, |near| format!("; did you mean {near}?"));
            return Err(Failure::usage(format!(
                "--rollout {given}: want {}, or the path of a file{near}",
                KINDS.join(", ")
            )));
        }
        let file = manifest::rollout::load(path)?;
        match serde_json::to_value(&file.value) {
            Ok(Value::Object(fields)) => Ok((fields, Some(file))),
            Ok(_) | Err(_) => Err(Failure::new(
                Reason::Internal,
                "a rollout is not written as fields",
            )),
        }
    }

    fn value_of(&self, field: &str, text: &str) -> Result<Value> {
        Ok(match field {
            "waves" => Value::Array(
                self.waves
                    .iter()
                    .map(|wave| wave_of(wave))
                    .collect::<Result<_>>()?,
            ),
            "pinned.first" => json!(self.first),
            "pinned.last" => json!(self.last),
            "order" => match text.split_once(':') {
                Some(("label", label)) => json!({"label": label}),
                Some(_) | None => json!(text),
            },
            "budget.max_failures" | "budget.min_executed" => match text.parse::<u64>() {
                Ok(count) => json!(count),
                Err(_) => json!(text),
            },
            _ => json!(text),
        })
    }

    fn check(&self, spec: &RolloutSpec, file: Option<&Part<RolloutSpec>>) -> Result<()> {
        let errors = spec.validate().0;
        if errors.is_empty() {
            return Ok(());
        }
        let given = self.settings();
        let flag_of = |field: &str| {
            let set = given.iter().find(|(_, _, name)| {
                field == *name
                    || field.starts_with(&format!("{name}."))
                    || field.starts_with(&format!("{name}["))
            });
            set.map(|(flag, _, _)| *flag)
        };
        let (reason, what) = match file {
            Some(_) => (Reason::MalformedFile, "the rollout has mistakes"),
            None => (Reason::InvalidRequest, "the rollout is not sound"),
        };
        let mut failure = Failure::new(reason, format!("{what}; nothing was changed"));
        if file.is_none() {
            failure = failure
                .exit(crate::errors::EXIT_USAGE)
                .hint("`tidegate deploy --help` has examples of rollouts");
        }
        if self.interval.is_some() && !spec.kind.is_linear() {
            failure =
                failure.hint("say --rollout linear or --rollout linear_normalized with --interval");
        }
        for error in errors {
            let place = match (flag_of(&error.field), file) {
                (Some(flag), _) => format!("{flag}: {}", error.field),
                (None, Some(file)) => file.place(&error.field),
                (None, None) => error.field.clone(),
            };
            failure = failure.at(format!("{place}: {}", error.message));
        }
        Err(failure)
    }
}

impl Rollout {
    /// Where a field that the cluster names as `rollout.waves[1].selector` stands in the file.
    pub fn locate(&self, field: &str) -> Option<String> {
        let field = field.strip_prefix("rollout.")?;
        self.file.as_ref().map(|file| file.place(field))
    }
}

/// A field that makes no rollout by itself is told with its flag.
fn alone(flag: &str, text: &str, field: &str, value: Value) -> Result<()> {
    let mut fields = Map::new();
    put(&mut fields, field, value);
    match serde_json::from_value::<RolloutSpec>(Value::Object(fields)) {
        Ok(_) => Ok(()),
        Err(error) if error.to_string().starts_with("missing field") => Ok(()),
        Err(error) => Err(Failure::usage(format!("{flag} {text}: {error}"))),
    }
}

/// Sets a field of the first or second level.
fn put(fields: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            fields.insert(path.to_owned(), value);
        }
        Some((outer, inner)) => {
            let entry = fields.entry(outer.to_owned()).or_insert(Value::Null);
            if !entry.is_object() {
                *entry = Value::Object(Map::new());
            }
            if let Value::Object(nested) = entry {
                nested.insert(inner.to_owned(), value);
            }
        }
    }
}

/// `canary=1:5m`, `half=50%`, `eu=scope.dimensions.region == "eu":10m`.
fn wave_of(text: &str) -> Result<Value> {
    let wrong = |message: &str| {
        Failure::usage(format!("--wave {text}: {message}"))
            .hint("for example --wave canary=1:10m --wave eu='scope.dimensions.region == \"eu\"' --wave half=50%:1h; who is in no wave comes last")
    };
    let (name, rest) = text.split_once('=').ok_or_else(|| {
        wrong("want NAME=COUNT, NAME=PERCENT% or NAME=CEL, each with :BAKE or not")
    })?;
    // A colon may be part of the condition.
    let (take, bake) = match rest.rsplit_once(':') {
        Some((take, bake)) if bake.trim().parse::<Span>().is_ok() => (take, Some(bake.trim())),
        Some(_) | None => (rest, None),
    };
    let take = take.trim();
    let mut wave = Map::from_iter([("name".to_owned(), json!(name.trim()))]);
    if take.is_empty() {
        return Err(wrong("says of nobody that they are in it"));
    } else if let Ok(count) = take.parse::<u64>() {
        wave.insert("count".to_owned(), json!(count));
    } else if let Some(percent) = take.strip_suffix('%').map(str::trim)
        && parse_percent(percent).is_some()
    {
        wave.insert("percent".to_owned(), json!(percent));
    } else {
        wave.insert("selector".to_owned(), json!(take));
    }
    if let Some(bake) = bake {
        wave.insert("bake".to_owned(), json!(bake));
    }
    Ok(Value::Object(wave))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(words: &str) -> Option<String> {
        Some(words.to_owned())
    }

    fn read(args: &RolloutArgs) -> std::result::Result<Value, String> {
        let rollout = args.read().map_err(|failure| failure.render(false))?;
        Ok(serde_json::from_str(&rollout.unwrap().json).unwrap())
    }

    #[test]
    fn flags_alone_make_a_rollout() {
        assert!(RolloutArgs::default().read().unwrap().is_none());
        let linear = read(&RolloutArgs {
            rollout: text("linear"),
            interval: text("60s"),
            order: text("name"),
            gate: text("healthy"),
            max_failures: text("1"),
            first: vec!["web-canary".to_owned()],
            ..RolloutArgs::default()
        })
        .unwrap();
        assert_eq!(linear["kind"], "linear");
        assert_eq!(linear["interval"], "1m");
        assert_eq!(linear["order"], "name");
        assert_eq!(linear["budget"]["max_failures"], "1");
        assert_eq!(linear["pinned"]["first"][0], "web-canary");
        let waves = read(&RolloutArgs {
            waves: [
                "canary=1:5m",
                "half=50%",
                "eu=scope.dimensions.region == \"eu\" ? true : false:10m",
            ]
            .map(str::to_owned)
            .to_vec(),
            order: text("label:zone"),
            max_failures: text("10%"),
            ..RolloutArgs::default()
        })
        .unwrap();
        assert_eq!(waves["kind"], "waves");
        assert_eq!(waves["waves"][0]["count"], 1);
        assert_eq!(waves["waves"][0]["bake"], "5m");
        assert_eq!(waves["waves"][1]["percent"], 50);
        let selector = "scope.dimensions.region == \"eu\" ? true : false";
        assert_eq!(waves["waves"][2]["selector"], selector);
        assert_eq!(waves["order"]["label"], "zone");
        assert_eq!(waves["budget"]["max_failures"], "10%");
    }

    #[test]
    fn flags_are_put_over_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slow.yaml");
        std::fs::write(
            &path,
            "kind: linear\ninterval: 1h\nbudget:\n  max_failures: 3\n  on_breach: rollback\n",
        )
        .unwrap();
        let rollout = read(&RolloutArgs {
            rollout: Some(path.display().to_string()),
            interval: text("5m"),
            max_failures: text("0"),
            ..RolloutArgs::default()
        })
        .unwrap();
        assert_eq!(rollout["interval"], "5m");
        assert_eq!(rollout["budget"]["max_failures"], "0");
        assert_eq!(rollout["budget"]["on_breach"], "rollback");
    }

    #[test]
    fn mistakes_name_the_flag_or_the_line() {
        let told = |args: RolloutArgs| read(&args).unwrap_err();
        let unknown = told(RolloutArgs {
            rollout: text("liniar"),
            ..RolloutArgs::default()
        });
        assert!(unknown.contains("did you mean linear?"), "{unknown}");
        let gate = told(RolloutArgs {
            rollout: text("linear"),
            interval: text("1m"),
            gate: text("helthy"),
            ..RolloutArgs::default()
        });
        assert!(gate.contains("--gate helthy: "), "{gate}");
        assert!(gate.contains("healthy"), "{gate}");
        let without = told(RolloutArgs {
            rollout: text("linear"),
            ..RolloutArgs::default()
        });
        assert!(without.contains("interval"), "{without}");
        let wave = told(RolloutArgs {
            waves: vec!["canary".to_owned()],
            ..RolloutArgs::default()
        });
        assert!(wave.contains("--wave canary: want NAME=COUNT"), "{wave}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad.yaml");
        std::fs::write(&path, "kind: waves\nwaves:\n- {name: a, cuont: 1}\n").unwrap();
        let file = told(RolloutArgs {
            rollout: Some(path.display().to_string()),
            ..RolloutArgs::default()
        });
        assert!(file.contains("bad.yaml:3:"), "{file}");
        assert!(file.contains("cuont"), "{file}");
        std::fs::write(&path, "interval: 5m\nkind: all_at_once\n").unwrap();
        let file = told(RolloutArgs {
            rollout: Some(path.display().to_string()),
            ..RolloutArgs::default()
        });
        assert!(file.contains("bad.yaml:1:11: interval"), "{file}");
        assert!(file.contains("TG-1002"), "{file}");
    }
}
