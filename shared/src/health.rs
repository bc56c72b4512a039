//! Where a daemon tells how it is: in plain HTTP, so on an address that only its own host reaches.

use core::net::SocketAddr;
use std::fmt;
use std::str::FromStr;

/// The address for health and figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HealthListen {
    /// The usual one, if no other program has it; without it the daemon runs all the same.
    #[default]
    Usual,
    /// This one; without it the daemon does not start.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

impl FromStr for HealthListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse::<SocketAddr>()) {
            ("off", _) => Ok(Self::Off),
            (_, Ok(address)) if address.ip().is_loopback() => Ok(Self::At(address)),
            (_, Ok(_)) => Err(format!(
                "\"{text}\" can be reached by others, and health asks nobody who they are; want a loopback address, such as 127.0.0.1:7444, or off"
            )),
            (_, Err(_)) => Err(format!(
                "\"{text}\" is not an address to listen on; want a loopback address, such as 127.0.0.1:7444, or off"
            )),
        }
    }
}

impl fmt::Display for HealthListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usual => f.write_str("the usual address"),
            Self::At(address) => address.fmt(f),
            Self::Off => f.write_str("off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_itself_may_ask() {
        let read = |text: &str| text.parse::<HealthListen>();
        assert_eq!(read("off"), Ok(HealthListen::Off));
        for text in ["127.0.0.1:7444", "[::1]:0", "127.9.9.9:1"] {
            assert_eq!(read(text), Ok(HealthListen::At(text.parse().unwrap())));
        }
        for text in ["0.0.0.0:7444", "10.0.0.1:7444", "[::]:7444"] {
            assert!(read(text).unwrap_err().contains("reached by others"));
        }
        for text in ["", "7444", "localhost:7444", "on"] {
            assert!(read(text).unwrap_err().contains("want a loopback address"));
        }
    }
}
