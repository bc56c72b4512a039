//! The life of one deployment as pure functions over its record: which moves exist and when they
//! fall due (`phase`), how traffic goes up (`steps`), what is checked meanwhile (`checks`) and how it goes back (`rollback`).
//!
//! It changes records only through values handed to it and knows neither the log nor other
//! deployments; `apply` calls it to move, `plan` and the API to ask.

pub mod checks;
pub mod phase;
pub mod rollback;
pub mod steps;
