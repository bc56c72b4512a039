//! `tidegate scope`: the objects, everything about one on one screen, and stop, start, restart.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use tidegate_proto::control::v1 as api;
use tidegate_proto::control::v1::check_finding::Severity;
use tidegate_shared::spec::Kind;

use super::WaitArgs;
use super::objects::{self, DeleteObjectArgs, DescribeArgs, ListArgs, NameArgs, SpecFlags};
use crate::errors::{Failure, Result};
use crate::output::{Output, Table, Tone, dash, printable, weight};
use crate::session::{self, Session};
use crate::{entropy, render, rpc, time};

/// What describes a scope.
#[derive(Debug, Args)]
pub struct ScopeFlags {
    /// The application that runs here; cannot be changed later
    #[arg(long, value_name = "NAME")]
    application: Option<String>,
    /// The environment that it belongs to
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,
    /// Port that the proxy listens on: 1 to 65535, or none for a worker
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// Which agents act for it, for example role=web,region!=eu
    #[arg(long, value_name = "SELECTOR")]
    agents: Option<String>,
    /// Instances of a version on each agent: 1 to 100
    #[arg(long, value_name = "N")]
    instances_per_agent: Option<u32>,
    /// Which asset of a release it takes
    #[arg(long, value_name = "NAME")]
    asset: Option<String>,
    /// Region, country, zone …
    #[arg(long = "dimension", value_name = "K=V")]
    dimensions: Vec<String>,
    /// Environment variable, above every other source
    #[arg(long = "parameter", value_name = "K=V")]
    parameters: Vec<String>,
    /// Path that answers 2xx when an instance is healthy
    #[arg(long, value_name = "PATH")]
    health_http: Option<String>,
    /// Time between health checks
    #[arg(long, value_name = "SPAN")]
    health_interval: Option<String>,
    /// Restarts of an instance until it counts as failed: 0 to 1000
    #[arg(long, value_name = "N")]
    max_restarts: Option<u32>,
    /// New releases that it takes by itself, such as 'release.labels.channel == "stable"'; none: people deploy
    #[arg(long, value_name = "CEL")]
    auto_deploy: Option<String>,
}

impl SpecFlags for ScopeFlags {
    const KIND: Kind = Kind::Scope;

    fn fill(&self, spec: &mut Map<String, Value>) -> Result<()> {
        for (name, value) in [
            ("application", &self.application),
            ("environment", &self.environment),
            ("agents", &self.agents),
            ("asset", &self.asset),
        ] {
            if let Some(value) = value {
                spec.insert(name.to_owned(), Value::from(value.clone()));
            }
        }
        if let Some(port) = &self.port {
            let value = match port.parse::<u64>() {
                Ok(number) => Value::from(number),
                Err(_) if port == "none" => Value::from("none"),
                Err(_) => {
                    return Err(Failure::usage(format!(
                        "--port {port}: want 1 to 65535, or none"
                    )));
                }
            };
            spec.insert("port".to_owned(), value);
        }
        for (name, value) in [
            ("instances_per_agent", self.instances_per_agent),
            ("max_restarts", self.max_restarts),
        ] {
            if let Some(value) = value {
                spec.insert(name.to_owned(), Value::from(value));
            }
        }
        for (flag, name, given) in [
            ("--dimension", "dimensions", &self.dimensions),
            ("--parameter", "parameters", &self.parameters),
        ] {
            let given = session::pairs(flag, given, name == "dimensions")?;
            if !given.is_empty() {
                let fields = spec.entry(name).or_insert_with(|| json!({}));
                for (key, value) in given {
                    fields[key] = Value::from(value);
                }
            }
        }
        match (self.auto_deploy.as_deref(), spec.get_mut("auto_deploy")) {
            (None, _) => {}
            (Some("none"), _) => {
                spec.remove("auto_deploy");
            }
            // The strategy beside it stays.
            (Some(when), Some(Value::Object(long))) => {
                long.insert("when".to_owned(), Value::from(when));
            }
            (Some(when), _) => {
                spec.insert("auto_deploy".to_owned(), Value::from(when));
            }
        }
        if let Some(path) = &self.health_http {
            spec.entry("health_check").or_insert_with(|| json!({}))["http"] =
                json!({ "path": path });
        }
        if let Some(interval) = &self.health_interval {
            let check = spec.entry("health_check").or_insert_with(|| json!({}));
            check["interval"] = Value::from(interval.clone());
        }
        Ok(())
    }
}

