//! Which node, service or seed a person means. Owns the rules of identifiers: a node is named by its name or by a prefix
//! of its key, a service by its name, a seed by its name or by a prefix of its module's hash; `node/X`, `service/X` and
//! `seed/X` say which of them. Must not change anything.
//! Invariant: a name that several things answer to is never guessed: a node and another are refused with both; a
//! service and a seed, which have names of their own, are both meant.

use std::collections::BTreeSet;

use pollen_common::identity::{Digest, NodeKey};
use pollen_common::views::{Name, NodeInfo, View};

use crate::handle::Subject;
use crate::http::failure::{Code, Failure};
use crate::nearest::or_meant;
use crate::services::Listener;
use crate::workload::SeedRef;

/// How many candidates an ambiguous name is answered with: a screenful, whatever the cluster's size.
const CANDIDATES_MAX: usize = 10;

/// What `target` means: one thing, or a service and a seed of the same name.
///
/// # Errors
/// `NotFound`, or `Ambiguous` with the candidates.
pub fn target(view: &View, target: &str) -> Result<Vec<Subject>, Failure> {
    let (kind, bare) = match target.split_once('/') {
        Some((kind @ ("node" | "service" | "seed"), bare)) => (Some(kind), bare),
        _ => (None, target),
    };
    let may_be = |wanted: &str| kind.is_none_or(|kind| kind == wanted);
    // An exact name outranks the prefix of a key or hash: people choose the one and are given the other.
    let mut found = named(view, bare, may_be);
    if !found.is_empty() && found.iter().all(|subject| !matches!(subject, Subject::Node(_))) {
        return Ok(found);
    }
    if found.is_empty() {
        found.extend(nodes(view, bare).filter(|_| may_be("node")).map(|node| Subject::Node(node.key)));
        let seeds = seeds_of(view, &modules(view, bare));
        found.extend(seeds.into_iter().filter(|_| may_be("seed")).map(Subject::Seed));
    }
    let found = found.into_iter().map(|subject| {
        let shown = match &subject {
            Subject::Node(key) => format!("node/{}", view.nodes.get(key).map_or_else(String::new, show)),
            Subject::Service(name) => format!("service/{name}"),
            Subject::Seed(name) => format!("seed/{name}"),
        };
        (subject, shown)
    });
    one_of("node, service or seed", target, found.collect(), &names(view)).map(|subject| vec![subject])
}

fn named(view: &View, target: &str, may_be: impl Fn(&str) -> bool) -> Vec<Subject> {
    let nodes = view.nodes.values().filter(|node| may_be("node") && is_named(node, target));
    let nodes = nodes.map(|node| Subject::Node(node.key));
    let name = target.parse::<Name>().ok();
    let service = name.clone().filter(|name| may_be("service") && view.services.contains_key(name));
    let seed = name.filter(|name| may_be("seed") && view.seeds.contains_key(name));
    nodes.chain(service.map(Subject::Service)).chain(seed.map(Subject::Seed)).collect()
}

/// The member that `target` means.
///
/// # Errors
/// `NotFound`, or `Ambiguous` with the candidates.
pub fn member(view: &View, target: &str) -> Result<NodeKey, Failure> {
    let bare = target.strip_prefix("node/").unwrap_or(target);
    let mut found: Vec<&NodeInfo> = view.nodes.values().filter(|node| is_named(node, bare)).collect();
    if found.is_empty() {
        found.extend(nodes(view, bare));
    }
    let found = found.into_iter().map(|node| (node.key, show(node))).collect();
    let names = view.nodes.values().filter_map(|node| node.name.as_ref());
    one_of("node", target, found, &names.map(Name::as_str).collect::<Vec<_>>())
}

/// The member that `target` means, or a key that was a member, by a prefix of it; a whole key is itself, whoever has it.
///
/// # Errors
/// `NotFound`, or `Ambiguous` with the candidates.
pub fn member_or_key(view: &View, target: &str) -> Result<NodeKey, Failure> {
    let failure = match member(view, target) {
        Err(failure) if failure.code == Code::NotFound => failure,
        found => return found,
    };
    if let Ok(key) = target.parse() {
        return Ok(key);
    }
    let hex = target.to_ascii_lowercase();
    let out = view.fallen.keys().filter(|key| !hex.is_empty() && key.to_string().starts_with(&hex));
    let found: Vec<_> = out.map(|key| (*key, key.to_string())).collect();
    if found.is_empty() { Err(failure) } else { one_of("node", target, found, &[]) }
}

