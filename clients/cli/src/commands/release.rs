//! `tidegate release`: makes a release from files, folders and addresses, and shows what is there.

mod asset;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr as _;

use clap::{Args, Subcommand};
use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{Name, Version};
use tidegate_shared::spec::{
    AssetKind, AssetSpec, HealthCheck, Hooks, HttpProbe, Kind, Limits, ReleaseSpec, RunSpec,
};

use crate::errors::{Failure, Result};
use crate::output::{Output, Table, Tone, bytes, dash, pairs, printable};
use crate::session::{self, Session};
use crate::upload::{self, Asset};
use crate::{entropy, manifest, names, pages, rpc, time};
use asset::Deliverable;

/// The verbs of a release.
#[derive(Debug, Subcommand)]
pub enum ReleaseCommand {
    /// Upload files and make a release of them
    Create(Box<CreateArgs>),
    /// List the releases of an application, newest first
    List(ListArgs),
    /// Show one
    Get(ReleaseArgs),
    /// Take it back for good: waiting deployments are cancelled, running ones roll back
    Reject(StatusArgs),
    /// Let deployments of it wait
    Pause(StatusArgs),
    /// Let deployments of it go on
    Resume(StatusArgs),
}

/// What a release is made of.
#[derive(Debug, Args)]
#[command(
    after_help = "In COMMAND and ARGS, ${PORT} stands for the port that the instance must listen on;\n${RELEASE_DIR}, ${INSTANCE_DIR} and ${INSTANCE} are known too. The port is in $PORT as well.\n\nExamples:\n  tidegate release create web 1.4.0 --asset dist.tar.gz --run './server --port ${PORT}'\n  tidegate release create web 1.4.0 --asset build/web,platform=linux/amd64 --health-http /healthz\n  tidegate release create site 7 --asset site.tar.gz --run 'python3 -m http.server ${PORT}'\n  tidegate release create web 1.5.0 --asset dist.tar.gz --run-file run.yaml"
)]
pub struct CreateArgs {
    /// Name of the application
    application: String,
    /// Its version: letters, digits and . _ + -
    version: String,
    /// File or folder to deliver (tar, tar.gz, tar.zst, zip, or one program; a folder is packed), with kind=archive|binary (default: by its content), platform=os/arch (default: any) and name=NAME
    #[arg(
        long = "asset",
        value_name = "FILE|FOLDER[,KEY=VALUE]",
        required_unless_present = "sources"
    )]
    assets: Vec<String>,
    /// Where agents fetch the asset instead of the built-in store: https://…, http://…, file:///… or store; several are tried in order. With --asset FILE nothing is uploaded unless one of them is store
    #[arg(long = "source", value_name = "ADDRESS")]
    sources: Vec<String>,
    /// Digest of the asset, with --source and no file at hand
    #[arg(long, value_name = "HEX", requires = "sources", requires = "size")]
    sha256: Option<String>,
    /// Bytes of the asset, with --source and no file at hand
    #[arg(long, value_name = "BYTES", requires = "sources", requires = "sha256")]
    size: Option<u64>,
    /// Command and arguments; default for a binary: the file itself
    #[arg(long, value_name = "COMMAND ARGS")]
    run: Option<String>,
    /// Read how it is run from a file (YAML or JSON): command, args, env, health_check, hooks, limits
    #[arg(long, value_name = "FILE", conflicts_with_all = ["run", "env", "health_http", "health_interval"])]
    run_file: Option<PathBuf>,
    /// Environment variable of the command
    #[arg(long = "env", value_name = "K=V")]
    env: Vec<String>,
    /// Path that answers 2xx when an instance is healthy
    #[arg(long, value_name = "PATH")]
    health_http: Option<String>,
    /// Time between health checks
    #[arg(long, value_name = "SPAN")]
    health_interval: Option<String>,
    /// Labels
    #[arg(long = "label", value_name = "K=V")]
    labels: Vec<String>,
    /// Default value of a parameter
    #[arg(long = "parameter", value_name = "K=V")]
    parameters: Vec<String>,
    /// For people
    #[arg(long, value_name = "TEXT", default_value = "")]
    notes: String,
}

/// Whose releases to list.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Name of the application
    application: String,
}

/// Which release.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// Name of the application
    application: String,
    /// Its version
    version: String,
}

/// Which release, and why.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Name of the application
    application: String,
    /// Its version
    version: String,
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

