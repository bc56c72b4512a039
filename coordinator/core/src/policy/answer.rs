//! What a rule answers, and what is wrong with a rule that cannot be understood.

use tidegate_shared::time::Timestamp;

/// What one rule says of one deployment at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether it lets the deployment start.
    pub verdict: Verdict,
    /// Why, in one line.
    pub why: String,
    /// Since when it allows, where the rule knows that.
    pub satisfied_at: Option<Timestamp>,
    /// When to ask again without news; none: only news change the answer.
    pub next_evaluation: Option<Timestamp>,
}

/// The three answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may start.
    Allowed,
    /// Not yet.
    Pending {
        /// When that changes by itself if nothing else happens.
        until: Option<Timestamp>,
        /// What is missing, and from whom.
        needs: String,
    },
    /// Never.
    Denied,
}

impl Answer {
    /// It may start.
    pub fn allowed(why: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Allowed,
            why: why.into(),
            satisfied_at: None,
            next_evaluation: None,
        }
    }

    /// Not yet; it is asked again at `until`.
    pub fn pending(
        why: impl Into<String>,
        until: Option<Timestamp>,
        needs: impl Into<String>,
    ) -> Self {
        Self {
            verdict: Verdict::Pending {
                until,
                needs: needs.into(),
            },
            why: why.into(),
            satisfied_at: None,
            next_evaluation: until,
        }
    }

    /// Never.
    pub fn denied(why: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Denied,
            why: why.into(),
            satisfied_at: None,
            next_evaluation: None,
        }
    }

    /// A rule that cannot be evaluated blocks and says so.
    pub fn broken(why: impl Into<String>) -> Self {
        let why = format!("it cannot be evaluated, so it blocks: {}", why.into());
        Self::pending(why, None, "an edit of the policy, or a skip")
    }

    /// With the time since when it allows.
    #[must_use]
    pub fn satisfied_at(mut self, at: Option<Timestamp>) -> Self {
        self.satisfied_at = at;
        self
    }

    /// With the time at which to ask again.
    #[must_use]
    pub fn next_at(mut self, at: Option<Timestamp>) -> Self {
        self.next_evaluation = at;
        self
    }

    /// Whether it lets the deployment start.
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allowed
    }

    /// When a pending answer changes by itself.
    pub const fn until(&self) -> Option<Timestamp> {
        match self.verdict {
            Verdict::Pending { until, .. } => until,
            Verdict::Allowed | Verdict::Denied => None,
        }
    }
}

/// A part of a policy that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Path from the rule, as `rrules[1]`.
    pub field: String,
    /// Where in the field's text the mistake begins, in characters from 1.
    pub position: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Mistake {
    /// At a place in a field.
    pub fn new(field: impl Into<String>, position: usize, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            position,
            message: message.into(),
        }
    }

    /// With its path continued to the front.
    #[must_use]
    pub fn within(mut self, prefix: &str) -> Self {
        self.field = match self.field.as_str() {
            "" => prefix.to_owned(),
            field => format!("{prefix}.{field}"),
        };
        self
    }
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.position {
            0 | 1 => f.write_str(&self.message),
            position => write!(f, "at character {position}: {}", self.message),
        }
    }
}