/// What a question for reasons is about: what [`target`] finds, else a key or a name that does not count, or that this
/// node listens for though nobody provides it. Just why it does not is what people want to know.
///
/// # Errors
/// `NotFound`, or `Ambiguous` with the candidates.
pub fn concerned(view: &View, listeners: &[Listener], target: &str) -> Result<Vec<Subject>, Failure> {
    let failure = match self::target(view, target) {
        Err(failure) if failure.code == Code::NotFound => failure,
        found => return found,
    };
    let (kind, bare) = target.split_once('/').unwrap_or(("", target));
    if let Ok(key) = bare.parse() {
        return Ok(vec![Subject::Node(key)]);
    }
    let name = bare.parse::<Name>().map_err(|_| failure.clone())?;
    let asked_for = |wanted| kind.is_empty() || kind == wanted;
    let mentioned = |of_seed: bool| {
        let mut refused = view.refused.iter().filter(|entry| entry.key.starts_with("seed/") == of_seed);
        refused.any(|entry| entry.key.split('/').any(|part| part == name.as_str()))
    };
    let listened_for = listeners.iter().any(|listener| listener.service.is_name(&name));
    let service = asked_for("service") && (listened_for || mentioned(false));
    let seed = asked_for("seed") && mentioned(true);
    let service = service.then(|| Subject::Service(name.clone()));
    let found: Vec<Subject> = service.into_iter().chain(seed.then_some(Subject::Seed(name))).collect();
    if found.is_empty() { Err(failure) } else { Ok(found) }
}

/// The seed that a call's or an owner's `target` means: its name, else the hash of its module or a prefix of it.
///
/// # Errors
/// `NotFound`, or `Ambiguous` with the candidates.
pub fn seed(view: &View, target: &str) -> Result<SeedRef, Failure> {
    let bare = target.strip_prefix("seed/").unwrap_or(target);
    if let Some(name) = bare.parse().ok().filter(|name| view.seeds.contains_key(name)) {
        return Ok(SeedRef::Name(name));
    }
    let found = modules(view, bare).into_iter().map(|module| (SeedRef::Module(module), module.to_string()));
    one_of("seed", target, found.collect(), &view.seeds.keys().map(Name::as_str).collect::<Vec<_>>())
}

/// All that anything is called.
fn names(view: &View) -> Vec<&str> {
    let nodes = view.nodes.values().filter_map(|node| node.name.as_ref());
    nodes.chain(view.services.keys()).chain(view.seeds.keys()).map(Name::as_str).collect()
}

/// The name of the one seed that `target` means.
///
/// # Errors
/// `NotFound`, or `Ambiguous` with the candidates.
pub fn seed_name(view: &View, target: &str) -> Result<Name, Failure> {
    match seed(view, target)? {
        SeedRef::Name(name) => Ok(name),
        SeedRef::Module(module) => {
            let names = seeds_of(view, &[module].into());
            one_of("seed", target, names.into_iter().map(|name| (name.clone(), format!("seed/{name}"))).collect(), &[])
        }
    }
}

/// The modules whose hash begins with `prefix`.
fn modules(view: &View, prefix: &str) -> BTreeSet<Digest> {
    let hex = prefix.to_ascii_lowercase();
    if hex.is_empty() || !hex.bytes().all(|c| c.is_ascii_hexdigit()) {
        return BTreeSet::new();
    }
    let all = view.seeds.values().flat_map(|seed| seed.versions.iter().map(|version| version.module));
    all.filter(|module| module.to_string().starts_with(&hex)).collect()
}

fn seeds_of(view: &View, modules: &BTreeSet<Digest>) -> BTreeSet<Name> {
    let of = |seed: &&pollen_common::views::SeedInfo| seed.versions.iter().any(|v| modules.contains(&v.module));
    view.seeds.values().filter(of).map(|seed| seed.name.clone()).collect()
}

