//! What deployments that wait rest on: what has to change before it is worth asking them again.

use tidegate_shared::id::{GroupId, Name, Version};

use crate::plan::group::{Round, Turn};
use crate::plan::{GateAnswer, gates};
use crate::state::{Deployment, Scope, State, Status};

/// What deployments that wait rest on, beside time and their own scope's rows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Line {
    /// Their group lets nobody, or nobody of their wave, start.
    Group(GroupId),
    /// A rule that says the same to all deployments of a release.
    Rule(String, Name, Version),
    /// What other applications than theirs do.
    Elsewhere(Name),
    /// Anything.
    Any,
}

/// The order in which the planner asks: members in the order of their groups, then by scope.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Member(GroupId, u32, Name),
    Other(Name),
}

impl Key {
    /// The scope that is asked.
    pub(super) fn scope(&self) -> &Name {
        match self {
            Self::Member(_, _, scope) | Self::Other(scope) => scope,
        }
    }
}

/// What a deployment that waits rests on.
pub(super) enum Rest {
    /// Time and its own scope's rows.
    Itself,
    /// See [`Line`].
    On(Line),
    /// It may start, but another one comes first.
    PutOff(Line),
}

impl Rest {
    /// What else it rests on.
    pub(super) fn line(self) -> Option<Line> {
        match self {
            Self::Itself => None,
            Self::On(line) | Self::PutOff(line) => Some(line),
        }
    }

    /// What a deployment rests on that was asked in a round and goes on waiting.
    pub(super) fn of(
        round: &Round<'_>,
        name: &Name,
        scope: &Scope,
        deployment: &Deployment,
    ) -> Self {
        let (state, now) = (round.state, round.now);
        if deployment.status != Status::Pending {
            return Self::Itself;
        }
        let turn = state.membership(deployment).and_then(|(group, number)| {
            let standing = round.standing(group.id)?;
            Some(Turn { standing, number })
        });
        if let Some(turn) = turn {
            let group = turn.standing.group.id;
            if turn.standing.shut(turn.number).is_some() {
                return Self::On(Line::Group(group));
            }
            // Starts of others only ever put it off: its time is asked for again when it comes.
            if turn.standing.closed(turn.number).is_some() {
                return Self::Itself;
            }
        }
        let all = gates(state, now, name, scope, deployment, turn);
        let origin = &deployment.origin;
        let line = |rule: &str| {
            let rule = rule.to_owned();
            Line::Rule(rule, origin.application.clone(), origin.version.clone())
        };
        let Some(closed) = all.iter().find(|gate| gate.answer != GateAnswer::Allowed) else {
            let counting = all.iter().find(|gate| gate.kind == "concurrency");
            return match counting {
                Some(gate) => Self::PutOff(line(&gate.rule)),
                None => Self::On(Line::Any),
            };
        };
        match closed.kind {
            "concurrency" | "progression" => Self::On(line(&closed.rule)),
            "dependency" => Self::On(Line::Elsewhere(origin.application.clone())),
            "freeze" | "window" | "cooldown" | "release" | "release_selector" | "approval"
            | "pause" | "scope" | "agents" => Self::Itself,
            "rollout" | "gradual_rollout" if closed.until.is_some() => Self::Itself,
            _ => Self::On(Line::Any),
        }
    }
}

/// The place in its group's order of the newest deployment that waits in a scope; none: it is no
/// member of a group under way.
pub(super) fn member_key(state: &State, name: &Name) -> Option<Key> {
    let newest = state.scopes.get(name)?.waiting.last()?;
    let (group, number) = state.membership(state.deployments.get(newest)?)?;
    let position = group.members.get(&number)?.position;
    Some(Key::Member(
        group.id,
        position.unwrap_or(number),
        name.clone(),
    ))
}
