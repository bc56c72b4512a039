//! A machine with a kernel of its own, where what other tests can only see refused is real: limits that
//! the kernel holds instances to under each executor, and a power cut in the middle of a step.

mod guest;
mod story;
