//! Tests of `apply`: through commands alone, as the log would carry them.

mod clock;
mod deployments;
mod governance;
mod objects;
mod random;
mod requests;
mod returns;
mod table;
mod world;
