//! Concurrency: at most so many deployments between `CREATING` and their end among the scopes of a
//! policy (product.md §5.8).

use super::Answer;

/// Whether one more may start while `under_way` others are.
pub fn answer(max: u32, under_way: u64) -> Answer {
    if under_way < u64::from(max) {
        return Answer::allowed(format!("{under_way} of {max} are under way"));
    }
    Answer::pending(
        format!("{under_way} are under way among its scopes, and {max} may be at once"),
        None,
        "the end of one of them",
    )
}
