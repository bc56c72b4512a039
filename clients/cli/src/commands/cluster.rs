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
    /// Hand over the lead, before maintenance of the coordinator that leads
    Transfer(TransferArgs),
    /// Take a coordinator out of the cluster; it never comes back under its id
    Remove(RemoveArgs),
}

/// Who is to lead.
#[derive(Debug, Args)]
pub struct TransferArgs {
    /// Id or name of the coordinator that takes over [default: the most advanced other one]
    #[arg(value_name = "COORDINATOR")]
    member: Option<String>,
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
            Self::Transfer(args) => transfer(session, args.member.as_deref()).await,
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
    let field = |name: &str, value: String| output.field(name, &value);
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

async fn transfer(session: &Session, member: Option<&str>) -> Result<()> {
    let to = match member {
        Some(member) => find(&status(session).await?, member)?,
        None => 0,
    };
    let client = session.client().await?;
    let request = api::TransferLeadershipRequest { to };
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: ClusterCommand,
    }

    #[test]
    fn the_next_leader_may_be_chosen_by_name_or_id() {
        let heir = |words: &[&str]| match Line::try_parse_from(words).unwrap().command {
            ClusterCommand::Transfer(args) => args.member,
            other => panic!("{other:?} is no transfer"),
        };
        assert_eq!(heir(&["cluster", "transfer"]), None);
        assert_eq!(heir(&["cluster", "transfer", "b"]).as_deref(), Some("b"));
        let member = |node_id: u64, name: &str| api::MemberStatus {
            node_id,
            name: name.to_owned(),
            ..api::MemberStatus::default()
        };
        let status = api::ClusterStatus {
            members: vec![member(1, "north"), member(2, "south")],
            ..api::ClusterStatus::default()
        };
        assert_eq!(find(&status, "south").unwrap(), 2);
        assert_eq!(find(&status, "1").unwrap(), 1);
        let refused = find(&status, "sout").unwrap_err();
        assert!(refused.is(Reason::NotFound));
        assert!(refused.render(false).contains("did you mean \"south\"?"));
    }
}
