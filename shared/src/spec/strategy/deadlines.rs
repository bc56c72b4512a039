//! Deadlines of the states, each of which may be left out.

use serde::{Deserialize, Serialize};

use crate::spec::FieldErrors;
use crate::time::Span;

macro_rules! deadlines {
    ($($(#[$doc:meta])* $field:ident = $default:expr;)*) => {
        /// Deadlines of the states (product.md §2). Each 1 s to 366 d.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Deadlines {
            $($(#[$doc])* pub $field: Span,)*
        }

        /// [`Deadlines`] as written: what is not said takes the default.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(deny_unknown_fields, default)]
        pub struct DeadlinesSpec {
            $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<Span>,)*
        }

        impl Default for Deadlines {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl DeadlinesSpec {
            pub(super) fn overridden_by(&self, overrides: &Self) -> Self {
                Self { $($field: overrides.$field.or(self.$field),)* }
            }

            pub(super) fn resolve(&self) -> Deadlines {
                Deadlines { $($field: self.$field.unwrap_or($default),)* }
            }

            pub(super) fn validate(&self) -> FieldErrors {
                let mut errors = FieldErrors::default();
                $(errors.require(
                    self.$field.is_none_or(|span| {
                        (1_000..=366 * 86_400_000).contains(&span.millis())
                    }),
                    stringify!($field),
                    "want 1s to 366d",
                );)*
                errors
            }
        }
    };
}

deadlines! {
    /// `CREATING_APPROVAL`; default 72 h.
    approval = Span::from_hours(72);
    /// `PENDING`; default 7 d.
    pending = Span::from_days(7);
    /// `CREATING`; default 15 min.
    staging = Span::from_mins(15);
    /// `WAITING_FOR_INSTANCES`, without progress; default 10 min.
    progress = Span::from_mins(10);
    /// `RUNNING`, past the planned end; default 2 h.
    stall = Span::from_hours(2);
    /// `FINALIZING`; default 15 min.
    finalizing = Span::from_mins(15);
    /// `CANCELLING` and `ROLLING_BACK`, without progress; default 15 min.
    returning = Span::from_mins(15);
    /// `DELETING`; default 15 min.
    deleting = Span::from_mins(15);
    /// A halt; default 24 h.
    halt_max = Span::from_hours(24);
    /// A person's pause; default 7 d.
    pause_max = Span::from_days(7);
    /// Waiting for a manual finalize; default 72 h.
    finalize_max = Span::from_hours(72);
}
