//! Whether a value fits a JSON Schema of draft 7, as far as the schema of manifests goes: a keyword that
//! is not known here is a misfit of every value, so that nothing is passed over.

use regex::Regex;
use serde_json::{Map, Value};

/// Keywords that say nothing about whether a value fits.
const REMARKS: &[&str] = &[
    "$schema",
    "default",
    "definitions",
    "description",
    "format",
    "title",
];

/// Everything in which a value does not fit, each with its place.
pub fn misfits(schema: &Value, value: &Value) -> Vec<String> {
    let mut check = Check {
        root: schema,
        found: Vec::new(),
    };
    check.value(schema, value, "");
    check.found
}

struct Check<'a> {
    root: &'a Value,
    found: Vec<String>,
}

impl<'a> Check<'a> {
    fn fits(&self, schema: &'a Value, value: &Value) -> bool {
        let mut inner = Check {
            root: self.root,
            found: Vec::new(),
        };
        inner.value(schema, value, "");
        inner.found.is_empty()
    }

    fn require(&mut self, holds: bool, place: &str, what: impl Into<String>) {
        if !holds {
            self.found.push(format!("{place}: {}", what.into()));
        }
    }

    fn value(&mut self, schema: &'a Value, value: &Value, place: &str) {
        let keywords = match schema {
            Value::Bool(fits) => return self.require(*fits, place, "nothing fits here"),
            Value::Object(keywords) => keywords,
            other => return self.require(false, place, format!("{other} is no schema")),
        };
        for (keyword, argument) in keywords {
            self.keyword(keywords, keyword, argument, value, place);
        }
    }

    fn keyword(
        &mut self,
        keywords: &'a Map<String, Value>,
        keyword: &str,
        argument: &'a Value,
        value: &Value,
        place: &str,
    ) {
        let what = || format!("{value} does not fit {keyword} {argument}");
        match keyword {
            "$ref" => match argument.as_str().and_then(|to| to.strip_prefix('#')) {
                Some(to) => match self.root.pointer(to) {
                    Some(target) => self.value(target, value, place),
                    None => self.require(false, place, what()),
                },
                None => self.require(false, place, what()),
            },
            "type" => {
                let fits = match argument {
                    Value::Array(types) => types.iter().any(|one| is_of(one, value)),
                    one => is_of(one, value),
                };
                self.require(fits, place, what());
            }
            "enum" => self.require(list(argument).contains(value), place, what()),
            "const" => self.require(argument == value, place, what()),
            "allOf" => list(argument)
                .iter()
                .for_each(|schema| self.value(schema, value, place)),
            "anyOf" | "oneOf" => {
                let fitting = list(argument).iter().filter(|one| self.fits(one, value));
                let count = fitting.count();
                let fits = count == 1 || (count > 1 && keyword == "anyOf");
                self.require(fits, place, what());
            }
            "if" => {
                let branch = if self.fits(argument, value) {
                    "then"
                } else {
                    "else"
                };
                if let Some(schema) = keywords.get(branch) {
                    self.value(schema, value, place);
                }
            }
            "then" | "else" => {}
            "minimum" | "maximum" => {
                let fits = match (value.as_f64(), argument.as_f64()) {
                    (Some(value), Some(limit)) if keyword == "minimum" => value >= limit,
                    (Some(value), Some(limit)) => value <= limit,
                    (None, _) => true,
                    (Some(_), None) => false,
                };
                self.require(fits, place, what());
            }
            "pattern" => {
                let pattern = argument.as_str().map(Regex::new);
                let fits = match (pattern, value.as_str()) {
                    (Some(Ok(pattern)), Some(text)) => pattern.is_match(text),
                    (Some(Ok(_)), None) => true,
                    (Some(Err(_)) | None, _) => false,
                };
                self.require(fits, place, what());
            }
            _ => self.of_containers(keywords, keyword, argument, value, place),
        }
    }

    fn of_containers(
        &mut self,
        keywords: &'a Map<String, Value>,
        keyword: &str,
        argument: &'a Value,
        value: &Value,
        place: &str,
    ) {
        let what = || format!("{value} does not fit {keyword} {argument}");
        match (keyword, value) {
            ("properties", Value::Object(fields)) => {
                for (name, schema) in argument.as_object().into_iter().flatten() {
                    if let Some(field) = fields.get(name) {
                        self.value(schema, field, &format!("{place}/{name}"));
                    }
                }
            }
            ("additionalProperties", Value::Object(fields)) => {
                let known = keywords.get("properties").and_then(Value::as_object);
                for (name, field) in fields {
                    if known.is_none_or(|known| !known.contains_key(name)) {
                        self.value(argument, field, &format!("{place}/{name}"));
                    }
                }
            }
            ("propertyNames", Value::Object(fields)) => {
                for name in fields.keys() {
                    let inner = format!("{place}/{name}");
                    self.value(argument, &Value::from(name.clone()), &inner);
                }
            }
            ("required", Value::Object(fields)) => {
                for name in list(argument) {
                    let there = name.as_str().is_some_and(|name| fields.contains_key(name));
                    self.require(there, place, format!("{name} is missing"));
                }
            }
            ("maxProperties", Value::Object(fields)) => {
                self.require(within(fields.len(), argument), place, what());
            }
            ("items", Value::Array(items)) => {
                for (position, item) in items.iter().enumerate() {
                    self.value(argument, item, &format!("{place}/{position}"));
                }
            }
            ("maxItems", Value::Array(items)) => {
                self.require(within(items.len(), argument), place, what());
            }
            ("uniqueItems", Value::Array(items)) => {
                let twice = items
                    .iter()
                    .enumerate()
                    .any(|(n, item)| items[..n].contains(item));
                self.require(!twice || argument == &Value::Bool(false), place, what());
            }
            (
                "properties"
                | "additionalProperties"
                | "propertyNames"
                | "required"
                | "maxProperties"
                | "items"
                | "maxItems"
                | "uniqueItems",
                _,
            ) => {}
            (keyword, _) if REMARKS.contains(&keyword) => {}
            (keyword, _) => self.require(false, place, format!("{keyword} is not known here")),
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn within(count: usize, most: &Value) -> bool {
    most.as_u64().is_some_and(|most| count as u64 <= most)
}

fn is_of(name: &Value, value: &Value) -> bool {
    match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some("number") => value.is_number(),
        Some("integer") => value.is_i64() || value.is_u64(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_does_not_fit_is_told_by_its_place() {
        let schema = json!({
            "type": "object", "required": ["a"], "additionalProperties": false,
            "properties": {"a": {"$ref": "#/definitions/A"}, "b": {"type": "array", "items": {"type": ["string", "null"]}}},
            "definitions": {"A": {"oneOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^x"}]}}
        });
        for (value, count) in [
            (json!({"a": 1}), 0),
            (json!({"a": "xy", "b": ["c", null]}), 0),
            (json!({"a": 0}), 1),
            (json!({"a": "y", "b": [1, 2], "c": 3}), 4),
            (json!({}), 1),
            (json!([]), 1),
        ] {
            let found = misfits(&schema, &value);
            assert_eq!(found.len(), count, "{value}: {found:?}");
        }
        assert_eq!(misfits(&json!({"multipleOf": 2}), &json!(2)).len(), 1);
    }
}
