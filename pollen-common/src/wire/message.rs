//! The messages of a session. Each is a CBOR array: its tag, then its fields in the order of the variant's
//! declaration. A message with a tag that this version does not know is skipped; one that is malformed ends the link.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;

use minicbor::{Decode, Encode};

use crate::identity::{ClusterId, Digest, NodeKey};
use crate::maps::Lane;
use crate::trie::{Prefix, Summary};

/// The range of protocol versions that an end speaks, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Versions {
    #[n(0)]
    pub lowest: u16,
    #[n(1)]
    pub highest: u16,
}

impl Versions {
    /// What this build speaks.
    pub const OURS: Self = Self { lowest: 2, highest: 2 };

    /// The version to use with a peer that speaks `theirs`: the highest that both know.
    #[must_use]
    pub fn common(self, theirs: Self) -> Option<u16> {
        let version = self.highest.min(theirs.highest);
        (version >= self.lowest && version >= theirs.lowest).then_some(version)
    }
}

/// The roots of the three lanes' documents: facts, live, state.
pub type Lanes = [Digest; 3];

/// What one neighbour tells another. Statements, heads and deltas travel as their own encodings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// First on every link of members. `bundle` holds the statements that show that the sender stands.
    Hello {
        versions: Versions,
        cluster: ClusterId,
        roll: Digest,
        lanes: Lanes,
        bundle: Vec<Vec<u8>>,
        /// A number that the sending process drew when it started.
        instance: u64,
    },
    /// The sender has everything of the receiver's roll that it wants: ordinary traffic may begin.
    RollDone,
    /// What does the roll hold at this place?
    RollAsk {
        prefix: Prefix,
    },
    RollAnswer {
        prefix: Prefix,
        summary: Summary,
    },
    /// Send the statements in these slots.
    RollWant {
        slots: Vec<Digest>,
    },
    /// Statements, new ones or those asked for; `asked` on the last message that answers a request.
    Roll {
        statements: Vec<Vec<u8>>,
        asked: bool,
    },
    /// The sender's roots now. `answer`: the receiver should say its own.
    Roots {
        roll: Digest,
        lanes: Lanes,
        answer: bool,
    },
    /// The heads of the receiver's own maps that the sender holds, then an end mark of the same shape: none.
    YourHeads {
        heads: Vec<Vec<u8>>,
    },
    /// What does this lane's document hold at this place?
    LaneAsk {
        lane: Lane,
        prefix: Prefix,
    },
    LaneAnswer {
        lane: Lane,
        prefix: Prefix,
        summary: Summary,
    },
    /// Send deltas for these authors (by path), from the sequence the asker holds (0: nothing).
    LaneWant {
        lane: Lane,
        authors: Vec<(Digest, u64)>,
    },
    /// A delta (see `docs/protocol/state.md`); one without puts is an offer of its head.
    Delta {
        delta: Vec<u8>,
    },
    /// Copying one author's map: a question and an answer of `docs/protocol/state.md`.
    MapAsk {
        ask: Vec<u8>,
    },
    MapAnswer {
        answer: Vec<u8>,
    },
    /// The sender leaves: no link to it will answer from now on.
    Bye,
    /// A joiner redeems an invite: the statements it has from its token and those it signed.
    Redeem {
        statements: Vec<Vec<u8>>,
    },
    /// The joiner stands: everything it needs to show so, and where members can be reached.
    Redeemed {
        statements: Vec<Vec<u8>>,
        contacts: Vec<(NodeKey, Vec<SocketAddr>)>,
    },
    /// The invite was not accepted; the sentence says why.
    Refused {
        reason: String,
    },
    /// Another process speaks with the receiver's key: where the sender sees the receiver, and where the other.
    SharedKey {
        here: Option<SocketAddr>,
        there: Option<SocketAddr>,
    },
}

/// A frame that is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("a malformed message")]
    Malformed,
    /// From a later version: skip it.
    #[error("an unknown message")]
    Unknown,
}

/// The longest sentence of a refusal that is shown.
const REASON_CHARS_MAX: usize = 512;