/// The verbs of a scope.
#[derive(Debug, Subcommand)]
pub enum ScopeCommand {
    /// List them
    List(ListArgs),
    /// Show one on one screen: active, candidate, leftovers, lost agents, next wake-up, agents with weights
    Get(NameArgs),
    /// Make a new one from flags or a manifest
    #[command(
        after_help = "Example:\n  tidegate scope create web-prod --application web --environment production \\\n      --port 8080 --agents role=web --health-http /healthz"
    )]
    Create(DescribeArgs<ScopeFlags>),
    /// Change what the flags name, or all of it by a manifest
    Update(DescribeArgs<ScopeFlags>),
    /// Say what would stop a deployment before one is made: agents, ports, disks, platforms, limits, gates
    #[command(
        after_help = "Exit code 0: nothing is in the way (warnings may be told); 1: a deployment would be refused or fail.\n\nExample:\n  tidegate scope check web-prod --release 1.4.0"
    )]
    Check(CheckArgs),
    /// Delete one that is stopped
    Delete(DeleteObjectArgs),
    /// Stop it: the active version drains and goes away
    Stop(StopArgs),
    /// Start it again with the release and the parameters that it had
    Start(VerbArgs),
    /// Replace its instances by new ones of the same release, through all steps
    Restart(VerbArgs),
}

/// What to look at.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The scope
    name: String,
    /// The release that would be deployed [default: the newest one that is ready]
    #[arg(long, value_name = "VERSION")]
    release: Option<String>,
    /// The strategy that would be used [default: the built-in one]
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
}

/// What to stop.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Name of the scope
    name: String,
    /// Cancel a deployment under way first
    #[arg(long)]
    cancel: bool,
}

/// What to start.
#[derive(Debug, Args)]
pub struct VerbArgs {
    /// Name of the scope
    name: String,
    /// Whether to wait.
    #[command(flatten)]
    wait: WaitArgs,
}

impl ScopeCommand {
    /// Does it; answers with the exit status.
    ///
    /// # Errors
    /// The cluster's, or a wrong flag.
    pub async fn run(self, session: &Session) -> Result<u8> {
        match self {
            Self::List(args) => objects::list(session, Kind::Scope, &args.selector).await?,
            Self::Get(args) => get(session, &args.name).await?,
            Self::Create(args) => objects::describe(session, args, true).await?,
            Self::Update(args) => objects::describe(session, args, false).await?,
            Self::Delete(args) => {
                objects::ObjectCommand::<ScopeFlags>::Delete(args)
                    .run(session)
                    .await?;
            }
            Self::Stop(args) => stop(session, &args).await?,
            Self::Check(args) => return check(session, args).await,
            Self::Start(args) => return start(session, args, false).await,
            Self::Restart(args) => return start(session, args, true).await,
        }
        Ok(0)
    }
}

async fn get(session: &Session, name: &str) -> Result<()> {
    let client = session.client().await?;
    let request = api::ScopeRequest {
        name: name.to_owned(),
    };
    match rpc!(client, scopes_client::ScopesClient, view, request).await {
        Ok(view) => session
            .output
            .emit(&view, |wide| screen(session.output, &view, wide)),
        Err(failure) => Err(session.suggest(failure, &[(Kind::Scope, name)]).await),
    }
}

