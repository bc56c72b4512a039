//! Dependency: another application has to be active in a certain version (product.md §5.6).
//!
//! Every place that counts has to satisfy the demand, and there has to be one; with `anywhere` one
//! is enough.

use std::collections::BTreeSet;

use semver::{Version, VersionReq};
use tidegate_shared::spec::{DependencyRule, DependencyWhere};

use super::expression::{Expression, Facts, ReleaseFacts, Subject};
use super::{Answer, Mistake};

/// What the version has to be.
#[derive(Debug, Clone)]
pub enum Requirement {
    /// A range of semantic versions.
    Range(VersionReq),
    /// CEL over `release`.
    Condition(Expression),
}

/// A scope of the other application that counts, with its active release.
#[derive(Debug, Clone)]
pub struct Place {
    /// The scope.
    pub scope: String,
    /// What is active there; none: nothing.
    pub release: Option<ReleaseFacts>,
}

impl Requirement {
    /// Reads a range or a condition.
    ///
    /// # Errors
    /// The first mistake and where it stands.
    pub fn parse(text: &str) -> Result<Self, Mistake> {
        if let Ok(range) = VersionReq::parse(text) {
            return Ok(Self::Range(range));
        }
        // What is written like a range is meant as one.
        let begins = text
            .trim_start()
            .starts_with(|c: char| c.is_ascii_digit() || "<>=^~*".contains(c));
        if begins {
            let message =
                format!("\"{text}\" is no range of versions: want >=2.1, <3 or CEL over release");
            return Err(Mistake::new("version", 1, message));
        }
        Expression::compile(text, Subject::Release)
            .map(Self::Condition)
            .map_err(|mistake| mistake.within("version"))
    }

    pub(super) fn accepts(&self, release: &ReleaseFacts) -> Result<bool, String> {
        match self {
            Self::Range(range) => {
                let version = version(&release.version)
                    .ok_or_else(|| format!("{} is no semantic version", release.version))?;
                Ok(range.matches(&version))
            }
            Self::Condition(condition) => condition.holds(&Facts {
                release: Some(release.clone()),
                ..Facts::default()
            }),
        }
    }
}

/// Whether a rule is about another application than the only one that its policy's selector can hold
/// for: nothing depends on itself.
///
/// # Errors
/// The field, and what to do.
pub fn check_other(rule: &DependencyRule, about: Option<&BTreeSet<String>>) -> Result<(), Mistake> {
    let name = rule.application.as_str();
    if about.is_none_or(|about| about.is_empty() || about.iter().any(|about| about != name)) {
        return Ok(());
    }
    Err(Mistake::new(
        "application",
        1,
        format!(
            "the selector is about application \"{name}\" alone, which cannot depend on itself: name another application, or widen the selector"
        ),
    ))
}

/// A version as people write it: `v` in front and parts that are missing are understood.
fn version(text: &str) -> Option<Version> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let numbers = text.split(['-', '+']).next().unwrap_or(text);
    let missing = match numbers.split('.').count() {
        1 => ".0.0",
        2 => ".0",
        _ => "",
    };
    Version::parse(&format!("{numbers}{missing}{}", &text[numbers.len()..])).ok()
}

/// Whether the other application is there as it has to be.
pub fn answer(rule: &DependencyRule, requirement: &Requirement, places: &[Place]) -> Answer {
    let application = &rule.application;
    let needs = format!("{application} {} to be active there", rule.version);
    let mut missing = Vec::new();
    let mut found = 0_usize;
    for place in places {
        let Some(release) = &place.release else {
            missing.push(format!("nothing is active in {}", place.scope));
            continue;
        };
        match requirement.accepts(release) {
            Ok(true) => found += 1,
            Ok(false) => missing.push(format!("{} has {}", place.scope, release.version)),
            Err(error) => return Answer::broken(format!("{}: {error}", place.scope)),
        }
    }
    let enough = match rule.place {
        DependencyWhere::Anywhere => found > 0,
        DependencyWhere::Environment | DependencyWhere::SameDimensions => {
            found > 0 && missing.is_empty()
        }
    };
    if enough {
        return Answer::allowed(format!("{application} {} is active", rule.version));
    }
    let why = match missing.as_slice() {
        [] => format!("{application} has no scope there"),
        missing => missing.join(", "),
    };
    Answer::pending(
        format!("needs {application} {}: {why}", rule.version),
        None,
        needs,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_shared::id::Name;

    fn places(versions: &[Option<&str>]) -> Vec<Place> {
        let release = |version: &&str| ReleaseFacts {
            version: (*version).to_owned(),
            ..ReleaseFacts::default()
        };
        let place = |version: &Option<&str>| Place {
            scope: "db".to_owned(),
            release: version.as_ref().map(release),
        };
        versions.iter().map(place).collect()
    }

    fn allowed(version: &str, place: DependencyWhere, versions: &[Option<&str>]) -> bool {
        let rule = DependencyRule {
            application: Name::new("db").unwrap(),
            version: version.to_owned(),
            place,
        };
        let requirement = Requirement::parse(version).unwrap();
        answer(&rule, &requirement, &places(versions)).is_allowed()
    }

    #[test]
    fn every_place_counts_unless_anywhere_is_enough() {
        use DependencyWhere::{Anywhere, Environment};
        for (version, place, versions, wanted) in [
            (">=2.1, <3", Environment, &[Some("2.1.0")][..], true),
            (">=2.1, <3", Environment, &[Some("v2.9")], true),
            (">=2.1, <3", Environment, &[Some("3.0.0")], false),
            (">=2.1, <3", Environment, &[], false),
            (">=2.1, <3", Environment, &[None], false),
            (">=2.1", Environment, &[Some("2.1.0"), Some("2.0.0")], false),
            (
                ">=2.1",
                Anywhere,
                &[Some("2.1.0"), Some("2.0.0"), None],
                true,
            ),
            (
                "release.version == \"2.1.0\"",
                Environment,
                &[Some("2.1.0")],
                true,
            ),
            // No semantic version: the rule blocks.
            (">=2.1", Anywhere, &[Some("green")], false),
        ] {
            assert_eq!(
                allowed(version, place, versions),
                wanted,
                "{version} {versions:?}"
            );
        }
    }

    #[test]
    fn wrong_demands_are_refused() {
        for text in [
            ">=2.x.y.z",
            "2.1 or so",
            "scope.name == \"a\"",
            "release.colour == \"red\"",
        ] {
            assert_eq!(
                Requirement::parse(text).unwrap_err().field,
                "version",
                "{text}"
            );
        }
    }
}
