//! `Cluster`: its members, who one is, certificates of people, and the audit log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_coordinator_core::RequestKey;
use tidegate_proto::control::v1::cluster_client::ClusterClient;
use tidegate_proto::control::v1::cluster_server::Cluster;
use tidegate_proto::control::v1::{
    ClusterStatus, ClusterStatusRequest, EventsRequest, EventsResponse, MemberStatus,
    RemoveMemberRequest, RenewCertificateRequest, RenewCertificateResponse,
    TransferLeadershipRequest, WhoAmIRequest, WhoAmIResponse,
};
use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tonic::{Request, Response, Status};

use super::authn::Kind;
use super::relay::ask_leader;
use super::{Context, caller, convert, past, request_key, status};
use crate::ca::Subject;
use crate::raft::membership::MemberError;
use crate::raft::{RaftStatus, Role};
use crate::replica::View;

const TRANSFER_LIMIT: Duration = Duration::from_secs(5);
const REMOVE_LIMIT: Duration = Duration::from_secs(15);
const MOST_EVENTS: usize = 1_000;

/// The service.
pub struct ClusterApi(pub Arc<Context>);

impl ClusterApi {
    fn present(&self, view: &View) -> Result<ClusterStatus, Status> {
        let state = &view.state;
        let cluster = state.cluster.as_ref().ok_or_else(|| {
            status::refusal(
                Reason::NoLeader,
                "this coordinator has not heard from the cluster yet",
            )
        })?;
        let raft = self.0.status.borrow().clone();
        let members = cluster.members.iter().map(|(node, member)| MemberStatus {
            node_id: *node,
            name: member.name.to_string(),
            control: member.addresses.control.clone(),
            peer: member.addresses.peer.clone(),
            http: member.addresses.http.clone(),
            enroll: member.addresses.enroll.clone(),
            role: role_of(&raft, *node).to_owned(),
            applied: applied_of(&raft, *node),
            version: member.version.clone(),
        });
        Ok(ClusterStatus {
            cluster_id: cluster.id.to_string(),
            trust_domain: cluster.trust_domain.clone(),
            members: members.collect(),
            leader: raft.leader.unwrap_or(0),
            term: raft.term,
            commit: raft.commit,
            level: cluster.level,
            agents: count(state.agents.len()),
            agents_connected: count(self.0.live.connected()),
            deployments_unfinished: count(
                state
                    .scopes
                    .values()
                    .map(|scope| scope.waiting.len() + usize::from(scope.candidate.is_some()))
                    .sum(),
            ),
        })
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The role of a member as this node sees it; only the leader knows whom it reaches.
fn role_of(raft: &RaftStatus, node: u64) -> &'static str {
    if raft.leader == Some(node) {
        return "leader";
    }
    let unreachable = raft.role == Role::Leader
        && node != raft.node_id
        && !raft
            .progress
            .iter()
            .any(|progress| progress.node_id == node && progress.is_active);
    if unreachable {
        "unreachable"
    } else if raft.membership.voters.contains(&node) {
        "follower"
    } else {
        "learner"
    }
}

/// A node that may get the lead.
#[derive(Debug, PartialEq, Eq)]
enum Heir {
    /// It has it.
    Leads,
    /// It can take it.
    Ready,
}

fn names_of(view: &View) -> BTreeMap<u64, Name> {
    let members = view.state.cluster.iter().flat_map(|c| &c.members);
    members
        .map(|(node, member)| (*node, member.name.clone()))
        .collect()
}

/// Whether the leader can hand over to this node; a refusal that says why not.
fn check_heir(names: &BTreeMap<u64, Name>, raft: &RaftStatus, to: u64) -> Result<Heir, Status> {
    let Some(name) = names.get(&to) else {
        let known: Vec<String> = names
            .iter()
            .map(|(node, name)| format!("{node} ({name})"))
            .collect();
        return Err(status::refusal(
            Reason::NotFound,
            format!(
                "there is no coordinator {to}; the members are {}",
                known.join(", ")
            ),
        ));
    };
    match role_of(raft, to) {
        "leader" => Ok(Heir::Leads),
        "follower" => Ok(Heir::Ready),
        "unreachable" => Err(status::wrong_field(
            "to",
            format!("the leader does not reach coordinator {to} ({name}), so it cannot take over"),
        )),
        _ => Err(status::wrong_field(
            "to",
            format!("coordinator {to} ({name}) has no vote yet, so it cannot take over"),
        )),
    }
}

fn applied_of(raft: &RaftStatus, node: u64) -> u64 {
    if node == raft.node_id {
        return raft.applied;
    }
    raft.progress
        .iter()
        .find(|progress| progress.node_id == node)
        .map_or(0, |progress| progress.matched)
}

#[tonic::async_trait]
impl Cluster for ClusterApi {
    async fn status(
        &self,
        request: Request<ClusterStatusRequest>,
    ) -> Result<Response<ClusterStatus>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        if let Some(answer) = ask_leader!(self.0, caller, ClusterClient, status, message) {
            return Ok(answer);
        }
        // Without a leader this is what one wants to look at: what this node knows is shown.
        let view = match self.0.query.linearizable().await {
            Ok(view) => view,
            Err(_) => self.0.query.stale(),
        };
        self.present(&view).map(Response::new)
    }

