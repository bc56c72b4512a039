//! May they: the one table of listener × method × kind of identity. Deny by default.
//!
//! For now every person is an administrator; roles refine this table later. What an agent may see
//! within its own link is settled by [`crate::agents`].

use crate::api::authn::Kind;

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

#[cfg(test)]
mod tests {
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
