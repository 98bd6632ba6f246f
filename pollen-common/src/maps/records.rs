//! Author maps as records of the node's durable state: a head for each durable lane, one record for each entry, and
//! the reserved sequence. Owns these records' keys and forms; must not know the store.
//! Invariant: what is read back was proved by its signed head again; a lane that is not whole is dropped, never mended.
//!
//! Keys: `h` lane author → head; `e` lane author path → entry; `s` → sequence, 8 bytes big-endian.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::author_map::AuthorMap;
use super::document::{Document, Held};
use super::entry::Entry;
use super::head::{Lane, SignedHead};
use crate::identity::{ClusterId, Digest, NodeKey, Verify};

const HEAD: u8 = b'h';
const ENTRY: u8 = b'e';
const RESERVED: u8 = b's';

/// The first bytes of the keys of all records that belong to author maps.
pub const TABLES: [u8; 3] = [HEAD, ENTRY, RESERVED];

/// One record of the node's durable state: `value` put at `key`, or the key removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// What the disk gave back.
#[derive(Debug)]
pub struct Restored {
    /// All lanes that are whole; who stands is not asked yet: see [`Document::settle`].
    pub document: Document,
    /// Sequences up to this one may have been used.
    pub reserved: u64,
    /// Lanes that were not whole. They will be fetched from neighbours again.
    pub dropped: Vec<(NodeKey, Lane)>,
    /// Removes the records of what was dropped.
    pub cleanup: Vec<Write>,
}

/// The writes that take a lane's records from `previous` to `held`, all in one batch. None for a lane that is never
/// on disk.
#[must_use]
pub fn advance(previous: Option<&Held>, held: &Held) -> Vec<Write> {
    let head = held.head().head();
    if !head.lane.is_durable() {
        return Vec::new();
    }
    let empty = AuthorMap::new();
    let before = previous.map_or(&empty, Held::map);
    let diff = held.map().trie().diff(before.trie());
    let key = |path: &Digest| entry_key(head.lane, &head.author, path);
    let mut writes =
        alloc::vec![Write { key: head_key(head.lane, &head.author), value: Some(held.head().bytes().to_vec()) }];
    writes.extend(diff.put.iter().map(|(path, entry)| Write {
        key: key(path),
        value: Some(minicbor::to_vec(entry.as_ref()).expect("writing to a vector cannot fail")),
    }));
    writes.extend(diff.gone.iter().map(|(path, _)| Write { key: key(path), value: None }));
    writes
}

/// The writes that remove a lane that left the document.
#[must_use]
pub fn remove(held: &Held) -> Vec<Write> {
    let head = held.head().head();
    if !head.lane.is_durable() {
        return Vec::new();
    }
    let paths = held.map().trie().iter().map(|(path, _, _)| entry_key(head.lane, &head.author, path));
    let keys = core::iter::once(head_key(head.lane, &head.author)).chain(paths);
    keys.map(|key| Write { key, value: None }).collect()
}

/// The write that reserves all sequences up to `seq`.
#[must_use]
pub fn reserve(seq: u64) -> Write {
    Write { key: alloc::vec![RESERVED], value: Some(seq.to_be_bytes().to_vec()) }
}

/// Rebuilds the document. Records of other tables are passed over.
#[must_use]
pub fn restore<'a>(
    cluster: ClusterId,
    records: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    verify: &(impl Verify + ?Sized),
) -> Restored {
    let mut heads: BTreeMap<(Lane, NodeKey), SignedHead> = BTreeMap::new();
    let mut maps: BTreeMap<(Lane, NodeKey), AuthorMap> = BTreeMap::new();
    let mut keys: BTreeMap<(Lane, NodeKey), Vec<Vec<u8>>> = BTreeMap::new();
    let mut broken: BTreeSet<(Lane, NodeKey)> = BTreeSet::new();
    let mut cleanup = Vec::new();
    let mut reserved = 0;
    for (key, value) in records {
        if key == [RESERVED] {
            reserved = value.try_into().map_or(reserved, u64::from_be_bytes);
            continue;
        }
        let Some(&table) = key.first().filter(|table| **table == HEAD || **table == ENTRY) else { continue };
        let Some((place, path)) = parse_key(key) else {
            cleanup.push(Write { key: key.to_vec(), value: None });
            continue;
        };
        keys.entry(place).or_default().push(key.to_vec());
        if table == HEAD {
            let head = SignedHead::decode(value).ok();
            let head = head.filter(|head| (head.head().lane, head.head().author) == place && path.is_none());
            head.map(|head| heads.insert(place, head));
        } else {
            match minicbor::decode::<Entry>(value).ok().filter(|entry| Some(entry.path()) == path) {
                Some(entry) => maps.entry(place).or_default().insert(Arc::new(entry)),
                None => drop(broken.insert(place)),
            }
        }
    }
    let mut restored = Restored { document: Document::new(cluster), reserved, dropped: Vec::new(), cleanup };
    for (place, keys) in keys {
        let head = heads.remove(&place).filter(|head| head.head().cluster == cluster && head.verify(verify));
        let held = head.and_then(|head| Held::restored(head, maps.remove(&place).unwrap_or_default()));
        match held.filter(|_| !broken.contains(&place)) {
            Some(held) => restored.document.place(Arc::new(held)),
            None => {
                restored.dropped.push((place.1, place.0));
                restored.cleanup.extend(keys.into_iter().map(|key| Write { key, value: None }));
            }
        }
    }
    restored
}

fn head_key(lane: Lane, author: &NodeKey) -> Vec<u8> {
    [&[HEAD, lane.code()], &author.0[..]].concat()
}

fn entry_key(lane: Lane, author: &NodeKey, path: &Digest) -> Vec<u8> {
    [&[ENTRY, lane.code()], &author.0[..], &path.0].concat()
}

/// The lane and author of a head's or entry's record, and the entry's path.
fn parse_key(key: &[u8]) -> Option<((Lane, NodeKey), Option<Digest>)> {
    let (_, rest) = key.split_first()?;
    let (lane, rest) = rest.split_first()?;
    let lane = Lane::from_code(*lane).filter(|lane| lane.is_durable())?;
    let (author, path) = rest.split_at_checked(32)?;
    let path = if path.is_empty() { None } else { Some(Digest::try_from(path).ok()?) };
    Some(((lane, NodeKey::try_from(author).ok()?), path))
}
