//! How many instances are replaced at a time, and how many may be lost.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::spec::percent;
use crate::time::Span;
use crate::weight::Weight;

/// [`Batch`] as written: what is not said takes the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct BatchSpec {
    /// Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<BatchSize>,
    /// Default `true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap: Option<bool>,
    /// Default 60 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<Span>,
}

impl BatchSpec {
    pub(super) fn overridden_by(&self, overrides: &Self) -> Self {
        Self {
            max_unavailable: overrides.max_unavailable.or(self.max_unavailable),
            overlap: overrides.overlap.or(self.overlap),
            hold: overrides.hold.or(self.hold),
        }
    }

    pub(super) fn resolve(&self) -> Batch {
        let Batch {
            max_unavailable,
            overlap,
            hold,
        } = Batch::default();
        Batch {
            max_unavailable: self.max_unavailable.unwrap_or(max_unavailable),
            overlap: self.overlap.unwrap_or(overlap),
            hold: self.hold.unwrap_or(hold),
        }
    }
}

/// How `rolling` replaces instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Instances at a time.
    pub max_unavailable: BatchSize,
    /// Start the new instance before the old one stops; `false` for single consumers.
    pub overlap: bool,
    /// After each batch.
    pub hold: Span,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max_unavailable: BatchSize::Count(1),
            overlap: true,
            hold: Span::from_secs(60),
        }
    }
}

/// A count, or a share of all instances (rounded up to at least 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchSize {
    /// So many; at least 1.
    Count(u32),
    /// So large a share; above 0 %.
    Share(Weight),
}

impl BatchSize {
    /// Of so many instances, 1 to `total` (0 only of 0).
    pub fn of(self, total: u32) -> u32 {
        let wanted = match self {
            Self::Count(count) => count,
            Self::Share(share) => share_of(share, total),
        };
        wanted.max(1).min(total)
    }
}

fn share_of(share: Weight, total: u32) -> u32 {
    let product = u64::from(total) * u64::from(share.basis_points());
    // A share of a u32 fits a u32.
    product.div_ceil(10_000) as u32
}

/// Lost or permanently failed participants that count as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MaxLost {
    /// 10 %, but at least 1 of 3 or more.
    #[default]
    Default,
    /// So many.
    Count(u32),
    /// So large a share, rounded down.
    Share(Weight),
}

impl MaxLost {
    /// Of so many participants.
    pub fn of(self, participants: u32) -> u32 {
        match self {
            Self::Default if participants >= 3 => (participants / 10).max(1),
            Self::Default => 0,
            Self::Count(count) => count,
            Self::Share(share) => {
                let product = u64::from(participants) * u64::from(share.basis_points());
                // A share of a u32 fits a u32.
                (product / 10_000) as u32
            }
        }
    }
}

macro_rules! count_or_share {
    ($type:ident, $count:path, $share:path, $example:literal $(, $default:path)?) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $($default => f.write_str("default"),)?
                    $count(count) => count.fmt(f),
                    $share(share) => {
                        let (whole, rest) = (share.basis_points() / 100, share.basis_points() % 100);
                        if rest == 0 {
                            write!(f, "{whole}%")
                        } else {
                            write!(f, "{whole}.{rest:02}%")
                        }
                    }
                }
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                $(if text == "default" {
                    return Ok($default);
                })?
                let parsed = match text.strip_suffix('%') {
                    Some(_) => percent::parse(text).map($share),
                    None => text.parse().ok().map($count),
                };
                parsed.ok_or_else(|| {
                    format!("\"{text}\" is neither a count nor a percentage: want {}", $example)
                })
            }
        }

        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($example)
                    }

                    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<$type, E> {
                        self.visit_str(&value.to_string())
                    }

                    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<$type, E> {
                        self.visit_str(&value.to_string())
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}

pub(crate) use count_or_share;

count_or_share!(
    BatchSize,
    Self::Count,
    Self::Share,
    "a count such as 2, or a share such as 25%"
);
count_or_share!(
    MaxLost,
    Self::Count,
    Self::Share,
    "a count such as 2, a share such as 10%, or default",
    Self::Default
);
