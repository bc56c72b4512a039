//! May they: which kind of identity may call what at which listener, and which role a person needs
//! for it. Deny by default.
//!
//! Here stand the doors; [`table`] is RPC × role, [`commands`] what each command needs where. The
//! gate asks both tables before a service sees a request, `Context::propose` asks the second one
//! again with the objects themselves, and services that show objects ask [`Sight`]. What an agent
//! may see within its own link is settled by [`crate::agents`].

use tidegate_coordinator_core::people::{self, Place, Rights};
use tidegate_coordinator_core::state::Origin;
use tidegate_coordinator_core::{Actor, Command, Rejection, State};
use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{ParameterTarget, Role, ScopeSpec};
use tidegate_shared::time::Timestamp;

use crate::api::authn::{Caller, Kind};

pub mod commands;
pub mod levels;
pub mod table;

use table::Need;

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Door {
    /// People and agents.
    Control,
    /// Other coordinators.
    Peer,
    /// Newcomers.
    Enroll,
}

/// Whether a request to `path` (`/package.Service/Method`) may be made at `door` by `kind`;
/// `relayed`: a coordinator passes it on for that identity.
#[must_use]
pub fn permits(door: Door, path: &str, kind: Kind, relayed: bool) -> bool {
    let Some((service, method)) = path.strip_prefix('/').and_then(|p| p.split_once('/')) else {
        return false;
    };
    if method.is_empty() || method.contains('/') {
        return false;
    }
    match door {
        Door::Control if relayed => false,
        Door::Control => match service {
            "tidegate.control.v1.Objects"
            | "tidegate.control.v1.Releases"
            | "tidegate.control.v1.Deployments"
            | "tidegate.control.v1.Planning"
            | "tidegate.control.v1.Groups"
            | "tidegate.control.v1.Approvals"
            | "tidegate.control.v1.Governance"
            | "tidegate.control.v1.Scopes"
            | "tidegate.control.v1.Agents"
            | "tidegate.control.v1.Tokens"
            | "tidegate.control.v1.Cluster"
            | "tidegate.control.v1.People"
            | "tidegate.control.v1.Audit"
            | "grpc.reflection.v1.ServerReflection"
            | "grpc.reflection.v1alpha.ServerReflection" => kind == Kind::User,
            "grpc.health.v1.Health" => matches!(kind, Kind::User | Kind::Coordinator),
            "tidegate.agent.v1.AgentLink" => kind == Kind::Agent,
            _ => false,
        },
        Door::Peer => match service {
            // What a person asked another coordinator for and only this one can tell or do.
            "tidegate.control.v1.Deployments"
            | "tidegate.control.v1.Planning"
            | "tidegate.control.v1.Groups"
            | "tidegate.control.v1.Approvals"
            | "tidegate.control.v1.Scopes"
            | "tidegate.control.v1.Agents"
            | "tidegate.control.v1.Cluster" => relayed && kind == Kind::User,
            // The peer service binds each message to its sender itself.
            "tidegate.peer.v1.Peer" => kind == Kind::Coordinator && !relayed,
            _ => false,
        },
        Door::Enroll => !relayed && path == "/tidegate.enroll.v1.Enroll/Enroll",
    }
}

/// Most administrators that a refusal names.
const NAMED: usize = 5;

/// Whom to ask for a role, in words.
#[must_use]
pub fn whom_to_ask(state: &State) -> String {
    let all = people::administrators(state);
    let names: Vec<&str> = all.iter().take(NAMED).map(Name::as_str).collect();
    let more = if all.len() > NAMED { " …" } else { "" };
    format!("ask an administrator: {}{more}", names.join(", "))
}

/// A person lacks a role.
fn lacks(state: &State, user: &Name, role: Role, place: &Place) -> Rejection {
    let mut has: Vec<&str> = people::grants(state, user)
        .iter()
        .map(|grant| grant.role.as_str())
        .collect();
    has.dedup();
    let has = match has.is_empty() {
        true => "no role".to_owned(),
        false => has.join(", "),
    };
    let place = match place {
        Place::Somewhere => "this".to_owned(),
        place => place.to_string(),
    };
    Rejection::new(
        Reason::RoleNeeded,
        format!(
            "user \"{user}\" needs the role {role} for {place} and has {has}; {}",
            whom_to_ask(state)
        ),
    )
}

/// Whether a person may call something at all; where, is asked later.
///
/// # Errors
/// Who lacks which role, and whom to ask.
pub fn may_call(state: &State, user: &Name, path: &str) -> Result<(), Rejection> {
    let Some(need) = table::need(path) else {
        let message = format!("user \"{user}\" may not call {path}");
        return Err(Rejection::new(Reason::PermissionDenied, message));
    };
    let rights = Rights::of(state, user);
    let (role, place, holds) = match need {
        Need::Person => return Ok(()),
        Need::Somewhere(role) | Need::Object(role) => {
            (role, Place::Somewhere, rights.anywhere(role))
        }
        Need::Cluster(role) => (role, Place::Cluster, rights.everywhere(role)),
    };
    if holds {
        Ok(())
    } else {
        Err(lacks(state, user, role, &place))
    }
}

/// Whether whoever asks for a command may: for people each role that it needs, where it needs it.
///
/// # Errors
/// Who lacks which role where, and whom to ask.
pub fn may_give(
    state: &State,
    actor: &Actor,
    command: &Command,
    now: Timestamp,
) -> Result<(), Rejection> {
    levels::is_understood(state, command)?;
    let Actor::User(user) = actor else {
        return Ok(());
    };
    let rights = Rights::of(state, user);
    for (role, place) in commands::needs(state, command) {
        if !rights.at(state, role, &place) {
            return Err(lacks(state, user, role, &place));
        }
    }
    match command {
        Command::Decide(decide) => commands::may_decide(state, user, decide.deployment, now),
        Command::DecideGroup(decide) => commands::may_decide_group(state, user, decide, now),
        _ => Ok(()),
    }
}

