//! People's word over rules, as scenarios say it: freezes and skips.

use tidegate_coordinator_core::State;
use tidegate_coordinator_core::command::{Command, CreateFreeze, CreateSkip, Named};
use tidegate_shared::id::{Name, Version};
use tidegate_shared::time::{Span, Timestamp};

/// What people say.
#[derive(Debug, Clone)]
pub enum Word {
    /// Nothing new starts.
    Freeze {
        /// For so long.
        span: Span,
        /// Deployments under way go on.
        let_run: bool,
        /// CEL; empty: everything.
        selector: String,
    },
    /// The oldest freeze is over.
    Thaw,
    /// A rule is passed over.
    Skip {
        /// Which.
        rule: String,
        /// For so long.
        span: Option<Span>,
        /// Only in this scope.
        scope: Option<Name>,
        /// Only for this version.
        version: Option<Version>,
    },
    /// The oldest skip is deleted.
    Unskip,
}

impl Word {
    /// Reads what follows `freeze`, `thaw`, `skip` or `unskip`.
    ///
    /// # Errors
    /// What is not understood.
    pub fn parse(first: &str, rest: &str) -> Result<Self, String> {
        let mut words = rest.split_whitespace();
        match first {
            "freeze" => {
                let span = read(words.next(), "a length of time")?;
                let rest: Vec<&str> = words.collect();
                let (let_run, selector) = match rest.split_first() {
                    Some((&"let-run", selector)) => (true, selector),
                    _ => (false, rest.as_slice()),
                };
                Ok(Self::Freeze {
                    span,
                    let_run,
                    selector: selector.join(" "),
                })
            }
            "thaw" => Ok(Self::Thaw),
            "unskip" => Ok(Self::Unskip),
            _ => {
                let rule = words.next().ok_or("a rule is missing")?.to_owned();
                let (mut span, mut scope, mut version) = (None, None, None);
                while let Some(word) = words.next() {
                    match word {
                        "for" => span = Some(read(words.next(), "a length of time")?),
                        "in" => scope = Some(read(words.next(), "a scope")?),
                        "of" => version = Some(read(words.next(), "a version")?),
                        other => return Err(format!("\"{other}\" is not understood")),
                    }
                }
                Ok(Self::Skip {
                    rule,
                    span,
                    scope,
                    version,
                })
            }
        }
    }

    /// The command that says so now.
    ///
    /// # Errors
    /// There is nothing to take back.
    pub fn command(&self, state: &State, now: Timestamp) -> Result<Command, String> {
        let reason = "told by the script".to_owned();
        Ok(match self {
            Self::Freeze {
                span,
                let_run,
                selector,
            } => Command::Freeze(CreateFreeze {
                selector: selector.clone(),
                reason,
                until: now + *span,
                let_run: *let_run,
            }),
            Self::Thaw => Command::Thaw(Named {
                name: first(state.freezes.keys())?,
            }),
            Self::Skip {
                rule,
                span,
                scope,
                version,
            } => Command::CreateSkip(CreateSkip {
                rule: rule.clone(),
                application: match version {
                    Some(_) => Some(read(Some("shop"), "an application")?),
                    None => None,
                },
                version: version.clone(),
                scope: scope.clone(),
                reason,
                expires_at: span.map(|span| now + span),
            }),
            Self::Unskip => Command::DeleteSkip(Named {
                name: first(state.skips.keys())?,
            }),
        })
    }
}

fn first<'a>(mut names: impl Iterator<Item = &'a Name>) -> Result<Name, String> {
    names.next().cloned().ok_or("there is none".to_owned())
}

fn read<T: std::str::FromStr>(word: Option<&str>, what: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    let word = word.ok_or_else(|| format!("{what} is missing"))?;
    word.parse().map_err(|error: T::Err| error.to_string())
}
