//! What the objects of manifests have in common on the command line: list, get, create, update,
//! delete. Each kind's own file says which flags describe it.

use clap::{Args, Subcommand};
use serde_json::{Map, Value};
use std::path::PathBuf;
use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::secret::Secret;
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{Kind, ObjectSpec};

use super::RevisionArgs;
use crate::errors::{Failure, Result};
use crate::output::{Output, Table, Tone, dash, pairs};
use crate::session::Session;
use crate::{entropy, manifest, rpc, session, time};

/// Flags that describe an object of one kind.
pub trait SpecFlags: Args {
    /// The kind.
    const KIND: Kind;

    /// Puts what was given into a spec, which holds the present one on update.
    ///
    /// # Errors
    /// A flag that cannot be understood; names it.
    fn fill(&self, spec: &mut Map<String, Value>) -> Result<()>;

    /// The value that does not stand in the spec.
    ///
    /// # Errors
    /// It cannot be read.
    fn secret(&self, _name: &str) -> Result<Option<Secret>> {
        Ok(None)
    }
}

/// The verbs of a kind.
#[derive(Debug, Subcommand)]
pub enum ObjectCommand<F: SpecFlags> {
    /// List them
    List(ListArgs),
    /// Show one
    Get(NameArgs),
    /// Make a new one from flags or a manifest
    Create(DescribeArgs<F>),
    /// Change what the flags name, or all of it by a manifest
    Update(DescribeArgs<F>),
    /// Delete one that nothing refers to
    Delete(DeleteObjectArgs),
}

/// Which ones to list.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those with these labels: key=value, key!=value, key in (a,b)
    #[arg(short = 'l', long, default_value = "", value_name = "SELECTOR")]
    pub selector: String,
}

/// Which one.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// Its name
    pub name: String,
}

/// What to delete.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Its name
    pub name: String,
    /// At which revision.
    #[command(flatten)]
    pub expected: RevisionArgs,
}

/// What to delete, and whether to.
#[derive(Debug, Args)]
pub struct DeleteObjectArgs {
    /// What to delete.
    #[command(flatten)]
    pub object: DeleteArgs,
    /// Only check; change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// What to create or change.
#[derive(Debug, Args)]
pub struct DescribeArgs<F: SpecFlags> {
    /// Its name; left out with --file
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub name: Option<String>,
    /// Manifest to read instead of flags; - is standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Labels
    #[arg(long = "label", value_name = "K=V")]
    pub labels: Vec<String>,
    /// At which revision.
    #[command(flatten)]
    pub expected: RevisionArgs,
    /// Only check; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// What describes it.
    #[command(flatten)]
    pub flags: F,
}

/// What is to be sent.
pub struct Change {
    /// Kind of the object.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Its spec.
    pub spec: ObjectSpec,
    /// The value of a secret parameter; none: it stays.
    pub secret: Option<Secret>,
    /// 0: any.
    pub revision: u64,
    /// Only check.
    pub dry_run: bool,
    /// Refuse if it is there.
    pub must_not_exist: bool,
}

impl<F: SpecFlags> ObjectCommand<F> {
    /// Does it.
    ///
    /// # Errors
    /// The cluster's, or a wrong flag.
    pub async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::List(args) => list(session, F::KIND, &args.selector).await,
            Self::Get(args) => get(session, F::KIND, &args.name).await,
            Self::Create(args) => describe(session, args, true).await,
            Self::Update(args) => describe(session, args, false).await,
            Self::Delete(args) => delete(session, F::KIND, &args).await,
        }
    }
}

/// Lists the objects of a kind.
///
/// # Errors
/// The cluster's.
pub async fn list(session: &Session, kind: Kind, selector: &str) -> Result<()> {
    let objects = session.objects(Some(kind), selector).await?;
    let answer = api::ListObjectsResponse {
        objects,
        next_page_token: String::new(),
    };
    session.output.emit(&answer, |wide| {
        let empty = if selector.is_empty() {
            format!("No {kind} yet. Create one with `tidegate {kind} create`, or from manifests with `tidegate apply -f`.")
        } else {
            format!("No {kind} matches \"{selector}\".")
        };
        table(session.output, kind, &answer.objects, wide).render(session.output, &empty)
    })
}