/// Items of a Hello of version 1, its tag included.
const HELLO_FIELDS_OF_1: u64 = 6;

/// Greater tags are those of later versions.
const TAG_MAX: u8 = 18;

impl Message {
    fn tag(&self) -> u8 {
        match self {
            Self::Hello { .. } => 0,
            Self::RollDone => 1,
            Self::RollAsk { .. } => 2,
            Self::RollAnswer { .. } => 3,
            Self::RollWant { .. } => 4,
            Self::Roll { .. } => 5,
            Self::Roots { .. } => 6,
            Self::YourHeads { .. } => 7,
            Self::LaneAsk { .. } => 8,
            Self::LaneAnswer { .. } => 9,
            Self::LaneWant { .. } => 10,
            Self::Delta { .. } => 11,
            Self::MapAsk { .. } => 12,
            Self::MapAnswer { .. } => 13,
            Self::Bye => 14,
            Self::Redeem { .. } => 15,
            Self::Redeemed { .. } => 16,
            Self::Refused { .. } => 17,
            Self::SharedKey { .. } => 18,
        }
    }

    /// The frame body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(self.tag());
        self.fields(&mut writer);
        writer.finish()
    }

    fn fields(&self, w: &mut Writer) {
        match self {
            Self::Hello { versions, cluster, roll, lanes, bundle, instance } => {
                w.put(versions).put(cluster).put(roll).put(lanes).blobs(bundle).put(instance);
            }
            Self::RollDone | Self::Bye => {}
            Self::RollAsk { prefix } => {
                w.put(prefix);
            }
            Self::RollAnswer { prefix, summary } => {
                w.put(prefix).put(summary);
            }
            Self::RollWant { slots } => {
                w.put(slots);
            }
            Self::Roll { statements, asked } => {
                w.blobs(statements).put(asked);
            }
            Self::Redeem { statements } => {
                w.blobs(statements);
            }
            Self::Roots { roll, lanes, answer } => {
                w.put(roll).put(lanes).put(answer);
            }
            Self::YourHeads { heads } => {
                w.blobs(heads);
            }
            Self::LaneAsk { lane, prefix } => {
                w.put(&lane.code()).put(prefix);
            }
            Self::LaneAnswer { lane, prefix, summary } => {
                w.put(&lane.code()).put(prefix).put(summary);
            }
            Self::LaneWant { lane, authors } => {
                w.put(&lane.code()).put(authors);
            }
            Self::Delta { delta } => {
                w.blob(delta);
            }
            Self::MapAsk { ask } => {
                w.blob(ask);
            }
            Self::MapAnswer { answer } => {
                w.blob(answer);
            }
            Self::Redeemed { statements, contacts } => {
                w.blobs(statements).contacts(contacts);
            }
            Self::Refused { reason } => {
                w.put(reason);
            }
            Self::SharedKey { here, there } => {
                w.put(here).put(there);
            }
        }
    }

    /// From a frame's body.
    pub fn decode(body: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader(minicbor::Decoder::new(body));
        let fields = reader.0.array().ok().flatten().ok_or(MessageError::Malformed)?;
        let tag = reader.0.u8().map_err(|_| MessageError::Malformed)?;
        if tag > TAG_MAX {
            return Err(MessageError::Unknown);
        }
        reader.message(tag, fields).map_err(|_| MessageError::Malformed)
    }
}

/// Appends fields to a message; counts them, so that the array's length cannot be wrong.
struct Writer {
    fields: minicbor::Encoder<Vec<u8>>,
    count: u8,
}

impl Writer {
    fn new(tag: u8) -> Self {
        let mut writer = Self { fields: minicbor::Encoder::new(Vec::new()), count: 0 };
        writer.put(&tag);
        writer
    }

    fn put(&mut self, value: &(impl Encode<()> + ?Sized)) -> &mut Self {
        // Writing to a Vec cannot fail.
        let _ = self.fields.encode(value);
        self.count += 1;
        self
    }

    fn blob(&mut self, bytes: &[u8]) -> &mut Self {
        let _ = self.fields.bytes(bytes);
        self.count += 1;
        self
    }

