//! What a call is aimed at and what that means in a view; and addresses as guests write them. Reads views, changes
//! nothing.
//! Invariant: what a name means is decided by the view alone, so that every node that sees the same decides the same.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use pollen_common::identity::{Digest, NodeKey};
use pollen_common::views::{Name, SeedInfo, SeedVersion, VersionId, View};
use pollen_common::wire::streams::call::FUNCTION_BYTES_MAX;

use crate::workload::SeedRef;

/// What a target means in a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    pub name: Name,
    pub id: VersionId,
    pub idempotent: bool,
    /// Only versions of this module will do.
    pub module: Option<Digest>,
    /// Who says that it is ready to serve the version; where nobody does, who serves another version of the seed, as
    /// they may have this one by now.
    pub hosts: BTreeSet<NodeKey>,
}

/// What `target` means in `view`, if anything. By name: the version that answers. By hash: any seed's version of the
/// module, the one with the most ready replicas.
fn resolve(view: &View, target: &SeedRef) -> Option<Resolved> {
    match target {
        SeedRef::Name(name) => view.seeds.get(name).map(|seed| resolved(seed, seed.current(), None)),
        SeedRef::Module(module) => view
            .seeds
            .values()
            .flat_map(|seed| seed.versions.iter().map(move |version| (seed, version)))
            .filter(|(_, version)| version.module == *module)
            .map(|(seed, version)| resolved(seed, version, Some(*module)))
            .max_by_key(|resolved| resolved.hosts.len()),
    }
}

fn resolved(seed: &SeedInfo, version: &SeedVersion, module: Option<Digest>) -> Resolved {
    let id = version.id();
    let ready = seed.replicas.get(&id).filter(|hosts| !hosts.is_empty());
    let hosts = match (ready, module) {
        (Some(hosts), _) => hosts.clone(),
        (None, None) => seed.replicas.values().flatten().copied().collect(),
        (None, Some(_)) => BTreeSet::new(),
    };
    Resolved { name: seed.name.clone(), id, idempotent: version.idempotent, module, hosts }
}

/// What targets mean in the newest view that a call has seen: a thousand calls a second ask the same.
#[derive(Default)]
pub(super) struct Meanings(Mutex<Known>);

#[derive(Default)]
struct Known {
    view: Option<Arc<View>>,
    /// Only what the view has: as many as it has names and modules.
    found: BTreeMap<SeedRef, Arc<Resolved>>,
}

impl Meanings {
    /// As [`resolve`].
    pub(super) fn of(&self, view: &Arc<View>, target: &SeedRef) -> Option<Arc<Resolved>> {
        let mut known = self.0.lock().expect("nothing panics while it holds this lock");
        if !known.view.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, view)) {
            *known = Known { view: Some(Arc::clone(view)), found: BTreeMap::new() };
        }
        if let Some(found) = known.found.get(target) {
            return Some(Arc::clone(found));
        }
        let found = Arc::new(resolve(view, target)?);
        known.found.insert(target.clone(), Arc::clone(&found));
        Some(found)
    }
}

/// What this node may answer with in place of a version that it does not host: the caller's view may be older than
/// ours, or newer.
pub(super) fn in_place_of(view: &View, name: &Name, module: Option<Digest>) -> Vec<VersionId> {
    let versions = view.seeds.get(name).into_iter().flat_map(|seed| &seed.versions);
    match module {
        Some(module) => versions.filter(|version| version.module == module).map(SeedVersion::id).collect(),
        None => versions.take(1).map(SeedVersion::id).collect(),
    }
}

/// Where a guest's request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Uri {
    Seed { name: Name, function: String },
    Service(Name),
}

/// A request's address that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither pln://seed/NAME/FUNCTION nor pln://service/NAME")]
pub(super) struct UriError(String);

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        /// Of an address in an error's text.
        const SHOWN_MAX: usize = 200;
        let wrong = || UriError(text.chars().take(SHOWN_MAX).collect());
        let rest = text.strip_prefix("pln://").ok_or_else(wrong)?;
        if let Some(name) = rest.strip_prefix("service/") {
            return name.parse().map(Self::Service).map_err(|_| wrong());
        }
        let (name, function) = rest.strip_prefix("seed/").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
        if function.is_empty() || function.len() > FUNCTION_BYTES_MAX {
            return Err(wrong());
        }
        Ok(Self::Seed { name: name.parse().map_err(|_| wrong())?, function: function.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::tests::view::ViewBuilder;
    use crate::workload::calls::tests::{seed_version, with_seed};

    const ME: NodeKey = NodeKey([1; 32]);
    const HOST: NodeKey = NodeKey([2; 32]);

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn a_name_means_the_version_that_answers_and_those_who_are_ready_for_it() {
        let (now, next) = (seed_version(1), seed_version(2));
        let view = with_seed(ViewBuilder::new(ME), "hello", &[now, next], &[(now, &[HOST]), (next, &[ME])]).build();
        let found = resolve(&view, &SeedRef::Name(name("hello"))).expect("there is one");
        assert_eq!((found.id, found.hosts, found.module), (now.id(), [HOST].into(), None));
        assert_eq!(resolve(&view, &SeedRef::Name(name("nope"))), None);
        assert_eq!(in_place_of(&view, &name("hello"), None), [now.id()]);
        assert_eq!(in_place_of(&view, &name("hello"), Some(next.module)), [next.id()]);
    }

    #[test]
    fn where_nobody_is_ready_for_a_new_version_those_of_the_old_one_are_asked() {
        let (old, new) = (seed_version(1), seed_version(2));
        let view = with_seed(ViewBuilder::new(ME), "hello", &[new], &[(old, &[HOST])]).build();
        let found = resolve(&view, &SeedRef::Name(name("hello"))).expect("there is one");
        assert_eq!((found.id, found.hosts), (new.id(), [HOST].into()));
        let found = resolve(&view, &SeedRef::Module(new.module)).expect("there is one");
        assert_eq!(found.hosts, [].into(), "but never in place of what was named by its hash");
    }

    #[test]
    fn a_hash_means_any_seeds_version_of_the_module_that_is_hosted() {
        let (a, b) = (seed_version(1), seed_version(2));
        let view = with_seed(ViewBuilder::new(ME), "a", &[a], &[]);
        let view = with_seed(view, "b", &[b], &[(b, &[HOST])]);
        let view = with_seed(view, "c", &[b], &[]).build();
        let found = resolve(&view, &SeedRef::Module(b.module)).expect("there are two");
        assert_eq!((found.name, found.module), (name("b"), Some(b.module)));
    }

    #[test]
    fn addresses_of_guests_are_seeds_with_a_function_and_services() {
        let seed = Uri::Seed { name: "n".parse().expect("a name"), function: "f/g".into() };
        assert_eq!("pln://seed/n/f/g".parse(), Ok(seed));
        assert_eq!("pln://service/n".parse(), Ok(Uri::Service("n".parse().expect("a name"))));
        for bad in ["", "pln://seed/n", "pln://seed/n/", "pln://service/80", "http://x", "pln://service/a/b"] {
            assert!(bad.parse::<Uri>().is_err(), "{bad}");
        }
    }
}
