//! `tidegate cluster`: the coordinators themselves.

use clap::{Args, Subcommand};
use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;

use crate::errors::{Failure, Result};
use crate::output::{Output, Table, Tone, dash};
use crate::session::Session;
use crate::{entropy, names, rpc};

/// The verbs of the cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Who leads, how far the log is, how many agents
    Status,
    /// List the coordinators with their addresses
    Members,
    /// Hand over the lead to the most advanced other coordinator, before maintenance of this one
    Transfer,
    /// Take a coordinator out of the cluster; it never comes back under its id
    Remove(RemoveArgs),
}

/// Whom to take out.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Id or name of the coordinator
    #[arg(value_name = "COORDINATOR")]
    member: String,
}

impl ClusterCommand {
    /// Does it.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::Status => {
                let found = status(session).await?;
                session
                    .output
                    .emit(&found, |wide| page(session.output, &found, wide))
            }
            Self::Members => {
                let found = status(session).await?;
                session.output.emit(&found, |_| {
                    members(&found, true).render(session.output, "No member.")
                })
            }
            Self::Transfer => transfer(session).await,
            Self::Remove(args) => remove(session, &args.member).await,
        }
    }
}

/// The cluster as the coordinators see it.
///
/// # Errors
/// The cluster's.
pub async fn status(session: &Session) -> Result<api::ClusterStatus> {
    let client = session.client().await?;
    rpc!(
        client,
        cluster_client::ClusterClient,
        status,
        api::ClusterStatusRequest {}
    )
    .await
}

fn page(output: Output, status: &api::ClusterStatus, wide: bool) -> String {
    let leader = status.members.iter().find(|m| m.node_id == status.leader);
    let leader = leader.map_or_else(
        || output.paint(Tone::Bad, "nobody"),
        |member| format!("{} (node {})", member.name, member.node_id),
    );
    let field = |name: &str, value: String| {
        format!(
            "{} {value}\n",
            output.paint(Tone::Faint, &format!("{name:<12}"))
        )
    };
    let mut text = field("cluster", status.cluster_id.clone());
    text.push_str(&field("trust domain", status.trust_domain.clone()));
    text.push_str(&field("leader", leader));
    text.push_str(&field(
        "log",
        format!(
            "term {}, {} entries committed, level {}",
            status.term, status.commit, status.level
        ),
    ));
    text.push_str(&field(
        "agents",
        format!("{} of {} connected", status.agents_connected, status.agents),
    ));
    text.push_str(&field(
        "in motion",
        format!("{} deployments", status.deployments_unfinished),
    ));
    text.push('\n');
    text.push_str(&members(status, wide).render(output, "No member."));
    text
}

fn members(status: &api::ClusterStatus, wide: bool) -> Table {
    let mut headings = vec!["NODE", "NAME", "ROLE", "APPLIED", "VERSION", "CONTROL"];
    if wide {
        headings.extend(["PEER", "HTTP", "ENROLL"]);
    }
    let mut table = Table::new(&headings);
    for member in &status.members {
        let tone = match member.role.as_str() {
            "leader" => Tone::Good,
            "unreachable" => Tone::Bad,
            "learner" => Tone::Busy,
            _ => Tone::Plain,
        };
        let mut cells = vec![
            (Tone::Plain, member.node_id.to_string()),
            (Tone::Strong, member.name.clone()),
            (tone, dash(&member.role).to_owned()),
            (Tone::Plain, member.applied.to_string()),
            (Tone::Plain, dash(&member.version).to_owned()),
            (Tone::Plain, dash(&member.control).to_owned()),
        ];
        if wide {
            for address in [&member.peer, &member.http, &member.enroll] {
                cells.push((Tone::Plain, dash(address).to_owned()));
            }
        }
        table.toned(cells);
    }
    table
}

/// The node that a person means by id or name.
fn find(status: &api::ClusterStatus, wanted: &str) -> Result<u64> {
    let found = status
        .members
        .iter()
        .find(|member| member.name == wanted || member.node_id.to_string() == wanted);
    if let Some(member) = found {
        return Ok(member.node_id);
    }
    let known = status.members.iter().map(|member| member.name.as_str());
    let failure = Failure::new(
        Reason::NotFound,
        format!("there is no coordinator \"{wanted}\""),
    );
    Err(match names::nearest(wanted, known) {
        Some(near) => failure.hint(format!("did you mean \"{near}\"?")),
        None => failure.hint("`tidegate cluster members` shows what is there"),
    })
}

async fn transfer(session: &Session) -> Result<()> {
    let client = session.client().await?;
    let request = api::TransferLeadershipRequest { to: 0 };
    let answer = rpc!(
        client,
        cluster_client::ClusterClient,
        transfer_leadership,
        request
    )
    .await?;
    session
        .output
        .emit(&answer, |wide| page(session.output, &answer, wide))
}

async fn remove(session: &Session, member: &str) -> Result<()> {
    let node_id = find(&status(session).await?, member)?;
    let client = session.client().await?;
    let request = api::RemoveMemberRequest {
        request_id: entropy::request_id()?.to_string(),
        node_id,
    };
    let answer = rpc!(
        client,
        cluster_client::ClusterClient,
        remove_member,
        request
    )
    .await?;
    session.output.emit(&answer, |wide| {
        format!(
            "coordinator {member} removed\n\n{}",
            page(session.output, &answer, wide)
        )
    })
}
