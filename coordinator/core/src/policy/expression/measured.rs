//! What is known of a measurement when a check's condition is evaluated: `result`.

use cel::Context;
use serde::ser::{SerializeMap as _, SerializeSeq as _};
use serde::{Serialize, Serializer};
use serde_json::Value;

/// The fields of `result`.
#[derive(Debug, Clone, PartialEq)]
pub enum Measured {
    /// Of a request.
    Http {
        /// 100 to 599.
        status: i64,
        /// The body read as JSON; null where it is none.
        body: Value,
        /// The body.
        text: String,
    },
    /// Of a program.
    Command {
        /// 0 to 255.
        exit_code: i64,
        /// What it printed read as JSON; null where it is none.
        body: Value,
        /// What it printed.
        output: String,
    },
    /// Of a query.
    Query {
        /// The only value; none of no series, or of more than one.
        value: Option<f64>,
        /// One of each series.
        values: Vec<f64>,
    },
}

impl Measured {
    pub(super) fn fill(&self, context: &mut Context<'_, '_>) -> Result<(), String> {
        let value = cel::to_value(self).map_err(|error| format!("result: {error}"))?;
        context.add_variable_from_value("result", value);
        Ok(())
    }
}

impl Serialize for Measured {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            Self::Http { status, body, text } => {
                map.serialize_entry("status", status)?;
                map.serialize_entry("body", &Json(body))?;
                map.serialize_entry("text", text)?;
            }
            Self::Command {
                exit_code,
                body,
                output,
            } => {
                map.serialize_entry("exit_code", exit_code)?;
                map.serialize_entry("body", &Json(body))?;
                map.serialize_entry("output", output)?;
            }
            Self::Query { value, values } => {
                if let Some(value) = value {
                    map.serialize_entry("value", value)?;
                }
                map.serialize_entry("values", values)?;
            }
        }
        map.end()
    }
}

/// JSON whose whole numbers are signed, as those of expressions are.
struct Json<'a>(&'a Value);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(whole), _) => serializer.serialize_i64(whole),
                (None, float) => serializer.serialize_f64(float.unwrap_or(f64::NAN)),
            },
            Value::String(text) => serializer.serialize_str(text),
            Value::Array(values) => {
                let mut list = serializer.serialize_seq(Some(values.len()))?;
                for value in values {
                    list.serialize_element(&Json(value))?;
                }
                list.end()
            }
            Value::Object(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (key, value) in fields {
                    map.serialize_entry(key, &Json(value))?;
                }
                map.end()
            }
        }
    }
}
