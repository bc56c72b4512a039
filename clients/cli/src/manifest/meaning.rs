//! What a spec means, apart from how it is written, and in which fields two of them differ.
//!
//! A field that says what would count anyway is no part of the meaning: `bake: 5m` of a strategy
//! and no `bake` at all mean the same.

use serde_json::{Map, Value};
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{
    Kind, ObjectSpec, ParameterKind, RollbackSpec, StrategyKind, StrategySpec, TrafficSpec,
};

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// As `spec.traffic.steps[2].percent`, or `labels.team`.
    pub path: String,
    /// As it is; none: it is not there.
    pub old: Option<Value>,
    /// As it would be; none: it would not be there.
    pub new: Option<Value>,
}

/// An object as far as it can be compared.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// Its labels.
    pub labels: &'a Labels,
    /// Its spec.
    pub spec: &'a ObjectSpec,
}

/// The fields in which two objects of a kind differ, in order.
///
/// # Errors
/// A spec that cannot be written as JSON: a bug of ours.
pub fn differences(old: Side<'_>, new: Side<'_>) -> Result<Vec<Difference>, serde_json::Error> {
    let mut found = Vec::new();
    let labels = |side: Side<'_>| serde_json::to_value(side.labels);
    compare("labels", Some(labels(old)?), Some(labels(new)?), &mut found);
    if meaning(old.spec) == meaning(new.spec) {
        return Ok(found);
    }
    let start = found.len();
    let (old, new) = (old.spec, new.spec);
    compare("spec", Some(essence(old)?), Some(essence(new)?), &mut found);
    // A side without the field may still show what counts there.
    let (whole_old, whole_new) = (json(old)?, json(new)?);
    for difference in &mut found[start..] {
        let path = difference.path.trim_start_matches("spec.").to_owned();
        difference.old = difference.old.take().or_else(|| at(&whole_old, &path));
        difference.new = difference.new.take().or_else(|| at(&whole_new, &path));
    }
    found.retain(|difference| difference.old != difference.new);
    Ok(found)
}

/// The spec as JSON without the fields that say what would count anyway.
///
/// # Errors
/// As [`differences`].
pub fn essence(spec: &ObjectSpec) -> Result<Value, serde_json::Error> {
    let mut value = json(spec)?;
    let whole = meaning(spec);
    let mut paths = Vec::new();
    fields(&value, &mut Vec::new(), &mut paths);
    for path in paths {
        let mut without = value.clone();
        let is_gone = remove(&mut without, &path);
        if is_gone && read(spec.kind(), &without).as_ref() == Some(&whole) {
            value = without;
        }
    }
    Ok(value)
}

fn json(spec: &ObjectSpec) -> Result<Value, serde_json::Error> {
    serde_json::from_str(&spec.to_json()?)
}

/// What a spec of this JSON means; none: it is none.
fn read(kind: Kind, value: &Value) -> Option<ObjectSpec> {
    let spec = ObjectSpec::from_json(kind, &value.to_string()).ok()?;
    spec.validate().0.is_empty().then(|| meaning(&spec))
}

/// The spec with every default written out, as far as its type knows them apart from nothing.
fn meaning(spec: &ObjectSpec) -> ObjectSpec {
    match spec {
        ObjectSpec::Strategy(strategy) => ObjectSpec::Strategy(filled(strategy)),
        ObjectSpec::Policy(policy) => {
            let mut policy = policy.clone();
            if let Some(rule) = &mut policy.approval {
                rule.required = Some(rule.needed());
            }
            ObjectSpec::Policy(policy)
        }
        ObjectSpec::Parameter(parameter) if parameter.kind == ParameterKind::Secret => {
            let mut parameter = parameter.clone();
            // It stands there as withheld, or not at all: both mean "as it is".
            parameter.value = None;
            ObjectSpec::Parameter(parameter)
        }
        ObjectSpec::Application(_)
        | ObjectSpec::Environment(_)
        | ObjectSpec::Scope(_)
        | ObjectSpec::Parameter(_)
        | ObjectSpec::Team(_)
        | ObjectSpec::RoleBinding(_) => spec.clone(),
    }
}

