//! What this node serves: local ports, with or without a name. Owns the table and its lookup; announcing an export to
//! the cluster is the node's part.
//! Invariant: a name stands for at most one port of each protocol, and an unnamed port stands once for each protocol.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use pollen_common::views::{Name, Policy, Protocol};
use pollen_common::wire::streams::service::Target;
use tokio::net::TcpStream;

use super::server::Server;
use super::tally::Tally;
use crate::services::ServiceRef;

/// Ports that one node serves. Far more than a machine has servers; each is a replicated entry as well.
pub const EXPORTS_MAX: usize = 1024;
/// How long a local server may take to accept. It is on this machine: longer means that its backlog is full.
const LOCAL_DIAL_MAX: Duration = Duration::from_secs(5);

/// A local port that this node serves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Export {
    pub name: Option<Name>,
    pub protocol: Protocol,
    pub port: u16,
    /// Whether other publishers may provide the same name; only the announcement depends on it.
    pub shared: bool,
    /// Where the server is.
    pub server: Server,
    /// Who may reach it; of a name in both protocols.
    pub policy: Policy,
}

impl Export {
    /// As people name it.
    #[must_use]
    pub fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| self.port.to_string(), Name::to_string)
    }

    /// Whether streams of `other` are streams of this: the same port under the same name.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.name == other.name
            && self.protocol == other.protocol
            && self.port == other.port
            && self.server == other.server
    }
}

/// An export with what it has carried.
#[derive(Clone, Debug)]
pub(super) struct Exported {
    pub export: Export,
    pub tally: Arc<Tally>,
}

/// There is no room for another export; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node serves {EXPORTS_MAX} ports already")]
pub struct TooManyExports;

/// Everything that this node serves.
#[derive(Debug, Default)]
pub(super) struct Exports(Vec<Exported>);

impl Exports {
    /// Adds an export, or replaces the one of the same name (or, unnamed, of the same port). Returns the one that
    /// this displaced, whose streams must be cut. A name's policy is one for both of its protocols.
    pub(super) fn insert(&mut self, export: Export) -> Result<Option<Export>, TooManyExports> {
        let same_slot = |old: &Export| match (&old.name, &export.name) {
            (Some(old_name), Some(new)) => old_name == new && old.protocol == export.protocol,
            (None, None) => old.port == export.port && old.protocol == export.protocol,
            _ => false,
        };
        let has_room = self.0.len() < EXPORTS_MAX || self.0.iter().any(|exported| same_slot(&exported.export));
        if !has_room {
            return Err(TooManyExports);
        }
        let named = self.0.iter_mut().filter(|other| export.name.is_some() && other.export.name == export.name);
        named.for_each(|other| other.export.policy.clone_from(&export.policy));
        if let Some(place) = self.0.iter_mut().find(|exported| same_slot(&exported.export)) {
            let old = std::mem::replace(&mut place.export, export);
            return Ok((!old.is_same(&place.export)).then_some(old));
        }
        self.0.push(Exported { export, tally: Arc::default() });
        Ok(None)
    }

    /// The policy under which a name, or an unnamed port, is served.
    pub(super) fn policy_of(&self, name: Option<&Name>, protocol: Protocol, port: u16) -> Option<Policy> {
        let same = |export: &Export| match name {
            Some(name) => export.name.as_ref() == Some(name),
            None => export.name.is_none() && export.protocol == protocol && export.port == port,
        };
        self.0.iter().find(|exported| same(&exported.export)).map(|exported| exported.export.policy.clone())
    }

    /// All that `service` stands for: one name, or everything on a port.
    pub(super) fn matching(&self, service: &ServiceRef) -> Vec<Export> {
        let matches = |export: &&Exported| match service {
            ServiceRef::Name(name) => export.export.name.as_ref() == Some(name),
            ServiceRef::Port(port) => export.export.port == *port,
        };
        self.0.iter().filter(matches).map(|exported| exported.export.clone()).collect()
    }

    /// Removes an export. What it carried, if there was one.
    pub(super) fn remove(&mut self, export: &Export) -> Option<Arc<Tally>> {
        let index = self.0.iter().position(|exported| exported.export.is_same(export))?;
        Some(self.0.remove(index).tally)
    }

