//! The JSON Schema of manifests: one for all kinds, taken from the types that read them.
//!
//! What serde derives is derived here too, with the comments of the fields as descriptions; texts
//! that are read by code of ours are described by hand below. It says what a manifest looks like,
//! not everything that `validate` asks. Behind the feature `schema`; `tests/tidy` holds the file in
//! `packaging/schema` equal to it.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::{
    Amount, ApplicationSpec, Approver, Approvers, AutoDeploy, BatchSize, Bytes, Cores,
    EnvironmentSpec, FileMode, Hold, Kind, MaxLost, Metric, ParameterSpec, PolicySpec, Port,
    RoleBindingSpec, ScopeSpec, StrategySpec, TeamSpec, When,
};
use crate::decimal::Decimal;
use crate::id::Name;
use crate::selector::LabelSelector;
use crate::time::Span;

/// A share in percent as people write it: `25` or `12.5`.
pub struct Percent;

/// Types whose text is read by code of ours.
macro_rules! described {
    ($($type:ty, $name:literal: $schema:tt;)*) => {
        $(impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        })*
    };
}

described! {
    Name, "Name": {
        "description": "1 to 63 lower-case letters, digits and inner hyphens",
        "type": "string",
        "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
    };
    Span, "Span": {
        "description": "A length of time, such as 30s, 5m or 1h30m; units d, h, m, s, ms",
        "type": "string",
        "pattern": "^(0|([0-9]+(ms|sec|s|min|m|h|d))+)$"
    };
    Percent, "Percent": {
        "description": "A share in percent, with at most two decimals",
        "anyOf": [
            {"type": "number", "minimum": 0, "maximum": 100},
            {"type": "string", "pattern": "^[0-9]{1,3}(\\.[0-9]{1,2})?$"}
        ]
    };
    Decimal, "Decimal": {
        "description": "A number",
        "anyOf": [
            {"type": "number"},
            {"type": "string", "pattern": "^-?[0-9]+(\\.[0-9]+)?$"}
        ]
    };
    LabelSelector, "LabelSelector": {
        "description": "role=web,region!=eu,zone in (a,b); all must hold",
        "type": "string"
    };
    FileMode, "FileMode": {
        "description": "Permissions in octal as text, such as \"0640\"",
        "type": "string",
        "pattern": "^0?[0-7]{3}$"
    };
    Port, "Port": {
        "description": "The port of the proxy, or none for a worker without traffic",
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 65535},
            {"type": "string", "pattern": "^(none|[0-9]{1,5})$"}
        ]
    };
    Bytes, "Bytes": {
        "description": "A size in bytes, or such as 512MiB or 2GiB",
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": "^\\s*[0-9]+\\s*(KiB|MiB|GiB|TiB)?\\s*$"}
        ]
    };
    Cores, "Cores": {
        "description": "Processor cores, such as 0.5 or 2",
        "anyOf": [
            {"type": "number", "minimum": 0},
            {"type": "string", "pattern": "^[0-9]+(\\.[0-9]{1,4})?$"}
        ]
    };
    BatchSize, "BatchSize": {
        "description": "A count such as 2, or a share such as 25%",
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": "^[0-9]+(\\.[0-9]{1,2})?%?$"}
        ]
    };
    MaxLost, "MaxLost": {
        "description": "A count such as 2, a share such as 10%, or default",
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": "^(default|[0-9]+(\\.[0-9]{1,2})?%?)$"}
        ]
    };
    Amount, "Amount": {
        "description": "A count such as 1, or a share such as 10%",
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": "^[0-9]+(\\.[0-9]{1,2})?%?$"}
        ]
    };
    Hold, "Hold": {
        "description": "A length of time such as 60s, or manual: until a person promotes",
        "type": "string",
        "pattern": "^(manual|0|([0-9]+(ms|sec|s|min|m|h|d))+)$"
    };
    When, "When": {
        "description": "before_traffic, every_step, last, or the number of a step from 1",
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 10_000},
            {"type": "string", "pattern": "^(before_traffic|every_step|last|[0-9]{1,5})$"}
        ]
    };
    Approver, "Approver": {
        "description": "Somebody whose decisions count",
        "type": "string",
        "pattern": "^(role:(viewer|deployer|approver|operator|admin)|team:[a-z0-9-]+|user:[a-z0-9-]+)$"
    };
}