async fn check(session: &Session, args: CheckArgs) -> Result<u8> {
    let client = session.client().await?;
    let request = api::CheckScopeRequest {
        name: args.name.clone(),
        version: args.release.unwrap_or_default(),
        strategy: args.strategy.unwrap_or_default(),
    };
    match rpc!(client, scopes_client::ScopesClient, check, request).await {
        Ok(answer) => {
            session
                .output
                .emit(&answer, |_| findings(session.output, &args.name, &answer))?;
            let is_bad = |finding: &api::CheckFinding| finding.severity() == Severity::Error;
            Ok(u8::from(answer.findings.iter().any(is_bad)))
        }
        Err(failure) => Err(session.suggest(failure, &[(Kind::Scope, &args.name)]).await),
    }
}

/// The findings, each with its next step, and what follows from them.
fn findings(output: Output, scope: &str, answer: &api::CheckScopeResponse) -> String {
    let mut text = String::new();
    let (mut errors, mut warnings) = (0, 0);
    for finding in &answer.findings {
        let (tone, word) = match finding.severity() {
            Severity::Good => (Tone::Good, "ok"),
            Severity::Warning => (Tone::Busy, "warning"),
            Severity::Error => (Tone::Bad, "error"),
            Severity::Unspecified => (Tone::Plain, "?"),
        };
        errors += usize::from(tone == Tone::Bad);
        warnings += usize::from(tone == Tone::Busy);
        writeln!(
            text,
            "{} {:<12} {}",
            output.paint(tone, &format!("{word:<8}")),
            printable(&finding.subject),
            printable(&finding.message)
        )
        .ok();
        if !finding.hint.is_empty() {
            let hint = format!("{:<21} {}", "", printable(&finding.hint));
            writeln!(text, "{}", output.paint(Tone::Faint, &hint)).ok();
        }
    }
    let release = if answer.version.is_empty() {
        "nothing".to_owned()
    } else {
        format!("release {}", printable(&answer.version))
    };
    let can = if answer.version.is_empty() {
        "can"
    } else {
        "cannot"
    };
    let verdict = match (errors, warnings) {
        (0, 0) => output.paint(
            Tone::Good,
            &format!("nothing is in the way of {release} in scope \"{scope}\""),
        ),
        (0, warnings) => output.paint(
            Tone::Busy,
            &format!("{release} can be deployed to scope \"{scope}\"; warnings: {warnings}"),
        ),
        (errors, _) => output.paint(
            Tone::Bad,
            &format!(
                "{release} {can} be deployed to scope \"{scope}\" as it stands; errors: {errors}"
            ),
        ),
    };
    writeln!(text, "{verdict}").ok();
    text
}

async fn stop(session: &Session, args: &StopArgs) -> Result<()> {
    let client = session.client().await?;
    let request = api::StopScopeRequest {
        request_id: entropy::request_id()?.to_string(),
        name: args.name.clone(),
        cancel: args.cancel,
    };
    match rpc!(client, scopes_client::ScopesClient, stop, request).await {
        Ok(view) => session.output.emit(&view, |_| {
            let status = view.scope.as_ref().map_or("", |scope| &scope.status);
            format!("scope \"{}\" is {}\n", args.name, dash(status))
        }),
        Err(failure) => Err(session.suggest(failure, &[(Kind::Scope, &args.name)]).await),
    }
}

async fn start(session: &Session, args: VerbArgs, restart: bool) -> Result<u8> {
    let client = session.client().await?;
    let request = api::ScopeVerbRequest {
        request_id: entropy::request_id()?.to_string(),
        name: args.name.clone(),
    };
    let answer = if restart {
        rpc!(client, scopes_client::ScopesClient, restart, request).await
    } else {
        rpc!(client, scopes_client::ScopesClient, start, request).await
    };
    match answer {
        Ok(deployment) => args.wait.after(session, &[deployment]).await,
        Err(failure) => Err(session.suggest(failure, &[(Kind::Scope, &args.name)]).await),
    }
}

