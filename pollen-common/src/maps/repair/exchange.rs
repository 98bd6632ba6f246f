//! The questions and answers by which a lane is copied. Owns their bounded forms and how a document answers;
//! must not know who asks. Invariant: an answer fits one message whatever is asked.

use alloc::sync::Arc;
use alloc::vec::Vec;

use minicbor::decode::Error as DecodeError;
use minicbor::{Decoder, Encoder};

use super::{ENTRIES_PER_ASK, SUMMARIES_PER_ASK};
use crate::identity::{Digest, NodeKey};
use crate::maps::bounded;
use crate::maps::document::Document;
use crate::maps::entry::Entry;
use crate::maps::head::{Lane, SignedHead};
use crate::trie::{Prefix, SUMMARY_BYTES_MAX, Summary};

/// The most bytes of an encoded answer. Room for a full set of summaries, and for several of the largest entries.
pub const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// Kind, author, lane, array heads.
const FRAME_BYTES: usize = 64;

/// A prefix and its array head.
const PREFIX_BYTES_MAX: usize = 40;

const _: () = assert!(SUMMARIES_PER_ASK * (SUMMARY_BYTES_MAX + PREFIX_BYTES_MAX) + FRAME_BYTES <= ANSWER_BYTES_MAX);

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    Summaries(Vec<Prefix>),
    /// By their paths.
    Entries(Vec<Digest>),
}

/// A question about one lane of one author, at one root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub author: NodeKey,
    pub lane: Lane,
    pub root: Digest,
    pub want: Want,
}

/// What the asked replica has.
#[expect(clippy::large_enum_variant, reason = "made and taken apart at once, never stored")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Summaries {
        author: NodeKey,
        lane: Lane,
        summaries: Vec<(Prefix, Summary)>,
    },
    Entries {
        author: NodeKey,
        lane: Lane,
        entries: Vec<Arc<Entry>>,
    },
    /// It holds the lane at another head by now.
    Moved {
        head: SignedHead,
    },
    /// It does not hold the lane.
    Gone {
        author: NodeKey,
        lane: Lane,
    },
}

/// Why bytes are no question or answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a question or answer about a lane, or beyond its bounds")]
pub struct ExchangeError;

impl From<DecodeError> for ExchangeError {
    fn from(_: DecodeError) -> Self {
        Self
    }
}

const SUMMARIES: u8 = 0;
const ENTRIES: u8 = 1;
const MOVED: u8 = 2;
const GONE: u8 = 3;

impl Ask {
    /// `[kind, author, lane, root, [prefixes or paths…]]`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new(Vec::new());
        let mut write = || -> Result<(), minicbor::encode::Error<core::convert::Infallible>> {
            let kind = if matches!(self.want, Want::Summaries(_)) { SUMMARIES } else { ENTRIES };
            e.array(5)?.u8(kind)?.encode(self.author)?.u8(self.lane.code())?.encode(self.root)?;
            match &self.want {
                Want::Summaries(prefixes) => e.encode(prefixes)?.ok(),
                Want::Entries(paths) => e.encode(paths)?.ok(),
            }
        };
        write().expect("writing to a vector cannot fail");
        e.into_writer()
    }

    /// # Errors
    /// If the bytes are no question within its bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, ExchangeError> {
        let mut d = Decoder::new(bytes);
        let len = bounded::array_of_at_least(&mut d, 5)?;
        let kind = d.u8()?;
        let (author, lane) = (d.decode()?, lane(&mut d)?);
        let root = d.decode()?;
        let want = match kind {
            SUMMARIES => Want::Summaries(bounded::list(&mut d, SUMMARIES_PER_ASK, |d| d.decode())?),
            ENTRIES => Want::Entries(bounded::list(&mut d, ENTRIES_PER_ASK, |d| d.decode())?),
            _ => return Err(ExchangeError),
        };
        bounded::skip_newer(&mut d, len, 5)?;
        bounded::nothing_after(&d)?;
        Ok(Self { author, lane, root, want })
    }
}

impl Answer {
    #[must_use]
    pub const fn author(&self) -> NodeKey {
        match self {
            Self::Summaries { author, .. } | Self::Entries { author, .. } | Self::Gone { author, .. } => *author,
            Self::Moved { head } => head.head().author,
        }
    }

    #[must_use]
    pub const fn lane(&self) -> Lane {
        match self {
            Self::Summaries { lane, .. } | Self::Entries { lane, .. } | Self::Gone { lane, .. } => *lane,
            Self::Moved { head } => head.head().lane,
        }
    }

