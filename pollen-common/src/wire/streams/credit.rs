//! How much of each service stream its receiver will take: what is said on a connection's credit stream, as
//! `docs/protocol/credit.md` describes. Owns the bytes; knows neither streams nor how much is wise to grant.
//! Invariant: a decoder holds less than one message, whatever comes.

use alloc::vec::Vec;

use super::varint;

/// Bytes of a stream's direction, behind header and answer, that may be sent before anything was granted.
pub const INITIAL_BYTES: u64 = 16 * 1024;
/// The longest message: what it is, then three numbers.
pub const MESSAGE_BYTES_MAX: usize = 1 + 3 * varint::BYTES_MAX;

const GRANT: u8 = 0;
const RETURN: u8 = 1;

/// One message. Totals count from the start of the direction, so that one that is late or comes twice says nothing new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credit {
    /// From the receiver: of this stream `total` bytes will be taken.
    Grant { stream: u64, total: u64 },
    /// From the sender, which needs no more than `total` for now: of what was granted, `granted` being the last that came,
    /// the rest goes back. Void if the receiver has granted more meanwhile.
    Return { stream: u64, granted: u64, total: u64 },
}

/// The peer said what this format does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no message of a credit stream begins with {0}")]
pub struct UnknownCredit(pub u8);

impl Credit {
    /// Appends the message. Numbers are below 2^62, as all of QUIC's are.
    pub fn put(&self, bytes: &mut Vec<u8>) {
        match *self {
            Self::Grant { stream, total } => {
                bytes.push(GRANT);
                varint::put(bytes, stream);
                varint::put(bytes, total);
            }
            Self::Return { stream, granted, total } => {
                bytes.push(RETURN);
                varint::put(bytes, stream);
                varint::put(bytes, granted);
                varint::put(bytes, total);
            }
        }
    }

    /// The message at the start, and the bytes it takes; `None` while they are not all there.
    fn read(bytes: &[u8]) -> Result<Option<(Self, usize)>, UnknownCredit> {
        let Some(kind) = bytes.first() else { return Ok(None) };
        let mut at = 1;
        let mut number = || {
            let (number, length) = varint::read(&bytes[at..])?;
            at += length;
            Some(number)
        };
        let message = match *kind {
            GRANT => number().zip(number()).map(|(stream, total)| Self::Grant { stream, total }),
            RETURN => number().zip(number()).zip(number()).map(|((stream, granted), total)| Self::Return {
                stream,
                granted,
                total,
            }),
            other => return Err(UnknownCredit(other)),
        };
        Ok(message.map(|message| (message, at)))
    }
}

/// The messages of a credit stream, however it is cut.
#[derive(Debug, Default)]
pub struct Credits {
    /// The beginning of a message whose end has not come.
    rest: Vec<u8>,
}

impl Credits {
    /// Takes the next bytes of the stream and gives each message that they complete to `say`.
    ///
    /// # Errors
    /// [`UnknownCredit`]: the stream is of no use any more.
    pub fn push(&mut self, mut bytes: &[u8], mut say: impl FnMut(Credit)) -> Result<(), UnknownCredit> {
        while !bytes.is_empty() {
            // A message lies whole in its longest possible length, or its end has not come.
            let before = self.rest.len();
            let taken = bytes.len().min(MESSAGE_BYTES_MAX - before);
            self.rest.extend_from_slice(&bytes[..taken]);
            let Some((message, length)) = Credit::read(&self.rest)? else { return Ok(()) };
            self.rest.clear();
            say(message);
            bytes = &bytes[length - before..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::vectors::assert_described;
    use super::*;

    fn written(messages: &[Credit]) -> Vec<u8> {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| message.put(&mut bytes));
        bytes
    }

    fn read(stream: &[u8], piece: usize) -> Result<Vec<Credit>, UnknownCredit> {
        let (mut credits, mut said) = (Credits::default(), Vec::new());
        for bytes in stream.chunks(piece) {
            credits.push(bytes, |credit| said.push(credit))?;
        }
        Ok(said)
    }

    #[test]
    fn the_described_bytes_are_the_ones_that_are_sent() {
        let grant = Credit::Grant { stream: 4, total: 65_536 };
        let back = Credit::Return { stream: 4, granted: 65_536, total: 16_484 };
        let expected = [("credit granted", written(&[grant])), ("credit returned", written(&[back]))];
        assert_described(include_str!("../../../../docs/protocol/credit.md"), "", &expected);
    }

    #[test]
    fn an_unknown_message_ends_it_and_half_a_message_says_nothing() {
        assert_eq!(read(&[0, 4, 5, 2, 0, 0], 2), Err(UnknownCredit(2)));
        assert_eq!(read(&[0, 4], 1), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_the_stream_is_cut(
            numbers in prop::collection::vec((any::<bool>(), 0u64..1 << 62, 0u64..1 << 62, 0u64..1 << 20), 0..12),
            piece in 1usize..60,
        ) {
            let messages: Vec<Credit> = numbers
                .into_iter()
                .map(|(grant, stream, granted, total)| match grant {
                    true => Credit::Grant { stream, total },
                    false => Credit::Return { stream, granted, total },
                })
                .collect();
            prop_assert_eq!(read(&written(&messages), piece), Ok(messages));
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_less_than_one_message_is_kept(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut credits = Credits::default();
            let _unknown = credits.push(&bytes, |_| {});
            prop_assert!(credits.rest.len() <= MESSAGE_BYTES_MAX);
        }
    }
}