/// Everything about a scope on one screen.
fn screen(output: Output, view: &api::ScopeView, wide: bool) -> String {
    let mut text = String::new();
    let now = time::now_ms();
    let scope = view.scope.clone().unwrap_or_default();
    let metadata = scope.metadata.clone().unwrap_or_default();
    let spec: Value = serde_json::from_str(&scope.spec).unwrap_or(Value::Null);
    let of = |name: &str| match spec.get(name) {
        Some(Value::String(text)) => printable(text),
        Some(other) => other.to_string(),
        None => "-".to_owned(),
    };
    let mut field = |name: &str, value: String| {
        text.push_str(&output.field(name, &value));
    };
    let status = output.paint(objects::scope_tone(&scope.status), dash(&scope.status));
    field(
        "scope",
        format!("{}  {status}", output.paint(Tone::Strong, &metadata.name)),
    );
    field(
        "application",
        format!("{} in {}", of("application"), of("environment")),
    );
    let agents = of("agents");
    let agents = if agents.is_empty() { "all" } else { &agents };
    field(
        "place",
        format!(
            "port {}, {} per agent, agents {agents}",
            of("port"),
            of("instances_per_agent")
        ),
    );
    field(
        "active",
        view.active
            .as_ref()
            .map_or_else(|| "none".to_owned(), |d| line(output, d, Tone::Blue)),
    );
    field(
        "candidate",
        view.candidate
            .as_ref()
            .map_or_else(|| "none".to_owned(), |d| line(output, d, Tone::Green)),
    );
    for waiting in &view.waiting {
        field("waiting", line(output, waiting, Tone::Busy));
    }
    let leftovers: Vec<_> = view
        .leftovers
        .iter()
        .map(|l| printable(&format!("{}: {}", l.agent, l.what)))
        .collect();
    field(
        "leftovers",
        if leftovers.is_empty() {
            "none".to_owned()
        } else {
            output.paint(Tone::Busy, &leftovers.join("; "))
        },
    );
    let lost = view.lost_agents.join(", ");
    field(
        "lost agents",
        if lost.is_empty() {
            "none".to_owned()
        } else {
            output.paint(Tone::Bad, &printable(&lost))
        },
    );
    let wakeup = time::until(view.next_wakeup_ms, now);
    field(
        "next wake-up",
        if wakeup == "-" {
            "none".to_owned()
        } else {
            wakeup
        },
    );
    let kept = printable(&view.kept_releases.join(", "));
    field(
        "kept",
        if kept.is_empty() {
            "none".to_owned()
        } else {
            format!("{kept} (can be returned to at once)")
        },
    );
    if let Some(auto) = &view.auto_deploy {
        text.push_str(&auto_deploy(output, auto, now));
    }
    text.push('\n');
    text.push_str(&agents_table(view, now).render(output, "No agent matches this scope."));
    if let Some(candidate) = &view.candidate {
        text.push_str(&render::steps(output, candidate));
        text.push_str(&render::evidence(output, candidate));
        text.push_str(&render::causes(output, candidate));
    }
    if !view.recent.is_empty() {
        text.push('\n');
        let active: BTreeSet<String> = view.active.iter().map(|d| d.id.clone()).collect();
        text.push_str(&render::list(output, &view.recent, &active, wide, ""));
    }
    text
}

fn line(output: Output, deployment: &api::Deployment, tone: Tone) -> String {
    let status = deployment.status();
    let waiting = if deployment.waiting_for.is_empty() {
        String::new()
    } else {
        let told = time::told(&deployment.waiting_for, time::now_ms());
        format!(": {}", printable(&told))
    };
    format!(
        "{} ({}) {}{waiting}",
        output.paint(tone, &printable(&deployment.version)),
        deployment.short_id,
        output.paint(render::tone(status), status.as_str_name()),
    )
}

