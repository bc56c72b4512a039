//! Gradual rollout: a member of a group starts when its turn has come (product.md §5.5).
//!
//! The schedule is arithmetic of `group::schedule`, whose caller knows the members; this tells what
//! it means for one of them.

use tidegate_shared::spec::RolloutOrder;
use tidegate_shared::time::Timestamp;

use super::Answer;

/// The turn of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn<'a> {
    /// From 0.
    pub position: u64,
    /// Of so many.
    pub members: u64,
    /// In which order it is counted; none: the group's.
    pub order: Option<&'a RolloutOrder>,
    /// The rollout has begun: approvals and progressions were satisfied.
    pub begun: bool,
    /// When it is due; none: never, as windows and freezes stand.
    pub due: Option<Timestamp>,
}

/// How people are told of a member's place; the position from 0.
pub fn place(position: u64, members: u64, order: Option<&RolloutOrder>) -> String {
    let order = order.map_or(String::new(), |order| format!(" (order: {order})"));
    format!("member {} of {members}{order}", position + 1)
}

/// Whether the member may start now.
pub fn answer(turn: Turn<'_>, now: Timestamp) -> Answer {
    let who = place(turn.position, turn.members, turn.order);
    if !turn.begun {
        let why = format!("{who} waits for the rollout to begin");
        return Answer::pending(why, None, "approvals and progressions of the group");
    }
    match turn.due {
        Some(due) if due <= now => {
            Answer::allowed(format!("{who} was due at {due}")).satisfied_at(Some(due))
        }
        Some(due) => Answer::pending(format!("{who} is due at {due}"), Some(due), "time"),
        None => {
            let why = format!("{who} is never due: the windows leave no time for it");
            Answer::pending(why, None, "an edit of the windows, or a thaw")
        }
    }
}