impl ReleaseCommand {
    /// Does it.
    ///
    /// # Errors
    /// A wrong flag or file, or the cluster's.
    pub async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::Create(args) => create(session, &args).await,
            Self::List(args) => list(session, &args.application).await,
            Self::Get(args) => get(session, &args).await,
            Self::Reject(args) => set_status(session, &args, "rejected").await,
            Self::Pause(args) => set_status(session, &args, "paused").await,
            Self::Resume(args) => set_status(session, &args, "ready").await,
        }
    }
}

/// Splits a command line as a shell does: quotes and backslashes, nothing more.
fn split_command(text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                let next = characters.next().ok_or_else(|| {
                    Failure::usage("--run: a backslash stands at the end of the command")
                })?;
                word.get_or_insert_default().push(next);
            }
            (None, _) if character.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    if let Some(open) = quote {
        return Err(Failure::usage(format!(
            "--run: a quote {open} is not closed"
        )));
    }
    words.extend(word);
    if words.is_empty() {
        return Err(Failure::usage("--run: the command is empty")
            .hint("for example --run './server --port ${PORT}'"));
    }
    Ok(words)
}

fn run_of(args: &CreateArgs, name: &Name, kind: AssetKind) -> Result<RunSpec> {
    if let Some(path) = &args.run_file {
        return manifest::run::load(path);
    }
    let words = match (&args.run, kind) {
        (Some(run), _) => split_command(run)?,
        // An agent gives the file the asset's name.
        (None, AssetKind::Binary) => vec![format!("./{name}")],
        (None, AssetKind::Archive) => {
            return Err(Failure::usage(
                "an archive needs --run: which command of it is to be run is not known",
            )
            .hint("for example --run './server --port ${PORT}'"));
        }
    };
    let mut words = words.into_iter();
    let health_check = match (&args.health_http, &args.health_interval) {
        (None, None) => None,
        (path, interval) => {
            let mut check = HealthCheck {
                http: path.as_ref().map(|path| HttpProbe {
                    path: path.clone(),
                    status: None,
                    body_contains: None,
                }),
                ..HealthCheck::default()
            };
            if let Some(interval) = interval {
                check.interval = interval
                    .parse()
                    .map_err(|error| Failure::usage(format!("--health-interval: {error}")))?;
            }
            Some(check)
        }
    };
    Ok(RunSpec {
        command: words.next().unwrap_or_default(),
        args: words.collect(),
        env: session::pairs("--env", &args.env, false)?,
        health_check,
        hooks: Hooks::default(),
        limits: Limits::default(),
        notify: false,
    })
}

async fn create(session: &Session, args: &CreateArgs) -> Result<()> {
    Name::new(args.application.clone())
        .map_err(|error| Failure::new(Reason::InvalidField, format!("application: {error}")))?;
    Version::from_str(&args.version)
        .map_err(|error| Failure::new(Reason::InvalidField, format!("version: {error}")))?;
    let labels = session::pairs("--label", &args.labels, true)?;
    let parameters = session::pairs("--parameter", &args.parameters, false)?;
    let deliverables = asset::gather(args)?;
    let mut files = Vec::new();
    let mut told = Vec::new();
    let mut spec = ReleaseSpec {
        assets: Vec::new(),
        parameters,
        notes: args.notes.clone(),
    };
    // Packed folders last as long as this does.
    let mut packed = Vec::new();
    for deliverable in deliverables {
        let run = run_of(args, &deliverable.name, deliverable.kind)?;
        let (sha256, size) = match &deliverable.content {
            asset::Content::Known { sha256, size } => (*sha256, *size),
            asset::Content::File(path) => {
                let measured = upload::measure(path).await?;
                let known = (measured.digest, measured.size);
                if deliverable.source.needs_store() {
                    files.push(measured);
                }
                known
            }
            asset::Content::Folder(path) => {
                let file = asset::pack(path.clone()).await?;
                let measured = upload::measure(file.path()).await?;
                let known = (measured.digest, measured.size);
                files.push(measured);
                packed.push(file);
                known
            }
        };
        told.push(format!("{} {}", sha256.short(), bytes(size)));
        let Deliverable {
            name,
            kind,
            platform,
            source,
            ..
        } = deliverable;
        spec.assets.push(AssetSpec {
            name,
            kind,
            platform,
            sha256,
            size,
            source,
            run,
        });
    }
    let release = publish(
        session,
        &args.application,
        &args.version,
        labels,
        &spec,
        &files,
    )
    .await?;
    session.output.emit(&release, |_| {
        format!(
            "release {} {} is {} ({})\nnext: tidegate deploy {} {} --scope SCOPE --wait\n",
            args.application,
            args.version,
            release.status,
            told.join(", "),
            args.application,
            args.version
        )
    })
}

