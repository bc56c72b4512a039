//! A log store without a disk, for tests and simulations of the layers above.
//!
//! Clones share the same log, so a test reopens it as a process reopens its folder.

use std::sync::{Arc, Mutex, PoisonError};

use super::log::{LogError, LogStore, Recovered, WriteBatch};

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub struct MemoryLog {
    content: Arc<Mutex<Recovered>>,
}

impl MemoryLog {
    /// What the log holds now.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] when entries are missing in the middle.
    pub fn recovered(&self) -> Result<Recovered, LogError> {
        let mut copy = self
            .content
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        copy.finish()?;
        Ok(copy)
    }
}

impl LogStore for MemoryLog {
    fn write(&mut self, batches: &[WriteBatch], _durable: bool) -> Result<(), LogError> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        for batch in batches {
            content.replay(batch);
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), LogError> {
        Ok(())
    }

    fn size(&self) -> u64 {
        let content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        content.entries.iter().map(|e| e.data.len() as u64).sum()
    }
}
