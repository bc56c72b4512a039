//! `--set PATH=VALUE`: fields of a strategy for one deployment, as any path of its spec with YAML
//! values, and the short form of traffic steps `traffic.steps=10:30s,50:1m,100`.

use serde_json::{Map, Value};
use tidegate_shared::error::Reason;
use tidegate_shared::spec::StrategySpec;

use crate::errors::{Failure, Result};
use crate::names;

/// Longest list that a path may reach into.
const LIST_LIMIT: usize = 1_000;

/// Fields of `StrategySpec` at its first level.
const FIELDS: [&str; 15] = [
    "kind",
    "traffic",
    "batch",
    "rollback",
    "on_no_data",
    "bake",
    "bake_share",
    "finalize",
    "drain",
    "deadlines",
    "on_stall",
    "max_lost",
    "keep_releases",
    "verification",
    "capacity",
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Field(String),
    Item(usize),
}

/// Puts settings over a strategy and answers with those of its first-level fields that a setting
/// touches: nested fields that no setting names keep the base's value.
///
/// # Errors
/// Names the setting: a path or a value that a strategy does not have.
pub fn overrides(base: &StrategySpec, settings: &[String]) -> Result<StrategySpec> {
    let base = serde_json::to_value(base).map_err(|error| internal(&error))?;
    let mut changed = Map::new();
    for setting in settings {
        let wrong = |message: String| {
            Failure::usage(format!("--set {setting}: {message}"))
                .hint("paths are those of a strategy's spec, see `tidegate strategy get NAME -o yaml`; for example --set traffic.steps=10:30s,50:1m,100 --set bake=30s")
        };
        let (path, text) = setting
            .split_once('=')
            .ok_or_else(|| wrong("want PATH=VALUE, such as bake=30s".to_owned()))?;
        let parts = parse_path(path).map_err(&wrong)?;
        let Some(Part::Field(first)) = parts.first() else {
            return Err(wrong(format!("\"{path}\" is not a path")));
        };
        if !FIELDS.contains(&first.as_str()) {
            let near = names::nearest(first, FIELDS).map_or_else(
                || format!("want one of {}", FIELDS.join(", ")),
                |near| format!("did you mean \"{near}\"?"),
            );
            return Err(wrong(format!(
                "a strategy has no field \"{first}\"; {near}"
            )));
        }
        let value = parse_value(path, text).map_err(&wrong)?;
        let mut alone = Value::Object(Map::new());
        insert(&mut alone, &parts, value.clone()).map_err(&wrong)?;
        // A rule given field by field is incomplete until its last field.
        if let Err(error) = serde_json::from_value::<StrategySpec>(alone)
            && !error.to_string().starts_with("missing field")
        {
            return Err(wrong(error.to_string()));
        }
        let entry = changed
            .entry(first.clone())
            .or_insert_with(|| base.get(first).cloned().unwrap_or(Value::Null));
        drop_alternative(path, entry);
        insert(entry, &parts[1..], value).map_err(&wrong)?;
    }
    let spec: StrategySpec = serde_json::from_value(Value::Object(changed)).map_err(|error| {
        Failure::usage(format!("--set: {error}"))
            .hint("a rule needs metric, comparison and threshold, each by its own --set rollback.rules[0].…")
    })?;
    Ok(spec)
}

/// Checks a strategy with its overrides.
///
/// # Errors
/// Every field that does not fit.
pub fn check(base: &StrategySpec, overrides: &StrategySpec) -> Result<()> {
    let errors = base.overridden_by(overrides).validate();
    let failure = Failure::new(
        Reason::InvalidField,
        "the strategy with these settings is not sound; nothing was changed",
    );
    if errors.0.is_empty() {
        return Ok(());
    }
    Err(errors.0.iter().fold(failure, |failure, error| {
        failure.at(format!("{}: {}", error.field, error.message))
    }))
}

/// Steps exclude increment with interval, and the other way round.
fn drop_alternative(path: &str, traffic: &mut Value) {
    let Value::Object(fields) = traffic else {
        return;
    };
    if path.starts_with("traffic.steps") {
        fields.remove("increment");
        fields.remove("interval");
    } else if path.starts_with("traffic.in") {
        fields.remove("steps");
    }
}

fn parse_path(path: &str) -> std::result::Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    for piece in path.split('.') {
        let (name, mut rest) = match piece.find('[') {
            Some(at) => piece.split_at(at),
            None => (piece, ""),
        };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(format!(
                "\"{path}\" is not a path: want names joined by points, such as traffic.steps[0].percent"
            ));
        }
        parts.push(Part::Field(name.to_owned()));
        while let Some(inner) = rest.strip_prefix('[') {
            let (number, after) = inner
                .split_once(']')
                .ok_or_else(|| format!("\"{path}\" misses a ]"))?;
            let number = number
                .parse()
                .ok()
                .filter(|number| *number < LIST_LIMIT)
                .ok_or_else(|| format!("\"[{number}]\" in \"{path}\" is not a position"))?;
            parts.push(Part::Item(number));
            rest = after;
        }
        if !rest.is_empty() {
            return Err(format!("\"{rest}\" in \"{path}\" is not understood"));
        }
    }
    Ok(parts)
}

fn parse_value(path: &str, text: &str) -> std::result::Result<Value, String> {
    if path == "traffic.steps" && !text.trim_start().starts_with('[') {
        return steps(text);
    }
    serde_saphyr::from_str::<Value>(text)
        .map_err(|error| format!("the value is no YAML: {}", error.without_snippet()))
}

