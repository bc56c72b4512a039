//! `tidegate approval`: deployments that wait for people, and the decisions on them.

use std::collections::BTreeSet;

use clap::Subcommand;
use tidegate_proto::control::v1 as api;

use super::steering::{Deployment, ReasonedArgs};
use crate::errors::Result;
use crate::session::Session;
use crate::{entropy, render, rpc};

/// The verbs of approvals.
#[derive(Debug, Subcommand)]
pub enum ApprovalCommand {
    /// List the deployments that wait for approval
    List,
    /// Agree to one
    Grant(ReasonedArgs<Deployment>),
    /// Refuse one; that is final
    Deny(ReasonedArgs<Deployment>),
}

impl ApprovalCommand {
    /// Does it.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::List => list(session).await,
            Self::Grant(args) => decide(session, &args, true).await,
            Self::Deny(args) => decide(session, &args, false).await,
        }
    }
}

async fn list(session: &Session) -> Result<()> {
    let client = session.client().await?;
    let request = api::ListApprovalsRequest {};
    let answer = rpc!(client, approvals_client::ApprovalsClient, list, request).await?;
    session.output.emit(&answer, |wide| {
        render::list(
            session.output,
            &answer.deployments,
            &BTreeSet::new(),
            wide,
            "Nothing waits for approval.",
        )
    })
}

async fn decide(session: &Session, args: &ReasonedArgs<Deployment>, grant: bool) -> Result<()> {
    let found = session.deployment(args.reference()).await?;
    let client = session.client().await?;
    let request = api::DecideRequest {
        request_id: entropy::request_id()?.to_string(),
        id: found.id,
        grant,
        reason: args.reason(),
    };
    let answer = rpc!(client, approvals_client::ApprovalsClient, decide, request).await?;
    session.output.emit(&answer, |_| {
        format!(
            "{} {} {} to {}; status {}\n",
            if grant { "granted" } else { "denied" },
            answer.application,
            answer.version,
            answer.scope,
            session
                .output
                .paint(render::tone(answer.status()), answer.status().as_str_name())
        )
    })
}
