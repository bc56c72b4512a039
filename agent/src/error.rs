//! The one error of the agent's shell that people meet: a reason with its stable code, and a line.

use tidegate_shared::error::Reason;

/// Why something cannot go on. One line: what is wrong, where, what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} [{}]", reason.code())]
pub struct AgentError {
    /// The stable reason.
    pub reason: Reason,
    /// The line, without code and hint.
    pub message: String,
}

impl AgentError {
    /// An error of a reason.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}
