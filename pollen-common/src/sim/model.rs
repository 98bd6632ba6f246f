//! What the replicated state must be, kept as plainly as possible: for each machine and key the values that may be
//! there. Owns nothing of how replicas agree.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::identity::NodeKey;

/// What a reader may find at one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The last acknowledged value; `None`: deleted or never there.
    pub acknowledged: Option<Vec<u8>>,
    /// Values asked for after it whose acknowledgement has not come: any may have taken effect.
    pub uncertain: Vec<Option<Vec<u8>>>,
}

impl Expected {
    fn allows(&self, found: Option<&[u8]>) -> bool {
        self.acknowledged.as_deref() == found || self.uncertain.iter().any(|value| value.as_deref() == found)
    }
}

/// All machines' shared state.
#[derive(Clone, Debug, Default)]
pub struct Model {
    keys: BTreeMap<(NodeKey, Vec<u8>), Expected>,
}

impl Model {
    /// A write or deletion was asked for.
    pub fn asked(&mut self, author: NodeKey, key: &[u8], value: Option<Vec<u8>>) {
        let entry = self.keys.entry((author, key.to_vec()));
        entry.or_insert(Expected { acknowledged: None, uncertain: Vec::new() }).uncertain.push(value);
    }

    /// It was acknowledged: it and everything asked for before it is settled.
    pub fn acknowledged(&mut self, author: NodeKey, key: &[u8], value: &Option<Vec<u8>>) {
        let Some(expected) = self.keys.get_mut(&(author, key.to_vec())) else { return };
        if let Some(at) = expected.uncertain.iter().position(|other| other == value) {
            expected.uncertain.drain(..=at);
        }
        expected.acknowledged.clone_from(value);
    }

    /// The first way in which `found` (all entries of all state lanes) is not what it must be.
    pub fn fault(&self, found: &BTreeMap<(NodeKey, Vec<u8>), Vec<u8>>) -> Option<Fault> {
        let keys: BTreeSet<_> = self.keys.keys().chain(found.keys()).collect();
        keys.into_iter().find_map(|at| {
            let found = found.get(at).map(Vec::as_slice);
            let allowed = self.keys.get(at).is_some_and(|expected| expected.allows(found));
            (!allowed).then(|| Fault {
                author: at.0,
                key: at.1.clone(),
                found: found.map(<[u8]>::to_vec),
                expected: self.keys.get(at).cloned(),
            })
        })
    }

    /// How many keys were ever written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// One key at which replicas hold what nobody wrote, or lack what was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub author: NodeKey,
    pub key: Vec<u8>,
    pub found: Option<Vec<u8>>,
    pub expected: Option<Expected>,
}
