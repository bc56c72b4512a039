//! Whether the hosts of a scope could take a release, asked before a deployment is made.
//!
//! The core says what to ask and what the answers mean; here every coordinator asks the agents
//! whose sessions it has, and the one that leads gathers the answers. Nothing is changed anywhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate_coordinator_core::preflight::{Finding, HostAnswer, HostQuestion, judge, preflight};
use tidegate_proto::agent::v1::{HostAsk, ask};
use tidegate_shared::id::{Name, Version};
use tonic::Status;

use crate::api::convert::link::limits;
use crate::api::{Context, status};
use crate::raft::peer_service::{AskFuture, AskHandler};
use crate::storage::codec;
use crate::storage::data_dir::Peer;

/// What coordinators ask each other under.
pub const TOPIC: &str = "host-check";
/// An agent may take so long.
const AGENT_LIMIT: Duration = Duration::from_secs(5);
/// Another coordinator, with its agents.
const NODE_LIMIT: Duration = Duration::from_secs(8);

/// What is looked at.
pub struct Wanted {
    /// The scope.
    pub scope: Name,
    /// None: the newest release that is ready.
    pub version: Option<Version>,
    /// None: the default strategy.
    pub strategy: Option<Name>,
}

type Answers = BTreeMap<Name, HostAnswer>;

/// Looks at the scope and asks its hosts; the release that was looked at, and every finding.
///
/// # Errors
/// There is no such scope, or no leader.
pub async fn check(
    context: &Arc<Context>,
    wanted: &Wanted,
) -> Result<(Option<Version>, Vec<Finding>), Status> {
    let view = context.read().await?;
    let seen = context.live.picture(context, &view.state, |picture| {
        let none = tidegate_coordinator_core::Observed::new(picture.now);
        preflight(
            picture.state,
            picture.observed.unwrap_or(&none),
            picture.now,
            &wanted.scope,
            wanted.version.as_ref(),
            wanted.strategy.as_ref(),
        )
    });
    let seen = seen.map_err(|rejection| status::from_rejection(&rejection))?;
    let answers = everywhere(context, &seen.questions).await;
    let mut findings = seen.findings;
    for question in &seen.questions {
        findings.extend(judge(question, answers.get(&question.agent)));
    }
    Ok((seen.version, findings))
}

/// Asks the agents of every coordinator.
async fn everywhere(context: &Arc<Context>, questions: &[HostQuestion]) -> Answers {
    let mut others = tokio::task::JoinSet::new();
    match codec::encode(&questions) {
        Ok(payload) => {
            let payload = Bytes::from(payload);
            for node in context.peers.directory().others() {
                let (peers, payload) = (context.peers.clone(), payload.clone());
                others.spawn(async move {
                    let answer = peers.ask(node, TOPIC, payload, NODE_LIMIT).await.ok()?;
                    codec::decode::<Answers>(&answer).ok()
                });
            }
        }
        Err(error) => tracing::error!(%error, "the questions to hosts cannot be encoded"),
    }
    let mut answers = here(context, questions).await;
    while let Some(answer) = others.join_next().await {
        if let Ok(Some(more)) = answer {
            answers.extend(more);
        }
    }
    answers
}

/// Asks the agents whose sessions are here; those that do not answer are left out.
async fn here(context: &Arc<Context>, questions: &[HostQuestion]) -> Answers {
    let mut asked = tokio::task::JoinSet::new();
    for question in questions {
        let host = HostAsk {
            port: question.port.map_or(0, u32::from),
            digest: question
                .asset
                .map(|asset| asset.digest.to_string())
                .unwrap_or_default(),
            limits: limits(&question.limits),
        };
        let Ok(mut answers) = context.sessions.ask(&question.agent, ask::Kind::Host(host)) else {
            continue;
        };
        let agent = question.agent.clone();
        asked.spawn(async move {
            let first = async {
                while let Some(Ok(chunk)) = answers.recv().await {
                    if let Some(host) = chunk.host {
                        return Some(host);
                    }
                }
                None
            };
            let host = tokio::time::timeout(AGENT_LIMIT, first).await.ok()??;
            let answer = HostAnswer {
                port_trouble: (!host.port_trouble.is_empty()).then_some(host.port_trouble),
                is_staged: host.is_staged,
                room: (host.room > 0).then_some(host.room),
                limit_trouble: host.limit_trouble,
            };
            Some((agent, answer))
        });
    }
    let mut found = Answers::new();
    while let Some(answer) = asked.join_next().await {
        if let Ok(Some((agent, answer))) = answer {
            found.insert(agent, answer);
        }
    }
    found
}

/// Answers [`TOPIC`].
#[must_use]
pub fn answer_here(context: Arc<Context>) -> Arc<dyn AskHandler> {
    Arc::new(move |_from: Peer, payload: Bytes| -> AskFuture {
        let context = context.clone();
        Box::pin(async move {
            let questions: Vec<HostQuestion> = codec::decode(&payload)
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            codec::encode(&here(&context, &questions).await)
                .map(Bytes::from)
                .map_err(|error| Status::internal(error.to_string()))
        })
    })
}
