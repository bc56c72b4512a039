//! Shares of traffic in basis points, so that replicas never differ by a rounding.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A share of traffic: 0 to 10,000 basis points (100 % = 10,000).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(try_from = "u16", into = "u16")]
pub struct Weight(u16);

/// A number of basis points above 10,000.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a share: want 0 to 10000 basis points (100 % = 10000)")]
pub struct WeightError(pub u64);

impl Weight {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// All of it.
    pub const FULL: Self = Self(10_000);

    /// From basis points.
    ///
    /// # Errors
    /// More than 10,000.
    pub fn from_basis_points(basis_points: u64) -> Result<Self, WeightError> {
        match u16::try_from(basis_points) {
            Ok(value) if value <= Self::FULL.0 => Ok(Self(value)),
            Ok(_) | Err(_) => Err(WeightError(basis_points)),
        }
    }

    /// `part` of `whole`, rounded down; everything if `whole` is 0.
    pub fn share(part: u64, whole: u64) -> Self {
        if whole == 0 || part >= whole {
            return Self::FULL;
        }
        // The quotient is below 10,000 because part < whole.
        Self((u128::from(part) * 10_000 / u128::from(whole)) as u16)
    }

    /// Basis points.
    pub const fn basis_points(self) -> u16 {
        self.0
    }

    /// What is left to 100 %.
    pub const fn complement(self) -> Self {
        Self(Self::FULL.0 - self.0)
    }
}

impl TryFrom<u16> for Weight {
    type Error = WeightError;

    fn try_from(value: u16) -> Result<Self, WeightError> {
        Self::from_basis_points(u64::from(value))
    }
}

impl From<Weight> for u16 {
    fn from(weight: Weight) -> Self {
        weight.0
    }
}

impl fmt::Display for Weight {
    /// As per cent, with decimals only where needed: `12.5 %`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 100, self.0 % 100);
        match rest {
            0 => write!(f, "{whole} %"),
            _ if rest % 10 == 0 => write!(f, "{whole}.{} %", rest / 10),
            _ => write!(f, "{whole}.{rest:02} %"),
        }
    }
}
