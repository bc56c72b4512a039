//! `tidegate team`.

use clap::Args;
use serde_json::{Map, Value};
use tidegate_shared::spec::Kind;

use super::objects::SpecFlags;
use crate::errors::Result;

/// What describes a team.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate team create sre --member ann --member bob\n  tidegate team update sre --add cho --remove bob"
)]
pub struct TeamFlags {
    /// Who is in it; all of them
    #[arg(long = "member", value_name = "USER")]
    members: Vec<String>,
    /// Who joins it
    #[arg(long = "add", value_name = "USER", conflicts_with = "members")]
    added: Vec<String>,
    /// Who leaves it
    #[arg(long = "remove", value_name = "USER", conflicts_with = "members")]
    removed: Vec<String>,
    /// For people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

/// What a list holds after some of it was replaced, added and taken out.
pub fn changed(
    present: Option<&Value>,
    all: &[String],
    added: &[String],
    removed: &[String],
) -> Vec<Value> {
    let present = present.and_then(Value::as_array).into_iter().flatten();
    let mut names: Vec<String> = match all {
        [] => present
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        all => all.to_vec(),
    };
    names.extend(added.iter().cloned());
    names.retain(|name| !removed.contains(name));
    names.sort();
    names.dedup();
    names.into_iter().map(Value::from).collect()
}

impl SpecFlags for TeamFlags {
    const KIND: Kind = Kind::Team;

    fn fill(&self, spec: &mut Map<String, Value>) -> Result<()> {
        let members = changed(
            spec.get("members"),
            &self.members,
            &self.added,
            &self.removed,
        );
        spec.insert("members".to_owned(), Value::Array(members));
        if let Some(description) = &self.description {
            spec.insert("description".to_owned(), Value::from(description.clone()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn members_are_replaced_added_and_taken_out() {
        let words =
            |list: &[&str]| -> Vec<String> { list.iter().map(|w| (*w).to_owned()).collect() };
        let present = json!(["ann", "bob"]);
        let of = |all: &[&str], added: &[&str], removed: &[&str]| {
            Value::Array(changed(
                Some(&present),
                &words(all),
                &words(added),
                &words(removed),
            ))
        };
        assert_eq!(of(&[], &[], &[]), json!(["ann", "bob"]));
        assert_eq!(of(&["cho"], &[], &[]), json!(["cho"]));
        assert_eq!(of(&[], &["cho", "ann"], &["bob"]), json!(["ann", "cho"]));
    }
}
