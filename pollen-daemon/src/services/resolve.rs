//! What people mean by a service and a provider. Reads a view, changes nothing.

use std::time::Duration;

use pollen_common::identity::NodeKey;
use pollen_common::node::{Refusal, RefusalKind};
use pollen_common::views::{Name, Protocol, View};
use pollen_common::wire::streams::service::Target;

use crate::nearest::nearest;
use crate::services::ServiceRef;

/// How long a call or a `connect` waits for a name that is not known here yet: news of a publisher far away, over links
/// that lose some, comes within it. A name that is misspelt costs as much.
pub const COMING_MAX: Duration = Duration::from_secs(5);

/// Whether news of a name that `view` lacks can come: who has the mesh to itself knows all there is.
pub fn may_come(view: &View) -> bool {
    view.nodes.len() > 1
}

/// What a `connect` asks for, found in a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    pub target: Target,
    pub provider: Option<NodeKey>,
    pub protocol: Protocol,
    /// The service's own port, at one of its providers.
    pub port: u16,
}

/// Why a service or provider was not found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("no node is called {text} or has a key that starts so")]
    NoNode { text: String, near: Option<Name> },
    /// The words of a `connect` in another order.
    #[error("{name} is a service, not a node")]
    ServiceForNode { name: Name, port: u16 },
    #[error("{text} may mean {}", .matches.join(", "))]
    Ambiguous { text: String, matches: Vec<String> },
    #[error("no service is called {name}")]
    NoService { name: Name, near: Option<Name> },
    #[error("{0} is a node, not a service")]
    NodeForService(Name),
    #[error("{0} is a seed, which has no port")]
    SeedForService(Name),
    #[error("nobody provides {0} at present")]
    Nobody(Name),
    #[error("{provider} serves nothing on port {port}")]
    NothingOnPort { provider: String, port: u16 },
    #[error("{provider} does not provide {service}")]
    NotProvided { provider: String, service: Name },
    #[error("port {0} alone names no service")]
    PortWithoutProvider(u16),
}

impl From<ResolveError> for Refusal {
    fn from(error: ResolveError) -> Self {
        let meant = |near: &Option<Name>| {
            near.as_ref().map_or_else(String::new, |near| format!("did you mean `{near}`? else "))
        };
        let (kind, hint) = match &error {
            ResolveError::NoNode { near, .. } => {
                (RefusalKind::NotFound, format!("{}see `pln status nodes --include-offline`", meant(near)))
            }
            ResolveError::ServiceForNode { name, port } => (RefusalKind::Usage, format!("`pln connect {name} {port}`")),
            ResolveError::Ambiguous { .. } => (RefusalKind::Ambiguous, "give more of the key".into()),
            ResolveError::NoService { near, .. } => {
                (RefusalKind::NotFound, format!("{}see `pln status services`", meant(near)))
            }
            ResolveError::NodeForService(name) => {
                (RefusalKind::NotFound, format!("a port that it serves: `pln connect PORT {name}`"))
            }
            ResolveError::SeedForService(name) => {
                (RefusalKind::NotFound, format!("`pln call {name} FUNCTION` calls it"))
            }
            ResolveError::NothingOnPort { .. } | ResolveError::NotProvided { .. } | ResolveError::Nobody(_) => {
                (RefusalKind::NotFound, "see `pln status services`".into())
            }
            ResolveError::PortWithoutProvider(port) => {
                (RefusalKind::Usage, format!("name its provider too: `pln connect {port} PROVIDER`"))
            }
        };
        Self { kind, message: error.to_string(), hint: Some(hint) }
    }
}

/// A node by its name, or by a prefix of its hexadecimal key. A name wins over a prefix.
///
/// # Errors
/// When no node, or more than one, is meant.
pub fn node(view: &View, text: &str) -> Result<NodeKey, ResolveError> {
    let wanted = text.to_ascii_lowercase();
    let named: Vec<NodeKey> = view
        .nodes
        .values()
        .filter(|node| node.name.as_ref().is_some_and(|name| name.as_str() == wanted))
        .map(|node| node.key)
        .collect();
    let found = if named.is_empty() && !wanted.is_empty() {
        view.nodes.keys().copied().filter(|key| key.to_string().starts_with(&wanted)).collect()
    } else {
        named
    };
    match found.as_slice() {
        [] => {
            let names = view.nodes.values().filter_map(|node| node.name.as_ref());
            Err(ResolveError::NoNode { text: text.to_owned(), near: near(&wanted, names) })
        }
        [one] => Ok(*one),
        several => {
            /// Enough to tell them apart by; a cluster may hold thousands.
            const SHOWN_MAX: usize = 4;
            let matches = several.iter().take(SHOWN_MAX).map(NodeKey::short).collect();
            Err(ResolveError::Ambiguous { text: text.to_owned(), matches })
        }
    }
}

