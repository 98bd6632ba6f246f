//! The node's durable records: one-byte table prefixes over opaque keys. Owns the prefixes `r` (statements of the
//! roll, by slot), `g` (genesis), `c` (contacts) and `w` (comes back without its maps); those of author maps are [`crate::maps::records`]'s.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::Write;
use crate::identity::{Digest, NodeKey, Verify};
use crate::maps;
use crate::roll::{Genesis, Roll, Standing, Statement};

/// Contacts kept: those of one token and of its redemption.
pub(super) const CONTACTS_MAX: usize = 16;

const GENESIS: u8 = b'g';
const STATEMENT: u8 = b'r';
const CONTACT: u8 = b'c';
const RETURNING: u8 = b'w';

/// Why records do not make a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("this node belongs to no cluster yet")]
    NoCluster,
    #[error("the record of the cluster's genesis is damaged")]
    Genesis,
}

pub(super) struct Restored {
    pub(super) roll: Roll,
    pub(super) lanes: maps::records::Restored,
    pub(super) contacts: BTreeMap<NodeKey, Vec<SocketAddr>>,
    /// Its own maps were lost: neighbours alone have them.
    pub(super) returning: bool,
}

pub(super) fn restore(
    records: &[(Vec<u8>, Vec<u8>)],
    verify: &(dyn Verify + Send + Sync),
) -> Result<Restored, RestoreError> {
    let table = |prefix: u8| records.iter().filter(move |(key, _)| key.first() == Some(&prefix));
    let (_, genesis) = table(GENESIS).next().ok_or(RestoreError::NoCluster)?;
    let genesis = Genesis::decode(genesis).ok().filter(|genesis| genesis.verify(verify));
    let mut roll = Roll::new(genesis.ok_or(RestoreError::Genesis)?);
    // A statement that does not decode is damage; a neighbour has it still.
    let statements = table(STATEMENT).filter_map(|(_, bytes)| Statement::decode(bytes).ok()).map(Arc::new);
    roll.merge(statements, verify);
    let contacts = table(CONTACT).filter_map(|(key, value)| {
        Some((NodeKey::try_from(&key[1..]).ok()?, minicbor::decode::<Vec<SocketAddr>>(value).ok()?))
    });
    let contacts = contacts.take(CONTACTS_MAX * 2).collect();
    let entries = records.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
    let lanes = maps::records::restore(roll.cluster(), entries, verify);
    let returning = table(RETURNING).next().is_some();
    Ok(Restored { roll, lanes, contacts, returning })
}

pub(super) fn statement_key(slot: &Digest) -> Vec<u8> {
    prefixed(STATEMENT, &slot.0)
}

pub(super) fn statement_write(statement: &Arc<Statement>) -> Write {
    Write { key: statement_key(&statement.slot()), value: Some(statement.bytes().to_vec()) }
}

/// All records of a roll.
pub(super) fn of_roll(roll: &Roll) -> Vec<Write> {
    let genesis = Write { key: alloc::vec![GENESIS], value: Some(roll.lineage().genesis.bytes().to_vec()) };
    core::iter::once(genesis).chain(roll.trie().values().map(statement_write)).collect()
}

/// Says, or takes back, that the records are not all that this node had.
pub(super) fn returning(is: bool) -> Write {
    Write { key: alloc::vec![RETURNING], value: is.then(Vec::new) }
}

/// What shows that `members` stand, to one who holds nothing else.
pub(super) fn of_members(roll: &Roll, standing: &Standing, members: &[NodeKey]) -> Vec<Write> {
    let lineage = roll.lineage();
    let genesis = Write { key: alloc::vec![GENESIS], value: Some(lineage.genesis.bytes().to_vec()) };
    let shown = members.iter().flat_map(|key| standing.bundle(key)).chain(lineage.rotations);
    let statements: BTreeMap<_, _> = shown.map(|statement| (statement.slot(), statement)).collect();
    core::iter::once(genesis).chain(statements.values().map(statement_write)).collect()
}

pub(super) fn contact(key: &NodeKey, addrs: &[SocketAddr]) -> Write {
    // Writing to a Vec cannot fail.
    let value = minicbor::to_vec(addrs).unwrap_or_default();
    Write { key: prefixed(CONTACT, &key.0), value: Some(value) }
}

fn prefixed(prefix: u8, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + key.len());
    bytes.push(prefix);
    bytes.extend_from_slice(key);
    bytes
}
