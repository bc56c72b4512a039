//! `tidegate dev`: a whole cluster of real processes on this machine, and the demo on it.
//!
//! Nothing here is a stand-in: the coordinators and agents are the ordinary programs, found beside
//! this one, joined by tokens and certificates as everywhere else. Everything that is written
//! stands in one folder, and every process that was started ends with this one.

pub mod app;
mod cluster;
mod demo;
mod load;
mod package;
pub mod process;
mod story;

use std::path::{Path, PathBuf};

use clap::Args;
use tidegate_shared::error::Reason;
use tidegate_shared::spec::Kind;
use tokio::signal::unix::{SignalKind, signal};

use crate::errors::{Failure, Result};
use crate::output::Tone;
use crate::session::Session;
use crate::{context, entropy};
use cluster::{Cluster, Plan};

/// How large the cluster is and where it lives.
#[derive(Debug, Args)]
#[command(
    after_help = "With --demo: publishes version 1 of a built-in application, then version 2 with the traffic moving\n10 → 50 → 100 % under real HTTP load, then version 3, which fails a fifth of its requests and is\ntaken back by itself. Exit status 0 only if every step went as it should.\n\nWithout --demo: stays up until Ctrl-C and prints commands to try.\n\nWithout --dir everything is written to a fresh folder under the temporary folder and removed at\nthe end (kept when something went wrong, for its logs). With --dir it is kept, and the same\ncommand goes on with it later. Coordinators listen on 127.0.0.1 on free ports; agent N has the\naddress 127.0.1.N for its proxy (127.0.2.N for a second cluster, and so on)."
)]
pub struct DevArgs {
    /// Play the demo and end
    #[arg(long)]
    demo: bool,
    /// How many coordinators: 1 to 7
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=7))]
    coordinators: u8,
    /// How many agents: 1 to 50
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=50))]
    agents: u8,
    /// Folder for everything that is written
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Starts the cluster, plays or waits, stops everything.
///
/// # Errors
/// A program is missing, a process does not start, or the demo does not go as it should.
pub async fn run(args: DevArgs, session: &Session) -> Result<u8> {
    let (dir, keep) = folder(args.dir.as_deref())?;
    if args.demo && dir.join(cluster::PLAN_FILE).exists() {
        return Err(Failure::new(
            Reason::DataFolder,
            format!(
                "{} holds a cluster already; the demo starts with a fresh one",
                dir.display()
            ),
        )
        .hint("give another --dir, or none"));
    }
    let plan = Plan::find_or_make(&dir, args.coordinators, args.agents)?;
    let mut cluster = Cluster::new(dir.clone(), plan, session.output)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| internal(&error))?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(|error| internal(&error))?;
    let outcome = tokio::select! {
        outcome = play(&args, &mut cluster, session) => outcome,
        _ = tokio::signal::ctrl_c() => interrupted(session, "Ctrl-C"),
        _ = terminate.recv() => interrupted(session, "SIGTERM"),
        _ = hang_up.recv() => interrupted(session, "SIGHUP"),
    };
    cluster.stop().await;
    let failed = !matches!(outcome, Ok(0 | 130));
    if keep {
        note(session, &format!("everything is kept in {}", dir.display()));
    } else if failed {
        note(
            session,
            &format!("the logs are kept in {}", dir.join("logs").display()),
        );
    } else if let Err(error) = std::fs::remove_dir_all(&dir) {
        return Err(Failure::file(Reason::DataFolder, &dir, "removed", &error));
    }
    outcome
}

async fn play(args: &DevArgs, cluster: &mut Cluster, session: &Session) -> Result<u8> {
    if args.demo {
        return demo::play(cluster, session.output).await;
    }
    cluster.start().await?;
    let text = guide(cluster, session).await?;
    session.output.text(&text)?;
    // Ends by a signal, or when a process ends again and again.
    Err(cluster.supervise().await)
}

fn interrupted(session: &Session, by: &str) -> Result<u8> {
    note(session, &format!("\nstopping everything ({by})"));
    Ok(130)
}

/// A remark that must not keep the processes from being stopped when the output is closed.
fn note(session: &Session, line: &str) {
    session.output.note(line).ok();
}

fn internal(error: &std::io::Error) -> Failure {
    Failure::new(Reason::Internal, error.to_string())
}