/// A service by its name, or by its provider and port.
///
/// In each protocol that it speaks, TCP first; at least one.
pub(super) fn service(
    view: &View,
    service: &ServiceRef,
    provider: Option<&str>,
) -> Result<Vec<Resolved>, ResolveError> {
    let pinned = provider.map(|text| node(view, text)).transpose().map_err(|error| match (error, service) {
        (ResolveError::NoNode { text, near }, ServiceRef::Port(port)) => match text.parse() {
            Ok(name) if view.services.contains_key(&name) => ResolveError::ServiceForNode { name, port: *port },
            _ => ResolveError::NoNode { text, near },
        },
        (error, _) => error,
    })?;
    match service {
        ServiceRef::Name(name) => {
            let info = view.services.get(name).ok_or_else(|| unknown(view, name))?;
            let providers = info.providers.iter().filter(|p| pinned.is_none_or(|pinned| p.node == pinned));
            let providers: Vec<_> = providers.collect();
            let of = |protocol| {
                let first = providers.iter().find(|p| p.protocol == protocol)?;
                Some(Resolved { target: Target::Name(name.clone()), provider: pinned, protocol, port: first.port })
            };
            let found: Vec<_> = Protocol::BOTH.into_iter().filter_map(of).collect();
            match provider {
                _ if !found.is_empty() => Ok(found),
                Some(provider) => {
                    Err(ResolveError::NotProvided { provider: provider.to_owned(), service: name.clone() })
                }
                None => Err(ResolveError::Nobody(name.clone())),
            }
        }
        ServiceRef::Port(port) => {
            let (Some(pinned), Some(text)) = (pinned, provider) else {
                return Err(ResolveError::PortWithoutProvider(*port));
            };
            let spoken = Protocol::BOTH.into_iter().filter(|protocol| serves_port(view, &pinned, *port, *protocol));
            let resolved =
                |protocol| Resolved { target: Target::Port(*port), provider: Some(pinned), protocol, port: *port };
            let found: Vec<_> = spoken.map(resolved).collect();
            if found.is_empty() {
                return Err(ResolveError::NothingOnPort { provider: text.to_owned(), port: *port });
            }
            Ok(found)
        }
    }
}

fn near<'a>(wanted: &str, names: impl Iterator<Item = &'a Name>) -> Option<Name> {
    nearest(wanted, names.map(Name::as_str)).and_then(|name| name.parse().ok())
}

fn unknown(view: &View, name: &Name) -> ResolveError {
    if view.seeds.contains_key(name) {
        return ResolveError::SeedForService(name.clone());
    }
    if view.nodes.values().any(|node| node.name.as_ref() == Some(name)) {
        return ResolveError::NodeForService(name.clone());
    }
    ResolveError::NoService { name: name.clone(), near: near(name.as_str(), view.services.keys()) }
}

/// Whether `node` serves a port, under any name or none.
pub(super) fn serves_port(view: &View, node: &NodeKey, port: u16, protocol: Protocol) -> bool {
    let named = view.services.values().flat_map(|service| &service.providers);
    named.chain(&view.unnamed).any(|p| p.node == *node && p.port == port && p.protocol == protocol)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::tests::view::ViewBuilder;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn a_node_is_meant_by_its_name_or_by_enough_of_its_key() {
        let (a, b) = (NodeKey([0xab; 32]), NodeKey([0xac; 32]));
        let view = ViewBuilder::new(a).node(a, Some("alpha")).node(b, Some("ab")).build();
        assert_eq!(node(&view, "Alpha"), Ok(a));
        assert_eq!(node(&view, "ab"), Ok(b), "a name wins over a prefix");
        assert_eq!(node(&view, "aba"), Ok(a));
        assert!(matches!(node(&view, "a"), Err(ResolveError::Ambiguous { .. })));
        assert!(matches!(node(&view, "x"), Err(ResolveError::NoNode { near: None, .. })));
        assert!(matches!(node(&view, ""), Err(ResolveError::NoNode { .. })));
        let meant = Some(name("alpha"));
        assert_eq!(node(&view, "aplha"), Err(ResolveError::NoNode { text: "aplha".into(), near: meant }));
    }

    #[test]
    fn a_service_is_meant_by_its_name_or_by_provider_and_port() {
        let (a, b) = (NodeKey([1; 32]), NodeKey([2; 32]));
        let view = ViewBuilder::new(a)
            .node(a, Some("a"))
            .node(b, Some("b"))
            .service("api", Protocol::Tcp, &[(b, 8080)])
            .unnamed(b, Protocol::Udp, 53)
            .build();
        let api = service(&view, &ServiceRef::Name(name("api")), None).expect("served").remove(0);
        assert_eq!((api.target, api.provider, api.port), (Target::Name(name("api")), None, 8080));
        let dns = service(&view, &ServiceRef::Port(53), Some("b")).expect("served").remove(0);
        assert_eq!((dns.target, dns.provider, dns.protocol), (Target::Port(53), Some(b), Protocol::Udp));
        let refused = |r: &ServiceRef, p| Refusal::from(service(&view, r, p).expect_err("refused")).kind;
        assert_eq!(refused(&ServiceRef::Name(name("nope")), None), RefusalKind::NotFound);
        assert_eq!(refused(&ServiceRef::Name(name("api")), Some("a")), RefusalKind::NotFound);
        assert_eq!(refused(&ServiceRef::Port(54), Some("b")), RefusalKind::NotFound);
        assert_eq!(refused(&ServiceRef::Port(53), None), RefusalKind::Usage);
    }

    #[test]
    fn words_that_name_something_else_are_told_what_to_type() {
        let b = NodeKey([2; 32]);
        let view = ViewBuilder::new(b).node(b, Some("berlin")).service("api", Protocol::Tcp, &[(b, 8080)]).build();
        let hint = |r: &str, p| {
            let refused = service(&view, &r.parse().expect("a service"), p).expect_err("refused");
            Refusal::from(refused).hint.expect("what to do")
        };
        assert_eq!(hint("8080", Some("api")), "`pln connect api 8080`");
        assert_eq!(hint("berlin", None), "a port that it serves: `pln connect PORT berlin`");
        assert_eq!(hint("apj", None), "did you mean `api`? else see `pln status services`");
        assert_eq!(hint("mail", None), "see `pln status services`");
    }
}
