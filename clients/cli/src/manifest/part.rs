//! Files that hold one part of what is sent, without kind and name: how a release is run, how a group
//! rolls out.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use tidegate_shared::error::Reason;
use tidegate_shared::spec::FieldErrors;

use super::locate::{self, Located};
use crate::errors::{Failure, Result};

/// A part that was read, and where its fields stand.
#[derive(Debug)]
pub struct Part<T> {
    /// What the file says.
    pub value: T,
    path: PathBuf,
    tree: Option<Located>,
}

impl<T: DeserializeOwned> Part<T> {
    /// Reads a file. `complaint` goes on after its name if it is something else; `hint` says what it
    /// should hold.
    ///
    /// # Errors
    /// It cannot be read, or where it is no such part.
    pub fn load(path: &Path, complaint: &str, hint: &str) -> Result<Self> {
        let text = super::read(path)?;
        let name = path.display();
        let value = serde_saphyr::from_str(&text).map_err(|error| {
            let place = error.location().map_or_else(String::new, |location| {
                format!(":{}:{}", location.line(), location.column())
            });
            Failure::new(
                Reason::MalformedFile,
                format!("{name} {complaint}; nothing was changed"),
            )
            .at(format!("{name}{place}: {}", locate::message(&error)))
            .hint(hint)
        })?;
        Ok(Self {
            value,
            path: path.to_owned(),
            tree: locate::tree(&text),
        })
    }
}

impl<T> Part<T> {
    /// The value, if it is sound.
    ///
    /// # Errors
    /// Every mistake, with line and field.
    pub fn checked(self, validate: impl Fn(&T) -> FieldErrors) -> Result<T> {
        let errors = validate(&self.value).0;
        if errors.is_empty() {
            return Ok(self.value);
        }
        let failure = Failure::new(
            Reason::MalformedFile,
            format!("{} has mistakes; nothing was changed", self.path.display()),
        );
        Err(errors.iter().fold(failure, |failure, error| {
            failure.at(format!("{}: {}", self.place(&error.field), error.message))
        }))
    }

    /// `file:line:column: field`; where the field is absent, of its nearest parent.
    pub fn place(&self, field: &str) -> String {
        let tree = self.tree.as_ref();
        let (line, column) = tree
            .and_then(|tree| tree.position_of(field))
            .unwrap_or((1, 1));
        format!("{}:{line}:{column}: {field}", self.path.display())
    }
}
