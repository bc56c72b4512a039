//! How a release behaves on a host, from the words of a script.

use tidegate_agent_core::testing::{Behaviour as Conduct, Staged};
use tidegate_shared::assignment::PermanentErrorKind;
use tidegate_shared::time::Span;

use crate::script::Behaviour;

/// What a host is told about a release.
///
/// # Errors
/// A word that is no permanent error.
pub fn conduct(behaviours: &[Behaviour]) -> Result<Conduct, String> {
    let mut conduct = Conduct::default();
    for behaviour in behaviours {
        match behaviour {
            Behaviour::Good => {}
            Behaviour::Crashes => conduct.exits_after = Some(Span::ZERO),
            Behaviour::NeverHealthy => conduct.healthy_after = None,
            Behaviour::HealthyAfter(span) => conduct.healthy_after = Some(*span),
            Behaviour::StagesIn(span) => conduct.stage_takes = *span,
            Behaviour::ServerErrors(share) => {
                conduct.server_errors = u32::from(share.basis_points());
            }
            Behaviour::ClientErrors(share) => {
                conduct.client_errors = u32::from(share.basis_points());
            }
            Behaviour::Latency(span) => conduct.latency = *span,
            Behaviour::Unreachable => conduct.staged = Staged::Fails,
            Behaviour::Refused(word) => {
                let kind = PermanentErrorKind::ALL
                    .into_iter()
                    .find(|kind| kind.as_str() == word)
                    .ok_or_else(|| format!("\"{word}\" is no permanent error"))?;
                conduct.staged = Staged::Refused(kind);
            }
        }
    }
    Ok(conduct)
}