/// Every field that a deployment takes a default for, as the deployment would carry it.
fn filled(spec: &StrategySpec) -> StrategySpec {
    let resolved = spec.resolve();
    let again = |value: serde_json::Result<Value>| value.unwrap_or_default();
    let mut filled = spec.clone();
    filled.kind = Some(resolved.kind);
    if resolved.kind == StrategyKind::BlueGreen {
        filled.traffic = Some(TrafficSpec {
            steps: resolved.steps,
            ..TrafficSpec::default()
        });
    }
    if resolved.kind == StrategyKind::Rolling {
        let batch = again(serde_json::to_value(resolved.batch));
        filled.batch = serde_json::from_value(batch).ok();
    }
    let deadlines = again(serde_json::to_value(resolved.deadlines));
    filled.deadlines = serde_json::from_value(deadlines).ok();
    filled.rollback = Some(RollbackSpec {
        rules: resolved.rules,
    });
    filled.on_no_data = Some(resolved.on_no_data);
    filled.bake = Some(resolved.bake);
    filled.bake_share = Some(resolved.bake_share);
    filled.finalize = Some(resolved.finalize);
    filled.drain = Some(resolved.drain);
    filled.on_stall = Some(resolved.on_stall);
    filled.max_lost = Some(resolved.max_lost);
    filled.keep_releases = Some(resolved.keep_releases);
    filled.verification = Some(resolved.verification);
    filled.capacity = Some(spec.capacity.unwrap_or_default());
    filled
}

/// Where a value stands in another.
#[derive(Debug, Clone)]
enum Part {
    Field(String),
    Item(usize),
}

