//! What a host answers to a call, as `docs/protocol/calls.md` describes: a status, what there is to say beside it, and
//! the output. Owns the codec; knows nothing of streams or of what the caller does next.
//! Invariant: every status says whether the guest may have run, so that a caller never guesses.

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use alloc::vec::Vec;

use super::opening::{encoded, put, whole};
use crate::identity::Digest;
use crate::names::VersionId;

/// The longest part between status and output.
pub const REMARK_BYTES_MAX: usize = 4096;
/// The longest message, in bytes: a trap's text with its stack may be longer, and is cut.
pub const MESSAGE_BYTES_MAX: usize = 2048;
/// A byte in a status' place that says: still running. Any number may come before the status.
pub const PULSE: u8 = 0xff;

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    Done,
    /// It does not host the seed.
    NotHere,
    /// It is leaving, and takes nothing new.
    Draining,
    /// It is at one of its limits at present.
    Busy,
    /// The caller does not stand.
    Denied,
    /// The path leads back to the seed.
    Cycle,
    /// The path is too long, or was passed on too often.
    Depth,
    InputTooLarge,
    NoFunction,
    /// The guest failed, or a limit stopped it: the label says which.
    Failed,
    /// Time ran out.
    Deadline,
    /// The host passed the call on and lost the one it passed it to.
    Lost,
    Malformed,
    Version,
    /// A status that a newer host may give.
    Other(u8),
}

impl Status {
    const KNOWN: [Self; 14] = [
        Self::Done,
        Self::NotHere,
        Self::Draining,
        Self::Busy,
        Self::Denied,
        Self::Cycle,
        Self::Depth,
        Self::InputTooLarge,
        Self::NoFunction,
        Self::Failed,
        Self::Deadline,
        Self::Lost,
        Self::Malformed,
        Self::Version,
    ];

    /// Its byte on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::NotHere => 1,
            Self::Draining => 2,
            Self::Busy => 3,
            Self::Denied => 4,
            Self::Cycle => 5,
            Self::Depth => 6,
            Self::InputTooLarge => 7,
            Self::NoFunction => 8,
            Self::Failed => 9,
            Self::Deadline => 10,
            Self::Lost => 11,
            Self::Malformed => 12,
            Self::Version => 13,
            Self::Other(code) => code,
        }
    }

    /// The status behind a byte; [`PULSE`] is none.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        if code == PULSE {
            return None;
        }
        Some(Self::KNOWN.get(usize::from(code)).copied().unwrap_or(Self::Other(code)))
    }

    /// Its name, also a metric's label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::NotHere => "not_here",
            Self::Draining => "draining",
            Self::Busy => "busy",
            Self::Denied => "denied",
            Self::Cycle => "cycle",
            Self::Depth => "depth",
            Self::InputTooLarge => "input_too_large",
            Self::NoFunction => "no_function",
            Self::Failed => "failed",
            Self::Deadline => "deadline",
            Self::Lost => "lost",
            Self::Malformed => "malformed",
            Self::Version => "unknown_version",
            Self::Other(_) => "other",
        }
    }
}

/// What stands between the status and the output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remark {
    /// Whether the guest ran, or may have.
    pub ran: bool,
    /// Calls that run or wait at the host for each of its workers, in hundredths.
    pub load: u32,
    /// The version that answered.
    pub served: Option<VersionId>,
    /// Which failure, as a metric's label: `memory_limit`, `trap`.
    pub label: String,
    /// A sentence for people.
    pub message: String,
}

#[derive(minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
struct Wire<'b> {
    #[n(0)]
    ran: Option<bool>,
    #[n(1)]
    load: Option<u32>,
    #[n(2)]
    served: Option<Digest>,
    #[b(3)]
    label: Option<&'b str>,
    #[b(4)]
    message: Option<&'b str>,
}

/// The bytes of a peer are no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not what the format says")]
pub struct Malformed;

impl Remark {
    /// The remark alone. A message that is too long is cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encoded(self.wire())
    }

    fn wire(&self) -> Wire<'_> {
        let present = |text: &'_ str| !text.is_empty();
        Wire {
            ran: self.ran.then_some(true),
            load: (self.load > 0).then_some(self.load),
            served: self.served.map(|version| version.0),
            label: Some(self.label.as_str()).filter(|text| present(text)),
            message: Some(cut(&self.message)).filter(|text| present(text)),
        }
    }

    /// Parses the remark alone. Unknown fields are skipped.
    ///
    /// # Errors
    /// When the bytes are no remark, or more than one.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > REMARK_BYTES_MAX {
            return Err(Malformed);
        }
        let wire: Wire<'_> = whole(bytes).map_err(|_| Malformed)?;
        Ok(Self {
            ran: wire.ran.unwrap_or_default(),
            load: wire.load.unwrap_or_default(),
            served: wire.served.map(VersionId),
            label: wire.label.unwrap_or_default().to_owned(),
            message: cut(wire.message.unwrap_or_default()).to_owned(),
        })
    }

    /// The bytes of an answer up to the output: status, the remark's length, the remark, the output's length.
    #[must_use]
    pub fn answering(&self, status: Status, output_bytes: u32) -> Vec<u8> {
        /// Enough for the answer to a call that went well.
        const USUAL_BYTES: usize = 64;
        let mut bytes = Vec::with_capacity(USUAL_BYTES);
        bytes.push(status.code());
        put(&mut bytes, self.wire());
        bytes.extend_from_slice(&output_bytes.to_be_bytes());
        bytes
    }
}

/// The beginning of a text that fits a message.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MESSAGE_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::vectors::assert_described;
    use super::*;

    #[test]
    fn the_described_bytes_are_the_ones_that_are_sent() {
        let served = Some(VersionId(Digest([0xaa; 32])));
        let mut done = Remark { ran: true, load: 50, served, ..Remark::default() }.answering(Status::Done, 2);
        done.extend_from_slice(b"ho");
        let busy = Remark { load: 800, label: "waiting".into(), ..Remark::default() }.answering(Status::Busy, 0);
        let (label, message) = ("memory_limit".into(), "it reached its memory limit of 8 MiB".into());
        let failed = Remark { ran: true, label, message, ..Remark::default() }.answering(Status::Failed, 0);
        let expected =
            [("answer with two bytes of output", done), ("answer of a busy host", busy), ("answer of a limit", failed)];
        let document = include_str!("../../../../docs/protocol/calls.md");
        assert_described(document, "answer ", &expected);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let remark = Remark { message: "ä".repeat(MESSAGE_BYTES_MAX), ..Remark::default() };
        let decoded = Remark::decode(&remark.encode()).expect("what is encoded decodes");
        assert_eq!(decoded.message.len(), MESSAGE_BYTES_MAX);
    }

    #[test]
    fn each_status_has_its_byte_and_the_pulse_is_none_of_them() {
        for code in 0..PULSE {
            assert_eq!(Status::from_code(code).map(Status::code), Some(code));
        }
        assert_eq!(Status::from_code(PULSE), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_what_parses_is_stable(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(remark) = Remark::decode(&bytes) {
                prop_assert_eq!(Remark::decode(&remark.encode()), Ok(remark));
            }
        }

        #[test]
        fn remarks_round_trip(ran in any::<bool>(), load in any::<u32>(), message in "\\PC{0,200}", label in "[a-z_]{0,20}") {
            let remark = Remark { ran, load, message, label, served: Some(VersionId(Digest([9; 32]))) };
            prop_assert_eq!(Remark::decode(&remark.encode()), Ok(remark));
        }
    }
}
