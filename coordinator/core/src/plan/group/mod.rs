//! Groups in the planner: what a group as a whole has to do, and whether the turn of a member has
//! come (product.md §3, §5.5).
//!
//! Only groups under way are looked at. A member is asked for its turn through [`Turn`] alone: first
//! what follows from the group (order, wave, gate, budget, halt, pause), then time, by the group's
//! own pace and by that of policies.

mod kept;
mod order;
mod standing;
mod waves;

use std::collections::BTreeMap;

use tidegate_shared::digest::Digest;
use tidegate_shared::id::{DeploymentId, GroupId, Name};
use tidegate_shared::spec::{RolloutGate, RolloutKind};
use tidegate_shared::time::Timestamp;

pub(crate) use kept::Kept;
pub(crate) use standing::Standing;

use super::view::View;
use super::waiting::{self, Gate, GateAnswer};
use super::{Next, Plan, retry, sooner};
use crate::command::{Action, Actor, AdvanceGroup, Command, GroupAction, Item, RequestKey};
use crate::deployment::phase;
use crate::group::waves::{Take, split};
use crate::observed::Observed;
use crate::policy::expression::{Expression, Subject};
use crate::policy::rules::{self, Told};
use crate::policy::{gradual_rollout, subject};
use crate::state::{Deployment, Fate, Group, GroupMember, Scope, State, Status};
use crate::verification::{Verified, verified};

/// The turn of one member.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn<'a> {
    pub(crate) standing: &'a Standing<'a>,
    pub(crate) number: u32,
}

impl Turn<'_> {
    /// The gates that the group of a member is: the paces of policies that are about it, then the
    /// group's own.
    pub(crate) fn gates(&self, deployment: &Deployment) -> Vec<Gate> {
        let standing = self.standing;
        let (now, number) = (standing.now, self.number);
        let shut = standing.shut(number);
        let clock = standing.clock(deployment);
        let mut gates = Vec::new();
        let mut own = None;
        for paced in standing.paces_of(number) {
            let Some(due) = standing.due(paced, number, &clock) else {
                continue;
            };
            let turn = gradual_rollout::Turn {
                position: paced.position(standing.group, number).unwrap_or_default(),
                members: paced.members,
                order: paced.order.as_ref(),
                begun: clock.base.is_some(),
                due,
            };
            let answer = gradual_rollout::answer(turn, now);
            if paced.rule.is_empty() {
                own = Some(answer);
                continue;
            }
            let skipped = rules::skipped(standing.state, deployment, &paced.rule, now);
            gates.push(Gate::of_rule(Told {
                rule: paced.rule.clone(),
                kind: "gradual_rollout",
                answer: skipped.unwrap_or(answer),
            }));
        }
        gates.push(match (shut, own) {
            (Some(closed), _) => Gate {
                until: closed.until,
                needs: closed.needs,
                next_evaluation: closed.until,
                ..Gate::new("rollout", GateAnswer::Pending, closed.why)
            },
            (None, Some(answer)) => Gate::of_answer("rollout", answer),
            (None, None) => {
                let wave = standing.group.members.get(&number).and_then(|m| m.wave);
                let why = match wave {
                    Some(wave) => {
                        format!("{} is open", crate::group::wave_name(standing.group, wave))
                    }
                    None => "the group starts all its members".to_owned(),
                };
                Gate::new("rollout", GateAnswer::Allowed, why)
            }
        });
        gates
    }

    /// When it may start at the earliest, as far as that is known.
    pub(crate) fn due(&self, deployment: &Deployment) -> Option<Timestamp> {
        let clock = self.standing.clock(deployment);
        let paces = self.standing.paces_of(self.number);
        let mut due = None;
        for paced in paces {
            let at = self.standing.due(paced, self.number, &clock)??;
            due = due.max(Some(at));
        }
        due
    }
}

