//! Checks an expression against what may be known, and makes labels forgiving: one that is not set
//! reads as the empty text, one that is compared with a number as a number.

use cel::common::ast::operators as op;
use cel::common::ast::{
    CallExpr, ComprehensionExpr, Expr, ListExpr, LiteralValue, SelectExpr, SourceInfo,
};
use cel::{Context, IdedExpr, Value};

use super::types::{Subject, Type};
use super::{ENVIRONMENT, is_pattern};
use crate::policy::Mistake;
use crate::policy::zone::Zone;

/// Steps that an evaluation may take.
const MOST_STEPS: u64 = 50_000;
/// Elements that a list or map from outside is taken to have.
const TYPICAL: u64 = 100;

/// What is known of a part.
pub(super) struct Found {
    pub(super) kind: Type,
    /// Steps to evaluate it, at most.
    steps: u64,
    /// Elements, if it is a list or map.
    length: u64,
}

impl Found {
    const fn one(kind: Type, steps: u64) -> Self {
        Self {
            kind,
            steps,
            length: TYPICAL,
        }
    }
}

/// One expression while it is checked.
pub(super) struct Checker<'a> {
    places: &'a SourceInfo,
    text: &'a str,
    subject: Subject,
    /// Variables of the loops around, innermost last.
    locals: Vec<(String, Type, u64)>,
}

pub(super) fn check(
    root: &mut IdedExpr,
    places: &SourceInfo,
    text: &str,
    subject: Subject,
) -> Result<(), Mistake> {
    let mut checker = Checker {
        places,
        text,
        subject,
        locals: Vec::new(),
    };
    let found = checker.infer(root)?;
    if !matches!(found.kind, Type::Bool | Type::Any) {
        let message = format!(
            "the result is {}: want a comparison, which is true or false",
            found.kind.word()
        );
        return Err(Mistake::new("", 1, message));
    }
    if found.steps > MOST_STEPS {
        let message = format!(
            "takes up to {} steps: want at most {MOST_STEPS}",
            found.steps
        );
        return Err(Mistake::new("", 1, message));
    }
    Ok(())
}

