//! One link's session: greeting, roll, then everything else; and the dispatch of its messages.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::link::{Link, Phase};
use super::probe::Action;
use super::{EventKind, LinkId, Node};
use crate::identity::{ClusterId, NodeKey};
use crate::maps::Lane;
use crate::time::{Now, UnixMs};
use crate::wire::{Message, MessageError, Versions};

/// The probe datagrams: a tag, a number, and the sender's wall clock.
const PING: u8 = 1;
const PONG: u8 = 2;

impl Node {
    pub(super) fn link_up(
        &mut self,
        id: LinkId,
        (peer, remote): (NodeKey, Option<SocketAddr>),
        dialed: bool,
        now: Now,
    ) {
        self.dials.connected(&peer);
        let mut link = Link::new(&self.me, peer, dialed, now.mono);
        link.remote = remote;
        self.links.insert(id, link);
        // The dialler speaks first: an unadmitted peer redeems instead of greeting, and only it knows which.
        if self.local.leaving {
            self.close(id, "this node leaves");
        } else if dialed {
            self.greet(id);
        }
        self.due.links = true;
    }

    fn greet(&mut self, id: LinkId) {
        // With the rotations: to one who missed them, nothing else shows that this node stands.
        let bundle = self.roll.lineage().rotations.into_iter().chain(self.standing.bundle(&self.me));
        let bundle = bundle.map(|statement| statement.bytes().to_vec()).collect();
        let hello = Message::Hello {
            versions: Versions::OURS,
            cluster: self.roll.cluster(),
            roll: self.roll.trie().root(),
            lanes: self.lane_roots(),
            bundle,
            instance: self.watch.instance,
        };
        self.send(id, &hello);
    }

    pub(super) fn link_bytes(&mut self, id: LinkId, bytes: &[u8], now: Now) {
        self.heard(id, now);
        let Some(link) = self.links.get_mut(&id) else { return };
        link.frames.push(bytes);
        while let Some(link) = self.links.get_mut(&id).filter(|link| link.phase != Phase::Closing) {
            match link.frames.poll().map(|body| body.map(|body| Message::decode(&body))) {
                Ok(None) => return,
                Ok(Some(Ok(message))) => self.message(id, message, now),
                Ok(Some(Err(MessageError::Unknown))) => self.refuse("unknown_message"),
                Ok(Some(Err(MessageError::Malformed))) => {
                    self.refuse("malformed_message");
                    self.close(id, "the peer sent a malformed message");
                }
                Err(error) => {
                    self.refuse("malformed_frame");
                    self.close(id, format!("the peer sent {error}"));
                }
            }
        }
    }

    pub(super) fn link_datagram(&mut self, id: LinkId, bytes: &[u8], now: Now) {
        if !self.links.contains_key(&id) {
            return;
        }
        let Some(Probed { tag, number, clock }) = Probed::decode(bytes) else {
            return self.refuse("malformed_probe");
        };
        match tag {
            PING => {
                let pong = Probed { tag: PONG, number, clock: now.unix };
                self.outputs.push_back(super::Output::SendDatagram { link: id, bytes: pong.encode() });
            }
            PONG => {}
            _ => return self.refuse("unknown_probe"),
        }
        self.heard(id, now);
        if let Some(link) = self.links.get_mut(&id) {
            link.clock.sample(clock, now.unix);
        }
    }

    /// Sends the probes that are due, and notes whose peers have fallen silent.
    pub(super) fn probe_links(&mut self, now: Now) {
        let mut silent = Vec::new();
        for (id, link) in self.links.iter_mut().filter(|(_, link)| link.phase != Phase::Closing) {
            loop {
                match link.probe.poll(now.mono) {
                    Action::Ping(number) => {
                        let bytes = Probed { tag: PING, number, clock: now.unix }.encode();
                        self.outputs.push_back(super::Output::SendDatagram { link: *id, bytes });
                    }
                    Action::Silent => silent.push(*id),
                    Action::Wait(until) => {
                        self.due.by(until);
                        break;
                    }
                }
            }
        }
        silent.into_iter().for_each(|id| self.fell_silent(id, now));
    }

