//! Tests of `apply`: through commands alone, as the log would carry them.

mod archive;
mod clock;
mod collection;
mod deployments;
mod governance;
mod groups;
mod objects;
mod people;
mod preflight;
mod random;
mod requests;
mod returns;
mod secrets;
mod table;
mod world;
