//! `tidegate agent`.

use clap::{Args, Subcommand};
use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;

use crate::errors::{Failure, Result};
use crate::output::{Output, Table, Tone, bytes, dash, pairs, printable};
use crate::session::Session;
use crate::{entropy, names, pages, render, rpc, time};

/// The verbs of an agent.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// List them
    List(ListArgs),
    /// Show one: facts, contact, what runs there
    Get(NameArgs),
    /// Take one out of the cluster; its certificate is worth nothing any more
    Remove(NameArgs),
}

/// Which ones to list.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those with these labels: key=value, key!=value, key in (a,b)
    #[arg(
        short = 'l',
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "SELECTOR"
    )]
    selector: String,
}

/// Which one.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// Its name
    name: String,
}

impl AgentCommand {
    /// Does it.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::List(args) => list(session, &args.selector).await,
            Self::Get(args) => get(session, &args.name).await,
            Self::Remove(args) => remove(session, &args.name).await,
        }
    }
}

/// Every agent that a selector matches.
///
/// # Errors
/// The cluster's.
pub async fn all(session: &Session, selector: &str) -> Result<Vec<api::Agent>> {
    let client = session.client().await?;
    let agents = pages::gather(0, |page| {
        let request = api::ListAgentsRequest {
            selector: selector.to_owned(),
            page,
        };
        async move {
            let answer = rpc!(client, agents_client::AgentsClient, list, request).await?;
            Ok((answer.agents, answer.next_page_token))
        }
    });
    agents.await
}

fn contact(agent: &api::Agent, now: u64) -> (Tone, String) {
    let seen = time::ago(agent.last_contact_ms, now);
    match (agent.lost, agent.connected) {
        (true, _) => (Tone::Bad, format!("lost, last seen {seen}")),
        (false, true) => (Tone::Good, "connected".to_owned()),
        (false, false) => (Tone::Busy, format!("last seen {seen}")),
    }
}

async fn list(session: &Session, selector: &str) -> Result<()> {
    let answer = api::ListAgentsResponse {
        agents: all(session, selector).await?,
        next_page_token: String::new(),
    };
    session.output.emit(&answer, |wide| {
        let empty = if selector.is_empty() {
            "No agent yet. Make a token with `tidegate token create agent` and run `tidegate-agent join` on a host."
        } else {
            "No agent matches."
        };
        table(&answer.agents, wide).render(session.output, empty)
    })
}

fn table(agents: &[api::Agent], wide: bool) -> Table {
    let mut headings = vec!["NAME", "CONTACT", "LABELS", "CPU", "MEMORY", "VERSION"];
    if wide {
        headings.extend(["COORDINATOR", "CERTIFICATE", "DISK FREE"]);
    }
    let now = time::now_ms();
    let mut table = Table::new(&headings);
    for agent in agents {
        let metadata = agent.metadata.clone().unwrap_or_default();
        let memory = (agent.memory_used * 100)
            .checked_div(agent.memory_total)
            .map_or_else(|| "-".to_owned(), |percent| format!("{percent} %"));
        let mut cells = vec![
            (Tone::Strong, metadata.name),
            contact(agent, now),
            (Tone::Plain, pairs(&metadata.labels)),
            (Tone::Plain, format!("{} %", agent.cpu_basis_points / 100)),
            (Tone::Plain, memory),
            (Tone::Plain, dash(&agent.version).to_owned()),
        ];
        if wide {
            cells.extend([
                (Tone::Plain, dash(&agent.coordinator).to_owned()),
                (
                    Tone::Faint,
                    time::until(agent.certificate_not_after_ms, now),
                ),
                (Tone::Plain, bytes(agent.disk_available)),
            ]);
        }
        table.toned(cells);
    }
    table
}

