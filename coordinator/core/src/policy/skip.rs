//! Skip: a person lets a rule be passed over, for a release, a scope, a time (product.md §5.9).

use tidegate_shared::time::Timestamp;

use super::Answer;

/// A skip as it was ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skip<'a> {
    /// Which rule, as [`covers`] reads it.
    pub rule: &'a str,
    /// Only for this application; none: all.
    pub application: Option<&'a str>,
    /// Only for this version; none: all.
    pub version: Option<&'a str>,
    /// Only for this scope; none: all.
    pub scope: Option<&'a str>,
    /// Who.
    pub by: &'a str,
    /// Why.
    pub reason: &'a str,
    /// Since when.
    pub at: Timestamp,
    /// It does not count from here on; none: it does not expire.
    pub expires_at: Option<Timestamp>,
}

/// What a skip is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// Name of the rule: the policy and what follows it, as `production/windows[1]`.
    pub rule: &'a str,
    /// The application.
    pub application: &'a str,
    /// The version.
    pub version: &'a str,
    /// The scope.
    pub scope: &'a str,
}

/// Whether `named` covers a rule: a whole policy (`production`), all its rules of a kind
/// (`production/windows`), or one of them (`production/windows[1]`).
pub fn covers(named: &str, rule: &str) -> bool {
    match rule.strip_prefix(named) {
        Some(rest) => rest.is_empty() || rest.starts_with(['/', '[']),
        None => false,
    }
}

impl Skip<'_> {
    /// Whether it lets the target pass now.
    pub fn applies(&self, target: Target<'_>, now: Timestamp) -> bool {
        covers(self.rule, target.rule)
            && self.at <= now
            && self.expires_at.is_none_or(|end| now < end)
            && self
                .application
                .is_none_or(|name| name == target.application)
            && self.version.is_none_or(|version| version == target.version)
            && self.scope.is_none_or(|scope| scope == target.scope)
    }
}

/// What a rule answers where skips let it be passed over; none: they do not.
pub fn answer(skips: &[Skip<'_>], target: Target<'_>, now: Timestamp) -> Option<Answer> {
    let applying = skips.iter().filter(|skip| skip.applies(target, now));
    // The first one replaced the rule; the last one to end decides how long that holds.
    let first = applying.clone().min_by_key(|skip| skip.at)?;
    let ends: Option<Vec<Timestamp>> = applying.map(|skip| skip.expires_at).collect();
    let end = ends.and_then(|ends| ends.into_iter().max());
    let until = end.map_or(String::new(), |end| format!(" until {end}"));
    let why = format!("skipped by {}{until}: {}", first.by, first.reason);
    Some(
        Answer::allowed(why)
            .satisfied_at(Some(first.at))
            .next_at(end),
    )
}
