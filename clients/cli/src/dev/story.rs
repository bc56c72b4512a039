//! The story as it is told: one line per thing that happens, with the time since the start.

use std::time::Instant;

use crate::errors::Result;
use crate::output::{Output, Tone};

/// Tells what happens while it happens.
#[derive(Debug, Clone, Copy)]
pub struct Story {
    output: Output,
    start: Instant,
}

impl Story {
    /// Starts the clock.
    pub fn new(output: Output) -> Self {
        Self {
            output,
            start: Instant::now(),
        }
    }

    /// Seconds since the start.
    pub fn seconds(self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// A new chapter.
    ///
    /// # Errors
    /// The output was closed.
    pub fn chapter(self, title: &str) -> Result<()> {
        self.output
            .note(&format!("\n{}", self.output.paint(Tone::Strong, title)))
    }

    /// Something happened.
    ///
    /// # Errors
    /// The output was closed.
    pub fn tell(self, tone: Tone, line: &str) -> Result<()> {
        let clock = format!("{:6.1} s", self.seconds());
        let clock = self.output.paint(Tone::Faint, &clock);
        self.output
            .note(&format!("{clock}  {}", self.output.paint(tone, line)))
    }
}
