//! Views made by hand.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use pollen_common::identity::{ClusterId, Digest, NodeKey};
use pollen_common::roll::{Member, Rights, Tier};
use pollen_common::time::UnixMs;
use pollen_common::views::{
    Liveness, Name, NodeInfo, Policy, Protocol, Provider, SeedInfo, SeedVersion, ServiceInfo, View,
};

pub(crate) struct ViewBuilder(View);

impl ViewBuilder {
    pub(crate) fn new(me: NodeKey) -> Self {
        Self(View {
            cluster: ClusterId([0; 32]),
            me,
            nodes: BTreeMap::new(),
            seeds: BTreeMap::new(),
            holders: BTreeMap::new(),
            retiring: BTreeMap::new(),
            services: BTreeMap::new(),
            fallen: [].into(),
            unnamed: Vec::new(),
            refused: Vec::new(),
            roots: [Digest::ZERO; 4],
            document_bytes: 0,
            document_entries: 0,
        })
    }

    pub(crate) fn node(self, key: NodeKey, name: Option<&str>) -> Self {
        self.node_at(key, name, Vec::new())
    }

    pub(crate) fn node_at(mut self, key: NodeKey, name: Option<&str>, addrs: Vec<SocketAddr>) -> Self {
        let rights = Rights {
            tier: Tier::Publisher,
            props: BTreeMap::new(),
            grantable: BTreeMap::new(),
            quota_kib: 64,
            pool_kib: 64,
            prefixes: Vec::new(),
            expires: None,
        };
        let liveness = if key == self.0.me { Liveness::Me } else { Liveness::Online { via: key, hops: 1 } };
        let info = NodeInfo {
            key,
            name: name.map(|name| name.parse().expect("a name")),
            chosen_name: None,
            addrs,
            member: Member { key, rights, path: Vec::new(), admitted: 0 },
            liveness,
            capacity: None,
            draining: false,
            unable: [].into(),
            links: Vec::new(),
        };
        self.0.nodes.insert(key, info);
        self
    }

    pub(crate) fn service(mut self, name: &str, protocol: Protocol, providers: &[(NodeKey, u16)]) -> Self {
        let name: Name = name.parse().expect("a name");
        let providers: Vec<_> = providers
            .iter()
            .map(|(node, port)| Provider { node: *node, protocol, port: *port, policy: Policy::default() })
            .collect();
        let owner = providers.first().expect("a service has a provider").node;
        let info = ServiceInfo {
            name: name.clone(),
            owner,
            protocol,
            shared: providers.len() > 1,
            claimed: UnixMs(1),
            policy: Policy::default(),
            providers,
            conflicts: Vec::new(),
        };
        self.0.services.insert(name, info);
        self
    }

    /// One more port behind a service.
    pub(crate) fn also(mut self, name: &str, protocol: Protocol, node: NodeKey, port: u16) -> Self {
        let name: Name = name.parse().expect("a name");
        let service = self.0.services.get_mut(&name).expect("a service");
        service.providers.push(Provider { node, protocol, port, policy: Policy::default() });
        self
    }

    /// A seed of `owner`'s whose only version has `module`.
    pub(crate) fn seed(mut self, owner: NodeKey, module: Digest) -> Self {
        let name: Name = format!("seed-{}", self.0.seeds.len()).parse().expect("a name");
        let version = SeedVersion {
            module,
            size_bytes: 0,
            memory_bytes: 8 << 20,
            timeout_ms: 30_000,
            idempotent: false,
            image: false,
            tail_calls: false,
        };
        let info = SeedInfo {
            name: name.clone(),
            owner,
            claimed: UnixMs(1),
            min_replicas: 2,
            everywhere: false,
            versions: vec![version],
            replicas: BTreeMap::new(),
            conflicts: Vec::new(),
        };
        self.0.seeds.insert(name, info);
        self
    }

    /// A seed in full.
    pub(crate) fn with_seed(mut self, seed: SeedInfo) -> Self {
        self.0.seeds.insert(seed.name.clone(), seed);
        self
    }

    pub(crate) fn unnamed(mut self, node: NodeKey, protocol: Protocol, port: u16) -> Self {
        self.0.unnamed.push(Provider { node, protocol, port, policy: Policy::default() });
        self
    }

    /// What the roll says of a member.
    pub(crate) fn rights(mut self, key: NodeKey, tier: Tier, props: &[(&str, &str)]) -> Self {
        let rights = &mut self.0.nodes.get_mut(&key).expect("a member").member.rights;
        rights.tier = tier;
        rights.props = props.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self
    }

    /// Whom the owner of a service lets reach it.
    pub(crate) fn bounded(mut self, name: &str, policy: Policy) -> Self {
        self.0.services.get_mut(&name.parse::<Name>().expect("a name")).expect("a service").policy = policy;
        self
    }

    pub(crate) fn offline(mut self, key: NodeKey) -> Self {
        self.0.nodes.get_mut(&key).expect("a member").liveness = Liveness::Offline;
        self
    }

    pub(crate) fn draining(mut self, key: NodeKey) -> Self {
        self.0.nodes.get_mut(&key).expect("a member").draining = true;
        self
    }

    pub(crate) fn without(mut self, key: NodeKey) -> Self {
        self.0.nodes.remove(&key);
        self
    }

    pub(crate) fn build(self) -> Arc<View> {
        Arc::new(self.0)
    }
}
