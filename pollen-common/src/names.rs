//! What things are called: names, whose one syntax is parsed once at the edge, versions of seeds, and what a service
//! speaks. Plain words, that every room may use.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use crate::identity::Digest;

/// The longest name, in bytes: that of a DNS label.
pub const NAME_BYTES_MAX: usize = 63;

/// A name: 1 to 63 of `a-z 0-9 - _ .`, starting and ending with a letter or digit, and not a decimal number up to
/// 65535 (that would be a port). Upper case is folded when parsed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Why a string is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name has 1 to {NAME_BYTES_MAX} characters")]
    Length,
    #[error("a name consists of letters, digits and - _ . and starts and ends with a letter or digit")]
    Character,
    #[error("a number up to 65535 is a port, not a name")]
    Port,
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        if s.is_empty() || s.len() > NAME_BYTES_MAX {
            return Err(NameError::Length);
        }
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let inner = s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if !inner || !edge(s.chars().next()) || !edge(s.chars().next_back()) {
            return Err(NameError::Character);
        }
        if s.parse::<u16>().is_ok() {
            return Err(NameError::Port);
        }
        Ok(Self(s.to_ascii_lowercase()))
    }
}

impl Name {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A version of a seed: the digest of all that makes it behave as it does, its module and its limits. Two versions of
/// one module with different limits are two versions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VersionId(pub Digest);

impl fmt::Debug for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a service speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];

    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Tcp => Self::Udp,
            Self::Udp => Self::Tcp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_and_never_ports() {
        assert_eq!("Api-1".parse::<Name>().map(|n| n.0), Ok("api-1".into()));
        assert_eq!("8080".parse::<Name>(), Err(NameError::Port));
        assert!("70000".parse::<Name>().is_ok(), "not a port");
        assert_eq!("".parse::<Name>(), Err(NameError::Length));
        for bad in ["-a", "a-", "a/b", "ä", "a b", "a\n"] {
            assert_eq!(bad.parse::<Name>(), Err(NameError::Character), "{bad}");
        }
    }
}
