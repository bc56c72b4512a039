//! What the planner proposes in each status under scripted reports, and what it wishes meanwhile.

mod before;
mod checks;
mod ending;
mod groups;
mod orders;
mod running;
pub(crate) mod simulation;
mod waits;
mod wish;

use tidegate_shared::assignment::{PermanentError, PermanentErrorKind};

use crate::command::Action;
use crate::fixture::World;
use crate::state::Status;

const PLAIN: &str = r#"{"bake":"10s","traffic":{"steps":[{"percent":10,"hold":"5s"},{"percent":100,"hold":"manual"}]}}"#;

fn world(status: Status) -> World {
    World::new(3, 2, PLAIN, status)
}

fn kind(action: Option<Action>) -> String {
    action.map_or_else(
        || "nothing".to_owned(),
        |action| {
            let text = format!("{action:?}");
            let end = text.find([' ', '{']).unwrap_or(text.len());
            text[..end].to_owned()
        },
    )
}

fn broken(kind: PermanentErrorKind) -> Option<PermanentError> {
    Some(PermanentError {
        kind,
        message: "as told by the agent".to_owned(),
    })
}