/// Whether a member that started has passed the gate of its group, or why not. The one place that
/// says what `healthy` and `verified` mean.
///
/// # Errors
/// Why not, in one line.
pub(crate) fn passed(standing: &Standing<'_>, member: &GroupMember) -> Result<(), String> {
    let gate = standing.group.rollout.gate;
    let scope = &member.scope;
    let ended = member.ended.as_ref();
    match ended.map(|end| end.fate) {
        _ if gate == RolloutGate::None => return Ok(()),
        Some(Fate::Undecided) => return Err(format!("{scope} failed and may be tried again")),
        Some(Fate::Failed | Fate::Neutral) => return Ok(()),
        Some(Fate::Unverified) if gate == RolloutGate::Verified => {
            return Err(format!("{scope} was finalized without evidence"));
        }
        Some(Fate::Good | Fate::Unverified) | None => {}
    }
    let deployment = standing.state.deployments.get(&member.deployment);
    let Some(deployment) = deployment else {
        return Ok(());
    };
    match gate {
        RolloutGate::None => Ok(()),
        RolloutGate::Verified => match verified(deployment) {
            Verified::Yes => Ok(()),
            Verified::NotYet => Err(format!("{scope} is {}", deployment.status)),
            Verified::No(why) => Err(why),
        },
        RolloutGate::Healthy => is_healthy(standing, deployment),
    }
}

/// Whether the new version runs and is healthy at this moment; of one that its scope has left behind
/// nothing is asked.
fn is_healthy(standing: &Standing<'_>, deployment: &Deployment) -> Result<(), String> {
    let name = &deployment.origin.scope;
    let Some(scope) = standing.state.scopes.get(name) else {
        return Ok(());
    };
    match deployment.status {
        Status::Finalized if scope.active != Some(deployment.id) => return Ok(()),
        Status::Running | Status::Finalizing | Status::Finalized => {}
        Status::CreatingApproval
        | Status::CreatingApprovalDenied
        | Status::Pending
        | Status::Creating
        | Status::WaitingForInstances
        | Status::Cancelling
        | Status::Cancelled
        | Status::RollingBack
        | Status::RolledBack
        | Status::Failed
        | Status::Deleting
        | Status::Deleted => return Err(format!("{name} is {}", deployment.status)),
    }
    let (state, observed) = (standing.state, standing.observed);
    let view = View::new(state, observed, standing.now, scope, deployment);
    if !view.within_max_lost() {
        return Err(format!("{name}: {} agents are lost or failed", view.out()));
    }
    match view.outstanding() {
        0 => Ok(()),
        count => Err(format!("{name}: {count} instances are not healthy")),
    }
}

/// One look at everything: what groups stand at, and what their members are found to do in the
/// group's order.
pub(crate) struct Round<'a> {
    pub(crate) state: &'a State,
    pub(crate) observed: &'a Observed,
    pub(crate) now: Timestamp,
    /// Some policy asks for further tries.
    pub(crate) retries: bool,
    standings: BTreeMap<GroupId, Standing<'a>>,
    found: BTreeMap<DeploymentId, Next>,
    /// A start was found that others, which rest on the same rules, would be stale after.
    counted: bool,
}

impl<'a> Round<'a> {
    pub(crate) fn new(
        state: &'a State,
        observed: &'a Observed,
        now: Timestamp,
        groups: impl Iterator<Item = &'a Group>,
    ) -> Self {
        let standing = |group| Standing::new(state, observed, now, group).silent();
        let standings = groups.map(|group: &Group| (group.id, standing(group)));
        Self::with(state, observed, now, standings.collect())
    }

    /// The same with standings that are known.
    pub(crate) fn with(
        state: &'a State,
        observed: &'a Observed,
        now: Timestamp,
        standings: BTreeMap<GroupId, Standing<'a>>,
    ) -> Self {
        Self {
            state,
            observed,
            now,
            retries: retry::is_asked_for(state),
            standings,
            found: BTreeMap::new(),
            counted: false,
        }
    }

    /// What groups have to do, and what their members do, the first in the order first.
    pub(crate) fn add_groups(&mut self, plan: &mut Plan) {
        let standings = std::mem::take(&mut self.standings);
        for (id, mut standing) in standings {
            let next = next(&standing);
            plan.wake(next.wake);
            let group = standing.group;
            plan.commands
                .extend(next.action.map(|action| item(group, action)));
            for (number, member) in group.in_order() {
                self.add_member(&mut standing, number, member);
            }
            self.standings.insert(id, standing);
        }
    }