/// `10:30s,50:1m,100` as the list of steps.
fn steps(text: &str) -> std::result::Result<Value, String> {
    let one = |part: &str| {
        let (percent, hold) = match part.split_once(':') {
            Some((percent, hold)) => (percent, Some(hold.trim())),
            None => (part, None),
        };
        let percent = percent.trim().trim_end_matches('%').trim();
        if tidegate_shared::spec::parse_percent(percent).is_none() {
            return Err(format!(
                "step \"{}\" is not PERCENT[:HOLD], such as 25:30s",
                part.trim()
            ));
        }
        let mut step = Map::from_iter([("percent".to_owned(), Value::from(percent))]);
        if let Some(hold) = hold {
            step.insert("hold".to_owned(), Value::from(hold));
        }
        Ok(Value::Object(step))
    };
    text.split(',')
        .map(one)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map(Value::Array)
}

fn insert(into: &mut Value, parts: &[Part], value: Value) -> std::result::Result<(), String> {
    let Some((first, rest)) = parts.split_first() else {
        *into = value;
        return Ok(());
    };
    match first {
        Part::Field(name) => {
            if into.is_null() {
                *into = Value::Object(Map::new());
            }
            let Value::Object(fields) = into else {
                return Err(format!("what is before \"{name}\" has no fields"));
            };
            insert(
                fields.entry(name.clone()).or_insert(Value::Null),
                rest,
                value,
            )
        }
        Part::Item(position) => {
            if into.is_null() {
                *into = Value::Array(Vec::new());
            }
            let Value::Array(items) = into else {
                return Err(format!("what is before [{position}] is not a list"));
            };
            while items.len() <= *position {
                items.push(Value::Null);
            }
            // Checked alone, a path into a list leaves gaps before its item.
            items.retain(|item| !item.is_null() || rest.is_empty());
            let position = (*position).min(items.len());
            if position == items.len() {
                items.push(Value::Null);
            }
            insert(&mut items[position], rest, value)
        }
    }
}

fn internal(error: &serde_json::Error) -> Failure {
    Failure::new(Reason::Internal, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_shared::spec::{FinalizeMode, Hold, Metric};
    use tidegate_shared::time::Span;

    fn set(settings: &[&str]) -> Result<StrategySpec> {
        let settings: Vec<_> = settings.iter().map(|&s| s.to_owned()).collect();
        overrides(&StrategySpec::default(), &settings)
    }

    #[test]
    fn steps_have_a_short_form() {
        let spec = set(&["traffic.steps=10:30s,50%:manual,100"]).unwrap();
        let steps = spec.traffic.unwrap().steps;
        let told: Vec<_> = steps
            .iter()
            .map(|s| (s.weight.basis_points(), s.hold))
            .collect();
        assert_eq!(
            told,
            [
                (1_000, Hold::For(Span::from_secs(30))),
                (5_000, Hold::Manual),
                (10_000, Hold::default()),
            ]
        );
        assert_eq!(
            set(&["traffic.steps=[{percent: 10, hold: 30s}]"])
                .unwrap()
                .traffic
                .unwrap()
                .steps
                .len(),
            1
        );
    }

    #[test]
    fn any_path_takes_yaml() {
        let spec = set(&[
            "bake=30s",
            "finalize=manual",
            "keep_releases=5",
            "rollback.rules[0].metric=http.error_rate",
            "rollback.rules[0].comparison=greater_than",
            "rollback.rules[0].threshold=0.05",
            "rollback.rules[0].judge=raw",
            "deadlines.progress=20s",
        ])
        .unwrap();
        assert_eq!(spec.bake, Some(Span::from_secs(30)));
        assert_eq!(spec.finalize, Some(FinalizeMode::Manual));
        let rules = spec.rollback.clone().unwrap().rules;
        assert_eq!((rules.len(), &rules[0].metric), (1, &Metric::ErrorRate));
        assert_eq!(rules[0].threshold.as_str(), "0.05");
        assert_eq!(spec.deadlines.unwrap().progress, Some(Span::from_secs(20)));
        assert!(spec.kind.is_none() && spec.traffic.is_none());
        check(&StrategySpec::default(), &spec).unwrap();
    }

    #[test]
    fn nested_fields_keep_what_the_base_says() {
        let base = set(&[
            "deadlines.stall=1h",
            "traffic.increment=10",
            "traffic.interval=5s",
        ])
        .unwrap();
        let settings = [
            "deadlines.progress=20s".to_owned(),
            "traffic.steps=50,100".to_owned(),
        ];
        let spec = overrides(&base, &settings).unwrap();
        assert_eq!(spec.deadlines.unwrap().stall, Some(Span::from_hours(1)));
        let traffic = spec.traffic.unwrap();
        assert!(traffic.increment.is_none() && traffic.steps.len() == 2);
    }

    #[test]
    fn mistakes_name_the_setting() {
        for (setting, says) in [
            ("bake", "want PATH=VALUE"),
            ("bkae=1s", "did you mean \"bake\"?"),
            ("bake=soon", "not a length of time"),
            ("traffic.steps=ten", "step \"ten\" is not PERCENT[:HOLD]"),
            ("traffic.steps=10:x", "not a length of time"),
            ("traffic.stepz=1", "unknown field"),
            ("traffic.steps[x]=1", "is not a position"),
            ("keep_releases=many", "invalid type"),
            ("a b=1", "is not a path"),
        ] {
            let failure = set(&[setting]).unwrap_err();
            let text = failure.render(false);
            assert!(text.contains(&format!("--set {setting}")), "{text}");
            assert!(text.contains(says), "{setting}: {text}");
            assert!(text.contains("code: TG-1003"), "{text}");
        }
        let spec = set(&["traffic.steps=50,10"]).unwrap();
        let failure = check(&StrategySpec::default(), &spec).unwrap_err();
        assert!(failure.render(false).contains("traffic.steps[1].percent"));
    }
}
