//! Freeze: nothing new starts for a while (product.md §5.10). Asked before every other rule.

use tidegate_shared::time::Timestamp;

use super::Answer;

/// A freeze as it was ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freeze<'a> {
    /// Its name.
    pub name: &'a str,
    /// Who ordered it.
    pub by: &'a str,
    /// Why.
    pub reason: &'a str,
    /// Where it ends by itself.
    pub until: Timestamp,
}

impl Freeze<'_> {
    /// Whether it holds.
    pub fn holds(&self, now: Timestamp) -> bool {
        now < self.until
    }
}

/// Whether a deployment may start that these freezes are about.
pub fn answer(freezes: &[Freeze<'_>], now: Timestamp) -> Answer {
    let holding = freezes.iter().filter(|freeze| freeze.holds(now));
    let Some(longest) = holding.max_by_key(|freeze| freeze.until) else {
        return Answer::allowed("nothing is frozen");
    };
    Answer::pending(
        format!(
            "freeze {} by {}: {}; until {}",
            longest.name, longest.by, longest.reason, longest.until
        ),
        Some(longest.until),
        "`tidegate thaw`, or time",
    )
}
