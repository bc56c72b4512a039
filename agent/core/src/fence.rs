//! The fence: which assignments may take effect.
//!
//! A lower generation than the highest one never does. An equal one with other content is a bug of
//! the coordinators, reported and not followed.

use tidegate_shared::assignment::{Assignments, Generation};

/// What to do with assignments that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Newer: they replace what is held.
    Accept,
    /// The same again: nothing to do.
    Repeated,
    /// Older than what is held: ignored.
    Older {
        /// The highest generation seen.
        held: Generation,
    },
    /// The same generation with other content: ignored and reported.
    Conflicting,
}

/// Judges `incoming` against what is held; `None`: nothing was ever held.
pub fn judge(held: Option<&Assignments>, incoming: &Assignments) -> Verdict {
    let Some(held) = held else {
        return Verdict::Accept;
    };
    if incoming.generation > held.generation {
        return Verdict::Accept;
    }
    if incoming.generation < held.generation {
        return Verdict::Older {
            held: held.generation,
        };
    }
    if incoming == held {
        Verdict::Repeated
    } else {
        Verdict::Conflicting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_shared::time::Span;

    fn of(epoch: u64, index: u64) -> Assignments {
        Assignments {
            generation: Generation { epoch, index },
            ..Assignments::default()
        }
    }

    #[test]
    fn only_higher_generations_take_effect() {
        let held = of(2, 5);
        assert_eq!(judge(None, &of(0, 0)), Verdict::Accept);
        assert_eq!(judge(Some(&held), &of(2, 6)), Verdict::Accept);
        assert_eq!(judge(Some(&held), &of(3, 0)), Verdict::Accept);
        assert_eq!(judge(Some(&held), &of(2, 5)), Verdict::Repeated);
        let older = Verdict::Older {
            held: held.generation,
        };
        assert_eq!(judge(Some(&held), &of(2, 4)), older);
        assert_eq!(judge(Some(&held), &of(1, 9)), older);
        let other = Assignments {
            report_interval: Some(Span::from_secs(1)),
            ..of(2, 5)
        };
        assert_eq!(judge(Some(&held), &other), Verdict::Conflicting);
    }
}
