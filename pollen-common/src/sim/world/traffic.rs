//! What crosses between machines: connections that come and go, bytes in order, datagrams that may be lost.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Event, World};
use crate::identity::NodeKey;
use crate::node::{Input, LinkId};
use crate::sim::network::At;

/// How often what a partition keeps back is sent again.
const SEND_AGAIN: Duration = Duration::from_millis(200);

/// What whoever holds a connection with a machine that has died since is told when that machine is back.
const RESET: &str = "reset by the peer, which was restarted";

impl World {
    fn latency(&mut self) -> Duration {
        // Mostly a local network, now and then a slow path: neighbours overtake each other.
        let ms = if self.below(8) == 0 { self.below(300) } else { self.below(15) };
        Duration::from_millis(ms as u64) + Duration::from_micros(self.below(1000) as u64)
    }

    pub(super) fn dial(&mut self, from: At, peer: NodeKey) {
        let life = self.machines[from].life;
        let to = self.machines.iter().position(|machine| machine.key() == peer);
        match to.filter(|to| self.machines[*to].node.is_some() && self.network.reaches(from, *to)) {
            Some(to) => {
                let (lives, delay) = ((life, self.machines[to].life), self.latency());
                self.later(delay, Event::Connected { from, to: peer, lives });
            }
            None => self.later(Duration::from_secs(1), Event::DialFailed { from, to: peer, life }),
        }
    }

    pub(super) fn send(&mut self, at: At, link: LinkId, mut bytes: Vec<u8>) {
        if let Some(heard) = self.overheard.as_mut().filter(|heard| (heard.machine, heard.link) == (at, link)) {
            return heard.said.extend(bytes);
        }
        let Some((number, end)) = self.network.find(at, link) else { return };
        let delay = self.latency();
        let cut = (self.below(4) == 0 && bytes.len() > 1).then(|| 1 + self.below(bytes.len() - 1));
        let Some(connection) = self.network.connections.get_mut(&number).filter(|c| c.open) else { return };
        let to = 1 - end;
        let arrival = connection.ends[to].clear.max(self.now + delay);
        connection.ends[to].clear = arrival;
        let cut_off = connection.bytes_left.is_some_and(|left| left < bytes.len());
        if let Some(left) = &mut connection.bytes_left {
            bytes.truncate(*left);
            *left -= bytes.len();
        }
        let wait = arrival.since(self.now);
        let rest = cut.filter(|cut| *cut < bytes.len()).map(|cut| bytes.split_off(cut));
        self.later(wait, Event::Bytes { connection: number, end: to, bytes });
        if let Some(bytes) = rest {
            self.later(wait, Event::Bytes { connection: number, end: to, bytes });
        }
        self.later(delay, Event::Writable { connection: number, end });
        if cut_off {
            self.end(number, [wait, wait + delay], "cut");
        }
    }

    pub(super) fn send_datagram(&mut self, at: At, link: LinkId, bytes: Vec<u8>) {
        let Some((connection, end)) = self.network.find(at, link) else { return };
        if self.below(256) >= self.loss {
            let delay = self.latency();
            self.later(delay, Event::Datagram { connection, end: 1 - end, bytes });
        }
    }

    pub(super) fn close(&mut self, at: At, link: LinkId, reason: &str) {
        if let Some(heard) = self.overheard.as_mut().filter(|heard| (heard.machine, heard.link) == (at, link)) {
            heard.closed = true;
        }
        let Some((number, end)) = self.network.find(at, link) else { return };
        let delay = self.latency();
        let clear = self.network.connections.get(&number).map_or(self.now, |c| c.ends[1 - end].clear);
        let mut waits = [Duration::ZERO; 2];
        waits[1 - end] = clear.since(self.now).max(delay);
        self.end(number, waits, reason);
    }

    /// No more is sent; each end learns of it after its wait.
    fn end(&mut self, number: u64, waits: [Duration; 2], reason: &str) {
        let Some(connection) = self.network.connections.get_mut(&number) else { return };
        connection.open = false;
        for (end, wait) in waits.into_iter().enumerate() {
            self.later(wait, Event::Down { connection: number, end, reason: reason.into() });
        }
    }

    pub(super) fn connected(&mut self, from: At, to: NodeKey, lives: (u64, u64)) {
        let Some(at) = self.machines.iter().position(|machine| machine.key() == to) else { return };
        if self.machines[from].life != lives.0 || self.machines[from].node.is_none() {
            return;
        }
        if self.machines[at].life != lives.1 || self.machines[at].node.is_none() || !self.network.reaches(from, at) {
            self.input(from, Input::DialFailed { peer: to, reason: "unreachable".into() });
            return;
        }
        // Whoever died knows nothing of what it had, and says so to those who still hold it.
        let stale = self.network.connections.iter().filter(|(_, connection)| {
            let [a, b] = &connection.ends;
            (a.up != b.up) && [(from, at), (at, from)].contains(&(a.machine, b.machine))
        });
        let stale: Vec<_> = stale.map(|(number, connection)| (*number, usize::from(connection.ends[1].up))).collect();
        stale.into_iter().for_each(|(number, end)| self.down(number, end, RESET.into()));
        let number = self.network.connect(from, at, self.now);
        let links = self.network.connections[&number].ends.each_ref().map(|end| end.link);
        let peer = self.machines[from].key();
        self.input(from, Input::LinkUp { link: links[0], peer: to, dialed: true, remote: None });
        self.input(at, Input::LinkUp { link: links[1], peer, dialed: false, remote: None });
    }

    /// Hands over the bytes that wait at an end, in order, if anything crosses; else tries again.
    pub(super) fn deliver(&mut self, number: u64, end: usize) {
        while let Some(connection) = self.network.connections.get(&number) {
            let [to, from] = [connection.ends[end].machine, connection.ends[1 - end].machine];
            let crosses = self.network.reaches(to, from);
            let waiting = self.network.connections.get_mut(&number).map(|c| &mut c.ends[end].waiting);
            let Some(waiting) = waiting.filter(|waiting| !waiting.is_empty()) else { return };
            if !crosses {
                return self.later(SEND_AGAIN, Event::Again { connection: number, end });
            }
            let bytes = waiting.pop_front().unwrap_or_default();
            self.arrive(number, end, |link| Input::LinkBytes { link, bytes });
        }
    }

    pub(super) fn arrive(&mut self, number: u64, end: usize, input: impl FnOnce(LinkId) -> Input) {
        let Some(connection) = self.network.connections.get(&number) else { return };
        let [to, from] = [&connection.ends[end], &connection.ends[1 - end]];
        if !self.network.reaches(to.machine, from.machine) {
            return;
        }
        let (machine, link) = (to.machine, to.link);
        if to.up {
            self.input(machine, input(link));
        } else if self.machines[machine].node.is_some() {
            self.down(number, 1 - end, RESET.into());
        }
    }

    pub(super) fn down(&mut self, number: u64, end: usize, reason: String) {
        let Some(connection) = self.network.connections.get_mut(&number) else { return };
        if core::mem::take(&mut connection.ends[end].up) {
            let (machine, link) = (connection.ends[end].machine, connection.ends[end].link);
            self.input(machine, Input::LinkDown { link, reason });
        }
        self.network.forget_if_over(number);
    }
}
