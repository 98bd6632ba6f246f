//! Circuit frames at the socket: what is passed on, what is unpacked for QUIC, and how packets are wrapped. Owns the labels
//! that this node has made, and what was unpacked and QUIC has not taken yet; decides nothing: `pollen_common::circuit` does.
//! Invariant: what is passed on is never looked into, and what is unpacked is from a source that its peer has proved.

use std::collections::{HashMap, VecDeque};
use std::io::IoSliceMut;
use std::sync::{Mutex, PoisonError, RwLock};

use pollen_common::abi::Count;
use pollen_common::circuit::{HEADER_BYTES, Label, Labels, Use};
use pollen_common::packet::relay_label;
use quinn::udp::RecvMeta;

use super::address::VirtualAddr;

/// Frames and bytes that went through a label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    pub frames: u64,
    pub bytes: u64,
}

impl std::ops::Add for Passed {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self { frames: self.frames + more.frames, bytes: self.bytes + more.bytes }
    }
}

impl From<Count> for Passed {
    fn from(Count { frames, bytes }: Count) -> Self {
        Self { frames, bytes }
    }
}

/// Packets of one size from one peer, as QUIC takes them.
struct Unpacked {
    from: VirtualAddr,
    stride: usize,
    bytes: Vec<u8>,
}

/// The labels, and what came in frames.
#[derive(Default)]
pub struct Frames {
    labels: RwLock<Labels<VirtualAddr>>,
    /// Of each label that passes frames on, and of all there were.
    passed: Mutex<(HashMap<Label, Passed>, Passed)>,
    /// Bounded by one call's receives: it is emptied before the socket is read again.
    unpacked: Mutex<VecDeque<Unpacked>>,
}

impl Frames {
    /// Reads the labels.
    pub fn labels<T>(&self, read: impl FnOnce(&Labels<VirtualAddr>) -> T) -> T {
        read(&self.labels.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the labels.
    pub fn change<T>(&self, change: impl FnOnce(&mut Labels<VirtualAddr>) -> T) -> T {
        change(&mut self.labels.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// A new label; `None` when there are too many.
    pub fn make(&self) -> Option<Label> {
        let label = self.change(Labels::make)?;
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).0.insert(label, Passed::default());
        Some(label)
    }

    /// Gives up a label.
    pub fn free(&self, label: Label) {
        self.change(|labels| labels.free(label));
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).0.remove(&label);
    }

    /// Counts frames that went on under the label `label`.
    pub fn count(&self, label: Label, frames: usize, bytes: usize) {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let (of_labels, all) = &mut *passed;
        // One that was given up just now is counted with all, and nowhere else.
        for passed in of_labels.get_mut(&label).into_iter().chain([all]) {
            passed.frames += frames as u64;
            passed.bytes += bytes as u64;
        }
    }

    /// What went on under a label so far.
    pub fn passed(&self, label: Label) -> Passed {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).0.get(&label).copied().unwrap_or_default()
    }

    /// What went on for others by the sockets, since the start.
    pub fn all_passed(&self) -> Passed {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// The relay through which a circuit's packets go, and the label for it.
    pub fn way(&self, label: Label) -> Option<(VirtualAddr, Label)> {
        match self.labels(|labels| labels.get(label))? {
            Use::End { relay, out, .. } => Some((relay, out)),
            Use::Hop { .. } => None,
        }
    }

    /// Keeps packets for QUIC.
    pub fn keep(&self, from: VirtualAddr, stride: usize, bytes: Vec<u8>) {
        let unpacked = Unpacked { from, stride, bytes };
        self.unpacked.lock().unwrap_or_else(PoisonError::into_inner).push_back(unpacked);
    }

    /// Gives QUIC what was kept, as much as there is room for: how many messages that is.
    pub fn hand_over(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        let room = bufs.len().min(meta.len()).min(unpacked.len());
        for ((buf, meta), packets) in bufs.iter_mut().zip(meta.iter_mut()).zip(unpacked.drain(..room)) {
            // It came in such a buffer, with headers.
            let len = packets.bytes.len().min(buf.len());
            buf[..len].copy_from_slice(&packets.bytes[..len]);
            *meta = RecvMeta { addr: packets.from.to_socket(), len, stride: packets.stride, ecn: None, dst_ip: None };
        }
        room
    }
}

/// `packets`, all of `segment` bytes but the last, each in a frame with this label.
#[must_use]
pub fn wrapped(packets: &[u8], segment: usize, label: Label) -> Vec<u8> {
    let segment = segment.max(1);
    let mut frames = Vec::with_capacity(packets.len() + packets.len().div_ceil(segment) * HEADER_BYTES);
    for packet in packets.chunks(segment) {
        frames.extend_from_slice(&header(label, packet));
        frames.extend_from_slice(packet);
    }
    frames
}

/// The header of a frame with this label and packet.
pub fn header(label: Label, packet: &[u8]) -> [u8; HEADER_BYTES] {
    // A datagram's length has two bytes.
    label.header(u16::try_from(packet.len()).unwrap_or(u16::MAX))
}

/// How many bytes at the start of `bytes` are whole frames with the label of the first; one segment if that has none.
#[must_use]
pub fn run(bytes: &[u8], stride: usize) -> usize {
    let mut frames = bytes.chunks(stride.max(1)).map(|frame| (relay_label(frame), frame.len())).peekable();
    let first = frames.peek().and_then(|(label, _)| *label);
    let same = frames.take_while(|(label, _)| label.is_some() && *label == first);
    same.map(|(_, len)| len).sum::<usize>().max(stride.min(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_wrapped_one_by_one_and_a_run_ends_where_the_header_changes() {
        let (one, two) = (Label(1), Label(2));
        let frames = wrapped(b"aaaabbbbcc", 4, one);
        assert_eq!(frames, [&one.header(4)[..], b"aaaa", &one.header(4), b"bbbb", &one.header(2), b"cc"].concat());
        let mixed = [frames.clone(), wrapped(b"dddd", 4, two)].concat();
        assert_eq!(run(&frames, 12), frames.len());
        let whole = wrapped(b"aaaabbbb", 4, one);
        assert_eq!(run(&[whole.clone(), wrapped(b"dddd", 4, two)].concat(), 12), whole.len());
        assert_eq!(run(&[&whole[..], &frames[..12], b"garbage"].concat(), 12), whole.len() + 12);
        assert_eq!(run(&mixed[..5], 12), 5, "what is too short for a header is a run of its own");
        assert_eq!(run(&[], 12), 0);
    }

    #[test]
    fn what_was_unpacked_comes_out_in_its_order_and_as_there_is_room() {
        let frames = Frames::default();
        let from = VirtualAddr::of(&pollen_common::identity::NodeKey([1; 32]));
        frames.keep(from, 2, b"aabb".to_vec());
        frames.keep(from, 3, b"ccc".to_vec());
        let (mut first, mut second) = ([0; 8], [0; 8]);
        let mut meta = [RecvMeta::default(); 1];
        assert_eq!(frames.hand_over(&mut [IoSliceMut::new(&mut first)], &mut meta), 1);
        assert_eq!((&first[..meta[0].len], meta[0].stride, meta[0].addr), (&b"aabb"[..], 2, from.to_socket()));
        assert_eq!(frames.hand_over(&mut [IoSliceMut::new(&mut second)], &mut meta), 1);
        assert_eq!((&second[..meta[0].len], frames.hand_over(&mut [], &mut [])), (&b"ccc"[..], 0));
    }
}