    /// What a stream that asks for `target` reaches. By port, the unnamed export comes first.
    pub(super) fn find(&self, target: &Target, protocol: Protocol) -> Option<Exported> {
        let mut fitting = self.0.iter().filter(|exported| exported.export.protocol == protocol);
        match target {
            Target::Name(name) => fitting.find(|exported| exported.export.name.as_ref() == Some(name)),
            Target::Port(port) => fitting
                .filter(|exported| exported.export.port == *port)
                .min_by_key(|exported| exported.export.name.is_some()),
        }
        .cloned()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Exported> {
        self.0.iter()
    }
}

/// Connects to the server behind an export.
pub(super) async fn dial_tcp(port: u16) -> std::io::Result<TcpStream> {
    let dial = async {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
            Ok(tcp) => Ok(tcp),
            // A server may listen on ::1 alone; if it does not, the first error says more.
            Err(first) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.map_err(|_| first),
        }
    };
    let tcp = tokio::time::timeout(LOCAL_DIAL_MAX, dial).await.map_err(|_| std::io::ErrorKind::TimedOut)??;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(name: Option<&str>, port: u16) -> Export {
        Export {
            name: name.map(|n| n.parse().expect("a name")),
            protocol: Protocol::Tcp,
            port,
            shared: false,
            server: Server::Here,
            policy: Policy::default(),
        }
    }

    #[test]
    fn a_name_moves_to_its_new_port_and_displaces_the_old() {
        let mut exports = Exports::default();
        assert_eq!(exports.insert(export(Some("api"), 80)), Ok(None));
        assert_eq!(exports.insert(export(Some("api"), 80)), Ok(None), "serving again changes nothing");
        assert_eq!(exports.insert(export(Some("api"), 81)), Ok(Some(export(Some("api"), 80))));
        let found = exports.find(&Target::Name("api".parse().expect("a name")), Protocol::Tcp);
        assert_eq!(found.map(|e| e.export.port), Some(81));
        assert!(exports.find(&Target::Port(80), Protocol::Tcp).is_none());
        assert!(exports.find(&Target::Port(81), Protocol::Udp).is_none());
    }

    #[test]
    fn a_name_may_have_a_port_in_each_protocol() {
        let mut exports = Exports::default();
        let udp = Export { protocol: Protocol::Udp, ..export(Some("dns"), 5353) };
        exports.insert(export(Some("dns"), 53)).expect("room");
        assert_eq!(exports.insert(udp.clone()), Ok(None));
        let name = || Target::Name("dns".parse().expect("a name"));
        let found = [Protocol::Tcp, Protocol::Udp].map(|p| exports.find(&name(), p).map(|e| e.export.port));
        assert_eq!(found, [Some(53), Some(5353)]);
        assert_eq!(exports.matching(&ServiceRef::Port(5353)), [udp]);
    }

    #[test]
    fn a_name_has_one_policy_and_an_unnamed_port_its_own() {
        let policy = Policy { peers: [pollen_common::identity::NodeKey([1; 32])].into(), ..Policy::default() };
        let mut exports = Exports::default();
        for open in [export(Some("dns"), 53), export(None, 53), export(Some("api"), 53)] {
            exports.insert(open).expect("room");
        }
        let udp = Export { protocol: Protocol::Udp, policy: policy.clone(), ..export(Some("dns"), 53) };
        exports.insert(udp).expect("room");
        let name = |name: &str| name.parse::<Name>().ok();
        let of = |name: Option<Name>, protocol| exports.policy_of(name.as_ref(), protocol, 53);
        assert_eq!(of(name("dns"), Protocol::Tcp), Some(policy));
        assert_eq!(
            (of(name("api"), Protocol::Tcp), of(None, Protocol::Tcp)),
            (Some(Policy::default()), Some(Policy::default()))
        );
        assert_eq!((of(None, Protocol::Udp), of(name("web"), Protocol::Tcp)), (None, None));
    }

    #[test]
    fn a_port_reaches_the_unnamed_export_before_a_named_one() {
        let mut exports = Exports::default();
        exports.insert(export(Some("api"), 80)).expect("room");
        exports.insert(export(None, 80)).expect("room");
        assert_eq!(exports.find(&Target::Port(80), Protocol::Tcp).map(|e| e.export), Some(export(None, 80)));
        assert_eq!(exports.matching(&ServiceRef::Port(80)).len(), 2);
        assert!(exports.remove(&export(None, 80)).is_some());
        assert_eq!(exports.find(&Target::Port(80), Protocol::Tcp).map(|e| e.export), Some(export(Some("api"), 80)));
    }
}
