//! Guardrail: what a deployment must look like to be created (product.md §5.12). Asked once, with
//! the snapshot of the strategy that the deployment would carry.

use tidegate_shared::error::Reason;
use tidegate_shared::spec::GuardrailRule;
use tidegate_shared::time::Timestamp;

use super::expression::{Expression, Facts, Subject};
use super::{Mistake, rules, subject};
use crate::rejection::Rejection;
use crate::state::{Deployment, State};

/// Whether any policy has something to say when deployments are created.
pub fn is_any(state: &State) -> bool {
    let mut policies = state.policies.values();
    policies.any(|policy| policy.spec.enabled && policy.spec.guardrail.is_some())
}

/// Whether every guardrail lets a deployment be that was made on a copy of the state. A policy that
/// cannot be evaluated blocks, unless its guardrail is skipped.
///
/// # Errors
/// The first one that does not, for the person who asked.
pub fn check_all(state: &State, deployment: &Deployment, now: Timestamp) -> Result<(), Rejection> {
    if !is_any(state) {
        return Ok(());
    }
    let facts = subject::facts(state, deployment, now);
    for (name, policy) in &state.policies {
        let Some(rule) = policy
            .spec
            .guardrail
            .as_ref()
            .filter(|_| policy.spec.enabled)
        else {
            continue;
        };
        let rule_name = format!("{name}/guardrail");
        if rules::skipped(state, deployment, &rule_name, now).is_some() {
            continue;
        }
        let found = match rules::matches(&policy.spec, &facts) {
            Ok(true) => check(rule, &facts),
            Ok(false) => Ok(()),
            Err(error) => Err(format!("its selector cannot be evaluated: {error}")),
        };
        if let Err(why) = found {
            let scope = &deployment.origin.scope;
            let message =
                format!("policy {rule_name} refuses a deployment to scope {scope}: {why}");
            return Err(Rejection::new(Reason::Guardrail, message));
        }
    }
    Ok(())
}

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
