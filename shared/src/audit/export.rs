//! An exported audit log: lines of JSON. The first says whose log it is and what it follows, then
//! comes one line for each event, the last one says how many there were and where they end.
//!
//! [`Checker`] reads it line by line, without any cluster, and names the line that is not as it was
//! written. A chain of hashes proves order and content between its ends; who could rewrite the
//! whole file could rewrite its ends too, so the last hash is worth noting elsewhere.

use serde::{Deserialize, Serialize};

use super::Event;
use crate::digest::Digest;
use crate::time::Timestamp;

/// The layout that is written.
pub const FORMAT: u32 = 1;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// See [`FORMAT`].
    pub tidegate_audit: u32,
    /// Id of the cluster.
    pub cluster: String,
    /// When it was exported.
    pub exported_at: Timestamp,
    /// Hash of the event before the first one; zero: the log begins with it.
    pub previous_hash: Digest,
}

/// The last line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    /// Lines of events.
    pub events: u64,
    /// Hash of the last event; without one, that of the head.
    pub last_hash: Digest,
    /// SHA-256 of the first line, without its line feed.
    pub head: Digest,
}

/// What a value looks like as a line.
///
/// # Errors
/// None that these values could cause.
pub fn line_of<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    serde_json::to_string(value)
}

/// What is wrong with an export, with its line, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Nothing is in it.
    #[error("it is empty")]
    Empty,
    /// The first line is none of an export.
    #[error("line 1 is not the beginning of an exported audit log: {0}")]
    Foreign(String),
    /// Written by a later version.
    #[error("it has format {0}, and this program reads {FORMAT}: upgrade it")]
    TooNew(u32),
    /// Its last line is missing.
    #[error("it is cut off after line {after}: its last line is missing")]
    CutOff {
        /// The last line that is there.
        after: u64,
    },
    /// It ends in the middle of a line.
    #[error("it is cut off within line {line}")]
    CutWithin {
        /// Which.
        line: u64,
    },
    /// A line was changed.
    #[error("line {line}{position} was changed: {why}", position = told(*.position))]
    Changed {
        /// Which.
        line: u64,
        /// Of the event, where it can be read.
        position: Option<(u64, u32)>,
        /// What does not fit.
        why: String,
    },
    /// Lines before this one are missing.
    #[error("before line {line}{position} lines were removed, or the one before it was written anew", position = told(Some(*.position)))]
    Removed {
        /// The line that does not follow.
        line: u64,
        /// Of its event.
        position: (u64, u32),
    },
    /// A line is not at its place.
    #[error("line {line}{position} is not at its place: it belongs {side} line {other}", position = told(Some(*.position)), side = if *.behind { "behind" } else { "before" })]
    Reordered {
        /// The line that belongs elsewhere.
        line: u64,
        /// Of its event.
        position: (u64, u32),
        /// A line that it belongs before or behind.
        other: u64,
        /// Which of the two.
        behind: bool,
    },
    /// A line was put in that is of no log, or twice.
    #[error("line {line}{position} was added: it is there already, or follows nothing", position = told(Some(*.position)))]
    Inserted {
        /// Which.
        line: u64,
        /// Of its event.
        position: (u64, u32),
    },
    /// Lines stand behind the end.
    #[error("line {line} was appended: the log ends before it")]
    Appended {
        /// The first of them.
        line: u64,
    },
}

fn told(position: Option<(u64, u32)>) -> String {
    position.map_or(String::new(), |(index, ordinal)| {
        format!(" (event {index}.{ordinal})")
    })
}

impl Flaw {
    /// Whether it is a log that was tampered with, and not something else or half of one.
    pub const fn is_tampering(&self) -> bool {
        !matches!(
            self,
            Self::Empty
                | Self::Foreign(_)
                | Self::TooNew(_)
                | Self::CutOff { .. }
                | Self::CutWithin { .. }
        )
    }
}

