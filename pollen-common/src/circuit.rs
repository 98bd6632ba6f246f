//! Circuits: packets of two nodes that a third passes on unread. Owns the labels and what they mean; knows neither sockets
//! nor addresses: who a frame came from is told, in whatever names its owner uses. What becomes of a frame is decided
//! where the kernel's programs can ask too: [`verdict::judge`](crate::verdict::judge). Format:
//! `docs/protocol/circuits.md`.
//! Invariant: a frame is taken from nobody but the one for whom its label was made, and a label that was given up never
//! means another circuit before its slot was used 65,536 times more.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

pub use crate::packet::{RELAY_HEADER_BYTES as HEADER_BYTES, RELAY_MARK as FIRST_BYTE};
pub use crate::verdict::{Dropped, Judgement as Verdict, Use};
use crate::{packet, verdict};

/// Labels at once: each end of a circuit takes one, a relay two.
pub const LABELS_MAX: usize = crate::abi::LABELS_MAX as usize;

pub use crate::packet::Label;

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
        if let Some(slot) =
            self.slots.get_mut(label.slot() as usize).filter(|slot| slot.generation == label.generation())
        {
            slot.means = Some(means);
        }
    }

    /// What a label means.
    #[must_use]
    pub fn get(&self, label: Label) -> Option<Use<P>> {
        self.slots.get(label.slot() as usize).filter(|slot| slot.generation == label.generation())?.means
    }

    /// All labels that mean something.
    pub fn all(&self) -> impl Iterator<Item = Label> {
        let numbered = (0..=u16::MAX).zip(&self.slots);
        numbered.filter(|(_, slot)| slot.means.is_some()).map(|(at, slot)| Label::new(at, slot.generation))
    }

    /// Gives a label up. Nothing happens if it was given up before.
    pub fn free(&mut self, label: Label) {
        if let Some(slot) =
            self.slots.get_mut(label.slot() as usize).filter(|slot| slot.generation == label.generation())
        {
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
        let label = packet::relay_label(frame);
        verdict::judge(label, label.and_then(|label| self.get(label)), |node| from == Some(node))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(label: Label) -> Vec<u8> {
        [&label.header(6)[..], b"packet"].concat()
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
