//! How many handshakes one address has open at a listener, and which failed ones are told.
//!
//! A handshake needs no certificate until it is done, so anybody who reaches a listener can let
//! them stall. One address alone must not use up what all share; the surplus is refused by its
//! connection's end. [`super`] takes a place before a handshake and gives it back after it.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Handshakes of one address at once, per listener.
pub(super) const OWN_HANDSHAKES: usize = 64;

/// A listener tells of refused connections once in this time.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The open handshakes of one listener by address. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Handshakes(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A handshake's place; given back when it is dropped.
pub(super) struct Place {
    handshakes: Handshakes,
    address: IpAddr,
}

impl Handshakes {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more handshake of `address`; none: it has [`OWN_HANDSHAKES`] open.
    pub(super) fn begin(&self, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let mut open = self.lock();
        let count = open.entry(address).or_default();
        if *count >= OWN_HANDSHAKES {
            return None;
        }
        *count += 1;
        drop(open);
        Some(Place {
            handshakes: self.clone(),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.handshakes.lock();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Which refused handshakes are told to people: those with a wrong certificate or a wrong version
/// of TLS, at most one per listener and [`TELL_EVERY`]. Who only opens a connection and closes it,
/// as checks of ports do, is no news.
#[derive(Default)]
pub(super) struct Refusals(Mutex<Option<Instant>>);

impl Refusals {
    pub(super) fn is_worth_telling(&self, error: &io::Error, now: Instant) -> bool {
        if !error
            .get_ref()
            .is_some_and(|cause| cause.is::<rustls::Error>())
        {
            return false;
        }
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = told.is_none_or(|at| now.saturating_duration_since(at) >= TELL_EVERY);
        if is_due {
            *told = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn one_address_does_not_take_the_places_of_the_others() {
        let handshakes = Handshakes::default();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let begin = |text: &str| handshakes.begin(address(text));
        let mut places: Vec<_> = (0..OWN_HANDSHAKES)
            .map_while(|_| begin("192.0.2.1"))
            .collect();
        assert_eq!(places.len(), OWN_HANDSHAKES);
        assert!(begin("192.0.2.1").is_none());
        assert!(begin("::ffff:192.0.2.1").is_none(), "the same host");
        assert!(begin("192.0.2.2").is_some());
        places.pop();
        assert!(begin("192.0.2.1").is_some());
        places.clear();
        assert!(handshakes.lock().is_empty());
    }

    #[test]
    fn wrong_certificates_are_told_now_and_then_and_closed_ports_never() {
        let refusals = Refusals::default();
        let now = Clock::system().instant();
        let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert!(!refusals.is_worth_telling(&closed, now));
        let wrong = io::Error::new(
            io::ErrorKind::InvalidData,
            rustls::Error::NoCertificatesPresented,
        );
        assert!(refusals.is_worth_telling(&wrong, now));
        assert!(!refusals.is_worth_telling(&wrong, now + TELL_EVERY / 2));
        assert!(refusals.is_worth_telling(&wrong, now + TELL_EVERY));
    }
}
