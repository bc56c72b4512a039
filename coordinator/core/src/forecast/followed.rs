//! What the rehearsal knows of a group under way between its looks.

use tidegate_shared::spec::RolloutKind;
use tidegate_shared::time::Timestamp;

use super::looks::News;
use crate::observed::Observed;
use crate::plan::group::{Kept, Standing};
use crate::state::{Fate, Group, State};

/// What is known of a group under way.
#[derive(Debug, Default)]
pub(super) struct Followed {
    pub(super) kept: Kept,
    pub(super) wake: Option<Timestamp>,
    /// It is to be asked at the next look.
    pub(super) is_due: bool,
    /// Some member may be tried again.
    undecided: bool,
}

impl Followed {
    /// Takes in what happened to a group's members.
    pub(super) fn learn(
        &mut self,
        state: &State,
        observed: &Observed,
        now: Timestamp,
        before: Option<&Group>,
        group: &Group,
        news: &News,
    ) {
        let touched = news.scopes.iter().chain(&news.heard);
        let touched: Vec<u32> = touched
            .filter_map(|name| group.scopes.get(name).copied())
            .collect();
        let is_new = |number: &u32| {
            let member = |group: &Group| group.members.get(number).map(|member| member.deployment);
            before.is_none_or(|before| member(before) != member(group))
        };
        if before.is_none() || !self.kept.is_of(group) || touched.iter().any(is_new) {
            self.kept = Kept::new(state, observed, now, group);
            let mut members = group.members.values();
            self.undecided = members.any(|member| member.is_undecided());
            self.is_due = true;
            return;
        }
        let standing = Standing::bare(state, observed, now, group);
        for number in &touched {
            let Some(member) = group.members.get(number) else {
                continue;
            };
            let known = before.and_then(|before| before.members.get(number));
            if let Some(at) = member.started_at
                && known.is_none_or(|known| known.started_at.is_none())
            {
                self.kept.started(group, *number, at);
            }
            let undecided = member.ended.as_ref().map(|end| end.fate) == Some(Fate::Undecided);
            self.undecided |= undecided;
            self.kept.ask(&standing, *number);
        }
        self.is_due |= !touched.is_empty() && self.may_move(group);
    }

    /// Whether there may be something for the group as a whole to do, as far as that is cheap to say.
    fn may_move(&self, group: &Group) -> bool {
        let ended = u64::from(group.tally.ended);
        let waves = group.waves.iter().take(group.open_wave as usize + 1);
        let of_waves: u64 = waves.map(|wave| u64::from(wave.members)).sum();
        let by_waves = group.rollout.kind == RolloutKind::Waves && ended >= of_waves;
        self.undecided
            || by_waves
            || ended >= group.members.len() as u64
            || group.is_over_budget()
            || !group.returns.is_empty()
    }
}
