//! What nodes say of hosting: what they offer, which versions they are ready to serve, which modules they keep, who
//! leaves. Owns which of it counts; must not know who is online. Invariant: only what a seed's owner names is counted,
//! and no node says more than a bounded amount.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::entries::{self, SeedClaim};
use super::{Capacity, Inability, Name, VersionId};
use crate::identity::{Digest, NodeKey};

/// The most replicas of one node that count: more than its pool has instances for.
pub const REPLICAS_MAX: usize = 512;

/// The most modules that one node is asked for: enough to bring every seed of a busy publisher back.
pub const HOLDS_MAX: usize = 256;

/// The most versions of one node that count as beyond it: a node that is beyond so many has said enough.
pub const UNABLE_MAX: usize = 256;

/// An entry that does not count: author, key, the seed it is about, why.
type Uncounted = (NodeKey, Vec<u8>, Option<Name>, String);

/// All that members say of hosting.
#[derive(Clone, Debug, Default)]
pub(super) struct Hosts {
    pub capacity: BTreeMap<NodeKey, Capacity>,
    pub draining: BTreeSet<NodeKey>,
    /// Who is ready to serve, by seed and version. Those of versions that a claim no longer names are kept under the
    /// name that they were said under.
    pub replicas: BTreeMap<Name, BTreeMap<VersionId, BTreeSet<NodeKey>>>,
    pub holding: BTreeMap<Digest, BTreeSet<NodeKey>>,
    /// Who says that it serves a version which no claim names, whatever the name.
    pub retiring: BTreeMap<VersionId, BTreeSet<NodeKey>>,
    /// Which versions a node cannot make ready.
    pub unable: BTreeMap<NodeKey, BTreeMap<VersionId, Inability>>,
    ready: BTreeMap<NodeKey, BTreeMap<VersionId, Name>>,
    kept: BTreeMap<NodeKey, BTreeSet<Digest>>,
}

impl Hosts {
    pub(super) fn say_ready(&mut self, author: NodeKey, version: VersionId, name: Name) -> Result<(), String> {
        let ready = self.ready.entry(author).or_default();
        if ready.len() >= REPLICAS_MAX {
            return Err(format!("its author says that it serves more than {REPLICAS_MAX} versions"));
        }
        ready.insert(version, name);
        Ok(())
    }

    pub(super) fn say_holding(&mut self, author: NodeKey, module: Digest) -> Result<(), String> {
        let kept = self.kept.entry(author).or_default();
        if kept.len() >= HOLDS_MAX {
            return Err(format!("its author says that it keeps more than {HOLDS_MAX} modules"));
        }
        kept.insert(module);
        Ok(())
    }

    pub(super) fn say_unable(&mut self, author: NodeKey, version: VersionId, why: Inability) -> Result<(), String> {
        let unable = self.unable.entry(author).or_default();
        if unable.len() >= UNABLE_MAX {
            return Err(format!("its author says that it cannot make more than {UNABLE_MAX} versions ready"));
        }
        unable.insert(version, why);
        Ok(())
    }

    /// Counts what the claims that won name; returns what does not count.
    pub(super) fn settle<'a>(&mut self, claims: impl Iterator<Item = (&'a Name, &'a SeedClaim)>) -> Vec<Uncounted> {
        let (mut names, mut modules) = (BTreeMap::<VersionId, Vec<&Name>>::new(), BTreeSet::new());
        let mut claimed = BTreeSet::new();
        for (name, claim) in claims {
            claimed.insert(name);
            for version in &claim.versions {
                names.entry(version.id()).or_default().push(name);
                modules.insert(version.module);
            }
        }
        let mut uncounted = Vec::new();
        for (author, ready) in core::mem::take(&mut self.ready) {
            for (version, said) in ready {
                if !names.contains_key(&version) {
                    self.retiring.entry(version).or_default().insert(author);
                }
                // One replica serves all seeds that name its version, whichever it was started for.
                let under = match names.get(&version) {
                    Some(names) => &names[..],
                    None if claimed.contains(&said) => &[&said],
                    None => {
                        let key = entries::replica(&version, &said).0;
                        uncounted.push((author, key, Some(said), "no seed names this version".into()));
                        continue;
                    }
                };
                for name in under {
                    let of_name = self.replicas.entry((*name).clone()).or_default();
                    of_name.entry(version).or_default().insert(author);
                }
            }
        }
        for (author, kept) in core::mem::take(&mut self.kept) {
            for module in kept {
                if modules.contains(&module) {
                    self.holding.entry(module).or_default().insert(author);
                } else {
                    uncounted.push((author, entries::holding(&module).0, None, "no seed names this module".into()));
                }
            }
        }
        for (author, unable) in &mut self.unable {
            unable.retain(|version, why| {
                let named = names.contains_key(version);
                if !named {
                    let key = entries::unable(version, *why).0;
                    uncounted.push((*author, key, None, "no seed names this version".into()));
                }
                named
            });
        }
        uncounted
    }
}
