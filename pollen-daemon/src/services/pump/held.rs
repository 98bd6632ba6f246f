//! Bytes that have come and wait for a local socket. Knows neither end.
//! Invariant: a few bytes hold no more memory than a few bytes for long, whatever packets they came in.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf as _, Bytes};

/// Pieces left as they came: each keeps the whole read of the socket alive that it came in.
const LOOSE_MAX: usize = 128;

/// What waits, in order.
#[derive(Debug, Default)]
pub(super) struct Held {
    chunks: VecDeque<Bytes>,
    /// The last of them that are as they came.
    loose: usize,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(super) fn push(&mut self, chunk: Bytes) {
        self.chunks.push_back(chunk);
        self.loose += 1;
        if self.loose > LOOSE_MAX {
            self.settle();
        }
    }

    /// Whether [`settle`](Self::settle) would do anything.
    pub(super) fn is_loose(&self) -> bool {
        self.loose > 0
    }

    /// Copies what is as it came into memory of its own.
    pub(super) fn settle(&mut self) {
        let tail = self.chunks.split_off(self.chunks.len() - self.loose);
        let mut bytes = Vec::with_capacity(tail.iter().map(Bytes::len).sum());
        tail.iter().for_each(|chunk| bytes.extend_from_slice(chunk));
        self.chunks.push_back(bytes.into());
        self.loose = 0;
    }

    /// Fills `slices` with the first of it. Returns how many it filled.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        slices.iter_mut().zip(&self.chunks).map(|(slice, chunk)| *slice = IoSlice::new(chunk)).count()
    }

    /// Drops `written` bytes from the front and frees the pieces they filled.
    pub(super) fn advance(&mut self, mut written: usize) {
        while let Some(chunk) = self.chunks.front_mut() {
            if chunk.len() > written {
                chunk.advance(written);
                break;
            }
            written -= chunk.len();
            self.chunks.pop_front();
        }
        self.loose = self.loose.min(self.chunks.len());
        if self.chunks.is_empty() {
            // A connection that goes on idle holds nothing.
            self.chunks = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(held: &Held) -> Vec<u8> {
        held.chunks.iter().flat_map(|chunk| chunk.iter().copied()).collect()
    }

    #[test]
    fn a_partial_write_leaves_exactly_the_rest() {
        let mut held = Held::default();
        ["abc", "de", "f"].into_iter().for_each(|text| held.push(Bytes::from_static(text.as_bytes())));
        held.advance(4);
        assert_eq!(all(&held), b"ef");
        held.settle();
        held.push(Bytes::from_static(b"g"));
        assert_eq!((all(&held), held.chunks.len(), held.is_loose()), (b"efg".to_vec(), 2, true));
        held.advance(3);
        assert!(held.is_empty() && !held.is_loose());
    }

    #[test]
    fn many_small_pieces_become_few() {
        let mut held = Held::default();
        (0..1000).for_each(|_| held.push(Bytes::from_static(b"x")));
        assert_eq!(all(&held).len(), 1000);
        assert!(held.chunks.len() <= LOOSE_MAX + 1000 / LOOSE_MAX);
    }
}
