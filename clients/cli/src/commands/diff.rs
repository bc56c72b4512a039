//! `tidegate diff`: in what the cluster's objects differ from manifests, field by field.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;
use tidegate_shared::secret::WITHHELD;
use tidegate_shared::spec::{Kind, ObjectSpec, ParameterKind};

use super::apply::send::{self, Verdict};
use crate::errors::{EXIT_FAILURE, EXIT_USAGE, Failure, Result};
use crate::manifest::meaning::{self, Difference, Side};
use crate::manifest::{self, Wanted};
use crate::output::{Output, Tone};
use crate::session::Session;

/// Exit status if nothing differs.
const EXIT_SAME: u8 = 0;
/// Exit status if something does.
const EXIT_DIFFERENT: u8 = 1;

/// What to compare.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 nothing differs, 1 something differs, 2 it could not be told.\n\nWhat a manifest leaves out and what it says as the default are the same. Objects that are in no\nmanifest are not looked at. The value of a secret is never shown; that it differs is.\n\nExamples:\n  tidegate diff manifests/\n  tidegate diff cluster.yaml && echo nothing to do\n  tidegate export | sed s/8080/8081/ | tidegate diff -"
)]
pub struct DiffArgs {
    /// File or folder of manifests (YAML or JSON, several documents each); - is standard input
    #[arg(value_name = "FILE|DIR", required_unless_present = "more")]
    files: Vec<PathBuf>,
    /// The same, as apply takes it
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR")]
    more: Vec<PathBuf>,
}

impl DiffArgs {
    /// Does it; the exit status says whether anything differs.
    ///
    /// # Errors
    /// A mistake in a manifest, or the cluster's.
    pub async fn run(self, session: &Session) -> Result<u8> {
        self.compare(session).await.map_err(|failure| {
            if failure.exit_status() == EXIT_FAILURE {
                failure.exit(EXIT_USAGE)
            } else {
                failure
            }
        })
    }

    async fn compare(self, session: &Session) -> Result<u8> {
        let files: Vec<PathBuf> = self.files.into_iter().chain(self.more).collect();
        let wanted = manifest::load(&files)?;
        let present = Present::read(session, &wanted).await?;
        let mut found = Vec::new();
        for object in &wanted {
            found.extend(present.differs(object)?);
        }
        present.secrets(session, &wanted, &mut found).await?;
        let order = |one: &Differing| {
            let mut objects = wanted.iter();
            objects.position(|object| object.kind == one.kind && object.name == one.name)
        };
        found.sort_by_cached_key(order);
        tell(session.output, &found, wanted.len())?;
        Ok(if found.is_empty() {
            EXIT_SAME
        } else {
            EXIT_DIFFERENT
        })
    }
}

/// The cluster's objects of the kinds in question.
struct Present(BTreeMap<(Kind, String), Wanted>);

/// An object that differs.
#[derive(Debug, Serialize)]
struct Differing {
    kind: Kind,
    name: String,
    place: String,
    /// `created` or `changed`.
    change: &'static str,
    fields: Vec<Field>,
}

/// A field that differs.
#[derive(Debug, Serialize)]
struct Field {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    old: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<Value>,
}

impl From<Difference> for Field {
    fn from(difference: Difference) -> Self {
        let Difference { path, old, new } = difference;
        Self { path, old, new }
    }
}

impl Present {
    async fn read(session: &Session, wanted: &[Wanted]) -> Result<Self> {
        let mut kinds: Vec<Kind> = wanted.iter().map(|object| object.kind).collect();
        kinds.dedup();
        let mut found = BTreeMap::new();
        for kind in kinds {
            for object in session.objects(Some(kind), "").await? {
                let object = as_wanted(kind, object)?;
                found.insert((kind, object.name.clone()), object);
            }
        }
        Ok(Self(found))
    }

    fn get(&self, wanted: &Wanted) -> Option<&Wanted> {
        self.0.get(&(wanted.kind, wanted.name.clone()))
    }