impl Checker<'_> {
    pub(super) fn wrong(&self, id: u64, message: impl Into<String>) -> Mistake {
        let start = self
            .places
            .offset_for(id)
            .map_or(0, |(start, _)| start as usize);
        let start = start.min(self.text.chars().count());
        Mistake::new("", start + 1, message)
    }

    pub(super) fn infer(&mut self, expr: &mut IdedExpr) -> Result<Found, Mistake> {
        let id = expr.id;
        match &mut expr.expr {
            Expr::Literal(literal) => self.literal(id, literal),
            Expr::Ident(name) => self.variable(id, name),
            Expr::Select(select) => {
                let (found, replaced) = self.select(id, select)?;
                if let Some(replaced) = replaced {
                    expr.expr = replaced;
                }
                Ok(found)
            }
            Expr::Call(call) if call.func_name == op::INDEX && call.args.len() == 2 => {
                let (found, replaced) = self.index(id, call)?;
                if let Some(replaced) = replaced {
                    expr.expr = replaced;
                }
                Ok(found)
            }
            Expr::Call(call) => self.call(id, call),
            Expr::List(list) => self.list(id, list),
            Expr::Comprehension(comprehension) => self.comprehension(id, comprehension),
            Expr::Map(_) | Expr::Struct(_) => {
                Err(self.wrong(id, "maps and messages cannot be made here"))
            }
            Expr::Unspecified => Err(self.wrong(id, "is incomplete")),
        }
    }

    fn literal(&self, id: u64, literal: &LiteralValue) -> Result<Found, Mistake> {
        let kind = match literal {
            LiteralValue::Boolean(_) => Type::Bool,
            LiteralValue::Int(_) => Type::Int,
            LiteralValue::UInt(_) => Type::Uint,
            LiteralValue::Double(_) => Type::Double,
            LiteralValue::String(_) => Type::Text,
            LiteralValue::Null => Type::Null,
            LiteralValue::Bytes(_) => return Err(self.wrong(id, "bytes are not used here")),
        };
        Ok(Found::one(kind, 1))
    }

    fn variable(&self, id: u64, name: &str) -> Result<Found, Mistake> {
        if let Some((_, kind, length)) = self.locals.iter().rev().find(|(n, ..)| n == name) {
            return Ok(Found {
                kind: kind.clone(),
                steps: 1,
                length: *length,
            });
        }
        let known = self.subject.variable(name);
        known.map(|kind| Found::one(kind, 1)).ok_or_else(|| {
            let message = format!(
                "there is no \"{name}\" here: want {}",
                self.subject.variables()
            );
            self.wrong(id, message)
        })
    }

    fn select(
        &mut self,
        id: u64,
        select: &mut SelectExpr,
    ) -> Result<(Found, Option<Expr>), Mistake> {
        let of = self.infer(&mut select.operand)?;
        let steps = of.steps + 1;
        let kind = match of.kind {
            Type::Object(object) => object.field(&select.field).ok_or_else(|| {
                let message = format!(
                    "{} has no \"{}\": want {}",
                    object.name(),
                    select.field,
                    object.fields()
                );
                self.wrong(id, message)
            })?,
            Type::Map(value) => *value,
            Type::Any => Type::Any,
            other => {
                let message = format!("{} has no fields: \"{}\"", other.word(), select.field);
                return Err(self.wrong(id, message));
            }
        };
        if select.test {
            return Ok((Found::one(Type::Bool, steps), None));
        }
        if kind != Type::Label {
            return Ok((Found::one(kind, steps), None));
        }
        let present = SelectExpr {
            test: true,
            ..select.clone()
        };
        let replaced = or_empty(Expr::Select(present), Expr::Select(select.clone()));
        Ok((Found::one(Type::Label, 2 * steps + 1), Some(replaced)))
    }

    fn index(&mut self, id: u64, call: &mut CallExpr) -> Result<(Found, Option<Expr>), Mistake> {
        let [of, key] = call.args.as_mut_slice() else {
            return Err(self.wrong(id, "want one index"));
        };
        let (found, by) = (self.infer(of)?, self.infer(key)?);
        let steps = found.steps + by.steps + 1;
        match found.kind {
            Type::List(inner) if matches!(by.kind, Type::Int | Type::Any) => {
                Ok((Found::one(*inner, steps), None))
            }
            Type::Map(value) if by.kind.is_text() || by.kind == Type::Any => {
                if *value != Type::Label {
                    return Ok((Found::one(*value, steps), None));
                }
                let present = function(op::IN, vec![key.clone(), of.clone()]);
                let replaced = or_empty(present, Expr::Call(call.clone()));
                Ok((Found::one(Type::Label, 2 * steps + 1), Some(replaced)))
            }
            Type::Any => Ok((Found::one(Type::Any, steps), None)),
            other => {
                let message = format!("{} has nothing at {}", other.word(), by.kind.word());
                Err(self.wrong(id, message))
            }
        }
    }

    fn list(&mut self, id: u64, list: &mut ListExpr) -> Result<Found, Mistake> {
        let mut kind: Option<Type> = None;
        let mut steps = 1;
        for element in &mut list.elements {
            let found = self.infer(element)?;
            steps += found.steps;
            kind = Some(match kind {
                None => found.kind,
                Some(kind) if kind == found.kind => kind,
                Some(kind) if kind.is_text() && found.kind.is_text() => Type::Text,
                Some(kind) if kind.meets(&found.kind) => Type::Any,
                Some(kind) => {
                    let (one, other) = (kind.word(), found.kind.word());
                    return Err(self.wrong(id, format!("the list holds {one} and {other}")));
                }
            });
        }
        Ok(Found {
            kind: Type::List(Box::new(kind.unwrap_or(Type::Any))),
            steps,
            length: list.elements.len() as u64,
        })
    }

    fn comprehension(&mut self, id: u64, loops: &mut ComprehensionExpr) -> Result<Found, Mistake> {
        let range = self.infer(&mut loops.iter_range)?;
        let start = self.infer(&mut loops.accu_init)?;
        let element = match range.kind {
            Type::List(inner) => *inner,
            // The order of a map is not the same everywhere, so nothing may come to depend on it.
            Type::Map(_) if !matches!(start.kind, Type::List(_)) => Type::Text,
            Type::Map(_) => {
                return Err(
                    self.wrong(id, "map and filter want a list; exists and all take labels")
                );
            }
            Type::Any => Type::Any,
            other => return Err(self.wrong(id, format!("{} is no list", other.word()))),
        };
        let kept = self.locals.len();
        self.locals.push((loops.iter_var.clone(), element, TYPICAL));
        if let Some(second) = &loops.iter_var2 {
            self.locals.push((second.clone(), Type::Any, TYPICAL));
        }
        let length = range.length.max(start.length);
        self.locals
            .push((loops.accu_var.clone(), start.kind.clone(), length));
        let condition = self.infer(&mut loops.loop_cond)?;
        let step = self.infer(&mut loops.loop_step)?;
        if let Some(last) = self.locals.last_mut() {
            last.1 = step.kind.clone();
        }
        let result = self.infer(&mut loops.result)?;
        self.locals.truncate(kept);
        let each = condition.steps.saturating_add(step.steps);
        let steps = range
            .length
            .saturating_mul(each)
            .saturating_add(range.steps)
            .saturating_add(start.steps + result.steps);
        Ok(Found {
            kind: result.kind,
            steps,
            length: range.length,
        })
    }

    fn call(&mut self, id: u64, call: &mut CallExpr) -> Result<Found, Mistake> {
        let target = match &mut call.target {
            Some(target) => Some(self.infer(target)?),
            None => None,
        };
        let mut steps = target.as_ref().map_or(1, |found| found.steps + 1);
        let mut kinds: Vec<Type> = target.into_iter().map(|found| found.kind).collect();
        let mut length = 0_u64;
        for argument in &mut call.args {
            let found = self.infer(argument)?;
            steps = steps.saturating_add(found.steps);
            length = length.saturating_add(found.length);
            kinds.push(found.kind);
        }
        if call.target.is_none() && is_comparison(&call.func_name) && call.args.len() == 2 {
            read_as_numbers(call, &mut kinds);
        }
        let member = call.target.is_some();
        let result = super::functions::result(&call.func_name, member, &kinds);
        let kind = result.map_err(|message| self.wrong(id, message))?;
        self.constants(id, call)?;
        Ok(Found {
            kind,
            steps,
            length,
        })
    }

    /// Patterns, times and time zones that stand in the text are tried.
    fn constants(&self, id: u64, call: &CallExpr) -> Result<(), Mistake> {
        let name = call.func_name.as_str();
        if name == "matches" {
            return match call.args.last().map(|pattern| &pattern.expr) {
                Some(Expr::Literal(LiteralValue::String(pattern)))
                    if is_pattern(pattern.inner()) =>
                {
                    Ok(())
                }
                Some(Expr::Literal(_)) => {
                    Err(self.wrong(id, "is no regular expression, or too large a one"))
                }
                _ => Err(self.wrong(id, "matches wants its pattern written out")),
            };
        }
        let literal = |expr: &IdedExpr| matches!(expr.expr, Expr::Literal(_));
        if name.starts_with("get") {
            return match call.args.first().map(|zone| &zone.expr) {
                Some(Expr::Literal(LiteralValue::String(zone)))
                    if Zone::parse(zone.inner()).is_none() =>
                {
                    Err(self.wrong(id, format!("\"{}\" is no time zone", zone.inner())))
                }
                _ => Ok(()),
            };
        }
        if matches!(name, "timestamp" | "duration" | "int" | "uint" | "double")
            && call.target.is_none()
            && call.args.iter().all(literal)
        {
            let whole = IdedExpr {
                id: 0,
                expr: Expr::Call(call.clone()),
            };
            let context = Context::with_env(std::sync::Arc::clone(&ENVIRONMENT));
            Value::resolve(&whole, &context)
                .map_err(|error| self.wrong(id, super::told(&error.to_string())))?;
        }
        Ok(())
    }
}