/// What an export that is sound holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Id of the cluster.
    pub cluster: String,
    /// How many events.
    pub events: u64,
    /// Position and time of the first one.
    pub first: Option<Seen>,
    /// Position and time of the last one.
    pub last: Option<Seen>,
    /// Hash of the event before the first; zero: it is the beginning of the log.
    pub previous_hash: Digest,
    /// Hash of the last one.
    pub last_hash: Digest,
}

/// An event that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Index of its log entry.
    pub index: u64,
    /// Its number in the entry.
    pub ordinal: u32,
    /// When.
    pub at: Timestamp,
}

impl Seen {
    const fn of(event: &Event) -> Self {
        Self {
            index: event.index,
            ordinal: event.ordinal,
            at: event.at,
        }
    }
}

/// A place where the chain breaks; which flaw it is shows in what follows.
#[derive(Debug, Clone, Copy)]
struct Break {
    line: u64,
    position: (u64, u32),
    /// Hash that the event should have followed.
    expected: Digest,
    /// The event is not later than the one before it.
    goes_back: bool,
}

/// Reads an export line by line.
#[derive(Debug)]
pub struct Checker {
    lines: u64,
    head: Option<(Head, Digest)>,
    tail: Option<Tail>,
    events: u64,
    first: Option<Seen>,
    last: Option<Seen>,
    previous: Digest,
    broken: Option<Break>,
}

impl Default for Checker {
    fn default() -> Self {
        Self {
            lines: 0,
            head: None,
            tail: None,
            events: 0,
            first: None,
            last: None,
            previous: Digest::ZERO,
            broken: None,
        }
    }
}

impl Checker {
    /// Takes the next line, without its line feed.
    ///
    /// # Errors
    /// The first [`Flaw`] that is certain.
    pub fn line(&mut self, bytes: &[u8]) -> Result<(), Flaw> {
        self.lines += 1;
        if self.lines == 1 {
            return self.begin(bytes);
        }
        if self.tail.is_some() {
            return Err(self.settled(Flaw::Appended { line: self.lines }));
        }
        match parsed::<Event>(bytes) {
            Ok(event) => self.event(&event),
            Err(why) => match parsed::<Tail>(bytes) {
                Ok(tail) => {
                    self.tail = Some(tail);
                    Ok(())
                }
                Err(_) => Err(self.settled(Flaw::Changed {
                    line: self.lines,
                    position: None,
                    why,
                })),
            },
        }
    }

    /// Takes what stands at the end without a line feed: a whole line, or the beginning of one.
    ///
    /// # Errors
    /// As [`Self::line`]; of half a line, that the file is cut off.
    pub fn unended(&mut self, bytes: &[u8]) -> Result<(), Flaw> {
        let line = self.lines + 1;
        let is_ours = line > 1 || bytes.starts_with(HEAD_START);
        if is_ours && self.tail.is_none() && is_cut(bytes) {
            return Err(self.settled(Flaw::CutWithin { line }));
        }
        self.line(bytes)
    }

    fn begin(&mut self, bytes: &[u8]) -> Result<(), Flaw> {
        let head: Head = parsed(bytes).map_err(Flaw::Foreign)?;
        if head.tidegate_audit != FORMAT {
            return Err(Flaw::TooNew(head.tidegate_audit));
        }
        self.previous = head.previous_hash;
        self.head = Some((head, Digest::of(bytes)));
        Ok(())
    }

    fn event(&mut self, event: &Event) -> Result<(), Flaw> {
        let line = self.lines;
        let position = event.position();
        if event.computed_hash() != event.hash {
            return Err(self.settled(Flaw::Changed {
                line,
                position: Some(position),
                why: "its content does not fit its hash".to_owned(),
            }));
        }
        self.events += 1;
        if let Some(broken) = self.broken {
            return self.after_break(broken, event);
        }
        if event.previous_hash != self.previous {
            let last = self.last.map(|last| (last.index, last.ordinal));
            self.broken = Some(Break {
                line,
                position,
                expected: self.previous,
                goes_back: last.is_some_and(|last| position <= last),
            });
            return Ok(());
        }
        let seen = Seen::of(event);
        self.first.get_or_insert(seen);
        self.last = Some(seen);
        self.previous = event.hash;
        Ok(())
    }

