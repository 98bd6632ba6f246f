//! Cutting an ordered byte stream into frames: a 32-bit big-endian length, then that many bytes.

use alloc::vec::Vec;

/// The longest frame body: the largest message is a delta, in its own message's array.
pub const FRAME_BYTES_MAX: usize = crate::maps::DELTA_BYTES_MAX + 4096;

const PREFIX_BYTES: usize = 4;

/// A peer's stream that cannot be cut into frames; nothing after it makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes, where {FRAME_BYTES_MAX} is the most")]
    TooLong(u32),
    #[error("an empty frame")]
    Empty,
}

/// `body` with its length in front. Panics when it is longer than [`FRAME_BYTES_MAX`]: our own messages are bounded.
#[must_use]
pub fn frame(body: &[u8]) -> Vec<u8> {
    assert!(body.len() <= FRAME_BYTES_MAX, "messages are built within the frame bound");
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + body.len());
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Collects bytes until a frame is whole. Holds less than one frame, plus the chunk just given.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    buffer: Vec<u8>,
    read: usize,
}

impl Frames {
    /// Appends the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame's body, `None` when more bytes are needed.
    pub fn poll(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let rest = &self.buffer[self.read..];
        let Some((prefix, body)) = rest.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let len = u32::from_be_bytes(*prefix);
        match usize::try_from(len) {
            Ok(0) => Err(FrameError::Empty),
            Ok(bytes) if bytes <= FRAME_BYTES_MAX => {
                let Some(body) = body.get(..bytes) else { return Ok(None) };
                let body = body.to_vec();
                self.read += PREFIX_BYTES + bytes;
                Ok(Some(body))
            }
            _ => Err(FrameError::TooLong(len)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_cutting(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 0..20), cut in 1usize..50) {
            let stream: Vec<u8> = bodies.iter().flat_map(|b| frame(b)).collect();
            let mut frames = Frames::default();
            let mut got = Vec::new();
            for piece in stream.chunks(cut) {
                frames.push(piece);
                while let Some(body) = frames.poll().expect("honest frames") {
                    got.push(body);
                }
            }
            prop_assert_eq!(got, bodies);
        }
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_its_bytes_arrive() {
        let mut frames = Frames::default();
        frames.push(&u32::MAX.to_be_bytes());
        assert_eq!(frames.poll(), Err(FrameError::TooLong(u32::MAX)));
    }
}