/// Where a deployment goes; a scope that is gone is as it was.
#[must_use]
pub fn place_of(state: &State, origin: &Origin) -> Place {
    let name = origin.scope.clone();
    if state.scopes.contains_key(&name) {
        Place::Scope(name)
    } else {
        Place::NewScope(
            name,
            Labels::new(),
            Box::new(ScopeSpec::clone(&origin.scope_spec)),
        )
    }
}

/// Where the value of a parameter may be seen.
#[must_use]
pub fn place_of_target(target: &ParameterTarget) -> Place {
    let any = people::Reach::Any;
    match (&target.scope, &target.application, &target.environment) {
        (Some(scope), ..) => Place::Scope(scope.clone()),
        (None, Some(name), _) => Place::Application(name.clone(), any),
        (None, None, Some(name)) => Place::Environment(name.clone(), any),
        (None, None, None) => Place::Somewhere,
    }
}

/// What a caller sees of the objects.
#[derive(Clone, Debug)]
pub struct Sight {
    /// None: everything.
    person: Option<(Name, Rights)>,
}

impl Sight {
    /// Of a caller; whoever is no person sees what its door lets it call for.
    #[must_use]
    pub fn of(state: &State, caller: &Caller) -> Self {
        let person = match (caller.kind, &caller.name) {
            (Kind::User, Some(name)) => Some((name.clone(), Rights::of(state, name))),
            (Kind::User | Kind::Anonymous | Kind::Agent | Kind::Coordinator, _) => None,
        };
        Self {
            person: person.filter(|(_, rights)| !rights.everywhere(Role::Viewer)),
        }
    }

    /// Whether everything is seen.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.person.is_none()
    }

    /// Whether what is at a place is seen.
    #[must_use]
    pub fn sees(&self, state: &State, place: &Place) -> bool {
        let person = self.person.as_ref();
        person.is_none_or(|(_, rights)| rights.at(state, Role::Viewer, place))
    }

    /// As [`Self::sees`], for one object that was asked for.
    ///
    /// # Errors
    /// Who lacks which role where, and whom to ask.
    pub fn check(&self, state: &State, place: &Place) -> Result<(), Rejection> {
        match &self.person {
            Some((name, _)) if !self.sees(state, place) => {
                Err(lacks(state, name, Role::Viewer, place))
            }
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod doors {
    use super::*;
    use prost::Message;
    use std::collections::BTreeSet;

    /// Every RPC of every proto, as paths.
    fn every_rpc() -> Vec<String> {
        let set = prost_types::FileDescriptorSet::decode(tidegate_proto::DESCRIPTORS).unwrap();
        let mut paths = Vec::new();
        for file in set.file {
            let package = file.package.clone().unwrap_or_default();
            for service in &file.service {
                for method in &service.method {
                    paths.push(format!("/{package}.{}/{}", service.name(), method.name()));
                }
            }
        }
        for path in [
            "/grpc.health.v1.Health/Check",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ] {
            paths.push(path.to_owned());
        }
        paths
    }

    fn expected(door: Door, path: &str) -> BTreeSet<(Kind, bool)> {
        let only = |kinds: &[(Kind, bool)]| kinds.iter().copied().collect();
        let service = path.rsplit_once('/').unwrap().0;
        match (door, service) {
            (Door::Control, "/tidegate.agent.v1.AgentLink") => only(&[(Kind::Agent, false)]),
            (Door::Control, "/grpc.health.v1.Health") => {
                only(&[(Kind::User, false), (Kind::Coordinator, false)])
            }
            (Door::Control, s) if s.contains("control.v1") || s.contains("reflection") => {
                only(&[(Kind::User, false)])
            }
            (Door::Peer, "/tidegate.peer.v1.Peer") => only(&[(Kind::Coordinator, false)]),
            (Door::Peer, s)
                if s.contains("control.v1")
                    && !s.ends_with("Objects")
                    && !s.ends_with("Governance")
                    && !s.ends_with("Releases")
                    && !s.ends_with("People")
                    && !s.ends_with("Audit")
                    && !s.ends_with("Tokens") =>
            {
                only(&[(Kind::User, true)])
            }
            (Door::Enroll, "/tidegate.enroll.v1.Enroll") => {
                Kind::ALL.into_iter().map(|kind| (kind, false)).collect()
            }
            _ => BTreeSet::new(),
        }
    }

    #[test]
    fn every_rpc_times_every_identity() {
        let paths = every_rpc();
        assert!(paths.len() > 40, "{paths:?}");
        for path in &paths {
            for door in [Door::Control, Door::Peer, Door::Enroll] {
                let mut found = BTreeSet::new();
                for kind in Kind::ALL {
                    for relayed in [false, true] {
                        if permits(door, path, kind, relayed) {
                            found.insert((kind, relayed));
                        }
                    }
                }
                assert_eq!(found, expected(door, path), "{door:?} {path}");
            }
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_denied() {
        for path in [
            "",
            "/",
            "/x",
            "/tidegate.control.v1.Objects",
            "/tidegate.control.v1.Objects/",
            "/tidegate.control.v2.Objects/Get",
            "/a/b/c",
        ] {
            for door in [Door::Control, Door::Peer, Door::Enroll] {
                for kind in Kind::ALL {
                    assert!(!permits(door, path, kind, false), "{path}");
                }
            }
        }
    }
}
