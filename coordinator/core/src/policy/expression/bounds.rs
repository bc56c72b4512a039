//! Which applications a condition can be about, as far as its text alone bounds them.

use std::collections::BTreeSet;

use cel::IdedExpr;
use cel::common::ast::operators as op;
use cel::common::ast::{CallExpr, Expr, LiteralValue};

/// Names of the only applications that a condition can hold for; none: its text does not say.
/// Understood are comparisons of `application.name` and `scope.application` with written names, and
/// `&&` and `||` of those with anything else.
pub(super) fn applications(expr: &IdedExpr) -> Option<BTreeSet<String>> {
    let Expr::Call(call) = &expr.expr else {
        return None;
    };
    match (call.func_name.as_str(), operands(call).as_slice()) {
        (op::EQUALS, [one, other]) => {
            let named = |one: &IdedExpr, other: &IdedExpr| {
                is_application(one).then(|| text(other)).flatten()
            };
            let name = named(one, other).or_else(|| named(other, one))?;
            Some(BTreeSet::from([name]))
        }
        (op::IN, [one, among]) if is_application(one) => {
            let Expr::List(list) = &among.expr else {
                return None;
            };
            list.elements.iter().map(text).collect()
        }
        (op::LOGICAL_AND, parts) => parts
            .iter()
            .filter_map(|part| applications(part))
            .reduce(|one, other| &one & &other),
        (op::LOGICAL_OR, parts) => parts
            .iter()
            .map(|part| applications(part))
            .reduce(|one, other| Some(&one? | &other?))?,
        _ => None,
    }
}

fn operands(call: &CallExpr) -> Vec<&IdedExpr> {
    let target = call.target.as_deref();
    target.into_iter().chain(&call.args).collect()
}

fn is_application(expr: &IdedExpr) -> bool {
    let Expr::Select(select) = &expr.expr else {
        return false;
    };
    let Expr::Ident(object) = &select.operand.expr else {
        return false;
    };
    let path = (object.as_str(), select.field.as_str());
    !select.test && matches!(path, ("application", "name") | ("scope", "application"))
}

fn text(expr: &IdedExpr) -> Option<String> {
    match &expr.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner().to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Expression, Subject};

    #[test]
    fn the_text_bounds_what_a_condition_can_be_about() {
        for (text, wanted) in [
            ("", None),
            ("application.name == \"shop\"", Some("shop")),
            ("\"shop\" == scope.application", Some("shop")),
            (
                "environment.name == \"production\" && application.name == \"shop\" && scope.name != \"a\"",
                Some("shop"),
            ),
            ("application.name in [\"shop\", \"db\"]", Some("db shop")),
            (
                "application.name in [\"shop\", \"db\"] && application.name == \"db\"",
                Some("db"),
            ),
            (
                "application.name == \"shop\" || application.name == \"db\"",
                Some("db shop"),
            ),
            // One side may be about any.
            ("application.name == \"shop\" || scope.name == \"a\"", None),
            ("application.name != \"shop\"", None),
            ("!(application.name == \"shop\")", None),
            ("application.name == scope.name", None),
            ("application.labels.team == \"shop\"", None),
        ] {
            let found = Expression::compile(text, Subject::Deployment).unwrap();
            let found = found.applications();
            let found = found.map(|names| names.into_iter().collect::<Vec<_>>().join(" "));
            assert_eq!(found.as_deref(), wanted, "{text}");
        }
    }
}