    async fn transfer_leadership(
        &self,
        request: Request<TransferLeadershipRequest>,
    ) -> Result<Response<ClusterStatus>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        if let Some(answer) =
            ask_leader!(self.0, caller, ClusterClient, transfer_leadership, message)
        {
            return Ok(answer);
        }
        if !self.0.leads() {
            return Err(status::refusal(
                Reason::NoLeader,
                "the leader cannot be reached to hand over the lead",
            ));
        }
        let to = (message.to != 0).then_some(message.to);
        if let Some(to) = to {
            let view = self.0.read().await?;
            let raft = self.0.status.borrow().clone();
            if check_heir(&names_of(&view), &raft, to)? == Heir::Leads {
                return self.present(&view).map(Response::new);
            }
        }
        if !self.0.transfer(to, TRANSFER_LIMIT).await? {
            let message = match to {
                Some(to) => format!("coordinator {to} did not take over in time"),
                None => "no other coordinator took over; this one goes on leading".to_owned(),
            };
            return Err(status::refusal(Reason::NoLeader, message));
        }
        self.present(&*self.0.read().await?).map(Response::new)
    }

    async fn remove_member(
        &self,
        request: Request<RemoveMemberRequest>,
    ) -> Result<Response<ClusterStatus>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        let key: RequestKey = request_key(&message.request_id)?;
        if let Some(answer) = ask_leader!(
            self.0,
            caller,
            ClusterClient,
            remove_member,
            message.clone()
        ) {
            return Ok(answer);
        }
        let removed = self
            .0
            .members
            .remove_member(caller.actor(), key, message.node_id, REMOVE_LIMIT)
            .await;
        match removed {
            Ok(()) => {}
            Err(MemberError::Propose(error)) => return Err(status::from_propose(&error)),
            Err(MemberError::Refused(rejection)) => {
                return Err(status::from_rejection(&rejection));
            }
            Err(error @ MemberError::TooSlow { .. }) => {
                return Err(status::refusal(Reason::OutcomeUnknown, error.to_string()));
            }
        }
        self.present(&*self.0.read().await?).map(Response::new)
    }

    async fn who_am_i(
        &self,
        request: Request<WhoAmIRequest>,
    ) -> Result<Response<WhoAmIResponse>, Status> {
        let caller = caller(&request)?;
        let identity = caller.identity.as_ref();
        let view = self.0.query.stale();
        let view = match caller.check_known(&view.state) {
            Ok(()) => view,
            Err(_) => self.0.read().await?,
        };
        let name = caller.name.as_ref();
        let grants = name.map_or(Vec::new(), |name| {
            convert::people::grants(&view.state, name)
        });
        let mut roles: Vec<String> = grants.iter().map(|grant| grant.role.clone()).collect();
        roles.dedup();
        Ok(Response::new(WhoAmIResponse {
            identity: identity.map(ToString::to_string).unwrap_or_default(),
            name: identity.map(|id| id.name.clone()).unwrap_or_default(),
            kind: identity.map(|id| id.kind.clone()).unwrap_or_default(),
            roles,
            certificate_not_after_ms: caller.validity.not_after.millis(),
            cluster_id: self.0.identity.cluster_id.clone(),
            grants,
            teams: name.map_or(Vec::new(), |name| convert::people::teams(&view.state, name)),
            coordinator: self.0.config.name.to_string(),
        }))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        let identity = match (&caller.identity, caller.kind) {
            (Some(identity), Kind::User) if !caller.relayed => identity,
            _ => {
                return Err(status::refusal(
                    Reason::PermissionDenied,
                    "only a person's own certificate is renewed here",
                ));
            }
        };
        let view = self.0.read().await?;
        // The gate may have asked an older state: who is removed must not get a fresh certificate.
        caller
            .check_known(&view.state)
            .map_err(|refused| status::refusal(refused.reason, refused.message))?;
        let subject = Subject {
            identity,
            hosts: &[],
            life: self.0.config.certificate_life.user,
        };
        let issued = self
            .0
            .ca(&view.state)?
            .sign_request(&message.csr, &subject, self.0.issue_time(&view.state))
            .map_err(|error| status::from_ca(&error))?;
        tracing::info!(%identity, not_after = %issued.not_after, "a certificate was renewed");
        Ok(Response::new(RenewCertificateResponse {
            certificate_chain: issued.chain,
            roots: issued.roots,
            not_after_ms: issued.not_after.millis(),
        }))
    }

    async fn events(
        &self,
        request: Request<EventsRequest>,
    ) -> Result<Response<EventsResponse>, Status> {
        let message = request.into_inner();
        let limit = match message.limit {
            0 => 100,
            limit => usize::try_from(limit).map_or(MOST_EVENTS, |limit| limit.min(MOST_EVENTS)),
        };
        let view = self.0.read().await?;
        let after = (message.after_index, message.after_ordinal);
        let after = (after != (0, 0)).then_some(after);
        let events = past::events(&self.0, &view, after, limit).await?;
        Ok(Response::new(EventsResponse {
            events: events.iter().map(convert::event).collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::PeerProgress;
    use crate::storage::log::Membership;

    #[test]
    fn only_a_member_with_a_vote_and_in_reach_gets_the_lead() {
        let names: BTreeMap<u64, Name> = [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
            .map(|(node, name)| (node, Name::new(name).unwrap()))
            .into();
        let progress = |node_id: u64, is_active: bool| PeerProgress {
            node_id,
            matched: 7,
            is_active,
            gets_snapshot: false,
        };
        let raft = RaftStatus {
            node_id: 1,
            role: Role::Leader,
            leader: Some(1),
            membership: Membership {
                voters: [1, 2, 3].into(),
                learners: [4].into(),
                ..Membership::default()
            },
            progress: vec![progress(2, true), progress(3, false), progress(4, true)],
            ..RaftStatus::default()
        };
        assert_eq!(check_heir(&names, &raft, 1).unwrap(), Heir::Leads);
        assert_eq!(check_heir(&names, &raft, 2).unwrap(), Heir::Ready);
        let refused = |to: u64| check_heir(&names, &raft, to).unwrap_err();
        assert!(refused(3).message().contains("does not reach"));
        assert!(refused(4).message().contains("has no vote"));
        assert_eq!(refused(9).code(), tonic::Code::NotFound);
        assert_eq!(
            refused(9).message(),
            "there is no coordinator 9; the members are 1 (a), 2 (b), 3 (c), 4 (d)"
        );
    }
}