    /// Only the newest that waits in a scope is asked here: older ones have to see what it does.
    fn add_member(&mut self, standing: &mut Standing<'a>, number: u32, member: &GroupMember) {
        if member.ended.is_some() {
            return;
        }
        let deployment = self.state.deployments.get(&member.deployment);
        let Some(deployment) = deployment.filter(|d| phase::is_waiting(d.status)) else {
            return;
        };
        let scope = self.state.scopes.get(&member.scope);
        let newest = |scope: &&Scope| scope.waiting.last() == Some(&deployment.id);
        let Some(scope) = scope.filter(newest) else {
            return;
        };
        let turn = Turn {
            standing: &*standing,
            number,
        };
        let next = waiting::next(
            self.state,
            self.now,
            &member.scope,
            scope,
            deployment,
            Some(turn),
        );
        let next = self.admit(next);
        if matches!(next.action, Some(Action::Start { .. })) {
            standing.note_start(number);
        }
        self.found.insert(deployment.id, next);
    }

    /// Where a group stands at this look.
    pub(crate) fn standing(&self, group: GroupId) -> Option<&Standing<'a>> {
        self.standings.get(&group)
    }

    /// What a group as a whole has to do.
    pub(crate) fn of_group(&self, group: GroupId) -> Option<(Next<GroupAction>, Option<Item>)> {
        let standing = self.standings.get(&group)?;
        let next = next(standing);
        let item = next
            .action
            .clone()
            .map(|action| item(standing.group, action));
        Some((next, item))
    }

    /// Asks a deployment that waits before its scope is asked, which then answers the same.
    pub(crate) fn ask(&mut self, name: &Name, scope: &Scope, deployment: &Deployment) -> Next {
        let next = self.waiting(name, scope, deployment);
        self.found.insert(deployment.id, next.clone());
        next
    }

    /// What a deployment that waits has to do.
    pub(crate) fn waiting(&mut self, name: &Name, scope: &Scope, deployment: &Deployment) -> Next {
        if let Some(found) = self.found.remove(&deployment.id) {
            return found;
        }
        let member = self.state.membership(deployment);
        let turn = member.and_then(|(group, number)| {
            let standing = self.standings.get(&group.id)?;
            Some(Turn { standing, number })
        });
        let next = waiting::next(self.state, self.now, name, scope, deployment, turn);
        let next = self.admit(next);
        if let (Some((group, number)), Some(Action::Start { .. })) = (member, &next.action)
            && let Some(standing) = self.standings.get_mut(&group.id)
        {
            standing.note_start(number);
        }
        next
    }

    /// After a start that counts for a rule, others that rest on the rules are left to the next look.
    fn admit(&mut self, next: Next) -> Next {
        let Some(Action::Start {
            gates: Some(gates), ..
        }) = &next.action
        else {
            return next;
        };
        if self.counted {
            return Next {
                action: None,
                waiting_for: "another start that counts for a rule comes first".to_owned(),
                wake: next.wake,
            };
        }
        self.counted = gates.counts;
        next
    }
}

/// What a group as a whole has to do next.
pub(crate) fn next(standing: &Standing<'_>) -> Next<GroupAction> {
    let group = standing.group;
    if group.begun_at.is_none() {
        let why = "its order is fixed now";
        return Next::act(begin(standing.state, group, standing.now), why);
    }
    let outlook = undecided(standing);
    if !outlook.failed.is_empty() {
        let members = outlook.failed;
        return Next::act(GroupAction::Failed { members }, "no other try follows");
    }
    let stopped = group.halted.is_some() || group.given.is_some();
    if !stopped && group.is_over_budget() {
        return Next::act(GroupAction::Breach, "its failure budget is exceeded");
    }
    let over = group.tally.ended as usize >= group.members.len();
    if over && group.returns.values().all(|back| back.ended.is_some()) {
        return Next::act(GroupAction::End, "every member is at an end");
    }
    let mut next = match (
        &group.halted,
        group.given.is_some() || group.paused.is_some(),
    ) {
        (Some(halted), _) => give_up(standing, halted.since),
        (None, true) => Next::wait("", None),
        (None, false) if group.rollout.kind == RolloutKind::Waves => {
            waves::next(standing).unwrap_or_else(|| Next::wait("", None))
        }
        (None, false) => Next::wait("", None),
    };
    next.wake = sooner(next.wake, outlook.wake);
    next
}