fn table(output: Output, kind: Kind, objects: &[api::Object], wide: bool) -> Table {
    let mut headings = vec!["NAME"];
    headings.extend(columns(kind).iter().map(|(heading, _)| *heading));
    headings.extend(["REVISION", "AGE"]);
    if wide {
        headings.extend(["LABELS", "BY"]);
    }
    let mut table = Table::new(&headings);
    let now = time::now_ms();
    for object in objects {
        let metadata = object.metadata.clone().unwrap_or_default();
        let spec: Value = serde_json::from_str(&object.spec).unwrap_or(Value::Null);
        let mut cells = vec![(Tone::Strong, metadata.name)];
        for (_, path) in columns(kind) {
            cells.push(if *path == "status" {
                (scope_tone(&object.status), dash(&object.status).to_owned())
            } else {
                (Tone::Plain, cell(&spec, path))
            });
        }
        cells.push((Tone::Plain, metadata.revision.to_string()));
        let age = time::age(metadata.created_at_ms, now);
        cells.push((Tone::Faint, age));
        if wide {
            cells.push((Tone::Plain, pairs(&metadata.labels)));
            cells.push((Tone::Plain, dash(&metadata.created_by).to_owned()));
        }
        table.toned(cells);
    }
    debug_assert!(output.is_for_people());
    table
}

/// Colour of a scope's status.
pub fn scope_tone(status: &str) -> Tone {
    match status {
        "ready" => Tone::Good,
        "creating" | "stopping" => Tone::Busy,
        "stopped" | "deleted" => Tone::Faint,
        _ => Tone::Plain,
    }
}

/// Columns of a kind between name and revision: heading and path in the spec.
const fn columns(kind: Kind) -> &'static [(&'static str, &'static str)] {
    match kind {
        Kind::Application => &[("DESCRIPTION", "description")],
        Kind::Environment => &[("TIER", "tier"), ("DESCRIPTION", "description")],
        Kind::Strategy => &[
            ("KIND", "kind"),
            ("STEPS", "traffic.steps"),
            ("BAKE", "bake"),
            ("RULES", "rollback.rules"),
        ],
        Kind::Scope => &[
            ("STATUS", "status"),
            ("APPLICATION", "application"),
            ("ENVIRONMENT", "environment"),
            ("PORT", "port"),
            ("AGENTS", "agents"),
        ],
        Kind::Policy => &[
            ("ENABLED", "enabled"),
            ("SELECTOR", "selector"),
            ("APPROVALS", "approval.required"),
        ],
        Kind::Parameter => &[
            ("VARIABLE", "variable"),
            ("VALUE", "value"),
            ("TARGET", "target"),
        ],
        Kind::Team => &[("MEMBERS", "members"), ("DESCRIPTION", "description")],
        Kind::RoleBinding => &[
            ("ROLE", "role"),
            ("USERS", "users"),
            ("TEAMS", "teams"),
            ("WHERE", "selector"),
        ],
    }
}

fn cell(spec: &Value, path: &str) -> String {
    let mut value = spec;
    for part in path.split('.') {
        value = value.get(part).unwrap_or(&Value::Null);
    }
    let text = match value {
        Value::Null => String::new(),
        // A file's lines would break the table.
        Value::String(text) => text.replace(char::is_control, " "),
        Value::Array(items) if path.ends_with("steps") => items
            .iter()
            .map(|step| {
                step.get("percent")
                    .map(Value::to_string)
                    .unwrap_or_default()
            })
            .collect::<Vec<_>>()
            .join("→"),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let words: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            words.join(",")
        }
        Value::Array(items) => items.len().to_string(),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| match value {
                Value::String(text) => format!("{key}={text}"),
                other => format!("{key}={other}"),
            })
            .collect::<Vec<_>>()
            .join(","),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    };
    let shortened: String = text.chars().take(40).collect();
    let cut = if shortened.len() < text.len() {
        "…"
    } else {
        ""
    };
    dash(&format!("{shortened}{cut}")).to_owned()
}

/// The object as it stands.
///
/// # Errors
/// It is not there; suggests the name that may be meant.
pub async fn fetch(session: &Session, kind: Kind, name: &str) -> Result<api::Object> {
    let client = session.client().await?;
    let request = api::GetObjectRequest {
        kind: kind.to_string(),
        name: name.to_owned(),
    };
    match rpc!(client, objects_client::ObjectsClient, get, request).await {
        Ok(object) => Ok(object),
        Err(failure) => Err(session.suggest(failure, &[(kind, name)]).await),
    }
}

