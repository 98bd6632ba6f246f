//! The first byte of an answer to a service or content stream, and why one is refused. Owns the codes that both share.
//! Invariant: a reason of a newer peer is kept as it came.

use alloc::vec::Vec;

use super::OpeningError;

/// Why a peer refuses a stream. Also the label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Denial {
    /// Whoever asks may not, or there is no such thing: one answer, so that neither names nor digests can be probed.
    #[error("denied or absent")]
    DeniedOrAbsent,
    /// Of services alone.
    #[error("nothing listens on its local port")]
    Unavailable,
    #[error("it is at one of its limits")]
    Busy,
    #[error("the header was malformed")]
    Malformed,
    #[error("it does not speak this version of the header")]
    Version,
    #[error("it is shutting down")]
    Draining,
    /// A reason that a newer peer may give.
    #[error("refused for reason {0}")]
    Other(u8),
}

/// First byte of an answer.
pub(super) const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;

impl Denial {
    /// The reason's code on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::DeniedOrAbsent => 1,
            Self::Unavailable => 2,
            Self::Busy => 3,
            Self::Malformed => 4,
            Self::Version => 5,
            Self::Draining => 6,
            Self::Other(code) => code,
        }
    }

    /// The reason behind a code.
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::DeniedOrAbsent,
            2 => Self::Unavailable,
            3 => Self::Busy,
            4 => Self::Malformed,
            5 => Self::Version,
            6 => Self::Draining,
            other => Self::Other(other),
        }
    }

    /// A metric's label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::DeniedOrAbsent => "denied_or_absent",
            Self::Unavailable => "unavailable",
            Self::Busy => "busy",
            Self::Malformed => "malformed",
            Self::Version => "unknown_version",
            Self::Draining => "draining",
            Self::Other(_) => "other",
        }
    }
}

impl From<OpeningError> for Denial {
    fn from(error: OpeningError) -> Self {
        match error {
            OpeningError::Malformed => Self::Malformed,
            OpeningError::Version => Self::Version,
        }
    }
}

/// What an answer begins with: the stream is open, or why not.
#[must_use]
pub fn encode_answer(answer: Result<(), Denial>) -> Vec<u8> {
    match answer {
        Ok(()) => [ACCEPTED].into(),
        Err(denial) => [REFUSED, denial.code()].into(),
    }
}

/// Whether a status byte accepts (`true`) or announces a reason (`false`); `None` if it is neither.
#[must_use]
pub const fn decode_status(status: u8) -> Option<bool> {
    match status {
        ACCEPTED => Some(true),
        REFUSED => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_being_sent() {
        for code in 0..=u8::MAX {
            assert_eq!(Denial::from_code(code).code(), code);
            let answer = encode_answer(Err(Denial::from_code(code)));
            assert_eq!((decode_status(answer[0]), answer[1]), (Some(false), code));
        }
        assert_eq!(encode_answer(Ok(())).first().map(|status| decode_status(*status)), Some(Some(true)));
        assert_eq!(decode_status(2), None);
    }
}
