//! Checks a policy when it is written: what cannot be understood is refused with its place. Asked by
//! the API front, never by `apply`: other versions of the libraries must not make replicas differ.

use tidegate_shared::spec::{FieldErrors, PolicySpec, ScopeSpec};

use super::expression::{Expression, Subject};
use super::window::Window;
use super::{Mistake, dependency, guardrail, release_selector};

/// What is wrong with a policy, its shape included.
pub fn check(spec: &PolicySpec) -> FieldErrors {
    let mut errors = spec.validate();
    for mistake in mistakes(spec) {
        errors.add(mistake.field.clone(), mistake.to_string());
    }
    errors
}

/// What is wrong with the conditions of a scope.
pub fn check_scope(spec: &ScopeSpec) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let rule = spec.auto_deploy.as_ref();
    let found = rule.map(|rule| (rule, Expression::compile(&rule.when, Subject::Release)));
    if let Some((rule, Err(mistake))) = found {
        let field = match rule.strategy {
            Some(_) => "auto_deploy.when",
            None => "auto_deploy",
        };
        errors.add(field, mistake.to_string());
    }
    errors
}

fn mistakes(spec: &PolicySpec) -> Vec<Mistake> {
    let mut all = Vec::new();
    let mut see = |prefix: &str, result: Result<(), Mistake>| {
        if let Err(mistake) = result {
            all.push(mistake.within(prefix));
        }
    };
    let expression = |text: &str, subject| Expression::compile(text, subject).map(drop);
    see("selector", expression(&spec.selector, Subject::Deployment));
    if let Some(rule) = &spec.approval {
        let found = expression(&rule.condition, Subject::Deployment);
        see("approval.condition", found);
    }
    if let Some(rule) = &spec.progression {
        see(
            "progression.after",
            expression(&rule.after, Subject::Environment),
        );
    }
    if let Some(rule) = &spec.release_selector {
        see(
            "release_selector",
            release_selector::compile(rule).map(drop),
        );
    }
    if let Some(rule) = &spec.guardrail {
        see("guardrail", guardrail::compile(rule).map(drop));
    }
    let about = Expression::compile(&spec.selector, Subject::Deployment);
    let about = about.ok().and_then(|selector| selector.applications());
    for (index, rule) in spec.dependencies.iter().enumerate() {
        let prefix = format!("dependencies[{index}]");
        let found = dependency::Requirement::parse(&rule.version).map(drop);
        see(&prefix, found);
        see(&prefix, dependency::check_other(rule, about.as_ref()));
    }
    for (index, window) in spec.windows.iter().enumerate() {
        if let Err(mistakes) = Window::compile(window) {
            let prefix = format!("windows[{index}]");
            all.extend(mistakes.into_iter().map(|mistake| mistake.within(&prefix)));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_checked_and_its_place_told() {
        let spec: PolicySpec = serde_json::from_str(
            r#"{"selector": "enviroment.name == \"a\"",
                "approval": {"condition": "user.nam == \"a\"", "on_true": "deny"},
                "windows": [{"rrules": ["FREQ=DAILY"], "duration": "1h"},
                            {"rrules": ["FREQ=DAILY;BYHOUR=25"], "duration": "1h", "time_zone": "Mars"}],
                "progression": {"after": "scope.name == \"a\""},
                "dependencies": [{"application": "db", "version": ">=2.x.y.z"}],
                "release_selector": {"condition": "release.labels.a =="},
                "guardrail": {"condition": "strategy.kin == \"all_in\""}}"#,
        )
        .unwrap();
        let found = check(&spec).0;
        let fields: Vec<&str> = found.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "selector",
                "approval.condition",
                "progression.after",
                "release_selector.condition",
                "guardrail.condition",
                "dependencies[0].version",
                "windows[1].time_zone",
                "windows[1].rrules[0]",
            ]
        );
        assert!(
            found[1].message.starts_with("at character 5: "),
            "{found:?}"
        );
        assert!(
            found[7].message.starts_with("at character 12: "),
            "{found:?}"
        );
    }

    #[test]
    fn nothing_depends_on_itself_alone() {
        let mistakes = |selector: &str| {
            let spec = PolicySpec {
                selector: selector.to_owned(),
                dependencies: serde_json::from_str(
                    r#"[{"application": "db", "version": ">=1"}, {"application": "shop", "version": ">=1"}]"#,
                )
                .unwrap(),
                ..PolicySpec::default()
            };
            let found = check(&spec).0;
            let fields = found.into_iter().map(|error| error.field);
            fields.collect::<Vec<_>>().join(" ")
        };
        for (selector, wanted) in [
            ("", ""),
            ("environment.name == \"production\"", ""),
            ("application.name in [\"db\", \"shop\"]", ""),
            (
                "application.name == \"shop\"",
                "dependencies[1].application",
            ),
            ("application.name == \"db\"", "dependencies[0].application"),
            (
                "environment.name == \"production\" && scope.application == \"db\"",
                "dependencies[0].application",
            ),
        ] {
            assert_eq!(mistakes(selector), wanted, "{selector}");
        }
    }
}