async fn get(session: &Session, kind: Kind, name: &str) -> Result<()> {
    let object = fetch(session, kind, name).await?;
    let manifest = crate::commands::export::manifest_of(&object)?;
    session.output.emit(&object, |_| {
        let metadata = object.metadata.clone().unwrap_or_default();
        format!(
            "# revision {}, created {} by {}\n{manifest}",
            metadata.revision,
            time::stamp(metadata.created_at_ms),
            dash(&metadata.created_by),
        )
    })
}

async fn delete(session: &Session, kind: Kind, args: &DeleteObjectArgs) -> Result<()> {
    let client = session.client().await?;
    let name = &args.object.name;
    let request = api::DeleteObjectRequest {
        request_id: entropy::request_id()?.to_string(),
        expected_revision: args.object.expected.revision,
        kind: kind.to_string(),
        name: name.clone(),
        dry_run: args.dry_run,
    };
    match rpc!(client, objects_client::ObjectsClient, delete, request).await {
        Ok(answer) => session.output.emit(&answer, |_| {
            format!("{kind} \"{name}\" deleted{}\n", dry_word(args.dry_run))
        }),
        Err(failure) => Err(session.suggest(failure, &[(kind, name)]).await),
    }
}

/// Creates or updates by flags or a manifest.
///
/// # Errors
/// A wrong flag or manifest, or the cluster's.
pub async fn describe<F: SpecFlags>(
    session: &Session,
    args: DescribeArgs<F>,
    must_not_exist: bool,
) -> Result<()> {
    let kind = F::KIND;
    let (change, described) = match &args.file {
        Some(file) => {
            let object = one_of(kind, file)?;
            (
                from_file(object.clone(), &args, must_not_exist)?,
                Some(object),
            )
        }
        None => (from_flags(session, &args, must_not_exist).await?, None),
    };
    let (kind, name) = (change.kind, change.name.clone());
    match apply(session, change).await {
        Ok(answer) => session.output.emit(&answer, |_| {
            format!(
                "{kind} \"{name}\" {}{}\n",
                change_word(answer.change()),
                dry_word(args.dry_run)
            )
        }),
        Err(failure) => {
            let place = |field: &str| described.as_ref()?.locate(field);
            Err(suggest_references(session, failure.locate(place), kind, &name).await)
        }
    }
}

/// "Did you mean" for the objects that a spec refers to cannot be told apart from its own name,
/// so only the own name of an update is looked up.
async fn suggest_references(
    session: &Session,
    failure: Failure,
    kind: Kind,
    name: &str,
) -> Failure {
    if failure.message().contains(&format!("\"{name}\"")) {
        return session.suggest(failure, &[(kind, name)]).await;
    }
    failure
}

/// The one object that a file describes.
fn one_of(kind: Kind, file: &std::path::Path) -> Result<manifest::Wanted> {
    let mut wanted = manifest::load(&[file.to_owned()])?;
    let (Some(object), true) = (wanted.pop(), wanted.is_empty()) else {
        return Err(Failure::new(
            Reason::MalformedFile,
            format!("{} describes more than one object", file.display()),
        )
        .hint("use `tidegate apply -f` for several objects at once"));
    };
    if object.kind != kind {
        return Err(Failure::new(
            Reason::MalformedFile,
            format!("{} describes a {}, not a {kind}", object.place, object.kind),
        )
        .hint(format!(
            "use `tidegate {} create -f {}`",
            object.kind,
            file.display()
        )));
    }
    Ok(object)
}

fn from_file<F: SpecFlags>(
    object: manifest::Wanted,
    args: &DescribeArgs<F>,
    must_not_exist: bool,
) -> Result<Change> {
    let mut labels = object.labels;
    labels.extend(session::pairs("--label", &args.labels, true)?);
    Ok(Change {
        kind: object.kind,
        name: object.name,
        labels,
        spec: object.spec,
        secret: object.secret,
        revision: args.expected.revision,
        dry_run: args.dry_run,
        must_not_exist,
    })
}

