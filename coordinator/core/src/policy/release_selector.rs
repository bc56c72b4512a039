//! Release selector: which releases may go to a place at all (product.md §5.7). Fails closed.

use tidegate_shared::spec::ReleaseSelectorRule;

use super::expression::{Expression, Facts, Subject};
use super::{Answer, Mistake};

/// Reads the condition.
///
/// # Errors
/// The first mistake and where it stands.
pub fn compile(rule: &ReleaseSelectorRule) -> Result<Expression, Mistake> {
    Expression::compile(&rule.condition, Subject::Deployment)
        .map_err(|mistake| mistake.within("condition"))
}

/// Whether the release may go there.
pub fn answer(condition: &Expression, facts: &Facts) -> Answer {
    match condition.holds(facts) {
        Ok(true) => Answer::allowed("the release may go there"),
        Ok(false) => Answer::denied("the release may not go there: the condition does not hold"),
        Err(error) => Answer::broken(error),
    }
}
