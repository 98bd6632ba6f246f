//! What neighbours say to each other over a link's ordered stream: length-prefixed frames, each one CBOR message.
//! Owns the encoding and its bounds; knows nothing of when a message is sent. Signed objects travel as the bytes
//! that were signed. Format: `docs/protocol/session.md`.
//! Invariant: a frame's length is checked before anything is kept of it, and decoding never panics.

use alloc::vec::Vec;

mod frame;
mod message;
pub mod streams;

pub use frame::{FRAME_BYTES_MAX, FrameError, Frames, frame};
pub use message::{Lanes, Message, MessageError, Versions};

/// The message and its length prefix, ready for the stream.
#[must_use]
pub fn framed(message: &Message) -> Vec<u8> {
    frame(&message.encode())
}