async fn from_flags<F: SpecFlags>(
    session: &Session,
    args: &DescribeArgs<F>,
    must_not_exist: bool,
) -> Result<Change> {
    let kind = F::KIND;
    let name = args.name.clone().unwrap_or_default();
    Name::new(name.clone()).map_err(|error| {
        Failure::new(
            Reason::InvalidField,
            format!("a {kind} cannot be called so: {error}"),
        )
    })?;
    let (mut labels, mut spec, revision) = if must_not_exist {
        (Labels::new(), Map::new(), args.expected.revision)
    } else {
        let present = fetch(session, kind, &name).await?;
        let metadata = present.metadata.unwrap_or_default();
        let spec = serde_json::from_str(&present.spec).unwrap_or_default();
        // What was read must be what is changed, or the flags would undo another change.
        let revision = if args.expected.revision == 0 {
            metadata.revision
        } else {
            args.expected.revision
        };
        (metadata.labels.into_iter().collect(), spec, revision)
    };
    labels.extend(session::pairs("--label", &args.labels, true)?);
    args.flags.fill(&mut spec)?;
    let text = Value::Object(spec).to_string();
    let spec = ObjectSpec::from_json(kind, &text).map_err(|error| {
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        let (state, hint) = match message.strip_prefix("missing field `") {
            Some(rest) => {
                let flag = rest.trim_end_matches('`').replace('_', "-");
                ("not complete", format!("say --{flag}"))
            }
            None => ("wrong", format!("see `tidegate {kind} create --help`")),
        };
        Failure::new(
            Reason::InvalidField,
            format!("the {kind} \"{name}\" is {state}: {message}"),
        )
        .hint(hint)
    })?;
    let errors = spec.validate();
    if !errors.0.is_empty() {
        let failure = Failure::new(
            Reason::InvalidField,
            format!("the {kind} \"{name}\" is not sound; nothing was changed"),
        );
        return Err(errors.0.iter().fold(failure, |failure, error| {
            failure.at(format!("spec.{}: {}", error.field, error.message))
        }));
    }
    Ok(Change {
        kind,
        secret: args.flags.secret(&name)?,
        name,
        labels,
        spec,
        revision,
        dry_run: args.dry_run,
        must_not_exist,
    })
}

/// Sends one change.
///
/// # Errors
/// The cluster's.
pub async fn apply(session: &Session, change: Change) -> Result<api::ApplyResponse> {
    let client = session.client().await?;
    let spec = change
        .spec
        .to_json()
        .map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
    let request = api::ApplyRequest {
        request_id: entropy::request_id()?.to_string(),
        expected_revision: change.revision,
        kind: change.kind.to_string(),
        name: change.name,
        labels: change.labels.into_iter().collect(),
        spec,
        dry_run: change.dry_run,
        must_not_exist: change.must_not_exist,
        secret: change.secret.map(|secret| api::SecretValue {
            text: secret.expose().to_owned(),
        }),
    };
    rpc!(client, objects_client::ObjectsClient, apply, request).await
}

/// Follows what would have happened.
pub const fn dry_word(dry_run: bool) -> &'static str {
    if dry_run {
        " (dry run, nothing was changed)"
    } else {
        ""
    }
}

/// What happened to an object, in one word.
pub const fn change_word(change: api::apply_response::Change) -> &'static str {
    match change {
        api::apply_response::Change::Created => "created",
        api::apply_response::Change::Changed => "changed",
        api::apply_response::Change::Unchanged => "unchanged",
        api::apply_response::Change::Deleted => "deleted",
        api::apply_response::Change::Unspecified => "applied",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn scopes_are_listed_with_what_matters() {
        let object = api::Object {
            kind: "scope".to_owned(),
            metadata: Some(api::Metadata {
                name: "web-prod".to_owned(),
                labels: [("team".to_owned(), "shop".to_owned())].into(),
                created_at_ms: time::now_ms() - 7_300_000,
                created_by: "admin".to_owned(),
                revision: 7,
            }),
            spec: r#"{"application":"web","environment":"production","port":8080,"agents":"role=web"}"#
                .to_owned(),
            status: "ready".to_owned(),
        };
        let output = Output::plain(Format::Table);
        let objects = [object];
        assert_eq!(
            table(output, Kind::Scope, &objects, true).render(output, ""),
            "NAME      STATUS  APPLICATION  ENVIRONMENT  PORT  AGENTS    REVISION  AGE   LABELS     BY\n\
             web-prod  ready   web          production   8080  role=web  7         2h1m  team=shop  admin\n"
        );
    }

    #[test]
    fn steps_of_a_strategy_are_told_in_a_row() {
        let spec: Value =
            serde_json::from_str(r#"{"traffic":{"steps":[{"percent":10},{"percent":100}]}}"#)
                .unwrap();
        assert_eq!(cell(&spec, "traffic.steps"), "10→100");
        assert_eq!(cell(&spec, "bake"), "-");
    }
}
