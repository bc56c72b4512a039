//! What administrators do to the cluster and its objects, as scenarios say it: it is founded, raised to
//! a level, objects are deleted, and policies are checked before they are written.

use tidegate_coordinator_core::command::{
    DeleteObject, InitCluster, PutObject, RaiseLevel, UpdateMember,
};
use tidegate_coordinator_core::policy::check;
use tidegate_coordinator_core::state::{Addresses, CaRecord, SealedKey};
use tidegate_coordinator_core::{Actor, Command, Item, Rejection, State, guard};
use tidegate_shared::id::{ClusterId, Name};
use tidegate_shared::spec::{Kind, ObjectSpec};
use tidegate_shared::time::Timestamp;

/// What is done.
#[derive(Debug, Clone)]
pub enum Manage {
    /// Every coordinator supports a level, and the cluster is raised to it.
    Level(u32),
    /// An object is deleted.
    Delete(Kind, Name),
}

impl Manage {
    /// Reads what follows `level` or `delete`.
    ///
    /// # Errors
    /// What is not understood.
    pub fn parse(first: &str, rest: &str) -> Result<Self, String> {
        if first == "level" {
            let level = rest.trim().parse();
            return level
                .map(Self::Level)
                .map_err(|error| format!("\"{rest}\": {error}"));
        }
        let (kind, name) = rest
            .trim()
            .split_once(' ')
            .ok_or("want a kind and a name")?;
        let name = Name::new(name).map_err(|error| error.to_string())?;
        Ok(Self::Delete(kind.parse()?, name))
    }

    /// The commands that do it.
    pub fn commands(&self) -> Vec<Command> {
        match self {
            Self::Level(level) => vec![
                Command::UpdateMember(UpdateMember {
                    node: 1,
                    addresses: Addresses::default(),
                    version: "next".to_owned(),
                    level: *level,
                }),
                Command::RaiseLevel(RaiseLevel { level: *level }),
            ],
            Self::Delete(kind, name) => vec![Command::DeleteObject(DeleteObject {
                kind: *kind,
                name: name.clone(),
                expected_revision: None,
            })],
        }
    }
}

/// The first entry of every story's cluster.
///
/// # Errors
/// A name is wrong.
pub(crate) fn init(at: Timestamp) -> Result<Command, String> {
    let name = |text| Name::new(text).map_err(|error| error.to_string());
    Ok(Command::InitCluster(InitCluster {
        cluster: ClusterId::derived(at, "scenario", 0, 0),
        trust_domain: "scenario.test".to_owned(),
        name: name("c1")?,
        addresses: Addresses::default(),
        ca: CaRecord {
            certificate: "scenario".to_owned(),
            key: SealedKey {
                nonce: vec![0; 12],
                sealed: vec![0; 16],
            },
        },
        admin: name("admin")?,
        level: 1,
    }))
}

/// What the front refuses of people's commands before they reach the log: policies with mistakes, and
/// what guardrails do not let be.
///
/// # Errors
/// The refusal.
pub(crate) fn checked(state: &State, now: Timestamp, item: &Item) -> Result<(), Rejection> {
    if !matches!(item.actor, Actor::User(_)) {
        return Ok(());
    }
    guard(state, u64::MAX / 2, now, item)?;
    let Command::PutObject(PutObject { name, spec, .. }) = &*item.command else {
        return Ok(());
    };
    let ObjectSpec::Policy(policy) = spec else {
        return Ok(());
    };
    let errors = check::check(policy).into_result();
    errors.map_err(|errors| Rejection::fields(&format!("policy \"{name}\""), errors))
}
