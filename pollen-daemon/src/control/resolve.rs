//! Which node or service a person means. Owns the rules of identifiers: a node is named by its name or by a prefix of
//! its key, a service by its name; `node/X` and `service/X` say which of the two. Must not change anything.
//! Invariant: a name that two things answer to is refused with both, never guessed.

use pollen_common::views::{Name, NodeInfo, View};

use crate::control::failure::{Code, Failure};
use crate::control::handle::{Listener, Subject};

/// How many candidates an ambiguous name is answered with: a screenful, whatever the cluster's size.
const CANDIDATES_MAX: usize = 10;

/// The node or service that `target` means.
///
/// # Errors
/// `NotFound`, or `Ambiguous` with the candidates.
pub fn target(view: &View, target: &str) -> Result<Subject, Failure> {
    let (nodes, services) = match target.split_once('/') {
        Some(("node", rest)) => (nodes(view, rest), Vec::new()),
        Some(("service", rest)) => (Vec::new(), services(view, rest)),
        _ => (nodes(view, target), services(view, target)),
    };
    // An exact name outranks the prefix of a key: people choose the one and are given the other.
    let by_key = |node: &NodeInfo| !is_named(node, target);
    let nodes = if services.is_empty() { nodes } else { nodes.into_iter().filter(|n| !by_key(n)).collect() };
    let found: Vec<(Subject, String)> = nodes
        .into_iter()
        .map(|node| (Subject::Node(node.key), format!("node/{}", show(node))))
        .chain(services)
        .collect();
    one(target, found)
}

/// What a question for reasons is about: what [`target`] finds, else a key or a name that does not count, or that this
/// node listens for though nobody provides it. Just why it does not is what people want to know.
///
/// # Errors
/// `NotFound`, or `Ambiguous` with the candidates.
pub fn concerned(view: &View, listeners: &[Listener], target: &str) -> Result<Subject, Failure> {
    let failure = match self::target(view, target) {
        Err(failure) if failure.code == Code::NotFound => failure,
        found => return found,
    };
    let bare = target.strip_prefix("node/").or_else(|| target.strip_prefix("service/")).unwrap_or(target);
    if let Ok(key) = bare.parse() {
        return Ok(Subject::Node(key));
    }
    let name = bare.parse::<Name>().map_err(|_| failure.clone())?;
    let mentioned = |key: &str| key.split('/').any(|part| part == name.as_str());
    let listened_for = listeners.iter().any(|listener| listener.service.is_name(&name));
    let known = listened_for || view.refused.iter().any(|entry| mentioned(&entry.key));
    if known { Ok(Subject::Service(name)) } else { Err(failure) }
}

fn one<T>(target: &str, mut found: Vec<(T, String)>) -> Result<T, Failure> {
    match found.len() {
        0 => Err(Failure::new(Code::NotFound, format!("there is no node or service `{target}`"))
            .hint("see `pln status --include-offline` for what there is")),
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

/// Nodes of that name; if there is none, those whose key starts with it.
fn nodes<'a>(view: &'a View, target: &str) -> Vec<&'a NodeInfo> {
    let named: Vec<&NodeInfo> = view.nodes.values().filter(|node| is_named(node, target)).collect();
    if !named.is_empty() {
        return named;
    }
    let hex = target.to_ascii_lowercase();
    let is_hex = !hex.is_empty() && hex.bytes().all(|c| c.is_ascii_hexdigit());
    view.nodes.values().filter(|node| is_hex && node.key.to_string().starts_with(&hex)).collect()
}

fn is_named(node: &NodeInfo, target: &str) -> bool {
    node.name.as_ref().is_some_and(|name| name.as_str().eq_ignore_ascii_case(target))
}

fn services(view: &View, target: &str) -> Vec<(Subject, String)> {
    let name = target.parse().ok().filter(|name| view.services.contains_key(name));
    name.into_iter().map(|name| (Subject::Service(name), format!("service/{target}"))).collect()
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

    #[test]
    fn a_name_or_a_unique_prefix_is_enough() {
        let view = sample::view();
        let berlin = sample::key(2);
        assert_eq!(target(&view, "berlin"), Ok(Subject::Node(berlin)));
        assert_eq!(target(&view, "Berlin"), Ok(Subject::Node(berlin)));
        assert_eq!(target(&view, &berlin.to_string()[..8]), Ok(Subject::Node(berlin)));
        assert_eq!(target(&view, &berlin.to_string()[..8].to_uppercase()), Ok(Subject::Node(berlin)));
        assert_eq!(target(&view, "api"), Ok(Subject::Service("api".parse().expect("a name"))));
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let view = sample::view();
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
        assert_eq!(target(&view, "node/api"), Ok(Subject::Node(sample::key(2))));
        assert_eq!(target(&view, "service/api"), Ok(Subject::Service("api".parse().expect("a name"))));
    }

    #[test]
    fn two_nodes_of_one_name_are_told_apart_by_key() {
        let mut view = sample::view();
        for node in view.nodes.values_mut() {
            node.name = Some("same".parse().expect("a name"));
        }
        assert_eq!(target(&view, "same").map_err(|f| f.code), Err(Code::Ambiguous));
        assert_eq!(target(&view, &sample::key(3).to_string()[..12]), Ok(Subject::Node(sample::key(3))));
    }

    #[test]
    fn reasons_can_be_asked_for_what_does_not_count() {
        let mut view = sample::view();
        let stranger = sample::key(77);
        assert_eq!(concerned(&view, &[], &stranger.to_string()), Ok(Subject::Node(stranger)));
        assert_eq!(concerned(&view, &[], &stranger.to_string()[..12]).map_err(|f| f.code), Err(Code::NotFound));
        assert_eq!(concerned(&view, &[], "db").map_err(|f| f.code), Err(Code::NotFound), "nobody ever claimed it");
        view.refused[0].key = "service/db".into();
        assert_eq!(concerned(&view, &[], "db"), Ok(Subject::Service("db".parse().expect("a name"))));
        let mut listeners = sample::listeners();
        listeners[0].service = crate::control::handle::ServiceRef::Name("gone".parse().expect("a name"));
        let gone = Subject::Service("gone".parse().expect("a name"));
        assert_eq!(concerned(&view, &listeners, "gone"), Ok(gone), "a listener outlives its service");
        assert_eq!(concerned(&view, &[], "berlin"), Ok(Subject::Node(sample::key(2))));
    }
}