    /// `[0, author, lane, [[prefix, summary]…]]`, `[1, author, lane, [entry…]]`, `[2, head]` or `[3, author, lane]`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new(Vec::new());
        self.write(&mut e).expect("writing to a vector cannot fail");
        e.into_writer()
    }

    fn write(&self, e: &mut Encoder<Vec<u8>>) -> Result<(), minicbor::encode::Error<core::convert::Infallible>> {
        match self {
            Self::Summaries { author, lane, summaries } => {
                e.array(4)?.u8(SUMMARIES)?.encode(author)?.u8(lane.code())?.array(summaries.len() as u64)?;
                for (prefix, summary) in summaries {
                    e.array(2)?.encode(prefix)?.encode(summary)?;
                }
            }
            Self::Entries { author, lane, entries } => {
                e.array(4)?.u8(ENTRIES)?.encode(author)?.u8(lane.code())?.array(entries.len() as u64)?;
                for entry in entries {
                    e.encode(entry.as_ref())?;
                }
            }
            Self::Moved { head } => {
                e.array(2)?.u8(MOVED)?.bytes(head.bytes())?;
            }
            Self::Gone { author, lane } => {
                e.array(3)?.u8(GONE)?.encode(author)?.u8(lane.code())?;
            }
        }
        Ok(())
    }

    /// # Errors
    /// If the bytes are no answer within its bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, ExchangeError> {
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(ExchangeError);
        }
        let mut d = Decoder::new(bytes);
        let len = bounded::array_of_at_least(&mut d, 2)?;
        let (known, answer) = match d.u8()? {
            SUMMARIES => {
                let (author, lane) = (d.decode()?, lane(&mut d)?);
                let summaries = bounded::list(&mut d, SUMMARIES_PER_ASK, |d| {
                    let len = bounded::array_of_at_least(d, 2)?;
                    let pair = (d.decode()?, d.decode()?);
                    bounded::skip_newer(d, len, 2)?;
                    Ok(pair)
                })?;
                (4, Self::Summaries { author, lane, summaries })
            }
            ENTRIES => {
                let (author, lane) = (d.decode()?, lane(&mut d)?);
                let entries = bounded::list(&mut d, ENTRIES_PER_ASK, |d| d.decode::<Entry>().map(Arc::new))?;
                (4, Self::Entries { author, lane, entries })
            }
            MOVED => (2, Self::Moved { head: SignedHead::decode(d.bytes()?).map_err(|_| ExchangeError)? }),
            GONE => (3, Self::Gone { author: d.decode()?, lane: lane(&mut d)? }),
            _ => return Err(ExchangeError),
        };
        bounded::skip_newer(&mut d, len, known)?;
        bounded::nothing_after(&d)?;
        Ok(answer)
    }
}

fn lane(d: &mut Decoder<'_>) -> Result<Lane, DecodeError> {
    Lane::from_code(d.u8()?).ok_or(DecodeError::message("no such lane"))
}

impl Document {
    /// Answers a peer that copies a lane from here.
    #[must_use]
    pub fn answer(&self, ask: &Ask) -> Answer {
        let Some(held) = self.held(&ask.author, ask.lane) else {
            return Answer::Gone { author: ask.author, lane: ask.lane };
        };
        if held.head().head().root != ask.root {
            return Answer::Moved { head: *held.head() };
        }
        let (author, lane, map) = (ask.author, ask.lane, held.map());
        match &ask.want {
            Want::Summaries(prefixes) => {
                let prefixes = prefixes.iter().take(SUMMARIES_PER_ASK);
                let summaries = prefixes.map(|prefix| (*prefix, map.trie().summary(prefix))).collect();
                Answer::Summaries { author, lane, summaries }
            }
            Want::Entries(paths) => {
                let mut room = ANSWER_BYTES_MAX - FRAME_BYTES;
                let entries = paths.iter().take(ENTRIES_PER_ASK).filter_map(|path| map.at(path)).cloned();
                let fits = |entry: &Arc<Entry>| {
                    // What an entry counts is more than its CBOR takes.
                    let bytes = usize::try_from(entry.size_bytes()).unwrap_or(usize::MAX);
                    room.checked_sub(bytes).map(|left| room = left).is_some()
                };
                Answer::Entries { author, lane, entries: entries.take_while(fits).collect() }
            }
        }
    }
}
