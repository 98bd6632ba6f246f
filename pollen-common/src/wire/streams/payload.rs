//! How UDP payloads stand on a session's stream: two bytes of length, big-endian, then the payload. Owns both ways;
//! knows neither streams nor sockets.
//! Invariant: a length alone costs no memory, and nothing longer than a UDP payload can be is ever waited for.

use alloc::vec::Vec;

use super::LENGTH_BYTES;

/// The largest UDP payload over IPv4: 65,535 less the headers.
pub const PAYLOAD_BYTES_MAX: usize = 65_507;

/// The peer announced a payload that no UDP datagram carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a payload of {0} bytes is longer than UDP allows")]
pub struct TooLong(pub usize);

/// The payload that is being read. Grows with what has come, not with what was announced.
#[derive(Debug, Default)]
pub struct Incoming {
    length: Option<usize>,
    bytes: Vec<u8>,
}

impl Incoming {
    /// How many bytes can be used before [`Self::poll`] is asked again: never 0 after it answered `None`.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.length.unwrap_or(LENGTH_BYTES).saturating_sub(self.bytes.len())
    }

    /// Whether the last payload is complete and nothing of another came.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.length.is_none() && self.bytes.is_empty()
    }

    /// Whether the length of the payload under way is known.
    #[must_use]
    pub fn has_length(&self) -> bool {
        self.length.is_some()
    }

    /// The next bytes of the stream, at most [`Self::wanted`].
    pub fn push(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.wanted(), "the reader was told how much is wanted");
        self.bytes.extend_from_slice(bytes);
    }

    /// The payload, once it is whole.
    ///
    /// # Errors
    /// [`TooLong`]: the stream is of no use any more.
    pub fn poll(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        if self.length.is_none() && self.bytes.len() == LENGTH_BYTES {
            let length = usize::from(u16::from_be_bytes([self.bytes[0], self.bytes[1]]));
            if length > PAYLOAD_BYTES_MAX {
                return Err(TooLong(length));
            }
            self.length = Some(length);
            self.bytes.clear();
        }
        if self.length != Some(self.bytes.len()) {
            return Ok(None);
        }
        self.length = None;
        Ok(Some(core::mem::take(&mut self.bytes)))
    }
}

/// The bytes of a payload on the stream; `None` where it is longer than UDP allows.
#[must_use]
pub fn framed(payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(payload.len()).ok().filter(|_| payload.len() <= PAYLOAD_BYTES_MAX)?;
    let mut bytes = Vec::with_capacity(LENGTH_BYTES + payload.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All payloads of a stream that comes in pieces of at most `piece` bytes, and whether it ended between two.
    fn read(stream: &[u8], piece: usize) -> Result<(Vec<Vec<u8>>, bool), TooLong> {
        let (mut incoming, mut payloads, mut rest) = (Incoming::default(), Vec::new(), stream);
        loop {
            while let Some(payload) = incoming.poll()? {
                payloads.push(payload);
            }
            if rest.is_empty() {
                return Ok((payloads, incoming.is_between()));
            }
            let (now, later) = rest.split_at(incoming.wanted().min(piece).min(rest.len()));
            incoming.push(now);
            rest = later;
        }
    }

    #[test]
    fn a_length_beyond_what_udp_allows_is_refused_as_soon_as_it_is_known() {
        assert_eq!(read(&[0xff, 0xe3], 1), Ok((Vec::new(), false)), "65,507 are allowed");
        assert_eq!(read(&[0xff, 0xe4], 1), Err(TooLong(65_508)));
        assert_eq!(framed(&alloc::vec![0; PAYLOAD_BYTES_MAX + 1]), None);
    }

    #[test]
    fn a_length_alone_takes_no_memory() {
        let mut incoming = Incoming::default();
        incoming.push(&[0xff, 0xe3]);
        assert_eq!(incoming.poll(), Ok(None));
        assert_eq!(incoming.wanted(), PAYLOAD_BYTES_MAX);
        assert!(incoming.bytes.capacity() < 1024, "{} bytes are kept", incoming.bytes.capacity());
    }

    proptest! {
        #[test]
        fn payloads_come_out_as_they_went_in_however_the_stream_is_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            piece in 1usize..400,
        ) {
            let stream = payloads.iter().filter_map(|p| framed(p)).collect::<Vec<_>>().concat();
            let (out, between) = read(&stream, piece).expect("each is short");
            prop_assert!(between);
            prop_assert_eq!(out, payloads);
        }
    }
}
