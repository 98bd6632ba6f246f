//! How a circuit is set up: what opens its streams, and the answer, as `docs/protocol/circuits.md` describes. Owns the
//! bytes; knows neither labels' meaning nor who may have one.
//! Invariant: bytes of a peer become a typed value or a typed refusal, of a size that is known before.

use alloc::vec::Vec;

use super::StreamKind;
use super::denial::Denial;
use super::opening::{OpeningError, encoded, of_version, put};
use crate::circuit::Label;
use crate::identity::NodeKey;

/// The only version of the header so far.
pub const VERSION: u32 = 1;
/// The longest header.
pub const HEADER_BYTES_MAX: usize = 256;
/// The length of an answer.
pub const ANSWER_BYTES: usize = 5;

const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;

/// What a stream of a circuit asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// To a relay: pass on what I send to `peer`, and what it sends to me under `label`.
    Open { peer: NodeKey, label: Label },
    /// From a relay: `peer` wants to reach you through me; send what is for it under `label`.
    Offer { peer: NodeKey, label: Label },
}

#[derive(minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
struct Wire {
    #[n(0)]
    version: u32,
    #[n(1)]
    offered: bool,
    #[n(2)]
    peer: NodeKey,
    #[n(3)]
    label: u32,
}

impl Header {
    fn wire(&self) -> Wire {
        let (offered, peer, label) = match *self {
            Self::Open { peer, label } => (false, peer, label),
            Self::Offer { peer, label } => (true, peer, label),
        };
        Wire { version: VERSION, offered, peer, label: label.0 }
    }

    /// The bytes that open a stream: its kind, the header's length, the header.
    #[must_use]
    pub fn opening(&self) -> Vec<u8> {
        let mut bytes = Vec::from([StreamKind::Circuit as u8]);
        put(&mut bytes, self.wire());
        bytes
    }

    /// The header alone, without kind and length.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encoded(self.wire())
    }

    /// Parses the header alone. Unknown fields are skipped.
    ///
    /// # Errors
    /// When the bytes are no header of a version that this node speaks, or more than one header.
    pub fn decode(bytes: &[u8]) -> Result<Self, OpeningError> {
        let Wire { offered, peer, label, .. } = of_version(bytes, VERSION)?;
        let label = Label(label);
        Ok(if offered { Self::Offer { peer, label } } else { Self::Open { peer, label } })
    }
}

/// The answer to either: the label under which its sender takes frames, or why there is no circuit.
#[must_use]
pub fn encode_answer(answer: Result<Label, Denial>) -> [u8; ANSWER_BYTES] {
    let (status, rest) = match answer {
        Ok(label) => (ACCEPTED, label.0.to_be_bytes()),
        Err(denial) => (REFUSED, [0, 0, 0, denial.code()]),
    };
    let [a, b, c, d] = rest;
    [status, a, b, c, d]
}

/// The inverse of [`encode_answer`].
///
/// # Errors
/// [`OpeningError::Malformed`] for what is no answer.
pub fn decode_answer(bytes: [u8; ANSWER_BYTES]) -> Result<Result<Label, Denial>, OpeningError> {
    match bytes {
        [ACCEPTED, a, b, c, d] => Ok(Ok(Label(u32::from_be_bytes([a, b, c, d])))),
        [REFUSED, 0, 0, 0, code] => Ok(Err(Denial::from_code(code))),
        _ => Err(OpeningError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::vectors::assert_described;
    use super::*;

    const DOCUMENT: &str = include_str!("../../../../docs/protocol/circuits.md");

    #[test]
    fn what_is_described_is_what_is_sent() {
        let (peer, label) = (NodeKey([0x22; 32]), Label(0x0001_0002));
        assert_described(
            DOCUMENT,
            "circuit",
            &[
                ("circuit open", Header::Open { peer, label }.opening()),
                ("circuit offer", Header::Offer { peer, label }.opening()),
                ("circuit accepted", encode_answer(Ok(label)).to_vec()),
                ("circuit refused", encode_answer(Err(Denial::Busy)).to_vec()),
                ("circuit frame", [&label.header(2)[..], &[0x40, 0xff]].concat()),
            ],
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_what_is_read_is_written_so(
            offered: bool, peer: [u8; 32], label: u32, answer: [u8; ANSWER_BYTES], bytes in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let (peer, label) = (NodeKey(peer), Label(label));
            let header = if offered { Header::Offer { peer, label } } else { Header::Open { peer, label } };
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
            prop_assert!(header.encode().len() <= HEADER_BYTES_MAX);
            if let Ok(read) = decode_answer(answer) {
                prop_assert_eq!(encode_answer(read), answer);
            }
            let _ = Header::decode(&bytes);
        }
    }
}
