//! Releases and their assets.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{AssetSource, FieldErrors, RunSpec, check_variable};
use crate::digest::Digest;
use crate::id::Name;

/// One immutable version of an application.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReleaseSpec {
    /// What is delivered; names unique, 1 to 32.
    pub assets: Vec<AssetSpec>,
    /// Default parameters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub notes: String,
}

/// Whether a release may be deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseStatus {
    /// Its assets are not all in the store yet.
    Building,
    /// It may be deployed.
    Ready,
    /// Waiting deployments of it stay waiting.
    Paused,
    /// Waiting ones are cancelled, running ones roll back, finalized ones are flagged.
    Rejected,
    /// Out of use for so long that its assets were removed from the store.
    Collected,
}

impl ReleaseStatus {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Paused => "paused",
            Self::Rejected => "rejected",
            Self::Collected => "collected",
        }
    }
}

impl fmt::Display for ReleaseStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One deliverable of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssetSpec {
    /// Unique in the release.
    pub name: Name,
    /// What it is.
    pub kind: AssetKind,
    /// `os/arch` as `linux/amd64`, or `any`.
    #[serde(default = "any")]
    pub platform: String,
    /// Digest of the file as delivered.
    pub sha256: Digest,
    /// Bytes of the file as delivered.
    pub size: u64,
    /// Where it is fetched from.
    #[serde(default)]
    pub source: AssetSource,
    /// How it is run.
    pub run: RunSpec,
}

fn any() -> String {
    "any".to_owned()
}

/// What an asset is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AssetKind {
    /// A tar, tar.gz, tar.zst or zip, unpacked into the release's folder.
    Archive,
    /// One executable file.
    Binary,
}

impl AssetKind {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Archive => "archive",
            Self::Binary => "binary",
        }
    }
}

/// Largest asset that the built-in store takes: 4 GiB.
pub const MAX_ASSET_BYTES: u64 = 4 << 30;

impl ReleaseSpec {
    /// What is wrong with it.
    pub fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require(
            (1..=32).contains(&self.assets.len()),
            "assets",
            "a release has 1 to 32 assets",
        );
        for (position, asset) in self.assets.iter().enumerate() {
            let field = format!("assets[{position}]");
            errors.nest(&field, asset.validate());
            let twin = self.assets[..position].iter().any(|a| a.name == asset.name);
            errors.require(
                !twin,
                format!("{field}.name"),
                format!("\"{}\" is used twice", asset.name),
            );
        }
        for (variable, value) in &self.parameters {
            if let Err(message) = check_variable(variable, value) {
                errors.add("parameters", message);
            }
        }
        errors.require(
            self.notes.len() <= 65_536,
            "notes",
            "are longer than 64 KiB",
        );
        errors
    }

    /// The asset that a scope takes: the one that it names, or the only one.
    pub fn asset_for(&self, named: Option<&Name>) -> Option<&AssetSpec> {
        match named {
            Some(name) => self.assets.iter().find(|asset| asset.name == *name),
            None if self.assets.len() == 1 => self.assets.first(),
            None => None,
        }
    }

    /// Digest over the canonical JSON: what an approval is bound to.
    pub fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).unwrap_or_default())
    }
}

impl AssetSpec {
    fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require(
            self.size <= MAX_ASSET_BYTES,
            "size",
            "is more than the 4 GiB that the store takes",
        );
        errors.require(
            self.platform == "any"
                || self
                    .platform
                    .split('/')
                    .filter(|part| !part.is_empty())
                    .count()
                    == 2,
            "platform",
            format!(
                "\"{}\" is not os/arch, such as linux/amd64, or any",
                self.platform
            ),
        );
        errors.0.extend(self.source.validate().0);
        errors.nest("run", self.run.validate());
        errors
    }
}