impl JsonSchema for Approvers {
    fn schema_name() -> Cow<'static, str> {
        "Approvers".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<Approver>();
        json_schema!({
            "description": "role:approver, team:NAME or user:NAME, or a list of them",
            "anyOf": [one, {"type": "array", "items": one, "maxItems": 100}]
        })
    }
}

impl JsonSchema for AutoDeploy {
    fn schema_name() -> Cow<'static, str> {
        "AutoDeploy".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let name = generator.subschema_for::<Name>();
        json_schema!({
            "description": "CEL over release, true for every release, or {when, strategy}",
            "anyOf": [
                {"type": ["string", "boolean"]},
                {
                    "type": "object",
                    "required": ["when"],
                    "additionalProperties": false,
                    "properties": {"when": {"type": "string"}, "strategy": name}
                }
            ]
        })
    }
}

impl JsonSchema for Metric {
    fn schema_name() -> Cow<'static, str> {
        "Metric".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let known: Vec<String> = Self::ALL.iter().map(Self::to_string).collect();
        json_schema!({
            "description": "What is measured: of the platform, or app.NAME of the application's own",
            "anyOf": [
                {"type": "string", "enum": known},
                {"type": "string", "pattern": "^app\\."}
            ]
        })
    }
}

/// The schema of manifests of every kind.
pub fn manifest() -> Value {
    let mut generator = SchemaSettings::draft07().into_generator();
    let kinds = Kind::ALL.map(|kind| {
        let spec = match kind {
            Kind::Application => generator.subschema_for::<ApplicationSpec>(),
            Kind::Environment => generator.subschema_for::<EnvironmentSpec>(),
            Kind::Strategy => generator.subschema_for::<StrategySpec>(),
            Kind::Scope => generator.subschema_for::<ScopeSpec>(),
            Kind::Policy => generator.subschema_for::<PolicySpec>(),
            Kind::Parameter => generator.subschema_for::<ParameterSpec>(),
            Kind::Team => generator.subschema_for::<TeamSpec>(),
            Kind::RoleBinding => generator.subschema_for::<RoleBindingSpec>(),
        };
        json!({
            "if": {"required": ["kind"], "properties": {"kind": {"const": kind.as_str()}}},
            "then": {"properties": {"spec": spec}}
        })
    });
    let name = generator.subschema_for::<Name>();
    let words = Kind::ALL.map(Kind::as_str);
    let mut definitions = generator.take_definitions(true);
    definitions.values_mut().for_each(plain);
    for rule in ["GradualRolloutRule", "RolloutSpec"] {
        also(&mut definitions, rule, "interval", "time_scale_interval");
    }
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Manifest of Tidegate",
        "description": "One object, as tidegate apply reads it",
        "type": "object",
        "required": ["kind", "name", "spec"],
        "additionalProperties": false,
        "properties": {
            "kind": {"description": "What it describes", "type": "string", "enum": words},
            "name": name,
            "labels": {
                "description": "For selection and order",
                "type": "object",
                "maxProperties": 64,
                "propertyNames": {"pattern": "^[A-Za-z0-9._/-]{1,63}$"},
                "additionalProperties": {"type": "string", "pattern": "^[A-Za-z0-9._/-]{0,63}$"}
            },
            "spec": {"description": "The wish"}
        },
        "allOf": kinds,
        "definitions": definitions
    })
}

/// A second name of a field, which serde reads and the derived schema does not know.
fn also(definitions: &mut Map<String, Value>, definition: &str, field: &str, alias: &str) {
    let Some(Value::Object(definition)) = definitions.get_mut(definition) else {
        return;
    };
    if let Some(Value::Object(fields)) = definition.get_mut("properties")
        && let Some(known) = fields.get(field).cloned()
    {
        fields.insert(alias.to_owned(), known);
    }
    if let Some(Value::Array(required)) = definition.get_mut("required")
        && required.contains(&Value::from(field))
    {
        required.retain(|name| name != field);
        let either = json!([{"required": [field]}, {"required": [alias]}]);
        definition.insert("oneOf".to_owned(), either);
    }
}

/// Descriptions as people read them: no links of the code's own documentation, no line ends within a
/// sentence.
fn plain(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(text) if name == "description" => {
                        let words: Vec<&str> = text.split_whitespace().collect();
                        *text = words.join(" ").replace("[`", "`").replace("`]", "`");
                    }
                    _ => plain(field),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(plain),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
