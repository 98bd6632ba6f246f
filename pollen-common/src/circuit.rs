//! Circuits: packets of two nodes that a third passes on unread. Owns the frame, the labels, and the one decision what
//! becomes of a frame; knows neither sockets nor addresses: who a frame came from is told, in whatever names its owner
//! uses. Format: `docs/protocol/circuits.md`.
//! Invariant: a frame is taken from nobody but the one for whom its label was made, and a label that was given up never
//! means another circuit before its slot was used 65,536 times more.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// The first byte of a frame. QUIC's fixed bit is clear in it, and it is no probe, so all share one port.
pub const FIRST_BYTE: u8 = crate::packet::RELAY_MARK;
/// What stands before the packet.
pub const HEADER_BYTES: usize = 8;
/// Labels at once: each end of a circuit takes one, a relay two.
pub const LABELS_MAX: usize = 8192;

/// What tells a circuit's frames from others: made by whoever receives them. The lower half is a slot of its table, the
/// upper half counts what had that slot before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(pub u32);

impl Label {
    const fn new(slot: u16, generation: u16) -> Self {
        Self((generation as u32) << 16 | slot as u32)
    }

    const fn slot(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    const fn generation(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The header of a frame with this label.
    #[must_use]
    pub const fn header(self) -> [u8; HEADER_BYTES] {
        let [a, b, c, d] = self.0.to_be_bytes();
        [FIRST_BYTE, 0, 0, 0, a, b, c, d]
    }

    /// The label of a frame, which must carry a packet. A frame whose flags or reserved bytes say anything is of a newer
    /// version.
    #[must_use]
    pub fn of(frame: &[u8]) -> Option<Self> {
        let (header, packet) = frame.split_first_chunk::<HEADER_BYTES>()?;
        let [FIRST_BYTE, 0, 0, 0, label @ ..] = *header else { return None };
        (!packet.is_empty()).then_some(Self(u32::from_be_bytes(label)))
    }
}

/// What a label means to the node that made it. `P` is how nodes are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use<P> {
    /// Frames from `from` go on to `to`, under the label that that one made.
    Hop { from: P, to: P, out: Label },
    /// Frames from the relay are of `peer`, and what is sent there goes to the relay under its label.
    End { relay: P, peer: P, out: Label },
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<P> {
    /// Send it on, under this label.
    Forward {
        to: P,
        out: Label,
    },
    /// It is for this node: the packet in it came from `peer`.
    Deliver {
        peer: P,
    },
    Drop(Dropped),
}

/// Why a frame was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// No frame of this version.
    Malformed,
    /// No circuit has this label, or none has it any more.
    Label,
    /// It came from another than the one for whom the label was made.
    Source,
}

#[derive(Clone, Debug)]
struct Slot<P> {
    generation: u16,
    means: Option<Use<P>>,
}

/// The labels that a node has made.
#[derive(Clone, Debug)]
pub struct Labels<P> {
    slots: Vec<Slot<P>>,
    /// Longest unused first.
    free: VecDeque<u16>,
}

impl<P> Default for Labels<P> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: VecDeque::new() }
    }
}

impl<P: Copy + Eq> Labels<P> {
    /// A new label; `None` when there are [`LABELS_MAX`]. Until it is [`set`](Self::set) its frames are dropped.
    pub fn make(&mut self) -> Option<Label> {
        let slot = match self.free.pop_front() {
            Some(slot) => slot,
            None if self.slots.len() < LABELS_MAX => {
                self.slots.push(Slot { generation: 0, means: None });
                u16::try_from(self.slots.len() - 1).ok()?
            }
            None => return None,
        };
        Some(Label::new(slot, self.slots[usize::from(slot)].generation))
    }

    /// Gives a label its meaning.
    pub fn set(&mut self, label: Label, means: Use<P>) {
        if let Some(slot) = self.slots.get_mut(label.slot()).filter(|slot| slot.generation == label.generation()) {
            slot.means = Some(means);
        }
    }

    /// What a label means.
    #[must_use]
    pub fn get(&self, label: Label) -> Option<Use<P>> {
        self.slots.get(label.slot()).filter(|slot| slot.generation == label.generation())?.means
    }

    /// Gives a label up. Nothing happens if it was given up before.
    pub fn free(&mut self, label: Label) {
        if let Some(slot) = self.slots.get_mut(label.slot()).filter(|slot| slot.generation == label.generation()) {
            slot.means = None;
            slot.generation = slot.generation.wrapping_add(1);
            // Its index fitted when it was made.
            self.free.extend(u16::try_from(label.slot()));
        }
    }

