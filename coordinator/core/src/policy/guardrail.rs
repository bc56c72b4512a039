//! Guardrail: what a deployment must look like to be created (product.md §5.12). Asked once, with
//! the snapshot of the strategy that the deployment would carry.

use tidegate_shared::spec::GuardrailRule;

use super::Mistake;
use super::expression::{Expression, Facts, Subject};

/// Reads the condition.
///
/// # Errors
/// The first mistake and where it stands.
pub fn compile(rule: &GuardrailRule) -> Result<Expression, Mistake> {
    Expression::compile(&rule.condition, Subject::Creation)
        .map_err(|mistake| mistake.within("condition"))
}

/// Whether the deployment may be created.
///
/// # Errors
/// Why not, in one line.
pub fn check(rule: &GuardrailRule, facts: &Facts) -> Result<(), String> {
    let condition = compile(rule).map_err(|mistake| mistake.to_string())?;
    match condition.holds(facts) {
        Ok(true) => Ok(()),
        Ok(false) if rule.message.is_empty() => {
            Err(format!("this does not hold: {}", rule.condition))
        }
        Ok(false) => Err(rule.message.clone()),
        Err(error) => Err(format!("it cannot be evaluated: {error}")),
    }
}
