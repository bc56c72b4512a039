//! When a check is made: before the first traffic, after certain steps, after every one, or at the
//! last.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment of a rollout; in manifests a word or the number of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum When {
    /// The new version is up and has no traffic yet; not for `rolling`, whose first batch takes part
    /// at once, nor for a first deployment, which has all traffic from the start.
    BeforeTraffic,
    /// This step, or batch, is held; from 1.
    Step(u32),
    /// Each step is held.
    EveryStep,
    /// The last step is held: before the old version goes.
    Last,
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeforeTraffic => f.pad("before_traffic"),
            Self::Step(number) => number.fmt(f),
            Self::EveryStep => f.pad("every_step"),
            Self::Last => f.pad("last"),
        }
    }
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "before_traffic" => Ok(Self::BeforeTraffic),
            "every_step" => Ok(Self::EveryStep),
            "last" => Ok(Self::Last),
            number => match number.parse() {
                Ok(number @ 1..=10_000) => Ok(Self::Step(number)),
                Ok(_) | Err(_) => Err(format!(
                    "\"{}\" is no moment of a rollout: want before_traffic, every_step, last, or the number of a step from 1",
                    text.escape_debug()
                )),
            },
        }
    }
}

impl Serialize for When {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Step(number) => serializer.serialize_u32(*number),
            Self::BeforeTraffic | Self::EveryStep | Self::Last => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for When {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl serde::de::Visitor<'_> for Reader {
            type Value = When;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("before_traffic, every_step, last, or the number of a step")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<When, E> {
                number.to_string().parse().map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<When, E> {
                number.to_string().parse().map_err(E::custom)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<When, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}