/// "Did you mean" for an agent.
async fn suggest(session: &Session, failure: Failure, name: &str) -> Failure {
    if !failure.is(Reason::NotFound) {
        return failure;
    }
    let Ok(agents) = all(session, "").await else {
        return failure;
    };
    let present = agents.iter().filter_map(|agent| agent.metadata.as_ref());
    match names::nearest(name, present.map(|metadata| metadata.name.as_str())) {
        Some(near) => failure.hint(format!(
            "did you mean \"{near}\"? `tidegate agent list` shows all"
        )),
        None => failure.hint("`tidegate agent list` shows what is there"),
    }
}

async fn get(session: &Session, name: &str) -> Result<()> {
    let client = session.client().await?;
    let request = api::GetAgentRequest {
        name: name.to_owned(),
    };
    match rpc!(client, agents_client::AgentsClient, get, request).await {
        Ok(agent) => session
            .output
            .emit(&agent, |_| page(session.output, &agent)),
        Err(failure) => Err(suggest(session, failure, name).await),
    }
}

fn page(output: Output, agent: &api::Agent) -> String {
    let metadata = agent.metadata.clone().unwrap_or_default();
    let now = time::now_ms();
    let mut text = String::new();
    let mut field = |name: &str, value: String| {
        text.push_str(&output.field(name, &value));
    };
    let (tone, words) = contact(agent, now);
    field(
        "agent",
        format!(
            "{}  {}",
            output.paint(Tone::Strong, &metadata.name),
            output.paint(tone, &words)
        ),
    );
    field("kind", dash(&agent.kind).to_owned());
    field("labels", pairs(&metadata.labels));
    field("facts", printable(&pairs(&agent.facts)));
    field("version", dash(&printable(&agent.version)).to_owned());
    field(
        "coordinator",
        dash(&printable(&agent.coordinator)).to_owned(),
    );
    if agent.certificate_not_after_ms > 0 {
        let end = agent.certificate_not_after_ms;
        field(
            "certificate",
            format!("until {} ({})", time::stamp(end), time::until(end, now)),
        );
    }
    field("cpu", format!("{} %", agent.cpu_basis_points / 100));
    field(
        "memory",
        format!(
            "{} of {}",
            bytes(agent.memory_used),
            bytes(agent.memory_total)
        ),
    );
    field(
        "disk",
        format!(
            "{} free of {}",
            bytes(agent.disk_available),
            bytes(agent.disk_total)
        ),
    );
    if let Some(proxy) = &agent.proxy {
        field(
            "proxy",
            format!(
                "version {}, pid {}, since {}, {} connections",
                dash(&printable(&proxy.version)),
                proxy.pid,
                time::stamp(proxy.started_at_ms),
                proxy.connections
            ),
        );
        for old in &proxy.draining {
            let line = format!(
                "draining: version {}, pid {}, {} open, until {} ({})",
                dash(&printable(&old.version)),
                old.pid,
                old.open,
                time::stamp(old.until_ms),
                time::until(old.until_ms, now)
            );
            field("", line);
        }
    }
    for complaint in &agent.complaints {
        field("complaint", output.paint(Tone::Bad, &printable(complaint)));
    }
    let places = api::Deployment {
        participants: agent.places.clone(),
        ..api::Deployment::default()
    };
    // The same columns as for a deployment; the first one then names the place.
    text.push_str(&render::participants(output, &places, usize::MAX));
    text
}

async fn remove(session: &Session, name: &str) -> Result<()> {
    let client = session.client().await?;
    let request = api::RemoveAgentRequest {
        request_id: entropy::request_id()?.to_string(),
        name: name.to_owned(),
    };
    match rpc!(client, agents_client::AgentsClient, remove, request).await {
        Ok(answer) => session
            .output
            .emit(&answer, |_| format!(
                "agent \"{name}\" removed; it drains what it runs as soon as it hears of it; if it cannot be reached, `tidegate-agent stop-all` on its host ends that\n"
            )),
        Err(failure) => Err(suggest(session, failure, name).await),
    }
}