fn agents_table(view: &api::ScopeView, now: u64) -> Table {
    // A version that is not there has no weight; one that is there may have an unknown one.
    let of = |version: &Option<api::Deployment>, held: i32| {
        if version.is_none() && held < 0 {
            "-".to_owned()
        } else {
            weight(i64::from(held))
        }
    };
    let mut table = Table::new(&["AGENT", "CONTACT", "BLUE", "GREEN"]);
    for agent in &view.agents {
        let contact = match (agent.lost, agent.connected) {
            (true, _) => (
                Tone::Bad,
                format!("lost, last seen {}", time::ago(agent.last_contact_ms, now)),
            ),
            (false, true) => (Tone::Good, "connected".to_owned()),
            (false, false) => (
                Tone::Busy,
                format!("last seen {}", time::ago(agent.last_contact_ms, now)),
            ),
        };
        table.toned([
            (Tone::Strong, agent.name.clone()),
            contact,
            (Tone::Blue, of(&view.active, agent.active_weight)),
            (Tone::Green, of(&view.candidate, agent.candidate_weight)),
        ]);
    }
    table
}

/// What the scope makes of new releases, the newest first.
fn auto_deploy(output: Output, auto: &api::AutoDeploy, now: u64) -> String {
    let with = match auto.strategy.as_str() {
        "" => String::new(),
        strategy => format!(" with strategy {strategy}"),
    };
    let head = format!(
        "releases made since {} for which this holds{with}: {}",
        time::instant(auto.since_ms, now),
        auto.when
    );
    let mut text = format!(
        "\n{}  {}\n",
        output.paint(Tone::Strong, "takes by itself"),
        printable(&head)
    );
    if !auto.stands.is_empty() {
        let line = output.paint(Tone::Busy, &printable(&auto.stands));
        text.push_str(&format!("  {line}\n"));
    }
    for looked in &auto.looked {
        let (tone, word) = match looked.outlook.as_str() {
            "wanted" => (Tone::Good, "is taken"),
            "here" => (Tone::Blue, "is here"),
            "refused" => (Tone::Bad, "is refused"),
            _ => (Tone::Faint, "is passed over"),
        };
        let why = time::told(&looked.why, now);
        let line = printable(&format!("{} {word}: {why}", looked.version));
        text.push_str(&format!("  {}\n", output.paint(tone, &line)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn one_screen_tells_everything() {
        let view = api::ScopeView {
            scope: Some(api::Object {
                kind: "scope".to_owned(),
                metadata: Some(api::Metadata {
                    name: "web-prod".to_owned(),
                    ..api::Metadata::default()
                }),
                spec: r#"{"application":"web","environment":"production","port":8080,"agents":"","instances_per_agent":2}"#.to_owned(),
                status: "ready".to_owned(),
            }),
            candidate: Some(render::tests::sample()),
            lost_agents: vec!["host-3".to_owned()],
            kept_releases: vec!["1.3.8".to_owned()],
            leftovers: vec![api::Leftover {
                deployment: "abcd1234".to_owned(),
                agent: "host-3".to_owned(),
                what: "1.3.8 of web is not yet observed gone".to_owned(),
            }],
            agents: vec![api::ScopeAgent {
                name: "host-1".to_owned(),
                connected: true,
                active_weight: 9_000,
                candidate_weight: 1_000,
                ..api::ScopeAgent::default()
            }],
            ..api::ScopeView::default()
        };
        let text = screen(Output::plain(Format::Table), &view, false);
        for line in [
            "scope        web-prod  ready\n",
            "application  web in production\n",
            "place        port 8080, 2 per agent, agents all\n",
            "active       none\n",
            "candidate    1.4.0 (q69g5fav) RUNNING: the hold of step 2\n",
            "leftovers    host-3: 1.3.8 of web is not yet observed gone\n",
            "lost agents  host-3\n",
            "next wake-up none\n",
            "kept         1.3.8 (can be returned to at once)\n",
            "host-1  connected  90 %  10 %\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in:\n{text}");
        }
    }
}
