//! Which releases a scope takes by itself.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::FieldErrors;
use crate::id::Name;

/// The longest condition, in bytes.
const LONGEST: usize = 2_000;

/// A new release that the condition holds for makes a deployment. Written as the condition alone, or
/// with a strategy as `{when, strategy}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoDeploy {
    /// CEL over `release`; `true` takes every release. What it means is checked by the front.
    pub when: String,
    /// How these deployments go; none: the default strategy.
    pub strategy: Option<Name>,
}

impl AutoDeploy {
    /// What is wrong with it that can be seen without evaluating it.
    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require(
            !self.when.trim().is_empty(),
            "",
            "want a condition over release, such as release.labels.channel == \"stable\", or true",
        );
        errors.require(self.when.len() <= LONGEST, "", "want at most 2000 bytes");
        errors
    }
}

/// The form with a strategy.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Long {
    when: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    strategy: Option<Name>,
}

impl Serialize for AutoDeploy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.strategy {
            None => serializer.serialize_str(&self.when),
            Some(_) => Long {
                when: self.when.clone(),
                strategy: self.strategy.clone(),
            }
            .serialize(serializer),
        }
    }
}

struct Either;

impl<'de> serde::de::Visitor<'de> for Either {
    type Value = AutoDeploy;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a condition over release, or {when, strategy}")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<AutoDeploy, E> {
        Ok(AutoDeploy {
            when: text.to_owned(),
            strategy: None,
        })
    }

    // `auto_deploy: true` in YAML is no text.
    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<AutoDeploy, E> {
        self.visit_str(if value { "true" } else { "false" })
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<AutoDeploy, A::Error> {
        let long = Long::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
        Ok(AutoDeploy {
            when: long.when,
            strategy: long.strategy,
        })
    }
}

impl<'de> Deserialize<'de> for AutoDeploy {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_read_back_what_they_show() {
        for text in [
            r#""release.labels.channel == 'stable'""#,
            r#"{"when":"true","strategy":"careful"}"#,
        ] {
            let read: AutoDeploy = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
            assert!(read.validate().0.is_empty());
        }
        let all: AutoDeploy = serde_json::from_str("true").unwrap();
        assert_eq!((all.when.as_str(), all.strategy), ("true", None));
        for wrong in [r#"{"when":"true","wen":1}"#, "7", "[]"] {
            assert!(
                serde_json::from_str::<AutoDeploy>(wrong).is_err(),
                "{wrong}"
            );
        }
        let empty: AutoDeploy = serde_json::from_str("\" \"").unwrap();
        assert!(!empty.validate().0.is_empty());
    }
}
