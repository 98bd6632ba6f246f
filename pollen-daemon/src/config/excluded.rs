//! Addresses that a node does not tell of itself: a network, an address or all of an interface. Owns how they are written.
//! Invariant: what is written is what was read.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name of an interface, of `linux/if.h`, without the end of its string.
const INTERFACE_BYTES_MAX: usize = 15;

/// What is not announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Excluded {
    /// Addresses that begin with these bits.
    Network {
        ip: IpAddr,
        bits: u8,
    },
    Interface(String),
}

impl Excluded {
    /// Whether an address of an interface is excluded.
    #[must_use]
    pub fn covers(&self, interface: &str, ip: &IpAddr) -> bool {
        match self {
            Self::Interface(name) => name == interface,
            Self::Network { ip: network, bits } => match (network, ip) {
                (IpAddr::V4(network), IpAddr::V4(ip)) => {
                    let mask = u32::MAX.checked_shl(32 - u32::from(*bits)).unwrap_or(0);
                    network.to_bits() & mask == ip.to_bits() & mask
                }
                (IpAddr::V6(network), IpAddr::V6(ip)) => {
                    let mask = u128::MAX.checked_shl(128 - u32::from(*bits)).unwrap_or(0);
                    network.to_bits() & mask == ip.to_bits() & mask
                }
                _ => false,
            },
        }
    }
}

impl FromStr for Excluded {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        if let Ok(ip) = address.parse::<IpAddr>() {
            let all = if ip.is_ipv4() { 32 } else { 128 };
            let bits = bits.map_or(Ok(all), str::parse).ok().filter(|bits| *bits <= all);
            let bits = bits.ok_or_else(|| format!("`{text}` is no network: its bits are 0 to {all}"))?;
            return Ok(Self::Network { ip, bits });
        }
        let fits = (1..=INTERFACE_BYTES_MAX).contains(&text.len());
        if !fits || !text.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '/' | ':' | ',' | '!')) {
            return Err(format!("`{text}` is neither an address, a network (10.8.0.0/16) nor an interface (wg0)"));
        }
        Ok(Self::Interface(text.to_owned()))
    }
}

impl fmt::Display for Excluded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network { ip, bits } => write!(f, "{ip}/{bits}"),
            Self::Interface(name) => f.write_str(name),
        }
    }
}

impl TryFrom<String> for Excluded {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Excluded> for String {
    fn from(excluded: Excluded) -> Self {
        excluded.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded(text: &str) -> Excluded {
        text.parse().expect("valid")
    }

    #[test]
    fn networks_addresses_and_interfaces_cover_what_is_theirs() {
        for (text, ip, covered) in [
            ("10.8.0.0/16", "10.8.255.1", true),
            ("10.8.0.0/16", "10.9.0.1", false),
            ("10.8.0.7", "10.8.0.7", true),
            ("10.8.0.7", "10.8.0.6", false),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("fd00::/8", "fdab::1", true),
            ("::/0", "2001:db8::1", true),
            ("wg0", "10.8.0.7", false),
        ] {
            assert_eq!(excluded(text).covers("eth0", &ip.parse().expect("an address")), covered, "{text} {ip}");
        }
        assert!(excluded("wg0").covers("wg0", &IpAddr::from([10, 8, 0, 7])));
    }

    #[test]
    fn what_is_written_is_read_again_and_nonsense_is_refused() {
        for text in ["10.8.0.0/16", "fd00::/8", "wg0"] {
            let json = serde_json::to_string(&excluded(text)).expect("plain");
            assert_eq!(serde_json::from_str::<Excluded>(&json).expect("what was written"), excluded(text));
        }
        for bad in ["", "10.8.0.0/33", "10.8.0.0/x", "a/b", "an-interface-too-long", "a b", "::/129"] {
            assert!(bad.parse::<Excluded>().is_err(), "{bad}");
        }
    }
}