/// Checks, uploads what the store lacks, and makes the release.
///
/// # Errors
/// The spec is not sound, or the cluster's refusal.
pub async fn publish(
    session: &Session,
    application: &str,
    version: &str,
    labels: BTreeMap<String, String>,
    spec: &ReleaseSpec,
    files: &[Asset],
) -> Result<api::Release> {
    let errors = spec.validate();
    if !errors.0.is_empty() {
        let failure = Failure::new(
            Reason::InvalidField,
            "the release is not sound; nothing was uploaded",
        );
        return Err(errors.0.iter().fold(failure, |failure, error| {
            failure.at(format!("{}: {}", error.field, error.message))
        }));
    }
    // A wrong application is told before anything is uploaded.
    super::objects::fetch(session, Kind::Application, application).await?;
    let client = session.client().await?;
    let request = api::BlobsRequest {
        sha256: files.iter().map(|file| file.digest.to_string()).collect(),
    };
    let present = rpc!(client, releases_client::ReleasesClient, blobs, request).await?;
    for file in files {
        let digest = file.digest.to_string();
        let held = present
            .blobs
            .iter()
            .any(|blob| blob.sha256 == digest && !blob.coordinators.is_empty());
        if !held {
            upload::send(client, file, !session.output.is_for_people()).await?;
        }
    }
    let request = api::CreateReleaseRequest {
        request_id: entropy::request_id()?.to_string(),
        application: application.to_owned(),
        version: version.to_owned(),
        labels: labels.into_iter().collect(),
        spec: serde_json::to_string(spec)
            .map_err(|error| Failure::new(Reason::Internal, error.to_string()))?,
    };
    rpc!(client, releases_client::ReleasesClient, create, request).await
}

async fn list(session: &Session, application: &str) -> Result<()> {
    let releases = all(session, application).await?;
    let answer = api::ListReleasesResponse {
        releases,
        next_page_token: String::new(),
    };
    session.output.emit(&answer, |wide| {
        let empty = format!(
            "No release of {application} yet. Make one with `tidegate release create {application} VERSION --asset FILE`."
        );
        table(&answer.releases, wide).render(session.output, &empty)
    })
}

/// Every release of an application.
///
/// # Errors
/// The cluster's; suggests the application that may be meant.
pub async fn all(session: &Session, application: &str) -> Result<Vec<api::Release>> {
    let client = session.client().await?;
    let releases = pages::gather(0, |page| {
        let request = api::ListReleasesRequest {
            application: application.to_owned(),
            page,
        };
        async move {
            let answer = rpc!(client, releases_client::ReleasesClient, list, request).await?;
            Ok((answer.releases, answer.next_page_token))
        }
    });
    let releases = match releases.await {
        Ok(releases) => releases,
        Err(failure) => {
            let given = [(Kind::Application, application)];
            return Err(session.suggest(failure, &given).await);
        }
    };
    if releases.is_empty() {
        // An unknown application must not look like one without releases.
        super::objects::fetch(session, Kind::Application, application).await?;
    }
    Ok(releases)
}

/// Adds "did you mean" for a version that is not there.
pub async fn suggest_version(
    session: &Session,
    failure: Failure,
    application: &str,
    version: &str,
) -> Failure {
    if !failure.is(Reason::NotFound) {
        return failure;
    }
    let releases = match all(session, application).await {
        Ok(releases) => releases,
        Err(other) => return other,
    };
    let versions: Vec<String> = releases
        .into_iter()
        .filter_map(|release| release.metadata.map(|metadata| metadata.name))
        .collect();
    if versions.iter().any(|found| found == version) {
        return failure;
    }
    failure.hint(
        match names::nearest(version, versions.iter().map(String::as_str)) {
            Some(near) => {
                format!("did you mean {near}? `tidegate release list {application}` shows all")
            }
            None => format!("`tidegate release list {application}` shows what is there"),
        },
    )
}

fn status_tone(status: &str) -> Tone {
    match status {
        "ready" => Tone::Good,
        "rejected" => Tone::Bad,
        _ => Tone::Busy,
    }
}

