//! The proxy as its users meet it: a process, its control socket and its listeners.

mod http;
mod process;
mod support;
mod weights;
