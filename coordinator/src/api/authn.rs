//! Who calls: the SPIFFE identity of the client certificate, checked against the state.
//!
//! A certificate of the cluster's CA is not enough: its holder must still be in the state, and the
//! certificate must not be older than the holder's entry there, so that removal revokes it at
//! once. [`crate::api::gate`] asks for every request; open streams ask again when the state
//! changes.

use std::net::SocketAddr;

use tidegate_coordinator_core::{Actor, State};
use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::time::Timestamp;

use crate::ca::Validity;
use crate::tls::{ConnectionInfo, SpiffeId};

/// Kinds of identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Nobody: a connection without a certificate.
    Anonymous,
    /// A person.
    User,
    /// An agent.
    Agent,
    /// A coordinator.
    Coordinator,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Anonymous, Self::User, Self::Agent, Self::Coordinator];
}

/// Whoever sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// What it is.
    pub kind: Kind,
    /// Its full identity; none: anonymous.
    pub identity: Option<SpiffeId>,
    /// The name in it; none: anonymous.
    pub name: Option<Name>,
    /// When its certificate was issued and ends; zero for relayed callers.
    pub validity: Validity,
    /// Where it calls from.
    pub remote: SocketAddr,
    /// Another coordinator passes the request on for it.
    pub relayed: bool,
}

/// A certificate that is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Stable reason.
    pub reason: Reason,
    /// One line for a person.
    pub message: String,
}

impl Refused {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

impl Caller {
    /// Reads the certificate of a connection. Its end was checked at the handshake; a long
    /// connection may outlive it, so it is checked here again.
    ///
    /// # Errors
    /// [`Refused`] for a certificate that names nobody of this trust domain.
    pub fn of_connection(
        info: &ConnectionInfo,
        trust_domain: &str,
        now: Timestamp,
    ) -> Result<Self, Refused> {
        if info.certificate.is_none() {
            return Ok(Self {
                kind: Kind::Anonymous,
                identity: None,
                name: None,
                validity: NO_VALIDITY,
                remote: info.remote,
                relayed: false,
            });
        }
        let Some(identity) = &info.identity else {
            return Err(Refused::new(
                Reason::Unauthenticated,
                "the certificate names no one: want exactly one URI spiffe://<trust domain>/<kind>/<name>",
            ));
        };
        let validity = info.validity.ok_or_else(|| {
            Refused::new(Reason::Unauthenticated, "the certificate cannot be read")
        })?;
        if validity.not_after <= now {
            return Err(Refused::new(
                Reason::Unauthenticated,
                format!(
                    "the certificate of {identity} ran out at {}",
                    validity.not_after
                ),
            ));
        }
        Self::of_identity(identity, trust_domain, validity, info.remote)
    }

    /// A caller by its identity alone; for requests that another coordinator passes on.
    ///
    /// # Errors
    /// [`Refused`] for identities of other trust domains or kinds.
    pub fn of_identity(
        identity: &SpiffeId,
        trust_domain: &str,
        validity: Validity,
        remote: SocketAddr,
    ) -> Result<Self, Refused> {
        let wrong = |why: &str| Refused::new(Reason::Unauthenticated, format!("{identity} {why}"));
        if identity.trust_domain != trust_domain {
            return Err(wrong(&format!(
                "is not of this cluster's trust domain \"{trust_domain}\""
            )));
        }
        let kind = match identity.kind.as_str() {
            "user" => Kind::User,
            "agent" => Kind::Agent,
            "coordinator" => Kind::Coordinator,
            _ => return Err(wrong("is neither a user, an agent nor a coordinator")),
        };
        let name = Name::new(identity.name.clone()).map_err(|_| wrong("has no proper name"))?;
        Ok(Self {
            kind,
            identity: Some(identity.clone()),
            name: Some(name),
            validity,
            remote,
            relayed: false,
        })
    }