fn table(releases: &[api::Release], wide: bool) -> Table {
    let mut headings = vec!["VERSION", "STATUS", "ASSETS", "AGE", "NOTES"];
    if wide {
        headings.extend(["LABELS", "BY", "DIGEST"]);
    }
    let now = time::now_ms();
    let mut table = Table::new(&headings);
    for release in releases {
        let metadata = release.metadata.clone().unwrap_or_default();
        let spec: ReleaseSpec = serde_json::from_str(&release.spec).unwrap_or_default();
        let assets: Vec<_> = spec
            .assets
            .iter()
            .map(|asset| asset.name.to_string())
            .collect();
        let notes: String = spec
            .notes
            .lines()
            .next()
            .unwrap_or("")
            .chars()
            .take(50)
            .collect();
        let mut cells = vec![
            (Tone::Strong, metadata.name),
            (status_tone(&release.status), release.status.clone()),
            (Tone::Plain, dash(&assets.join(",")).to_owned()),
            (Tone::Faint, time::age(metadata.created_at_ms, now)),
            (Tone::Plain, dash(&notes).to_owned()),
        ];
        if wide {
            cells.extend([
                (Tone::Plain, pairs(&metadata.labels)),
                (Tone::Plain, dash(&metadata.created_by).to_owned()),
                (Tone::Faint, release.digest.chars().take(12).collect()),
            ]);
        }
        table.toned(cells);
    }
    table
}

async fn get(session: &Session, args: &ReleaseArgs) -> Result<()> {
    let client = session.client().await?;
    let request = api::GetReleaseRequest {
        application: args.application.clone(),
        version: args.version.clone(),
    };
    match rpc!(client, releases_client::ReleasesClient, get, request).await {
        Ok(release) => session
            .output
            .emit(&release, |_| page(session.output, &release)),
        Err(failure) => {
            Err(suggest_version(session, failure, &args.application, &args.version).await)
        }
    }
}

fn page(output: Output, release: &api::Release) -> String {
    let metadata = release.metadata.clone().unwrap_or_default();
    let spec: ReleaseSpec = serde_json::from_str(&release.spec).unwrap_or_default();
    let status = output.paint(status_tone(&release.status), &release.status);
    let mut text = String::new();
    let mut field = |name: &str, value: String| {
        text.push_str(&output.field(name, &value));
    };
    field(
        "release",
        format!(
            "{} {}  {status}",
            release.application,
            output.paint(Tone::Strong, &metadata.name)
        ),
    );
    field(
        "created",
        format!(
            "{} by {}",
            time::stamp(metadata.created_at_ms),
            dash(&printable(&metadata.created_by))
        ),
    );
    field("labels", pairs(&metadata.labels));
    field("digest", release.digest.clone());
    for asset in &spec.assets {
        field(
            "asset",
            format!(
                "{} ({}, {}, {})",
                asset.name,
                asset.kind.as_str(),
                printable(&asset.platform),
                bytes(asset.size)
            ),
        );
        field("  sha256", asset.sha256.to_string());
        field("  source", printable(&asset.source.to_string()));
        let run = std::iter::once(&asset.run.command).chain(&asset.run.args);
        field(
            "  run",
            printable(&run.cloned().collect::<Vec<_>>().join(" ")),
        );
    }
    for (name, value) in &spec.parameters {
        field("parameter", printable(&format!("{name}={value}")));
    }
    if !spec.notes.is_empty() {
        field("notes", printable(&spec.notes));
    }
    text
}

async fn set_status(session: &Session, args: &StatusArgs, status: &str) -> Result<()> {
    let client = session.client().await?;
    let request = api::SetReleaseStatusRequest {
        request_id: entropy::request_id()?.to_string(),
        expected_revision: 0,
        application: args.application.clone(),
        version: args.version.clone(),
        status: status.to_owned(),
        reason: args.reason.clone(),
    };
    match rpc!(client, releases_client::ReleasesClient, set_status, request).await {
        Ok(release) => session.output.emit(&release, |_| {
            format!(
                "release {} {} is {}\n",
                args.application, args.version, release.status
            )
        }),
        Err(failure) => {
            Err(suggest_version(session, failure, &args.application, &args.version).await)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_split_like_in_a_shell() {
        let words = split_command(r#"./run  --a 'b c' "d \" e" f\ g '' ${PORT}"#).unwrap();
        assert_eq!(
            words,
            ["./run", "--a", "b c", "d \" e", "f g", "", "${PORT}"]
        );
        assert!(
            split_command("a 'b")
                .unwrap_err()
                .message()
                .contains("not closed")
        );
        assert!(split_command("  ").unwrap_err().message().contains("empty"));
    }
}