    fn differs(&self, wanted: &Wanted) -> Result<Option<Differing>> {
        let internal = |error: serde_json::Error| Failure::new(Reason::Internal, error.to_string());
        let mut fields: Vec<Difference> = match self.get(wanted) {
            Some(present) => {
                let found = meaning::differences(side(present), side(wanted)).map_err(internal)?;
                if found.is_empty() {
                    return Ok(None);
                }
                found
            }
            None => {
                let essence = meaning::essence(&wanted.spec).map_err(internal)?;
                let labels = (!wanted.labels.is_empty()).then(|| new("labels", &wanted.labels));
                let spec = new("spec", &essence);
                labels.into_iter().chain([spec]).collect()
            }
        };
        let is_secret = |object: &Wanted| matches!(&object.spec, ObjectSpec::Parameter(p) if p.kind == ParameterKind::Secret);
        if is_secret(wanted) || self.get(wanted).is_some_and(is_secret) {
            fields.iter_mut().for_each(withhold);
        }
        let is_there = self.get(wanted).is_some();
        Ok(Some(Differing {
            kind: wanted.kind,
            name: wanted.name.clone(),
            place: wanted.place.clone(),
            change: if is_there { "changed" } else { "created" },
            fields: fields.into_iter().map(Field::from).collect(),
        }))
    }

    /// Whether values of secrets differ, which the cluster alone can tell.
    async fn secrets(
        &self,
        session: &Session,
        wanted: &[Wanted],
        found: &mut Vec<Differing>,
    ) -> Result<()> {
        let given = wanted.iter().filter_map(|object| {
            // The present object with the given value: whatever else differs is told already.
            let mut asked = self.get(object)?.clone();
            asked.secret = Some(object.secret.clone()?);
            asked.place.clone_from(&object.place);
            Some(asked)
        });
        let given: Vec<Wanted> = given.collect();
        let parcels = send::parcels(&given, true)?;
        for range in send::batches(&parcels, true) {
            let batch = &parcels[range];
            let answered = match send::send(session, batch, &[]).await {
                // Who may look need not be one who may write.
                Err(failure) if failure.is(Reason::PermissionDenied) => {
                    return session.output.note(&format!(
                        "values of secrets were not compared: {}",
                        failure.message()
                    ));
                }
                other => other?.0,
            };
            for (parcel, verdict) in batch.iter().zip(answered) {
                let Wanted { kind, name, .. } = parcel.object;
                match verdict {
                    Verdict::Applied {
                        change: api::apply_response::Change::Changed,
                        ..
                    } => {
                        add_secret(found, parcel.object);
                    }
                    Verdict::Applied { .. } => {}
                    Verdict::Refused(failure) => session.output.note(&format!(
                        "the value of {kind} \"{name}\" was not compared: {}",
                        failure.message()
                    ))?,
                }
            }
        }
        Ok(())
    }
}

fn as_wanted(kind: Kind, object: api::Object) -> Result<Wanted> {
    let metadata = object.metadata.unwrap_or_default();
    let spec = ObjectSpec::from_json(kind, &object.spec).map_err(|error| {
        let name = &metadata.name;
        let message = format!("the {kind} \"{name}\" has fields that this program does not know");
        Failure::new(Reason::NotSupported, message)
            .at(error.to_string())
            .hint("use the tidegate of the cluster's version")
    })?;
    Ok(Wanted::of_cluster(
        kind,
        metadata.name,
        metadata.labels.into_iter().collect(),
        spec,
    ))
}

const fn side(object: &Wanted) -> Side<'_> {
    Side {
        labels: &object.labels,
        spec: &object.spec,
    }
}

fn new<T: Serialize>(path: &str, value: &T) -> Difference {
    Difference {
        path: path.to_owned(),
        old: None,
        new: serde_json::to_value(value).ok(),
    }
}

/// Takes values out of what is told of a parameter that is, or was, a secret.
fn withhold(difference: &mut Difference) {
    let withheld = || Value::from(WITHHELD);
    for side in [&mut difference.old, &mut difference.new] {
        match side {
            Some(value) if difference.path == "spec.value" => *value = withheld(),
            Some(Value::Object(fields)) if difference.path == "spec" => {
                fields.remove("sealed");
                if let Some(value) = fields.get_mut("value") {
                    *value = withheld();
                }
            }
            Some(_) | None => {}
        }
    }
}

fn add_secret(found: &mut Vec<Differing>, object: &Wanted) {
    let field = Field {
        path: "spec.value".to_owned(),
        old: Some(Value::from(WITHHELD)),
        new: Some(Value::from("(another secret)")),
    };
    let known = found
        .iter_mut()
        .find(|one| one.kind == object.kind && one.name == object.name);
    match known {
        Some(one) => one.fields.push(field),
        None => found.push(Differing {
            kind: object.kind,
            name: object.name.clone(),
            place: object.place.clone(),
            change: "changed",
            fields: vec![field],
        }),
    }
}

