//! Why a session ended or was refused, and what follows from it: how long to wait and whether the
//! log hears of it. Not the connection itself; the session's loop calls this once per attempt.

use std::time::Duration;

use tidegate_shared::error::{Reason, Status as Kind};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Shortest and longest wait before the next attempt.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// The hint for a certificate that does not count: what people are told (`tidegate login`) helps no
/// agent.
const JOIN_AGAIN: &str = Reason::Revoked.hint();

/// A coordinator's refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `TG-####`.
    pub code: String,
    /// What is wrong, in one line.
    pub message: String,
    /// The next step, in one line.
    pub hint: String,
    /// Trying again does not cure it: a person has to act.
    pub is_final: bool,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}]; {}", self.message, self.code, self.hint)
    }
}

impl Refusal {
    /// The cluster took this agent out. Only a coordinator whose certificate was checked can say so.
    pub fn is_removal(&self) -> bool {
        self.code == Reason::AgentRemoved.code()
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A line for the log.
    Plain(String),
    /// A coordinator said no.
    Refused(Refusal),
}

impl From<String> for End {
    fn from(reason: String) -> Self {
        Self::Plain(reason)
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain(reason) => f.write_str(reason),
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

impl End {
    /// A status: a refusal if it tells its code, or is about who the agent is.
    pub fn of_status(status: &Status) -> Self {
        let is_final = matches!(
            status.code(),
            Code::Unauthenticated | Code::PermissionDenied
        );
        let info = status.get_details_error_info();
        let told = |key: &str| {
            info.as_ref()
                .and_then(|info| info.metadata.get(key).cloned())
        };
        let bare = match status.code() {
            Code::Unauthenticated => Some(Reason::Unauthenticated),
            Code::PermissionDenied => Some(Reason::PermissionDenied),
            _ => None,
        };
        let Some(code) = told("code").or_else(|| bare.map(|reason| reason.code().to_owned()))
        else {
            return Self::Plain(format!("{:?}: {}", status.code(), status.message()));
        };
        let hint = match status.code() {
            Code::Unauthenticated => JOIN_AGAIN.to_owned(),
            _ => told("hint")
                .or_else(|| bare.map(|reason| reason.hint().to_owned()))
                .unwrap_or_default(),
        };
        Self::Refused(Refusal {
            code,
            message: status.message().to_owned(),
            hint,
            is_final,
        })
    }

    /// The last word of a session that was up. A removed agent is told so here; a certificate that
    /// ran out is none of this, as the next session uses the renewed one.
    pub fn of_close(word: &str, message: String) -> Self {
        let reason = Reason::ALL.iter().find(|reason| reason.as_str() == word);
        match reason {
            Some(reason) if reason.status() == Kind::PermissionDenied => Self::Refused(Refusal {
                code: reason.code().to_owned(),
                message,
                hint: reason.hint().to_owned(),
                is_final: true,
            }),
            _ => Self::Plain(format!("{message} [{word}]")),
        }
    }
}

/// The waits between attempts, and what the log heard last.
#[derive(Debug)]
pub struct Attempts {
    wait: Duration,
    told: Option<Refusal>,
}

impl Attempts {
    /// Before the first attempt.
    pub fn new() -> Self {
        Self {
            wait: WAITS.0,
            told: None,
        }
    }

    /// A session was up for long enough to begin anew.
    pub fn was_good(&mut self) {
        *self = Self::new();
    }

    /// Whether the log has yet to hear of this refusal: each is told once until another comes.
    pub fn is_news(&mut self, refusal: &Refusal) -> bool {
        if refusal.is_final {
            self.wait = WAITS.1;
        }
        let is_news = self.told.as_ref() != Some(refusal);
        if is_news {
            self.told = Some(refusal.clone());
        }
        is_news
    }

    /// The wait before the next attempt, not jittered; it doubles up to 10 s.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.wait;
        self.wait = (wait * 2).min(WAITS.1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tonic_types::ErrorDetails;

    fn refused(code: Code, reason: Reason, message: &str) -> Refusal {
        let metadata = HashMap::from([
            ("code".to_owned(), reason.code().to_owned()),
            ("hint".to_owned(), reason.hint().to_owned()),
        ]);
        let details = ErrorDetails::with_error_info(reason.as_str(), "tidegate", metadata);
        match End::of_status(&Status::with_error_details(code, message, details)) {
            End::Refused(refusal) => refusal,
            End::Plain(line) => panic!("{line} is no refusal"),
        }
    }

    #[test]
    fn refusals_keep_their_code_and_hint() {
        let forgotten = refused(Code::PermissionDenied, Reason::Revoked, "gone");
        assert_eq!(
            forgotten.to_string(),
            "gone [TG-1309]; join again with a new token"
        );
        assert!(forgotten.is_final && !forgotten.is_removal());
        let removed = refused(Code::PermissionDenied, Reason::AgentRemoved, "out");
        assert!(removed.is_final && removed.is_removal());
        let unknown = refused(Code::Unauthenticated, Reason::Unauthenticated, "who?");
        assert_eq!(
            unknown.to_string(),
            "who? [TG-1301]; join again with a new token"
        );
        assert!(unknown.is_final);
        let leaderless = refused(Code::Unavailable, Reason::NoLeader, "nobody leads");
        assert_eq!(leaderless.code, "TG-1401");
        assert_eq!(leaderless.hint, Reason::NoLeader.hint());
        assert!(!leaderless.is_final);
    }

    #[test]
    fn bare_statuses_are_refusals_only_if_they_are_about_the_agent() {
        let End::Refused(bare) = End::of_status(&Status::permission_denied("no")) else {
            panic!("a refusal without details is one too");
        };
        assert_eq!(bare.code, "TG-1302");
        let broken = End::of_status(&Status::unavailable("broken pipe"));
        assert_eq!(broken, End::Plain("Unavailable: broken pipe".to_owned()));
        let garbled = Status::with_details(Code::Unavailable, "x", vec![0xff; 9].into());
        assert_eq!(
            End::of_status(&garbled),
            End::Plain("Unavailable: x".to_owned())
        );
    }

    #[test]
    fn a_removed_agent_is_told_at_the_end_of_its_session() {
        let End::Refused(removed) = End::of_close("AGENT_REMOVED", "gone".to_owned()) else {
            panic!("a removal is a refusal");
        };
        assert_eq!(
            removed,
            refused(Code::PermissionDenied, Reason::AgentRemoved, "gone")
        );
        for word in ["UNAUTHENTICATED", "SHUTTING_DOWN", "REPLACED", "NEWER"] {
            let end = End::of_close(word, "x".to_owned());
            assert_eq!(end, End::Plain(format!("x [{word}]")));
        }
    }

    #[test]
    fn each_refusal_is_told_once_and_final_ones_are_tried_seldom() {
        let removed = refused(Code::PermissionDenied, Reason::Revoked, "gone");
        let leaderless = refused(Code::Unavailable, Reason::NoLeader, "nobody leads");
        let mut attempts = Attempts::new();
        assert!(attempts.is_news(&leaderless));
        assert_eq!(attempts.next_wait(), WAITS.0);
        assert!(!attempts.is_news(&leaderless));
        assert_eq!(attempts.next_wait(), WAITS.0 * 2);
        assert!(attempts.is_news(&removed));
        assert_eq!(attempts.next_wait(), WAITS.1);
        assert!(!attempts.is_news(&removed));
        assert_eq!(attempts.next_wait(), WAITS.1);
        attempts.was_good();
        assert_eq!(attempts.next_wait(), WAITS.0);
        assert!(attempts.is_news(&removed));
    }
}
