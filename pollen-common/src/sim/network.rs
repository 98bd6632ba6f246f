//! Connections between simulated machines: ordered bytes in pieces of any size, datagrams that may be lost, and ends
//! that go down at different times. Owns what is in flight.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use crate::node::LinkId;
use crate::time::Instant;

/// A machine, by its place in the world.
pub(super) type At = usize;

/// One direction of a connection.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) machine: At,
    pub(super) link: LinkId,
    /// Bytes to this end arrive in order: none before this moment.
    pub(super) clear: Instant,
    /// This end has not been told of the connection's end.
    pub(super) up: bool,
    /// Bytes that came while nothing crosses: as QUIC does, they are sent again until it does.
    pub(super) waiting: VecDeque<Vec<u8>>,
}

#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) ends: [End; 2],
    /// Bytes that will still be delivered before it is cut; `None`: no cut is planned.
    pub(super) bytes_left: Option<usize>,
    pub(super) open: bool,
}

/// All connections, and who can reach whom.
#[derive(Debug, Default)]
pub(super) struct Network {
    pub(super) connections: BTreeMap<u64, Connection>,
    by_link: BTreeMap<(At, LinkId), u64>,
    last: u64,
    last_link: u64,
    /// Machines on the far side of the partition.
    pub(super) far: BTreeSet<At>,
}

impl Network {
    pub(super) fn reaches(&self, a: At, b: At) -> bool {
        self.far.contains(&a) == self.far.contains(&b)
    }

    /// A new connection; returns its number. The first end dialled.
    pub(super) fn connect(&mut self, from: At, to: At, now: Instant) -> u64 {
        self.last += 1;
        let mut end = |machine| {
            self.last_link += 1;
            let link = LinkId(self.last_link);
            self.by_link.insert((machine, link), self.last);
            End { machine, link, clear: now, up: true, waiting: VecDeque::new() }
        };
        let ends = [end(from), end(to)];
        self.connections.insert(self.last, Connection { ends, bytes_left: None, open: true });
        self.last
    }

    /// The connection of a machine's link, and which of its ends the machine is.
    pub(super) fn find(&self, machine: At, link: LinkId) -> Option<(u64, usize)> {
        let number = *self.by_link.get(&(machine, link))?;
        let connection = self.connections.get(&number)?;
        Some((number, usize::from(connection.ends[1].machine == machine && connection.ends[1].link == link)))
    }

    /// Forgets a connection whose ends both know that it is over.
    pub(super) fn forget_if_over(&mut self, number: u64) {
        let Some(connection) = self.connections.get(&number) else { return };
        if connection.ends.iter().all(|end| !end.up) {
            for end in &connection.ends {
                self.by_link.remove(&(end.machine, end.link));
            }
            self.connections.remove(&number);
        }
    }
}
