//! The last datagram to each connected peer, to be sent once more when a path that was dead is alive again: what it
//! acknowledges, or is acknowledged by, ends QUIC's back-off at once, which else takes as long as the pause did.
//! Owns the copies; knows neither routes nor sockets. Invariant: one datagram for each peer that is held.

use std::collections::HashMap;

use super::address::VirtualAddr;

/// The copies.
#[derive(Debug, Default)]
pub struct Last(HashMap<VirtualAddr, Vec<u8>>);

impl Last {
    /// Keeps what is sent to `peer` from now on.
    pub fn hold(&mut self, peer: VirtualAddr) {
        self.0.entry(peer).or_default();
    }

    /// Keeps nothing of `peer` any more.
    pub fn release(&mut self, peer: &VirtualAddr) {
        self.0.remove(peer);
    }

    /// Notes the last datagram of a send, all of whose datagrams but the last have `segment` bytes.
    pub fn sent(&mut self, peer: &VirtualAddr, segment: usize, bytes: &[u8]) {
        if let Some(last) = self.0.get_mut(peer)
            && let Some(datagram) = bytes.chunks(segment.max(1)).next_back()
        {
            last.clear();
            last.extend_from_slice(datagram);
        }
    }

    /// What was sent to `peer` last, if anything was.
    #[must_use]
    pub fn of(&self, peer: &VirtualAddr) -> Option<&[u8]> {
        self.0.get(peer).map(Vec::as_slice).filter(|bytes| !bytes.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use pollen_common::identity::NodeKey;

    use super::*;

    #[test]
    fn of_a_send_its_last_datagram_is_kept_and_only_for_those_who_are_held() {
        let (held, other) = (VirtualAddr::of(&NodeKey([1; 32])), VirtualAddr::of(&NodeKey([2; 32])));
        let mut last = Last::default();
        last.hold(held);
        assert_eq!(last.of(&held), None);
        last.sent(&held, 4, b"aaaabbbbcc");
        last.sent(&other, 4, b"dddd");
        assert_eq!((last.of(&held), last.of(&other)), (Some(&b"cc"[..]), None));
        last.sent(&held, 4, b"eeeeffff");
        assert_eq!(last.of(&held), Some(&b"ffff"[..]));
        last.release(&held);
        last.sent(&held, 4, b"gggg");
        assert_eq!(last.of(&held), None);
    }
}
