//! A bound on what a decoder may still hand out, set anew for each part of an archive: a header
//! that unpacks to gigabytes must not be read into memory.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

/// What may still be read. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget {
    whole: Rc<Cell<u64>>,
    part: Rc<Cell<u64>>,
}

impl Budget {
    /// So many bytes in all, and none yet in the present part.
    pub fn new(whole: u64) -> Self {
        Self {
            whole: Rc::new(Cell::new(whole)),
            part: Rc::new(Cell::new(0)),
        }
    }

    /// The next part may have so many bytes.
    pub fn allow(&self, bytes: u64) {
        self.part.set(bytes);
    }

    /// A reader that keeps to it.
    pub fn guard<R: Read>(&self, inner: R) -> Guarded<R> {
        Guarded {
            inner,
            budget: self.clone(),
        }
    }
}

/// A reader that keeps to a [`Budget`].
pub struct Guarded<R> {
    inner: R,
    budget: Budget,
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let left = self.budget.part.get().min(self.budget.whole.get());
        if left == 0 {
            // A clean end at the bound is none beyond it.
            return match self.inner.read(&mut [0])? {
                0 => Ok(0),
                _ => Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a part of it is larger than it may be",
                )),
            };
        }
        let most = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self.inner.read(&mut buffer[..most])?;
        self.budget.part.set(self.budget.part.get() - read as u64);
        self.budget.whole.set(self.budget.whole.get() - read as u64);
        Ok(read)
    }
}
