//! `tidegate export`: objects as the manifests that `apply` reads.

use clap::Args;
use serde_json::{Map, Value};
use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;
use tidegate_shared::spec::Kind;

use super::objects;
use crate::errors::{Failure, Result};
use crate::names;
use crate::output::{Format, to_json};
use crate::session::Session;

/// Stands before a secret, whose value is not told.
const WITHHELD_NOTE: &str = "# The value is withheld: it stays as it is. Where there is none yet, say value_from with env or file instead.\n";

/// What to export.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate export > cluster.yaml        everything, in the order that apply wants\n  tidegate export scope                 all scopes\n  tidegate export strategy careful      one object\n  tidegate export -l app=shop           everything with this label\n  tidegate export -o json | jq .\n\nThe value of a secret is exported as (secret): applied again it stays as it is; in another cluster\napply refuses it and says so."
)]
pub struct ExportArgs {
    /// application, environment, strategy, scope, policy, parameter, team or role_binding; none: all
    kind: Option<String>,
    /// One object of the kind
    name: Option<String>,
    /// Only those with these labels
    #[arg(short = 'l', long, default_value = "", value_name = "SELECTOR")]
    selector: String,
}

impl ExportArgs {
    /// Does it.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn run(self, session: &Session) -> Result<()> {
        let kind = self.kind.as_deref().map(parse_kind).transpose()?;
        let mut found = match (kind, &self.name) {
            (Some(kind), Some(name)) => vec![objects::fetch(session, kind, name).await?],
            (kind, _) => session.objects(kind, &self.selector).await?,
        };
        let order = |object: &api::Object| object.kind.parse::<Kind>().ok();
        found.sort_by(|one, other| {
            let name = |object: &api::Object| object.metadata.as_ref().map(|m| m.name.clone());
            (order(one), name(one)).cmp(&(order(other), name(other)))
        });
        if session.output.format == Format::Json {
            let values = found.iter().map(value_of).collect::<Result<Vec<_>>>()?;
            return session.output.text(&to_json(&values)?);
        }
        let documents = found.iter().map(manifest_of).collect::<Result<Vec<_>>>()?;
        session.output.text(&documents.join("---\n"))
    }
}

/// A kind by its word; plurals are understood.
///
/// # Errors
/// Suggests the kind that may be meant.
pub fn parse_kind(word: &str) -> Result<Kind> {
    let singular = match word.strip_suffix("ies") {
        Some(stem) => format!("{stem}y"),
        None => word.trim_end_matches('s').to_owned(),
    };
    singular.parse().map_err(|message: String| {
        let near = names::nearest(&singular, Kind::ALL.iter().map(|kind| kind.as_str()));
        let failure = Failure::usage(message);
        match near {
            Some(near) => failure.hint(format!("did you mean {near}?")),
            None => failure,
        }
    })
}

fn value_of(object: &api::Object) -> Result<Value> {
    let metadata = object.metadata.clone().unwrap_or_default();
    let spec: Value = serde_json::from_str(&object.spec)
        .map_err(|error| Failure::new(Reason::Internal, format!("a spec is no JSON: {error}")))?;
    let mut fields = Map::new();
    fields.insert("kind".to_owned(), Value::from(object.kind.clone()));
    fields.insert("name".to_owned(), Value::from(metadata.name));
    if !metadata.labels.is_empty() {
        let mut labels: Vec<_> = metadata.labels.into_iter().collect();
        labels.sort();
        let labels = labels.into_iter().map(|(k, v)| (k, Value::from(v)));
        fields.insert("labels".to_owned(), Value::Object(labels.collect()));
    }
    fields.insert("spec".to_owned(), spec);
    Ok(Value::Object(fields))
}

/// An object as a YAML document.
///
/// # Errors
/// A bug of ours.
pub fn manifest_of(object: &api::Object) -> Result<String> {
    // serde_json sorts the fields of an object; a manifest starts with what it is.
    let Value::Object(mut fields) = value_of(object)? else {
        return Ok(String::new());
    };
    let mut text = String::new();
    if fields["kind"] == "parameter" && fields["spec"]["kind"] == "secret" {
        text.push_str(WITHHELD_NOTE);
    }
    for name in ["kind", "name", "labels", "spec"] {
        if let Some(value) = fields.remove(name) {
            let one = Map::from_iter([(name.to_owned(), value)]);
            let yaml = serde_saphyr::to_string(&Value::Object(one))
                .map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
            text.push_str(yaml.trim_end());
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exported_objects_read_back() {
        let object = api::Object {
            kind: "strategy".to_owned(),
            metadata: Some(api::Metadata {
                name: "careful".to_owned(),
                labels: [("team".to_owned(), "shop".to_owned())].into(),
                ..api::Metadata::default()
            }),
            spec: r#"{"traffic":{"steps":[{"percent":12.5,"hold":"30s"},{"percent":100,"hold":"manual"}]}}"#.to_owned(),
            status: String::new(),
        };
        let text = manifest_of(&object).unwrap();
        assert!(
            text.starts_with("kind: strategy\nname: careful\nlabels:\n  team: shop\nspec:\n"),
            "{text}"
        );
        let wanted = read_back(&text);
        let tidegate_shared::spec::ObjectSpec::Strategy(spec) = &wanted[0].spec else {
            panic!("a strategy was written");
        };
        assert_eq!(spec.resolve().steps[0].weight.basis_points(), 1_250);
    }

    fn read_back(text: &str) -> Vec<crate::manifest::Wanted> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.yaml");
        std::fs::write(&path, text).unwrap();
        crate::manifest::load(&[path]).unwrap()
    }

    #[test]
    fn a_secret_is_marked() {
        let object = api::Object {
            kind: "parameter".to_owned(),
            metadata: Some(api::Metadata {
                name: "db".to_owned(),
                ..api::Metadata::default()
            }),
            spec: r#"{"variable":"DB","kind":"secret","value":"(secret)","target":{"scope":"s"}}"#
                .to_owned(),
            status: String::new(),
        };
        let text = manifest_of(&object).unwrap();
        assert!(text.starts_with("# The value is withheld"), "{text}");
        assert!(text.contains("value: (secret)"), "{text}");
        assert_eq!(read_back(&text)[0].secret, None);
    }

    #[test]
    fn kinds_are_understood_in_the_plural() {
        assert_eq!(parse_kind("policies").unwrap(), Kind::Policy);
        assert_eq!(parse_kind("scopes").unwrap(), Kind::Scope);
        assert!(
            parse_kind("scoop")
                .unwrap_err()
                .render(false)
                .contains("did you mean scope?")
        );
    }
}
