//! Which deployments a policy is about: comparisons `application.name`, `environment.name`,
//! `scope.name` `== "…"` joined by `&&`. The empty selector is about every deployment.
//!
//! A subset of CEL; everything else is refused when it is written, and blocks if it is met later.

use tidegate_shared::id::Name;

/// What a selector looks at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// `application.name`.
    pub application: &'a Name,
    /// `environment.name`.
    pub environment: &'a Name,
    /// `scope.name`.
    pub scope: &'a Name,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Application,
    Environment,
    Scope,
}

/// A selector that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    comparisons: Vec<(Field, String)>,
}

impl Selector {
    /// Reads a selector.
    ///
    /// # Errors
    /// One line that names the part that is not understood and what would be.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self {
                comparisons: Vec::new(),
            });
        }
        let comparisons = text.split("&&").map(comparison).collect::<Result<_, _>>()?;
        Ok(Self { comparisons })
    }

    /// Whether every comparison holds.
    pub fn matches(&self, subject: Subject<'_>) -> bool {
        self.comparisons.iter().all(|(field, wanted)| {
            let name = match field {
                Field::Application => subject.application,
                Field::Environment => subject.environment,
                Field::Scope => subject.scope,
            };
            name.as_str() == wanted
        })
    }
}

fn comparison(part: &str) -> Result<(Field, String), String> {
    let wrong = || {
        format!(
            "\"{}\" is not understood: want application.name, environment.name or scope.name == \"…\", joined by &&",
            part.trim()
        )
    };
    let (field, value) = part.split_once("==").ok_or_else(wrong)?;
    let field = match field.trim() {
        "application.name" => Field::Application,
        "environment.name" => Field::Environment,
        "scope.name" => Field::Scope,
        _ => return Err(wrong()),
    };
    let value = value.trim();
    let inner = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
        .ok_or_else(wrong)?;
    if Name::new(inner).is_err() {
        return Err(format!("\"{inner}\" is not a name of an object"));
    }
    Ok((field, inner.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_comparison_must_hold() {
        let name = |text: &str| Name::new(text).unwrap();
        let (shop, production, web) = (name("shop"), name("production"), name("web"));
        let subject = Subject {
            application: &shop,
            environment: &production,
            scope: &web,
        };
        for (text, matches) in [
            ("", true),
            ("application.name == \"shop\"", true),
            (
                "environment.name=='production' && scope.name == \"web\"",
                true,
            ),
            (
                "environment.name == \"production\" && scope.name == \"api\"",
                false,
            ),
            ("application.name == \"other\"", false),
        ] {
            assert_eq!(
                Selector::parse(text).unwrap().matches(subject),
                matches,
                "{text}"
            );
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "application.name",
            "application.labels.a == \"b\"",
            "scope.name != \"web\"",
            "scope.name == web",
            "scope.name == \"web\" || true",
            "scope.name == \"Web\"",
            "scope.name == \"a\" &&",
        ] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }
}