/// The one that was found; `names` are those that may have been meant if none was.
fn one_of<T>(kind: &str, target: &str, mut found: Vec<(T, String)>, names: &[&str]) -> Result<T, Failure> {
    match found.len() {
        0 => {
            let bare = target.split_once('/').map_or(target, |(_, bare)| bare);
            let all = match kind {
                "seed" => "see `pln status seeds` for what there is",
                _ => "see `pln status --include-offline` for what there is",
            };
            Err(Failure::new(Code::NotFound, format!("there is no {kind} `{target}`")).hint(or_meant(
                bare,
                names.iter().copied(),
                all,
            )))
        }
        1 => Ok(found.remove(0).0),
        count => {
            let mut shown: Vec<String> = found.into_iter().take(CANDIDATES_MAX).map(|(_, show)| show).collect();
            if count > CANDIDATES_MAX {
                shown.push(format!("{} more", count - CANDIDATES_MAX));
            }
            Err(Failure::new(Code::Ambiguous, format!("`{target}` may mean {count} things"))
                .hint(format!("candidates: {}", shown.join(", "))))
        }
    }
}

/// Nodes whose key starts with `prefix`.
fn nodes<'a>(view: &'a View, prefix: &str) -> impl Iterator<Item = &'a NodeInfo> {
    let hex = prefix.to_ascii_lowercase();
    let is_hex = !hex.is_empty() && hex.bytes().all(|c| c.is_ascii_hexdigit());
    view.nodes.values().filter(move |node| is_hex && node.key.to_string().starts_with(&hex))
}

fn is_named(node: &NodeInfo, target: &str) -> bool {
    node.name.as_ref().is_some_and(|name| name.as_str().eq_ignore_ascii_case(target))
}