/// Members whose end is undecided.
struct Outlook {
    /// No other try follows.
    failed: Vec<u32>,
    /// The next try.
    wake: Option<Timestamp>,
}

fn undecided(standing: &Standing<'_>) -> Outlook {
    let mut outlook = Outlook {
        failed: Vec::new(),
        wake: None,
    };
    let members = standing.group.members.iter();
    for (number, member) in members.filter(|(_, member)| member.is_undecided()) {
        let deployment = standing.state.deployments.get(&member.deployment);
        let due = deployment.and_then(|d| retry::due(standing.state, standing.now, d));
        match due {
            Some(due) => outlook.wake = sooner(outlook.wake, Some(due.at)),
            None => outlook.failed.push(*number),
        }
    }
    outlook.wake = outlook.wake.filter(|at| *at > standing.now);
    outlook
}

/// A halt ends when people say so, or at last when its time is up: what waits is given up then.
fn give_up(standing: &Standing<'_>, since: Timestamp) -> Next<GroupAction> {
    let waiting = standing.group.members.values().filter_map(|member| {
        let deployment = standing.state.deployments.get(&member.deployment)?;
        phase::is_waiting(deployment.status).then_some(deployment)
    });
    let limits = waiting.map(|d| d.origin.strategy.deadlines.halt_max);
    let Some(limit) = limits.max() else {
        return Next::wait("", None);
    };
    let at = since + limit;
    if at <= standing.now {
        return Next::act(GroupAction::GiveUp, "it was halted for too long");
    }
    Next::wait(format!("people have until {at} to let it go on"), Some(at))
}

/// The order and the waves of a group, for good.
fn begin(state: &State, group: &Group, now: Timestamp) -> GroupAction {
    let rollout = &group.rollout;
    let names = order::arranged(state, group, &rollout.order, group.members.values());
    let numbers = |names: &[Name]| -> Vec<u32> {
        let numbers = names.iter().filter_map(|name| group.scopes.get(name));
        numbers.copied().collect()
    };
    if rollout.kind != RolloutKind::Waves {
        return GroupAction::Begin {
            order: numbers(&names),
            waves: Vec::new(),
        };
    }
    let takes: Vec<Take> = rollout.waves.iter().map(Take::from).collect();
    let selectors: Vec<Option<Expression>> = rollout
        .waves
        .iter()
        .map(|wave| Expression::compile(wave.selector.as_ref()?, Subject::Deployment).ok())
        .collect();
    let selected = |wave: usize, name: &Name| {
        let number = group.scopes.get(name);
        let member = number.and_then(|number| group.members.get(number));
        let deployment = member.and_then(|member| state.deployments.get(&member.deployment));
        let selector = selectors.get(wave).and_then(Option::as_ref);
        let found = selector.zip(deployment);
        // What cannot be evaluated takes nobody: its members come last.
        found.is_some_and(|(selector, deployment)| {
            let facts = subject::facts(state, deployment, now);
            selector.holds(&facts).unwrap_or(false)
        })
    };
    let split = split(&names, &takes, selected);
    GroupAction::Begin {
        order: numbers(&split.concat()),
        waves: split
            .iter()
            .map(|wave| u32::try_from(wave.len()).unwrap_or(u32::MAX))
            .collect(),
    }
}

fn item(group: &Group, action: GroupAction) -> Item {
    let what = match &action {
        GroupAction::OpenWave { wave, .. } => format!("open_wave {wave}"),
        GroupAction::Failed { members } => format!("failed {members:?}"),
        GroupAction::Begin { .. }
        | GroupAction::Breach
        | GroupAction::GiveUp
        | GroupAction::End => action.as_str().to_owned(),
    };
    let text = format!("{}\n{}\n{what}", group.id, group.meta.revision);
    Item {
        actor: Actor::System,
        request: RequestKey::Planner(Digest::of(text.as_bytes())),
        command: Box::new(Command::AdvanceGroup(AdvanceGroup {
            group: group.id,
            revision: group.meta.revision,
            action,
        })),
    }
}
