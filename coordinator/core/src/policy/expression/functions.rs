//! Operators and functions that expressions may use, and what they give.

use cel::common::ast::operators as op;

use super::types::Type;

/// The type that a call gives; `member`: the first type is the value before the dot.
///
/// # Errors
/// What does not fit, in one line.
pub(super) fn result(name: &str, member: bool, kinds: &[Type]) -> Result<Type, String> {
    if member {
        return method(name, kinds);
    }
    match (name, kinds) {
        (op::LOGICAL_AND | op::LOGICAL_OR | op::LOGICAL_NOT | op::NOT_STRICTLY_FALSE, all) => {
            match all.iter().find(|kind| !is(kind, &Type::Bool)) {
                None => Ok(Type::Bool),
                Some(kind) => Err(format!("want true or false, not {}", kind.word())),
            }
        }
        (op::CONDITIONAL, [condition, one, other]) => {
            match (is(condition, &Type::Bool), one.meets(other)) {
                (false, _) => Err(format!(
                    "want true or false before ?, not {}",
                    condition.word()
                )),
                (true, false) => Err(format!("gives {} or {}", one.word(), other.word())),
                (true, true) if one == other => Ok(one.clone()),
                (true, true) => Ok(joined(one, other)),
            }
        }
        (op::EQUALS | op::NOT_EQUALS, [one, other]) => compared(one, other, |_| true),
        (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS, [one, other]) => {
            compared(one, other, |kind| {
                kind.is_number()
                    || kind.is_text()
                    || matches!(kind, Type::Timestamp | Type::Duration | Type::Any)
            })
        }
        (op::IN, [value, among]) => contained(value, among),
        (op::ADD | op::SUBSTRACT | op::MULTIPLY | op::DIVIDE | op::MODULO, [one, other]) => {
            arithmetic(name, one, other)
        }
        (op::NEGATE, [one]) if one.is_number() || *one == Type::Any => Ok(one.clone()),
        ("size", [one]) => sized(one),
        ("matches", [one, pattern]) => texts(&[one, pattern]),
        ("int" | "uint" | "double", [one])
            if one.is_number() || one.is_text() || *one == Type::Any =>
        {
            Ok(match name {
                "int" => Type::Int,
                "uint" => Type::Uint,
                _ => Type::Double,
            })
        }
        ("string", [one]) if !matches!(one, Type::Object(_) | Type::List(_) | Type::Map(_)) => {
            Ok(Type::Text)
        }
        ("timestamp", [one]) if one.is_text() => Ok(Type::Timestamp),
        ("duration", [one]) if one.is_text() => Ok(Type::Duration),
        _ => Err(format!("{} does not take {}", shown(name), words(kinds))),
    }
}

fn method(name: &str, kinds: &[Type]) -> Result<Type, String> {
    let [of, arguments @ ..] = kinds else {
        return Err(format!("{name} wants a value before the dot"));
    };
    match (name, arguments) {
        ("contains" | "startsWith" | "endsWith" | "matches", [argument]) => texts(&[of, argument]),
        ("size", []) => sized(of),
        (
            "getFullYear" | "getMonth" | "getDate" | "getDayOfMonth" | "getDayOfWeek"
            | "getDayOfYear" | "getHours" | "getMinutes" | "getSeconds" | "getMilliseconds",
            [] | [_],
        ) if *of == Type::Timestamp && arguments.iter().all(Type::is_text) => Ok(Type::Int),
        ("getHours" | "getMinutes" | "getSeconds" | "getMilliseconds", [])
            if *of == Type::Duration =>
        {
            Ok(Type::Int)
        }
        _ => Err(format!(
            "{} has no {name} that takes {}",
            of.word(),
            words(arguments)
        )),
    }
}

fn is(kind: &Type, wanted: &Type) -> bool {
    kind == wanted || *kind == Type::Any
}

fn joined(one: &Type, other: &Type) -> Type {
    match one.is_text() && other.is_text() {
        true => Type::Text,
        false => Type::Any,
    }
}

fn compared(one: &Type, other: &Type, can: impl Fn(&Type) -> bool) -> Result<Type, String> {
    if one.meets(other) && can(one) && can(other) {
        return Ok(Type::Bool);
    }
    let hint = match (one, other) {
        (Type::Label, _) | (_, Type::Label) => ": labels are texts, as in == \"true\"",
        _ => "",
    };
    Err(format!(
        "compares {} with {}{hint}",
        one.word(),
        other.word()
    ))
}

fn contained(value: &Type, among: &Type) -> Result<Type, String> {
    let fits = match among {
        Type::List(inner) => value.meets(inner),
        Type::Map(_) => value.is_text() || *value == Type::Any,
        Type::Any => true,
        _ => false,
    };
    match fits {
        true => Ok(Type::Bool),
        false => Err(format!("looks for {} in {}", value.word(), among.word())),
    }
}

fn arithmetic(name: &str, one: &Type, other: &Type) -> Result<Type, String> {
    let wrong = || {
        Err(format!(
            "{} does not take {} and {}",
            shown(name),
            one.word(),
            other.word()
        ))
    };
    match (one, other) {
        (Type::Any, _) | (_, Type::Any) => Ok(Type::Any),
        (one, other) if one.is_number() && one == other => match (name, one) {
            (op::MODULO, Type::Double) => wrong(),
            _ => Ok(one.clone()),
        },
        (one, other) if one.is_number() && other.is_number() => Err(format!(
            "{} takes numbers of one kind: write 1.0 beside 0.5, or convert with double()",
            shown(name)
        )),
        (one, other) if name == op::ADD && one.is_text() && other.is_text() => Ok(Type::Text),
        (Type::List(inner), Type::List(more)) if name == op::ADD && inner.meets(more) => {
            Ok(Type::List(match **inner == Type::Any {
                true => more.clone(),
                false => inner.clone(),
            }))
        }
        (Type::Timestamp, Type::Duration) if matches!(name, op::ADD | op::SUBSTRACT) => {
            Ok(Type::Timestamp)
        }
        (Type::Duration, Type::Timestamp) if name == op::ADD => Ok(Type::Timestamp),
        (Type::Timestamp, Type::Timestamp) if name == op::SUBSTRACT => Ok(Type::Duration),
        (Type::Duration, Type::Duration) if matches!(name, op::ADD | op::SUBSTRACT) => {
            Ok(Type::Duration)
        }
        _ => wrong(),
    }
}

fn sized(kind: &Type) -> Result<Type, String> {
    match kind {
        Type::Text | Type::Label | Type::List(_) | Type::Map(_) | Type::Any => Ok(Type::Int),
        other => Err(format!("{} has no size", other.word())),
    }
}

fn texts(kinds: &[&Type]) -> Result<Type, String> {
    match kinds
        .iter()
        .find(|kind| !kind.is_text() && ***kind != Type::Any)
    {
        None => Ok(Type::Bool),
        Some(kind) => Err(format!("want a text, not {}", kind.word())),
    }
}

fn words(kinds: &[Type]) -> String {
    match kinds {
        [] => "nothing".to_owned(),
        kinds => kinds
            .iter()
            .map(Type::word)
            .collect::<Vec<_>>()
            .join(" and "),
    }
}

/// `_+_` is `+` for people.
fn shown(name: &str) -> String {
    let sign = name.trim_matches(|c| c == '_' || c == '@');
    match name.starts_with(['_', '-', '!']) {
        true => sign.to_owned(),
        false => format!("the function {sign}"),
    }
}
