//! Which scopes of an application a condition is about, before there are deployments to them.
//!
//! Asked by the front that makes and plans groups; decides nothing about when they start. Pure.

use tidegate_shared::error::Reason;
use tidegate_shared::id::{Name, Version};
use tidegate_shared::spec::FieldError;
use tidegate_shared::time::Timestamp;

use super::expression::{Expression, Subject};
use super::subject;
use crate::rejection::Rejection;
use crate::state::{ScopeStatus, State};

/// What people say instead of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The application whose scopes are meant.
    pub application: Name,
    /// The release that is to go there.
    pub version: Version,
    /// CEL over what policies know of a deployment; none: it holds everywhere.
    pub selector: Option<String>,
    /// Only scopes of this environment.
    pub environment: Option<Name>,
}

/// What a selection finds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selected {
    /// In order of name; never empty.
    pub scopes: Vec<Name>,
    /// Scopes that it is about and that are left out, each with the reason.
    pub left: Vec<(Name, String)>,
}

impl Selection {
    /// The scopes; those that people stopped stay stopped, and are named.
    ///
    /// # Errors
    /// The selector is wrong (with its place) or cannot be said of a scope, the application or the
    /// environment is not there, or nothing is found.
    pub fn find(
        &self,
        state: &State,
        user: Option<&Name>,
        now: Timestamp,
    ) -> Result<Selected, Rejection> {
        let text = self.selector.as_deref().unwrap_or_default();
        let expression = Expression::compile(text, Subject::Deployment)
            .map_err(|mistake| wrong(&mistake.to_string()))?;
        state.release(&self.application, &self.version)?;
        if let Some(environment) = &self.environment
            && !state.environments.contains_key(environment)
        {
            return Err(Rejection::new(
                Reason::NotFound,
                format!("there is no environment \"{environment}\""),
            ));
        }
        let mut found = Selected::default();
        let mut looked_at = 0;
        for (name, scope) in &state.scopes {
            let is_asked = scope.spec.application == self.application
                && scope.status != ScopeStatus::Deleted
                && self
                    .environment
                    .as_ref()
                    .is_none_or(|environment| *environment == scope.spec.environment);
            if !is_asked {
                continue;
            }
            looked_at += 1;
            let facts = subject::prospect(state, name, scope, &self.version, user, now);
            let holds = expression
                .holds(&facts)
                .map_err(|why| wrong(&format!("cannot be said of scope \"{name}\": {why}")))?;
            if !holds {
                continue;
            }
            match scope.status {
                ScopeStatus::Creating | ScopeStatus::Ready => found.scopes.push(name.clone()),
                ScopeStatus::Stopping | ScopeStatus::Stopped | ScopeStatus::Deleted => {
                    let why = format!("it is {}", scope.status.as_str());
                    found.left.push((name.clone(), why));
                }
            }
        }
        if found.scopes.is_empty() {
            return Err(self.nothing(looked_at, &found.left));
        }
        Ok(found)
    }

    fn nothing(&self, looked_at: usize, left: &[(Name, String)]) -> Rejection {
        let place = match &self.environment {
            Some(environment) => format!(" in environment \"{environment}\""),
            None => String::new(),
        };
        let why = match (looked_at, left) {
            (0, _) => format!("application \"{}\" has no scope{place}", self.application),
            (count, []) => format!(
                "the selector holds for none of the {count} scopes of application \"{}\"{place}",
                self.application
            ),
            (_, _) => "every scope that it is about is left out".to_owned(),
        };
        let message = format!("nothing is selected: {why}");
        Rejection::of_scopes(Reason::NothingSelected, message, left)
    }
}

fn wrong(message: &str) -> Rejection {
    let field = "selector".to_owned();
    Rejection {
        reason: Reason::InvalidField,
        message: format!("{field}: {message}"),
        fields: vec![FieldError {
            field,
            message: message.to_owned(),
        }],
        scopes: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fixture::{START, World, meta, name};
    use crate::state::{Object, Status};
    use tidegate_shared::spec::EnvironmentSpec;

    /// `web` and `eu` in production, `old` stopped there, `try` in staging; `other` is another's.
    fn state() -> State {
        let mut state = World::new(1, 1, "{}", Status::Pending).state;
        for environment in ["production", "staging", "empty"] {
            let object = Object {
                meta: meta(),
                spec: EnvironmentSpec::default(),
            };
            state.environments.insert(name(environment), object);
        }
        let web = state.scopes.get(&name("web")).cloned().unwrap();
        let mut put = |scope: &str, change: &dyn Fn(&mut crate::state::Scope)| {
            let mut made = web.clone();
            change(&mut made);
            state.scopes.insert(name(scope), made);
        };
        put("eu", &|scope| {
            let dimension = ("region".to_owned(), "eu".to_owned());
            Arc::make_mut(&mut scope.spec)
                .dimensions
                .extend([dimension]);
        });
        put("old", &|scope| scope.status = ScopeStatus::Stopped);
        put("gone", &|scope| scope.status = ScopeStatus::Deleted);
        put("try", &|scope| {
            Arc::make_mut(&mut scope.spec).environment = name("staging")
        });
        put("other", &|scope| {
            Arc::make_mut(&mut scope.spec).application = name("blog")
        });
        state
    }

    fn find(selector: Option<&str>, environment: Option<&str>) -> Result<Selected, Rejection> {
        let selection = Selection {
            application: name("shop"),
            version: Version::new("2.0.0").unwrap(),
            selector: selector.map(str::to_owned),
            environment: environment.map(name),
        };
        selection.find(&state(), Some(&name("ann")), START)
    }

    #[test]
    fn scopes_are_found_by_condition_and_environment_and_stopped_ones_are_named() {
        let found = find(None, Some("production")).unwrap();
        assert_eq!(found.scopes, [name("eu"), name("web")]);
        assert_eq!(found.left, [(name("old"), "it is stopped".to_owned())]);
        let region = "scope.dimensions.region == \"eu\" && release.version == \"2.0.0\"";
        let found = find(Some(region), None).unwrap();
        assert_eq!((found.scopes, found.left), (vec![name("eu")], Vec::new()));
        let both = find(Some("scope.name != \"web\""), Some("production")).unwrap();
        assert_eq!(both.scopes, [name("eu")]);
        assert_eq!(find(Some("true"), None).unwrap().scopes.len(), 3);
        let mine = find(
            Some("user.name == \"ann\" && environment.name == \"staging\""),
            None,
        );
        assert_eq!(mine.unwrap().scopes, [name("try")]);
    }

    #[test]
    fn who_selects_nothing_or_nonsense_hears_why() {
        for (selector, environment, reason, part) in [
            (
                Some("scope.nam == 1"),
                None,
                Reason::InvalidField,
                "scope has no \"nam\"",
            ),
            (
                Some("scope.name =="),
                None,
                Reason::InvalidField,
                "at character",
            ),
            (
                Some("scope.name == \"x\""),
                None,
                Reason::NothingSelected,
                "holds for none of the 4 scopes of application \"shop\"",
            ),
            (
                Some("scope.name == \"old\""),
                None,
                Reason::NothingSelected,
                "left out: old: it is stopped",
            ),
            (
                None,
                Some("empty"),
                Reason::NothingSelected,
                "has no scope in environment \"empty\"",
            ),
            (
                None,
                Some("prod"),
                Reason::NotFound,
                "there is no environment \"prod\"",
            ),
        ] {
            let refused = find(selector, environment).unwrap_err();
            assert_eq!(refused.reason, reason, "{refused}");
            assert!(refused.to_string().contains(part), "{refused}");
        }
    }
}