    /// The event that was missing at a break stands here: either what broke the chain came too
    /// early, or this one comes too late.
    fn after_break(&self, broken: Break, event: &Event) -> Result<(), Flaw> {
        let line = self.lines;
        if event.previous_hash != broken.expected {
            return Ok(());
        }
        if line > broken.line + 1 {
            return Err(Flaw::Reordered {
                line,
                position: event.position(),
                other: broken.line,
                behind: false,
            });
        }
        Err(if broken.goes_back {
            broken.flaw()
        } else {
            Flaw::Reordered {
                line: broken.line,
                position: broken.position,
                other: line,
                behind: true,
            }
        })
    }

    /// A break that was found before counts first.
    fn settled(&self, flaw: Flaw) -> Flaw {
        match self.broken {
            Some(broken) => broken.flaw(),
            None => flaw,
        }
    }

    /// No line follows.
    ///
    /// # Errors
    /// The [`Flaw`].
    pub fn finish(self) -> Result<Verified, Flaw> {
        let Some((head, digest)) = &self.head else {
            return Err(Flaw::Empty);
        };
        if let Some(broken) = self.broken {
            return Err(broken.flaw());
        }
        let Some(tail) = &self.tail else {
            return Err(Flaw::CutOff { after: self.lines });
        };
        self.compare(tail, *digest)?;
        Ok(Verified {
            cluster: head.cluster.clone(),
            events: self.events,
            first: self.first,
            last: self.last,
            previous_hash: head.previous_hash,
            last_hash: self.previous,
        })
    }

    fn compare(&self, tail: &Tail, head: Digest) -> Result<(), Flaw> {
        let changed = |line: u64, why: &str| {
            Err(Flaw::Changed {
                line,
                position: None,
                why: why.to_owned(),
            })
        };
        let ends_here = tail.last_hash == self.previous;
        match (ends_here, tail.events.cmp(&self.events)) {
            (true, std::cmp::Ordering::Equal) if tail.head == head => Ok(()),
            (true, std::cmp::Ordering::Equal) => {
                changed(1, "the last line knows another first line")
            }
            (false, std::cmp::Ordering::Greater) => Err(Flaw::Removed {
                line: self.lines,
                position: self.last.map_or((0, 0), |last| (last.index, last.ordinal)),
            }),
            // The head is line 1, so the n-th event is line n + 1.
            (false, std::cmp::Ordering::Less) => Err(Flaw::Appended {
                line: tail.events + 2,
            }),
            (true, _) => changed(self.lines, "it counts other events than there are"),
            (false, std::cmp::Ordering::Equal) => {
                changed(self.lines, "it ends in another event than the log does")
            }
        }
    }
}

impl Break {
    const fn flaw(self) -> Flaw {
        if self.goes_back {
            return Flaw::Inserted {
                line: self.line,
                position: self.position,
            };
        }
        Flaw::Removed {
            line: self.line,
            position: self.position,
        }
    }
}

/// How the first line starts.
const HEAD_START: &[u8] = b"{\"tidegate_audit\":";

/// Whether bytes are JSON, or text, that ends before it is whole.
fn is_cut(bytes: &[u8]) -> bool {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            let whole = bytes.get(..error.valid_up_to()).unwrap_or_default();
            std::str::from_utf8(whole).unwrap_or_default()
        }
        Err(_) => return false,
    };
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_err_and(|error| error.is_eof())
}

/// A value whose line is exactly what would be written for it.
fn parsed<T: Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is no text".to_owned())?;
    let value: T = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let written = line_of(&value).map_err(|error| error.to_string())?;
    if written != text {
        return Err("it is not in the form that the export writes".to_owned());
    }
    Ok(value)
}

#[cfg(test)]
mod tests;
