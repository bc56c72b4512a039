//! Groups: the arithmetic of order, pace, waves and budgets over plain values, and what a group's
//! record says of its members.
//!
//! Nothing here moves a group: `apply::group` does what people and the planner say, `plan::group`
//! finds out what is due. Both take their answers from here.

pub mod budget;
pub mod explain;
pub mod open_time;
pub mod order;
pub mod schedule;
pub mod status;
pub mod view;
pub mod waves;

use crate::state::Group;

/// What people call a wave of a group.
pub fn wave_name(group: &Group, wave: u32) -> String {
    match group
        .waves
        .get(wave as usize)
        .map(|wave| wave.name.as_str())
    {
        Some("") | None => "the rest".to_owned(),
        Some(name) => format!("wave {name}"),
    }
}