/// A node as a candidate: twelve digits of its key tell it from its namesakes.
fn show(node: &NodeInfo) -> String {
    let key = node.key.to_string();
    node.name.as_ref().map_or_else(|| key[..12].to_owned(), |name| format!("{} ({name})", &key[..12]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sample;

    fn service(name: &str) -> Subject {
        Subject::Service(name.parse().expect("a name"))
    }

    fn hello_seed() -> Subject {
        Subject::Seed("hello".parse().expect("a name"))
    }

    fn named_db() -> Name {
        "db".parse().expect("a name")
    }

    #[test]
    fn a_service_and_a_seed_of_one_name_are_both_meant() {
        let mut view = sample::view();
        let api: Name = "api".parse().expect("a name");
        let hello = view.seeds.remove("hello".parse::<Name>().as_ref().expect("a name")).expect("it is in the sample");
        view.seeds.insert(api.clone(), hello);
        assert_eq!(target(&view, "api"), Ok(vec![service("api"), Subject::Seed(api.clone())]));
        assert_eq!(target(&view, "service/api"), Ok(vec![service("api")]));
        assert_eq!(target(&view, "seed/api"), Ok(vec![Subject::Seed(api)]));
    }

    #[test]
    fn a_seed_is_called_by_name_or_by_the_hash_of_its_module() {
        let mut view = sample::view();
        let hello: Name = "hello".parse().expect("a name");
        let module = sample::hello_version().module;
        assert_eq!(seed(&view, "hello"), Ok(SeedRef::Name(hello.clone())));
        assert_eq!(seed(&view, &module.to_string()), Ok(SeedRef::Module(module)));
        assert_eq!(seed(&view, &module.to_string()[..4].to_uppercase()), Ok(SeedRef::Module(module)));
        assert_eq!(seed(&view, "absent").map_err(|f| f.code), Err(Code::NotFound));
        assert_eq!(seed_name(&view, &module.to_string()[..4]), Ok(hello.clone()));

        let mut other = view.seeds[&hello].clone();
        other.name = "other".parse().expect("a name");
        view.seeds.insert(other.name.clone(), other.clone());
        assert_eq!(seed(&view, &module.to_string()), Ok(SeedRef::Module(module)), "whichever runs it");
        assert_eq!(seed_name(&view, &module.to_string()).map_err(|f| f.code), Err(Code::Ambiguous));
        other.versions[0].module.0[31] ^= 1;
        view.seeds.insert(other.name.clone(), other);
        assert_eq!(seed(&view, &module.to_string()[..8]).map_err(|f| f.code), Err(Code::Ambiguous));
    }

    #[test]
    fn a_name_or_a_unique_prefix_is_enough() {
        let view = sample::view();
        let berlin = sample::key(2);
        let is_berlin = Ok(vec![Subject::Node(berlin)]);
        assert_eq!(target(&view, "berlin"), is_berlin);
        assert_eq!(target(&view, "Berlin"), is_berlin);
        assert_eq!(target(&view, &berlin.to_string()[..8]), is_berlin);
        assert_eq!(target(&view, &berlin.to_string()[..8].to_uppercase()), is_berlin);
        assert_eq!(target(&view, "api"), Ok(vec![service("api")]));
        let hello = sample::hello_version().module.to_string();
        assert_eq!(target(&view, "hello"), Ok(vec![hello_seed()]));
        assert_eq!(target(&view, &hello[..6]), Ok(vec![hello_seed()]), "by the hash of its module");
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let view = sample::view();
        assert!(target(&view, "brelin").unwrap_err().hint.expect("a way out").starts_with("did you mean `berlin`?"));
        assert!(seed(&view, "helo").unwrap_err().hint.expect("a way out").starts_with("did you mean `hello`?"));
        for absent in ["paris", "ffffffff", "", "node/api", "service/berlin", "zz/api"] {
            assert_eq!(target(&view, absent).map_err(|f| f.code), Err(Code::NotFound), "{absent}");
        }
    }

    #[test]
    fn namesakes_are_refused_with_their_candidates_and_told_apart_by_kind() {
        let mut view = sample::view();
        let berlin = view.nodes.get_mut(&sample::key(2)).expect("it is in the sample");
        berlin.name = Some("api".parse().expect("a name"));
        let failure = target(&view, "api").unwrap_err();
        assert_eq!(failure.code, Code::Ambiguous);
        let hint = failure.hint.expect("candidates");
        assert!(hint.contains("service/api") && hint.contains("node/"), "{hint}");
        assert_eq!(target(&view, "node/api"), Ok(vec![Subject::Node(sample::key(2))]));
        assert_eq!(target(&view, "service/api"), Ok(vec![service("api")]));
    }

    #[test]
    fn two_nodes_of_one_name_are_told_apart_by_key() {
        let mut view = sample::view();
        for node in view.nodes.values_mut() {
            node.name = Some("same".parse().expect("a name"));
        }
        assert_eq!(target(&view, "same").map_err(|f| f.code), Err(Code::Ambiguous));
        assert_eq!(target(&view, &sample::key(3).to_string()[..12]), Ok(vec![Subject::Node(sample::key(3))]));
    }

    #[test]
    fn reasons_can_be_asked_for_what_does_not_count() {
        let mut view = sample::view();
        let stranger = sample::key(77);
        assert_eq!(concerned(&view, &[], &stranger.to_string()), Ok(vec![Subject::Node(stranger)]));
        assert_eq!(concerned(&view, &[], &stranger.to_string()[..12]).map_err(|f| f.code), Err(Code::NotFound));
        assert_eq!(concerned(&view, &[], "db").map_err(|f| f.code), Err(Code::NotFound), "nobody ever claimed it");
        view.refused[0].key = "service/db".into();
        assert_eq!(concerned(&view, &[], "db"), Ok(vec![service("db")]));
        let mut listeners = sample::listeners();
        listeners[0].service = crate::services::ServiceRef::Name("gone".parse().expect("a name"));
        let gone = Ok(vec![service("gone")]);
        assert_eq!(concerned(&view, &listeners, "gone"), gone, "a listener outlives its service");
        assert_eq!(concerned(&view, &[], "berlin"), Ok(vec![Subject::Node(sample::key(2))]));
        view.refused[0].key = "seed/db".into();
        assert_eq!(concerned(&view, &[], "db"), Ok(vec![Subject::Seed(named_db())]), "seeds have names of their own");
        assert_eq!(concerned(&view, &[], "service/db").map_err(|f| f.code), Err(Code::NotFound));
    }
}
