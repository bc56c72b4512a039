//! Where a rollout by waves stands: the present wave is done when every member of it, and of those
//! before it, is at an end; then it bakes; then the next one that has members opens.

use tidegate_shared::time::{Span, Timestamp};

use super::passed;
use super::standing::Standing;
use crate::command::GroupAction;
use crate::group::wave_name;
use crate::plan::Next;
use crate::state::Group;

/// The next wave that has members, from the present one on.
fn next_wave(group: &Group) -> Option<u32> {
    let mut waves = (0_u32..).zip(&group.waves);
    waves
        .find(|(index, wave)| *index > group.open_wave && wave.members > 0)
        .map(|(index, _)| index)
}

/// When everything before each wave is done and baked, by index; none: a member before it is not at
/// an end. The bake is that of the last wave before it that has members.
pub(super) fn settled(group: &Group) -> Vec<Option<Timestamp>> {
    let mut ends: Vec<Option<Timestamp>> = vec![group.begun_at; group.waves.len()];
    for member in group.members.values() {
        let end = member.ended.as_ref().filter(|_| member.is_over());
        let wave = member.wave.and_then(|wave| ends.get_mut(wave as usize));
        if let Some(last) = wave {
            *last = last.zip(end).map(|(last, end)| last.max(end.at));
        }
    }
    let (mut done, mut bake) = (group.begun_at, Span::ZERO);
    let mut settled = Vec::with_capacity(ends.len());
    for (index, end) in ends.into_iter().enumerate() {
        settled.push(done.map(|done| done + bake));
        if group.waves.get(index).is_some_and(|wave| wave.members > 0) {
            done = done.zip(end).map(|(done, end)| done.max(end));
            let written = group.rollout.waves.get(index);
            bake = written.map_or(Span::ZERO, |wave| wave.bake);
        }
    }
    settled
}

/// The wave that opens now, or what it waits for; none where there is none to open.
pub(super) fn next(standing: &Standing<'_>) -> Option<Next<GroupAction>> {
    let group = standing.group;
    let wave = next_wave(group)?;
    let (name, present) = (wave_name(group, wave), wave_name(group, group.open_wave));
    let Some(baked) = standing.settled(wave) else {
        return Some(Next::wait(
            format!("{name} opens when every member of {present} is at an end"),
            None,
        ));
    };
    if standing.now < baked {
        return Some(Next::wait(
            format!("{present} bakes until {baked}, then {name} opens"),
            Some(baked),
        ));
    }
    let mut earlier = group.in_order();
    let blocker = earlier.find_map(|(_, member)| {
        let earlier = member.wave.is_some_and(|of| of < wave);
        passed(standing, member).err().filter(|_| earlier)
    });
    if let Some(blocker) = blocker {
        let gate = group.rollout.gate.as_str();
        return Some(Next::wait(
            format!("{name} waits for its gate {gate}: {blocker}"),
            None,
        ));
    }
    let why = format!("{present} is done since {baked}");
    let action = GroupAction::OpenWave {
        wave,
        why: why.clone(),
    };
    Some(Next::act(action, why))
}
