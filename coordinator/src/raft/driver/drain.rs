//! The log lines of the raft crate, as lines of ours. A part of the driver.

/// Passes the crate's log lines on to `tracing`.
pub(super) struct TracingDrain;

impl slog::Drain for TracingDrain {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        let text = record.msg();
        match record.level() {
            slog::Level::Critical | slog::Level::Error => tracing::error!(target: "raft", "{text}"),
            slog::Level::Warning => tracing::warn!(target: "raft", "{text}"),
            slog::Level::Info | slog::Level::Debug | slog::Level::Trace => {
                tracing::debug!(target: "raft", "{text}");
            }
        }
        Ok(())
    }
}