/// Paths of all fields, parents before what they hold.
fn fields(value: &Value, here: &mut Vec<Part>, found: &mut Vec<Vec<Part>>) {
    match value {
        Value::Object(entries) => {
            for (name, inner) in entries {
                here.push(Part::Field(name.clone()));
                found.push(here.clone());
                fields(inner, here, found);
                here.pop();
            }
        }
        Value::Array(items) => {
            for (position, inner) in items.iter().enumerate() {
                here.push(Part::Item(position));
                fields(inner, here, found);
                here.pop();
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Takes a field out; `false` if it is gone already.
fn remove(value: &mut Value, path: &[Part]) -> bool {
    let Some((last, parents)) = path.split_last() else {
        return false;
    };
    let mut here = value;
    for part in parents {
        let next = match (part, here) {
            (Part::Field(name), Value::Object(entries)) => entries.get_mut(name),
            (Part::Item(position), Value::Array(items)) => items.get_mut(*position),
            (Part::Field(_) | Part::Item(_), _) => None,
        };
        match next {
            Some(next) => here = next,
            None => return false,
        }
    }
    match (last, here) {
        (Part::Field(name), Value::Object(entries)) => entries.remove(name).is_some(),
        (Part::Field(_) | Part::Item(_), _) => false,
    }
}

/// The value at a path such as `traffic.steps[2].percent`.
fn at(value: &Value, path: &str) -> Option<Value> {
    let mut here = value;
    for part in path
        .split(['.', '['])
        .map(|part| part.trim_end_matches(']'))
    {
        here = match here {
            Value::Array(items) => items.get(part.parse::<usize>().ok()?)?,
            other => other.get(part)?,
        };
    }
    Some(here.clone())
}

fn compare(path: &str, old: Option<Value>, new: Option<Value>, found: &mut Vec<Difference>) {
    match (old, new) {
        (old, new) if old == new => {}
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            compare_fields(path, old, new, found)
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            let (mut old, mut new) = (old.into_iter(), new.into_iter());
            for position in 0.. {
                match (old.next(), new.next()) {
                    (None, None) => break,
                    (old, new) => compare(&format!("{path}[{position}]"), old, new, found),
                }
            }
        }
        (old, new) => found.push(Difference {
            path: path.to_owned(),
            old,
            new,
        }),
    }
}

fn compare_fields(
    path: &str,
    mut old: Map<String, Value>,
    mut new: Map<String, Value>,
    found: &mut Vec<Difference>,
) {
    let mut names: Vec<String> = old.keys().chain(new.keys()).cloned().collect();
    names.sort();
    names.dedup();
    for name in names {
        let inner = format!("{path}.{name}");
        compare(&inner, old.remove(&name), new.remove(&name), found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: Kind, json: &str) -> ObjectSpec {
        let spec = ObjectSpec::from_json(kind, json).unwrap();
        assert!(spec.validate().0.is_empty(), "{json}");
        spec
    }

    fn told(kind: Kind, old: &str, new: &str) -> Vec<String> {
        let labels = Labels::new();
        let (old, new) = (spec(kind, old), spec(kind, new));
        let side = |spec| Side {
            labels: &labels,
            spec,
        };
        let found = differences(side(&old), side(&new)).unwrap();
        let word = |value: Option<Value>| value.map_or("-".to_owned(), |value| value.to_string());
        found
            .into_iter()
            .map(|d| format!("{}: {} → {}", d.path, word(d.old), word(d.new)))
            .collect()
    }

    const SCOPE: &str = r#"{"application": "web", "environment": "production", "port": 8080"#;

    #[test]
    fn what_says_the_default_is_no_difference() {
        let bare = format!("{SCOPE}}}");
        let full = format!(
            r#"{SCOPE}, "type": "hosts", "instances_per_agent": 1, "max_restarts": 5, "protocol": "http"}}"#
        );
        assert_eq!(told(Kind::Scope, &bare, &full), [""; 0]);
        let full = r#"{"kind": "blue_green", "bake": "5m", "keep_releases": 3, "drain": "30s",
            "finalize": "auto", "deadlines": {"stall": "2h"}, "rollback": {"rules": []},
            "traffic": {"steps": [{"percent": 5, "hold": "1m"}, {"percent": 25}, {"percent": 50}, {"percent": 100}]}}"#;
        assert_eq!(told(Kind::Strategy, "{}", full), [""; 0]);
        let increments = r#"{"traffic": {"increment": 50, "interval": "30s"}}"#;
        let steps = r#"{"traffic": {"steps": [{"percent": 50, "hold": "30s"}, {"percent": 100, "hold": "0s"}]}}"#;
        assert_eq!(told(Kind::Strategy, increments, steps), [""; 0]);
        let short = r#"{"approval": {"not_requester": true}}"#;
        let long = r#"{"selector": "", "enabled": true, "approval": {"required": 1, "not_requester": true, "expires": "72h"}}"#;
        assert_eq!(told(Kind::Policy, short, long), [""; 0]);
    }

    #[test]
    fn fields_that_differ_are_named_with_both_values() {
        let old = format!(r#"{SCOPE}, "max_restarts": 7, "sticky": {{"cookie": "a"}}}}"#);
        let new = format!(r#"{SCOPE}, "http2": true}}"#).replace("8080", "8081");
        assert_eq!(
            told(Kind::Scope, &old, &new),
            [
                r#"spec.http2: - → true"#,
                r#"spec.max_restarts: 7 → 5"#,
                r#"spec.port: 8080 → 8081"#,
                r#"spec.sticky: {"cookie":"a"} → -"#,
            ]
        );
        let old = r#"{"traffic": {"steps": [{"percent": 10}, {"percent": 100}]}}"#;
        let new = r#"{"traffic": {"steps": [{"percent": 10, "hold": "manual"}, {"percent": 60}, {"percent": 100}]}}"#;
        assert_eq!(
            told(Kind::Strategy, old, new),
            [
                r#"spec.traffic.steps[0].hold: "1m" → "manual""#,
                r#"spec.traffic.steps[1].percent: 100 → 60"#,
                r#"spec.traffic.steps[2]: - → {"percent":100}"#,
            ]
        );
    }

    #[test]
    fn a_withheld_secret_means_as_it_is() {
        let shown =
            r#"{"variable": "A", "kind": "secret", "value": "(secret)", "target": {"scope": "s"}}"#;
        let bare = r#"{"variable": "A", "kind": "secret", "target": {"scope": "s"}}"#;
        assert_eq!(told(Kind::Parameter, shown, bare), [""; 0]);
    }

    #[test]
    fn the_essence_reads_back_as_the_same() {
        let full = format!(r#"{SCOPE}, "instances_per_agent": 1, "max_restarts": 9}}"#);
        let spec = spec(Kind::Scope, &full);
        let essence = essence(&spec).unwrap();
        assert_eq!(
            essence.to_string(),
            r#"{"application":"web","environment":"production","max_restarts":9,"port":8080}"#
        );
        assert_eq!(read(Kind::Scope, &essence), Some(meaning(&spec)));
    }
}
