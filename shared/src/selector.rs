//! Label selectors: `role=web,region!=eu,zone in (a,b)`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Requirements on labels; all must hold. The empty selector matches everything.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    values: Vec<String>,
    negated: bool,
}

/// A text that is no label selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" is not a label selector at character {position}: {message}; want key=value, key!=value or key in (a,b), joined by commas"
)]
pub struct SelectorError {
    /// The whole text.
    pub text: String,
    /// Where the mistake starts, counted from 1.
    pub position: usize,
    /// What is wrong there.
    pub message: String,
}

impl LabelSelector {
    /// Whether all requirements hold.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| {
            let found = labels
                .get(&requirement.key)
                .is_some_and(|value| requirement.values.contains(value));
            found != requirement.negated
        })
    }

    /// What labels must be there: keys with the values of which one is wanted. What must not be there
    /// is not told, and a key may stand there twice.
    pub fn wanted(&self) -> impl Iterator<Item = (&str, &[String])> {
        let wanted = self.requirements.iter().filter(|r| !r.negated);
        wanted.map(|requirement| (requirement.key.as_str(), requirement.values.as_slice()))
    }

    /// Whether it has no requirement and so matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, requirement) in self.requirements.iter().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            let Requirement {
                key,
                values,
                negated,
            } = requirement;
            match (values.as_slice(), negated) {
                ([value], false) => write!(f, "{key}={value}")?,
                ([value], true) => write!(f, "{key}!={value}")?,
                (values, false) => write!(f, "{key} in ({})", values.join(","))?,
                (values, true) => write!(f, "{key} notin ({})", values.join(","))?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl From<LabelSelector> for String {
    fn from(selector: LabelSelector) -> Self {
        selector.to_string()
    }
}

impl TryFrom<String> for LabelSelector {
    type Error = SelectorError;

    fn try_from(text: String) -> Result<Self, SelectorError> {
        text.parse()
    }
}

impl FromStr for LabelSelector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        let mut start = 0;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        for part in split_outside_parentheses(text) {
            let requirement = parse_requirement(part).map_err(|message| SelectorError {
                text: text.to_owned(),
                position: start + 1,
                message,
            })?;
            requirements.push(requirement);
            start += part.len() + 1;
        }
        Ok(Self { requirements })
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_i32);
    for (position, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..position]);
                start = position + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_requirement(part: &str) -> Result<Requirement, String> {
    let part = part.trim();
    if let Some((key, value)) = part.split_once("!=") {
        return requirement(key, &[value], true);
    }
    if let Some((key, value)) = part.split_once('=') {
        return requirement(key, &[value.trim_start_matches('=')], false);
    }
    for (word, negated) in [(" notin ", true), (" in ", false)] {
        if let Some((key, list)) = part.split_once(word) {
            let inner = list
                .trim()
                .strip_prefix('(')
                .and_then(|list| list.strip_suffix(')'))
                .ok_or_else(|| "a list in parentheses is missing".to_owned())?;
            return requirement(key, &inner.split(',').collect::<Vec<_>>(), negated);
        }
    }
    Err(format!("\"{part}\" compares nothing"))
}

fn requirement(key: &str, values: &[&str], negated: bool) -> Result<Requirement, String> {
    let key = key.trim();
    check_label(key, "")?;
    let values = values
        .iter()
        .map(|value| value.trim().to_owned())
        .collect::<Vec<_>>();
    for value in &values {
        check_label("k", value)?;
    }
    Ok(Requirement {
        key: key.to_owned(),
        values,
        negated,
    })
}

/// Checks one label: key 1 to 63 and value 0 to 63 letters, digits and `. _ - /`.
///
/// # Errors
/// Says which of the two is wrong and what would be right.
pub fn check_label(key: &str, value: &str) -> Result<(), String> {
    let fits = |text: &str| {
        text.len() <= 63
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b))
    };
    if key.is_empty() || !fits(key) {
        return Err(format!(
            "label key \"{key}\" is not 1 to 63 letters, digits and . _ - /"
        ));
    }
    if !fits(value) {
        return Err(format!(
            "value \"{value}\" of label \"{key}\" is not up to 63 letters, digits and . _ - /"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn all_requirements_must_hold() {
        let selector: LabelSelector = "role=web,region!=eu,zone in (a,b)".parse().unwrap();
        assert!(selector.matches(&labels(&[("role", "web"), ("zone", "b")])));
        assert!(!selector.matches(&labels(&[("role", "web"), ("zone", "c")])));
        assert!(!selector.matches(&labels(&[("role", "web"), ("zone", "a"), ("region", "eu")])));
        assert_eq!(selector.to_string().parse::<LabelSelector>(), Ok(selector));
    }

    #[test]
    fn mistakes_are_located() {
        let error = "role=web,zone".parse::<LabelSelector>().unwrap_err();
        assert_eq!(error.position, 10);
        assert!("a in b".parse::<LabelSelector>().is_err());
        assert!("=x".parse::<LabelSelector>().is_err());
    }
}
