//! Author maps: everything that a node says besides the roll, each lane under one signed head. Owns what is stored,
//! authored and exchanged; must not know what an entry means (see [`crate::views`]).
//! Invariant: no head is ever held without the exact content that its author signed. Formats: `docs/protocol/state.md`.

mod author;
mod author_map;
mod bounded;
mod delta;
mod document;
mod entry;
mod head;
pub mod records;
mod repair;

pub use author::{AuthorError, Authoring, BOOT_WAIT, Heard, Offer, Sealed, Twin};
pub use author_map::AuthorMap;
pub use delta::{Built, DELTA_BYTES_MAX, Delta, DeltaError};
pub use document::{Applied, Document, Evidence, Held, Settled};
pub use entry::{ENTRY_OVERHEAD_BYTES, Entry, EntryError, KEY_BYTES_MAX, SEQ_MAX, VALUE_BYTES_MAX, path_of_key};
pub use head::{HEAD_BYTES, Head, HeadError, Lane, SignedHead, path_of_author};
pub use repair::{ANSWER_BYTES_MAX, Answer, Ask, ExchangeError, Progress, Repair, RepairError, Want};

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