    /// Whether the state still knows this identity.
    ///
    /// # Errors
    /// [`Reason::AgentRemoved`] to an agent that was taken out, which drains then; everybody else,
    /// and an agent that the cluster never knew, hears [`Reason::Revoked`]. The view must be one
    /// that a read index preceded: an older one may lack somebody who joined meanwhile.
    pub fn check_known(&self, state: &State) -> Result<(), Refused> {
        let (Some(identity), Some(name)) = (&self.identity, &self.name) else {
            return Ok(());
        };
        let since = match self.kind {
            Kind::Anonymous => return Ok(()),
            Kind::User => state.people.get(name).map(|person| person.meta.created_at),
            Kind::Agent => state.agents.get(name).map(|agent| agent.meta.created_at),
            Kind::Coordinator => state.cluster.as_ref().and_then(|cluster| {
                let mut members = cluster.members.values();
                let member = members.find(|member| member.name == *name)?;
                Some(member.joined_at)
            }),
        };
        match since {
            Some(since) if self.relayed || self.validity.is_since(since) => Ok(()),
            Some(_) => Err(Refused::new(
                match self.kind {
                    Kind::Agent => Reason::AgentRemoved,
                    Kind::User | Kind::Coordinator | Kind::Anonymous => Reason::Revoked,
                },
                format!(
                    "{identity} was removed and joined again: this certificate is of the time before"
                ),
            )),
            None => Err(match (self.kind, state.removed_agents.get(name)) {
                (Kind::Agent, Some(at)) => Refused::new(
                    Reason::AgentRemoved,
                    format!("{identity} was taken out of the cluster at {at}"),
                ),
                _ => Refused::new(
                    Reason::Revoked,
                    format!("{identity} is not in the cluster any more"),
                ),
            }),
        }
    }

    /// Who the log says it was.
    #[must_use]
    pub fn actor(&self) -> Actor {
        match (&self.kind, &self.name) {
            (Kind::User, Some(name)) => Actor::User(name.clone()),
            (Kind::Agent, Some(name)) => Actor::Agent(name.clone()),
            (Kind::Coordinator, Some(name)) => Actor::Coordinator(name.clone()),
            (Kind::Anonymous, _) | (_, None) => Actor::System,
        }
    }
}

/// Of a caller without a certificate of its own on the connection.
pub const NO_VALIDITY: Validity = Validity {
    issued_at: Timestamp::ZERO,
    not_after: Timestamp::ZERO,
};

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_coordinator_core::state::{
        Addresses, CaRecord, Cluster, Member, SealedKey, Table,
    };
    use tidegate_shared::time::Span;

    const JOINED: Timestamp = Timestamp::from_millis(1_700_000_000_500);

    fn state() -> State {
        let member = Member {
            name: Name::new("c2").unwrap(),
            addresses: Addresses::default(),
            version: String::new(),
            level: 1,
            joined_at: JOINED,
        };
        State {
            cluster: Some(std::sync::Arc::new(Cluster {
                id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
                trust_domain: "td".to_owned(),
                level: 1,
                epoch: 0,
                next_node: 4,
                former: Table::new(),
                members: Table::unit(3, member),
                ca: CaRecord {
                    certificate: String::new(),
                    key: SealedKey {
                        nonce: Vec::new(),
                        sealed: Vec::new(),
                    },
                },
            })),
            ..State::default()
        }
    }

    fn coordinator(name: &str, issued_at: Timestamp) -> Caller {
        let identity = SpiffeId::parse(&format!("spiffe://td/coordinator/{name}")).unwrap();
        let validity = Validity {
            issued_at,
            not_after: issued_at + Span::from_hours(24),
        };
        let remote = SocketAddr::from(([127, 0, 0, 1], 1));
        Caller::of_identity(&identity, "td", validity, remote).unwrap()
    }

    #[test]
    fn a_coordinators_certificate_of_before_its_join_is_refused() {
        let state = state();
        // Certificates know whole seconds.
        let own = Timestamp::from_millis(JOINED.millis() / 1_000 * 1_000);
        assert_eq!(coordinator("c2", own).check_known(&state), Ok(()));
        let old = Timestamp::from_millis(JOINED.millis() - 60_000);
        let refused = coordinator("c2", old).check_known(&state).unwrap_err();
        assert_eq!(refused.reason, Reason::Revoked);
        assert!(refused.message.contains("the time before"), "{refused:?}");
        assert!(coordinator("c3", own).check_known(&state).is_err());
    }

    #[test]
    fn only_an_agent_that_was_taken_out_is_told_to_drain() {
        let mut state = state();
        let identity = SpiffeId::parse("spiffe://td/agent/web-1").unwrap();
        let validity = Validity {
            issued_at: JOINED,
            not_after: JOINED + Span::from_hours(24),
        };
        let remote = SocketAddr::from(([127, 0, 0, 1], 1));
        let agent = Caller::of_identity(&identity, "td", validity, remote).unwrap();
        let unknown = agent.check_known(&state).unwrap_err();
        assert_eq!(unknown.reason, Reason::Revoked);
        let name = Name::new("web-1").unwrap();
        state.removed_agents.insert(name, JOINED);
        let removed = agent.check_known(&state).unwrap_err();
        assert_eq!(removed.reason, Reason::AgentRemoved);
    }
}