    pub(super) fn link_down(&mut self, id: LinkId, reason: &str, now: Now) {
        let Some(link) = self.links.remove(&id) else { return };
        let lost = !self.links.values().any(|other| other.peer == link.peer && other.phase != Phase::Closing);
        if lost && link.peer != self.me && !self.local.leaving {
            if link.goodbye {
                self.dials.left(link.peer, now.mono);
            } else {
                self.dials.failed(link.peer, now.mono, &mut self.rng);
            }
            if link.was_open {
                self.event(EventKind::LinkDown, Some(link.peer), format!("link down: {reason}"));
            }
        }
        self.drop_repairs_over(id);
        self.due.links = true;
    }

    fn message(&mut self, id: LinkId, message: Message, now: Now) {
        let Some(phase) = self.links.get(&id).map(|link| link.phase.clone()) else { return };
        match (phase, message) {
            (Phase::Greeting, Message::Hello { versions, cluster, bundle, roll, instance, .. }) => {
                if let Err(reason) = self.greeting_fault(versions, cluster) {
                    self.refuse("greeting");
                    return self.close(id, reason);
                }
                if self.links.get(&id).is_some_and(|link| !link.dialed) {
                    self.greet(id);
                }
                self.begin_rolling(id, roll, bundle, now);
                self.process_greets(id, instance, now);
            }
            (Phase::Greeting, Message::Redeem { statements }) => self.redeem(id, &statements, now),
            (Phase::Rolling { .. } | Phase::Open, message) => self.member_message(id, message, now),
            (_, Message::Bye) => self.close(id, "the peer said goodbye"),
            _ => {
                self.refuse("out_of_turn");
                self.close(id, "the peer spoke out of turn");
            }
        }
    }

    fn greeting_fault(&self, versions: Versions, cluster: ClusterId) -> Result<u16, String> {
        if cluster != self.roll.cluster() {
            // Which one it is, is not for strangers.
            return Err(String::from("wrong cluster: this node belongs to another than the peer's"));
        }
        let ours = Versions::OURS;
        ours.common(versions).ok_or_else(|| {
            let Versions { lowest, highest } = versions;
            format!(
                "no common protocol version: the peer speaks {lowest} to {highest}, this node {} to {}",
                ours.lowest, ours.highest
            )
        })
    }

    fn member_message(&mut self, id: LinkId, message: Message, now: Now) {
        match message {
            Message::RollDone => self.roll_done_by_peer(id, now),
            Message::SharedKey { here, there } => self.told_of_shared_key(id, here, there, now),
            question @ (Message::RollAsk { .. } | Message::RollWant { .. }) => self.roll_asked(id, question, now),
            Message::RollAnswer { prefix, summary } => self.roll_answer(id, prefix, &summary, now),
            Message::Roll { statements, asked } => self.roll_statements(id, &statements, asked, now),
            Message::Bye => {
                if let Some(link) = self.links.get_mut(&id) {
                    link.goodbye = true;
                }
                self.close(id, "the peer said goodbye");
            }
            message if self.links.get(&id).is_some_and(Link::is_open) => self.gossip_message(id, message, now),
            _ => {
                self.refuse("before_roll");
                self.close(id, "the peer spoke of other things before the roll was reconciled");
            }
        }
    }

    pub(super) fn lane_roots(&self) -> crate::wire::Lanes {
        Lane::ALL.map(|lane| self.document.root(lane))
    }
}

/// A probe as it travels.
#[derive(Clone, Copy)]
struct Probed {
    tag: u8,
    number: u32,
    /// The sender's wall clock when it was sent.
    clock: UnixMs,
}

impl Probed {
    fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(13);
        bytes.push(self.tag);
        bytes.extend_from_slice(&self.number.to_be_bytes());
        bytes.extend_from_slice(&self.clock.0.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first()?;
        let (number, clock) = rest.split_first_chunk()?;
        let clock = UnixMs(u64::from_be_bytes(clock.try_into().ok()?));
        Some(Self { tag: *tag, number: u32::from_be_bytes(*number), clock })
    }
}
