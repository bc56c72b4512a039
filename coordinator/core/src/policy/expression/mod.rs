//! Conditions and selectors in CEL: compiled and checked when they are written, evaluated by the
//! planner.
//!
//! An expression is checked against what it may know (`facts`): unknown variables, fields and
//! functions, wrong types and results that are no truth value are refused with their place. What is
//! accepted is bounded: length, depth, and the number of steps that its loops can take. A label
//! that is not set reads as the empty text, and compared with a number a label is read as one; every
//! other failure of an evaluation is an error, on which rules block (product.md §5).

mod bounds;
mod check;
mod facts;
mod functions;
mod measured;
mod types;

pub use facts::{
    ApplicationFacts, EnvironmentFacts, Facts, ReleaseFacts, ScopeFacts, StrategyFacts, UserFacts,
};
pub use measured::Measured;
pub use types::Subject;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use cel::parser::Parser;
use cel::{Context, Env, IdedExpr, Value};

use super::Mistake;

/// The longest expression, in bytes.
const LONGEST: usize = 2_000;
/// How deep expressions may be nested.
const DEEPEST: u16 = 24;
/// Compiled expressions that are kept; the memory is emptied beyond.
const KEPT: usize = 1_024;

/// The standard functions of CEL.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// Compiling is a function of the text alone, so what it gave can be kept.
static COMPILED: LazyLock<Mutex<BTreeMap<(Subject, String), Expression>>> =
    LazyLock::new(|| Mutex::new(BTreeMap::new()));

/// An expression that was understood and checked.
#[derive(Debug, Clone)]
pub struct Expression {
    /// None: the empty expression, always true.
    root: Option<Arc<IdedExpr>>,
}

impl Expression {
    /// Reads and checks a condition over what `subject` knows; the empty text is always true.
    ///
    /// # Errors
    /// The first mistake and where it stands.
    pub fn compile(text: &str, subject: Subject) -> Result<Self, Mistake> {
        let mut kept = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (subject, text.to_owned());
        if let Some(found) = kept.get(&key) {
            return Ok(found.clone());
        }
        let expression = Self::compile_anew(text, subject)?;
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(key, expression.clone());
        Ok(expression)
    }

    fn compile_anew(text: &str, subject: Subject) -> Result<Self, Mistake> {
        if text.trim().is_empty() {
            return Ok(Self { root: None });
        }
        if text.len() > LONGEST {
            return Err(Mistake::new("", 1, format!("longer than {LONGEST} bytes")));
        }
        if depth(text) > usize::from(DEEPEST) {
            return Err(Mistake::new("", 1, format!("nested deeper than {DEEPEST}")));
        }
        let parser = Parser::new().max_recursion_depth(4 * DEEPEST);
        let (mut root, places) = parser
            .parse_with_source_info(text)
            .map_err(|errors| syntax(text, &errors))?;
        check::check(&mut root, &places, text, subject)?;
        Ok(Self {
            root: Some(Arc::new(root)),
        })
    }

    /// Whether it holds.
    ///
    /// # Errors
    /// One line, if it cannot be said.
    pub fn holds(&self, facts: &Facts) -> Result<bool, String> {
        let Some(root) = &self.root else {
            return Ok(true);
        };
        let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
        facts.fill(&mut context)?;
        evaluate(root, &context)
    }

    /// Whether it holds of a measurement.
    ///
    /// # Errors
    /// One line, if it cannot be said.
    pub fn holds_of(&self, measured: &Measured) -> Result<bool, String> {
        let Some(root) = &self.root else {
            return Ok(true);
        };
        let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
        measured.fill(&mut context)?;
        evaluate(root, &context)
    }

    /// Names of the only applications that it can hold for; none: its text does not bound them.
    pub fn applications(&self) -> Option<BTreeSet<String>> {
        bounds::applications(self.root.as_deref()?)
    }

    /// Whether it is always true.
    pub const fn is_empty(&self) -> bool {
        self.root.is_none()
    }
}

fn evaluate(root: &IdedExpr, context: &Context<'_, '_>) -> Result<bool, String> {
    match Value::resolve(root, context) {
        Ok(Value::Bool(holds)) => Ok(holds),
        Ok(_) => Err("the result is neither true nor false".to_owned()),
        Err(error) => Err(told(&error.to_string())),
    }
}

/// Whether the standard functions accept a pattern of `matches`.
fn is_pattern(pattern: &str) -> bool {
    let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
    context.add_variable_from_value("pattern", pattern.to_owned());
    Parser::new()
        .parse("''.matches(pattern)")
        .is_ok_and(|expression| Value::resolve(&expression, &context).is_ok())
}

/// How deep brackets, and signs before an operand, are nested.
fn depth(text: &str) -> usize {
    let (mut open, mut deepest, mut signs) = (0_usize, 0_usize, 0_usize);
    for c in text.chars() {
        match c {
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' => open = open.saturating_sub(1),
            _ => {}
        }
        signs = match c {
            '!' | '-' => signs + 1,
            c if c.is_whitespace() => signs,
            _ => 0,
        };
        deepest = deepest.max(open + signs);
    }
    deepest
}

/// The first mistake of the reader, with its place counted in characters from the start.
fn syntax(text: &str, errors: &cel::ParseErrors) -> Mistake {
    let Some(first) = errors.errors.first() else {
        return Mistake::new("", 1, "is no expression of CEL");
    };
    let line = usize::try_from(first.pos.0).unwrap_or(1).max(1);
    let column = usize::try_from(first.pos.1).unwrap_or(0);
    let before: usize = text
        .split_inclusive('\n')
        .take(line - 1)
        .map(|line| line.chars().count())
        .sum();
    Mistake::new("", before + column.max(1), told(&first.msg))
}

/// A message of the library in one line of reasonable length.
fn told(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    match line.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests;
