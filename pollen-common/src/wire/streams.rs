//! What peers say on QUIC streams beside the link's own: what opens a stream of each kind, and what is answered. Owns
//! the bytes and their bounds; knows nothing of reading, writing, waiting or standing. The rooms: `opening` and
//! `denial` are what several share, then one for each thing said. Formats: `docs/protocol/` (services, content, calls).
//! Invariant: bytes of a peer become a typed value or a typed refusal, and no length is trusted before it is bounded.

pub mod answer;
pub mod call;
pub mod circuit;
pub mod content;
pub mod credit;
mod denial;
mod opening;
pub mod payload;
pub mod punch;
pub mod service;
mod varint;

#[cfg(test)]
mod vectors;

pub use denial::{Denial, decode_status, encode_answer};
pub use opening::{LENGTH_BYTES, OpeningError};

/// What a bidirectional stream is for: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// The link's ordered stream; the transport's own.
    Link = 1,
    /// A TCP connection of a service.
    Tcp = 2,
    /// A UDP session of a service.
    Udp = 3,
    /// Content, fetched by hash from whoever holds it.
    Content = 4,
    /// A call of a seed.
    Call = 5,
    /// How much of each service's stream will be taken.
    Credit = 6,
    /// A circuit, for as long as the stream is open; the transport's own.
    Circuit = 7,
    /// Where each end is seen, and when to probe each other there; the transport's own.
    Punch = 8,
}

impl StreamKind {
    /// From a stream's first byte.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Link, Self::Tcp, Self::Udp, Self::Content, Self::Call, Self::Credit, Self::Circuit, Self::Punch]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}