/// The folder, and whether it is kept.
fn folder(given: Option<&Path>) -> Result<(PathBuf, bool)> {
    let (dir, keep) = match given {
        Some(dir) => (dir.to_owned(), true),
        None => {
            let name = format!("tidegate-dev-{}", entropy::suffix()?);
            (std::env::temp_dir().join(name), false)
        }
    };
    context::make_folder(&dir)?;
    let dir = dir
        .canonicalize()
        .map_err(|error| Failure::file(Reason::DataFolder, &dir, "used", &error))?;
    // Unix sockets of the proxies have short paths.
    if dir.as_os_str().len() > 60 {
        return Err(Failure::new(
            Reason::DataFolder,
            format!(
                "the path {} is too long for the sockets in it",
                dir.display()
            ),
        )
        .hint("give --dir a path of at most 60 characters"));
    }
    Ok((dir, keep))
}

/// What to try, as commands that work when they are pasted.
async fn guide(cluster: &Cluster, session: &Session) -> Result<String> {
    let program = own_program()?;
    let scopes = cluster.session().objects(Some(Kind::Scope), "").await?;
    let tidegate = if is_on_path(&program) {
        "tidegate".to_owned()
    } else {
        program.display().to_string()
    };
    let strong = |text: &str| session.output.paint(Tone::Strong, text);
    let mut text = format!(
        "\n{}\n\n  export TIDEGATE_CONTEXT={}\n  {tidegate} cluster status\n  {tidegate} agent list\n",
        strong("The cluster is up. In another terminal:"),
        cluster.admin_folder().display()
    );
    if scopes.is_empty() {
        text.push_str(&tour(cluster, session, &tidegate).await?);
    } else {
        text.push_str(&format!(
            "\n{}\n\n  {tidegate} scope list\n  {tidegate} deployment list\n",
            strong("It goes on where it was stopped:"),
        ));
    }
    text.push_str(&format!(
        "\n{}\n\n  kill -9 $(cat {})    # the leader or not: the rollout goes on\n  kill -9 $(cat {})          # what it runs goes on serving\n",
        strong("Kill what you like, also in the middle of a rollout; it is started again after a second:"),
        cluster.pid_file("coordinator-1").display(),
        cluster.pid_file("agent-1").display(),
    ));
    text.push_str(&format!(
        "\n{}\n{}\n",
        session.output.paint(
            Tone::Faint,
            &format!("Logs: {}", cluster.dir().join("logs").display())
        ),
        session
            .output
            .paint(Tone::Faint, "Ctrl-C stops everything.")
    ));
    Ok(text)
}

/// Two versions of an application, published and returned from.
async fn tour(cluster: &Cluster, session: &Session, tidegate: &str) -> Result<String> {
    let examples = cluster.dir().join("examples");
    context::make_folder(&examples)?;
    let packed = package::pack(&examples, &[("1", 0.0), ("2", 0.0), ("3", 0.2)]).await?;
    let port = cluster.scope_port()?;
    let strong = |text: &str| session.output.paint(Tone::Strong, text);
    let run = format!(
        "--run '{}' --health-http /healthz --health-interval 500ms",
        package::COMMAND_LINE
    );
    let asset = |position: usize| packed[position].path.display().to_string();
    let mut text = format!(
        "\n{}\n\n  {tidegate} application create hello\n  {tidegate} environment create production --tier 3\n  {tidegate} scope create hello-prod --application hello --environment production --port {port} --agents role=web\n  {tidegate} release create hello 1 --asset {} {run}\n  {tidegate} deploy hello 1 --scope hello-prod --set bake=5s --wait\n  curl http://{}/\n",
        strong("Publish version 1 of a small web application:"),
        asset(0),
        cluster
            .proxies(port)
            .first()
            .map(ToString::to_string)
            .unwrap_or_default(),
    );
    text.push_str(&format!(
        "\n{}\n\n  {tidegate} release create hello 2 --asset {} {run}\n  {tidegate} deploy hello 2 --scope hello-prod --set traffic.steps=10:10s,50:10s,100:10s --set bake=10s --set drain=5s\n  {tidegate} deployment watch hello-prod\n  {tidegate} scope get hello-prod\n  {tidegate} rollback hello-prod --wait\n",
        strong("Move the traffic to version 2 step by step, then return:"),
        asset(1),
    ));
    Ok(text)
}

/// This program's own file.
fn own_program() -> Result<PathBuf> {
    std::env::current_exe().map_err(|error| {
        Failure::new(
            Reason::ProgramMissing,
            format!("this program's own file cannot be found: {error}"),
        )
    })
}

fn is_on_path(program: &Path) -> bool {
    let Some(path) = std::env::var_os("PATH") else {
        return false;
    };
    std::env::split_paths(&path)
        .map(|folder| folder.join("tidegate"))
        .find(|candidate| candidate.is_file())
        .and_then(|found| found.canonicalize().ok())
        .is_some_and(|found| program.canonicalize().is_ok_and(|program| program == found))
}