fn is_comparison(name: &str) -> bool {
    [
        op::EQUALS,
        op::NOT_EQUALS,
        op::LESS,
        op::LESS_EQUALS,
        op::GREATER,
        op::GREATER_EQUALS,
    ]
    .contains(&name)
}

/// `release.labels.coverage >= 80`: both sides become numbers of one kind.
fn read_as_numbers(call: &mut CallExpr, kinds: &mut [Type]) {
    let label = kinds.contains(&Type::Label);
    let number = kinds.iter().any(Type::is_number);
    if !(label && number) {
        return;
    }
    for (argument, kind) in call.args.iter_mut().zip(kinds) {
        let inner = std::mem::take(argument);
        *argument = IdedExpr {
            id: inner.id,
            expr: function("double", vec![inner]),
        };
        *kind = Type::Double;
    }
}

fn function(name: &str, args: Vec<IdedExpr>) -> Expr {
    Expr::Call(CallExpr {
        func_name: name.to_owned(),
        target: None,
        args,
    })
}

/// `present ? value : ""`.
fn or_empty(present: Expr, value: Expr) -> Expr {
    let parts = [
        present,
        value,
        Expr::Literal(LiteralValue::String(String::new().into())),
    ];
    let parts = parts.into_iter().map(|expr| IdedExpr { id: 0, expr });
    function(op::CONDITIONAL, parts.collect())
}