    /// Labels that are made and not given up.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What becomes of `frame`, which came from a source that belongs to `from`, if it belongs to anybody.
    pub fn decide(&self, frame: &[u8], from: Option<P>) -> Verdict<P> {
        let Some(label) = Label::of(frame) else { return Verdict::Drop(Dropped::Malformed) };
        let Some(means) = self.get(label) else { return Verdict::Drop(Dropped::Label) };
        match means {
            Use::Hop { from: expected, to, out } if from == Some(expected) => Verdict::Forward { to, out },
            Use::End { relay, peer, .. } if from == Some(relay) => Verdict::Deliver { peer },
            Use::Hop { .. } | Use::End { .. } => Verdict::Drop(Dropped::Source),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(label: Label) -> Vec<u8> {
        [&label.header()[..], b"packet"].concat()
    }

    #[test]
    fn a_frame_goes_where_its_label_says_if_it_comes_from_whom_it_was_made_for() {
        let mut labels = Labels::default();
        let (hop, end) = (labels.make().expect("room"), labels.make().expect("room"));
        assert_eq!(labels.decide(&frame(hop), Some('a')), Verdict::Drop(Dropped::Label), "it means nothing yet");
        labels.set(hop, Use::Hop { from: 'a', to: 'b', out: Label(9) });
        labels.set(end, Use::End { relay: 'r', peer: 'c', out: Label(8) });
        assert_eq!(labels.decide(&frame(hop), Some('a')), Verdict::Forward { to: 'b', out: Label(9) });
        assert_eq!(labels.decide(&frame(end), Some('r')), Verdict::Deliver { peer: 'c' });
        for from in [None, Some('b'), Some('x')] {
            assert_eq!(labels.decide(&frame(hop), from), Verdict::Drop(Dropped::Source));
        }
        labels.free(hop);
        labels.free(hop);
        assert_eq!((labels.decide(&frame(hop), Some('a')), labels.len()), (Verdict::Drop(Dropped::Label), 1));
        let next = labels.make().expect("room");
        assert_eq!((next.slot(), next == hop), (hop.slot(), false), "the slot is used again, the label is not");
        labels.set(hop, Use::Hop { from: 'a', to: 'x', out: Label(1) });
        assert_eq!(labels.get(next), None, "a label of before changes nothing");
    }

    #[test]
    fn labels_are_bounded_and_slots_are_used_in_turn() {
        let mut labels: Labels<u8> = Labels::default();
        let all: Vec<_> = core::iter::from_fn(|| labels.make()).collect();
        assert_eq!((all.len(), labels.make()), (LABELS_MAX, None));
        labels.free(all[5]);
        labels.free(all[3]);
        assert_eq!(labels.make().map(Label::slot), Some(5), "the one that was free longest");
    }

    #[test]
    fn what_is_no_frame_of_this_version_is_none() {
        let whole = frame(Label(0x0001_0002));
        assert_eq!(Label::of(&whole), Some(Label(0x0001_0002)));
        assert_eq!(Label::of(&whole[..HEADER_BYTES]), None, "it carries nothing");
        for at in 0..4 {
            let mut other = whole.clone();
            other[at] ^= 1;
            assert_eq!(Label::of(&other), None, "byte {at}");
        }
    }

    proptest! {
        /// Against a plain map from whole labels to what they mean.
        #[test]
        fn the_table_agrees_with_a_plain_map(orders in proptest::collection::vec((0u8..3, 0usize..24), 0..200)) {
            let mut labels = Labels::default();
            let mut made: Vec<Label> = Vec::new();
            let mut model = alloc::collections::BTreeMap::new();
            for (order, at) in orders {
                let some = made.get(at % made.len().max(1)).copied();
                match (order, some) {
                    (0, _) => {
                        let label = labels.make().expect("room");
                        prop_assert!(!made.contains(&label), "a label twice");
                        made.push(label);
                    }
                    (1, Some(label)) => {
                        let live = labels.get(label).is_some() || !model.contains_key(&label);
                        let use_ = Use::End { relay: 0, peer: at, out: label };
                        labels.set(label, use_);
                        if live && labels.get(label).is_some() { model.insert(label, use_); }
                    }
                    (2, Some(label)) => { labels.free(label); model.remove(&label); }
                    _ => {}
                }
                for label in &made {
                    prop_assert_eq!(labels.get(*label), model.get(label).copied());
                }
            }
        }
    }
}