    fn blobs(&mut self, blobs: &[Vec<u8>]) -> &mut Self {
        let _ = self.fields.array(blobs.len() as u64);
        for blob in blobs {
            let _ = self.fields.bytes(blob);
        }
        self.count += 1;
        self
    }

    fn contacts(&mut self, contacts: &[(NodeKey, Vec<SocketAddr>)]) -> &mut Self {
        let _ = self.fields.array(contacts.len() as u64);
        for (key, addrs) in contacts {
            let _ = self.fields.array(2);
            let _ = self.fields.encode(key);
            let _ = self.fields.encode(addrs);
        }
        self.count += 1;
        self
    }

    fn finish(self) -> Vec<u8> {
        let mut body = minicbor::Encoder::new(Vec::new());
        let _ = body.array(u64::from(self.count));
        let mut body = body.into_writer();
        body.extend_from_slice(self.fields.writer());
        body
    }
}

struct Reader<'b>(minicbor::Decoder<'b>);

type Read<T> = Result<T, minicbor::decode::Error>;

fn malformed(what: &'static str) -> minicbor::decode::Error {
    minicbor::decode::Error::message(what)
}

impl Reader<'_> {
    fn message(&mut self, tag: u8, fields: u64) -> Read<Message> {
        Ok(match tag {
            0 => Message::Hello {
                versions: self.0.decode()?,
                cluster: self.0.decode()?,
                roll: self.0.decode()?,
                lanes: self.0.decode()?,
                bundle: self.blobs()?,
                // Version 1 had none: it is told apart by its version, which is refused with that reason.
                instance: if fields > HELLO_FIELDS_OF_1 { self.0.u64()? } else { 0 },
            },
            1 => Message::RollDone,
            2 => Message::RollAsk { prefix: self.0.decode()? },
            3 => Message::RollAnswer { prefix: self.0.decode()?, summary: self.0.decode()? },
            4 => Message::RollWant { slots: self.list()? },
            5 => Message::Roll { statements: self.blobs()?, asked: self.0.bool()? },
            6 => Message::Roots { roll: self.0.decode()?, lanes: self.0.decode()?, answer: self.0.bool()? },
            7 => Message::YourHeads { heads: self.blobs()? },
            8 => Message::LaneAsk { lane: self.lane()?, prefix: self.0.decode()? },
            9 => Message::LaneAnswer { lane: self.lane()?, prefix: self.0.decode()?, summary: self.0.decode()? },
            10 => Message::LaneWant { lane: self.lane()?, authors: self.list()? },
            11 => Message::Delta { delta: self.0.bytes()?.to_vec() },
            12 => Message::MapAsk { ask: self.0.bytes()?.to_vec() },
            13 => Message::MapAnswer { answer: self.0.bytes()?.to_vec() },
            14 => Message::Bye,
            15 => Message::Redeem { statements: self.blobs()? },
            16 => Message::Redeemed { statements: self.blobs()?, contacts: self.list()? },
            17 => Message::Refused { reason: self.0.str()?.chars().take(REASON_CHARS_MAX).collect() },
            _ => Message::SharedKey { here: self.0.decode()?, there: self.0.decode()? },
        })
    }

    fn lane(&mut self) -> Read<Lane> {
        Lane::from_code(self.0.u8()?).ok_or_else(|| malformed("lane"))
    }

    /// A list; what it holds is bounded by the frame, as nothing is allocated ahead of the elements.
    fn list<T: for<'b> Decode<'b, ()>>(&mut self) -> Read<Vec<T>> {
        let len = self.0.array()?.ok_or_else(|| malformed("length"))?;
        (0..len).map(|_| self.0.decode()).collect()
    }

    fn blobs(&mut self) -> Read<Vec<Vec<u8>>> {
        let len = self.0.array()?.ok_or_else(|| malformed("length"))?;
        (0..len).map(|_| self.0.bytes().map(<[u8]>::to_vec)).collect()
    }
}

#[cfg(test)]
mod tests;
