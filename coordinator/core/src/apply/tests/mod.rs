//! Tests of `apply`: through commands alone, as the log would carry them.

mod clock;
mod deployments;
mod objects;
mod random;
mod requests;
mod returns;
mod secrets;
mod table;
mod world;