fn tell(output: Output, found: &[Differing], total: usize) -> Result<()> {
    if !output.is_for_people() {
        return output.emit(&found, |_| String::new());
    }
    for one in found {
        output.text(&told(output, one))?;
    }
    let what = if total == 1 { "object" } else { "objects" };
    output.line(&format!("{} of {total} {what} differ", found.len()))
}

fn told(output: Output, one: &Differing) -> String {
    let tone = if one.change == "created" {
        Tone::Good
    } else {
        Tone::Busy
    };
    let head = format!("{} \"{}\"", one.kind, one.name);
    let mut text = format!(
        "{} {} ({})\n",
        output.paint(Tone::Strong, &head),
        output.paint(tone, &format!("would be {}", one.change)),
        one.place
    );
    for field in &one.fields {
        let path = &field.path;
        match (&field.old, &field.new) {
            (Some(old), Some(new)) => {
                let (old, new) = (word(old), word(new));
                let old = output.paint(Tone::Bad, &old);
                let new = output.paint(Tone::Good, &new);
                text.push_str(&format!("  ~ {path}: {old} → {new}\n"));
            }
            (None, Some(new)) => lines(output, Tone::Good, '+', path, new, &mut text),
            (Some(old), None) => lines(output, Tone::Bad, '-', path, old, &mut text),
            (None, None) => {}
        }
    }
    text
}

/// Every value within a value, each in a line.
fn lines(output: Output, tone: Tone, sign: char, path: &str, value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, inner) in fields {
                lines(output, tone, sign, &format!("{path}.{name}"), inner, text);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (position, inner) in items.iter().enumerate() {
                let path = format!("{path}[{position}]");
                lines(output, tone, sign, &path, inner, text);
            }
        }
        other => {
            let line = format!("{sign} {path}: {}", word(other));
            text.push_str(&format!("  {}\n", output.paint(tone, &line)));
        }
    }
}

/// A value in one line.
fn word(value: &Value) -> String {
    match value {
        Value::String(text) => {
            let plain = !text.is_empty() && !text.contains(|c: char| c.is_control());
            if plain {
                text.clone()
            } else {
                value.to_string()
            }
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    fn wanted(kind: Kind, name: &str, json: &str) -> Wanted {
        let object = api::Object {
            kind: kind.to_string(),
            metadata: Some(api::Metadata {
                name: name.to_owned(),
                ..api::Metadata::default()
            }),
            spec: json.to_owned(),
            status: String::new(),
        };
        as_wanted(kind, object).unwrap()
    }

    fn text(present: &[Wanted], wanted: &Wanted) -> String {
        let present = present
            .iter()
            .map(|object| ((object.kind, object.name.clone()), object.clone()));
        let found = Present(present.collect()).differs(wanted).unwrap();
        found.map_or_else(String::new, |one| told(Output::plain(Format::Table), &one))
    }

    #[test]
    fn what_differs_is_told_field_by_field() {
        let old =
            r#"{"application": "web", "environment": "prod", "port": 80, "agents": "role=web"}"#;
        let present = wanted(Kind::Scope, "web", old);
        let new = old.replace("80,", "81, \"sticky\": {\"cookie\": \"a\"},");
        assert_eq!(
            text(
                std::slice::from_ref(&present),
                &wanted(Kind::Scope, "web", &new)
            ),
            "scope \"web\" would be changed (the cluster)\n  ~ spec.port: 80 → 81\n  + spec.sticky.cookie: a\n"
        );
        assert_eq!(text(std::slice::from_ref(&present), &present), "");
        assert_eq!(
            text(&[], &present),
            "scope \"web\" would be created (the cluster)\n  + spec.agents: role=web\n  + spec.application: web\n  + spec.environment: prod\n  + spec.port: 80\n"
        );
    }

    #[test]
    fn a_value_that_becomes_a_secret_is_not_told() {
        let plain = r#"{"variable": "A", "value": "hunter2", "target": {"scope": "s"}}"#;
        let secret = r#"{"variable": "A", "kind": "secret", "target": {"scope": "s"}}"#;
        let (plain, secret) = (
            wanted(Kind::Parameter, "a", plain),
            wanted(Kind::Parameter, "a", secret),
        );
        for (old, new) in [(&plain, &secret), (&secret, &plain)] {
            let told = text(std::slice::from_ref(old), new);
            assert!(told.contains("spec.kind"), "{told}");
            assert!(!told.contains("hunter2"), "{told}");
        }
    }
}
