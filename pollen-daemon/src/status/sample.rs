//! One small cluster for the tests of this crate: three nodes, a shared service with a conflict, one unnamed service, a seed.
//! Invariant: fixed, for snapshots are taken of it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use pollen_common::abi::Count;
use pollen_common::identity::{ClusterId, Digest, NodeKey, SecretKey};
use pollen_common::mapping::{NatKind, Nats};
use pollen_common::node::EventKind;
use pollen_common::roll::{Member, Rights, Tier};
use pollen_common::time::UnixMs;
use pollen_common::verdict::Reason;
use pollen_common::views::{
    Capacity, Conflict, Fallen, Liveness, NodeInfo, Policy, Protocol, Provider, RefusedEntry, SeedInfo, SeedVersion,
    ServiceInfo, View,
};

use crate::datapath::{DatapathNumbers, Standing};
use crate::services::{Listener, ServiceNumbers, ServiceRef};
use crate::status::{
    About, ContentNumbers, EngineNumbers, EngineStanding, HeldModule, Numbers, PeerNumbers, SeedNumbers, SocketNumbers,
};
use crate::transport::{CircuitNumbers, PunchNumbers};
use crate::workload::{CallNumbers, Histogram};

/// 2026-11-23 02:24:01Z.
pub(crate) const NOW: UnixMs = UnixMs(1_795_400_641_000);

pub(crate) fn hello_version() -> SeedVersion {
    SeedVersion {
        module: Digest([0xAB; 32]),
        size_bytes: 81_920,
        memory_bytes: 8 << 20,
        timeout_ms: 30_000,
        idempotent: true,
        image: false,
        tail_calls: false,
    }
}

/// What is known of its module where it is on disk.
pub(crate) fn held() -> HeldModule {
    HeldModule { sha256: "5a".repeat(32), functions: vec!["echo".into(), "greet".into()] }
}

pub(crate) fn key(i: u8) -> NodeKey {
    // Deriving one takes longer than all that is done with it.
    static DERIVED: Mutex<BTreeMap<u8, NodeKey>> = Mutex::new(BTreeMap::new());
    let mut derived = DERIVED.lock().expect("deriving does not panic");
    *derived.entry(i).or_insert_with(|| SecretKey::from_seed(&[i; 32]).public())
}

fn node(i: u8, name: &str, tier: Tier, liveness: Liveness) -> NodeInfo {
    let rights = Rights {
        tier,
        props: [("region".to_owned(), "eu".to_owned())].into(),
        grantable: [].into(),
        quota_kib: if tier == Tier::Leaf { 64 } else { 1024 },
        pool_kib: if tier == Tier::Admin { 1 << 20 } else { 0 },
        prefixes: Vec::new(),
        expires: (tier == Tier::Leaf).then_some(UnixMs(NOW.0 + 30 * 86_400_000)),
    };
    NodeInfo {
        key: key(i),
        name: Some(name.parse().expect("a name")),
        chosen_name: Some(name.parse().expect("a name")),
        addrs: vec![format!("192.0.2.{i}:60611").parse().expect("an address")],
        member: Member { key: key(i), rights, path: vec![key(9)], admitted: NOW.0 - 86_400_000 },
        liveness,
        capacity: (tier != Tier::Leaf).then_some(Capacity { memory_mib: 1024, cores: 2 }),
        draining: false,
        unable: [].into(),
        links: (1..=2).filter(|&other| other != i && i != 3).map(key).collect(),
    }
}

/// Seen from `ams`, with `berlin` online and `cork` offline.
pub(crate) fn view() -> View {
    let nodes = [
        node(1, "ams", Tier::Admin, Liveness::Me),
        node(2, "berlin", Tier::Publisher, Liveness::Online { via: key(2), hops: 1 }),
        node(3, "cork", Tier::Leaf, Liveness::Offline),
    ];
    let provider = |i, port| Provider { node: key(i), protocol: Protocol::Tcp, port, policy: Policy::default() };
    let api = ServiceInfo {
        name: "api".parse().expect("a name"),
        owner: key(1),
        protocol: Protocol::Tcp,
        shared: true,
        claimed: UnixMs(NOW.0 - 3_600_000),
        policy: Policy::default(),
        providers: vec![provider(1, 8080), provider(2, 8081)],
        conflicts: vec![Conflict {
            author: key(3),
            claimed: UnixMs(NOW.0 - 60_000),
            reason: "ams claimed the name earlier".into(),
        }],
    };
    let hello = SeedInfo {
        name: "hello".parse().expect("a name"),
        owner: key(2),
        claimed: UnixMs(NOW.0 - 1_800_000),
        min_replicas: 2,
        everywhere: false,
        versions: vec![hello_version()],
        replicas: [(hello_version().id(), [key(1), key(2)].into())].into(),
        conflicts: Vec::new(),
    };
    let bounded = Policy {
        peers: [key(1)].into(),
        tier: Some(Tier::Publisher),
        props: [("region".to_owned(), "eu".to_owned())].into(),
    };
    View {
        cluster: ClusterId([0xC1; 32]),
        me: key(1),
        nodes: nodes.into_iter().map(|node| (node.key, node)).collect(),
        seeds: [(hello.name.clone(), hello)].into(),
        holders: [(hello_version().module, [key(1), key(2)].into())].into(),
        retiring: [].into(),
        services: [(api.name.clone(), api)].into(),
        unnamed: vec![Provider { node: key(2), protocol: Protocol::Udp, port: 5353, policy: bounded }],
        refused: vec![RefusedEntry {
            author: key(3),
            key: "service/api".into(),
            reason: "cork is a leaf; publishing takes a publisher".into(),
        }],
        fallen: [(key(9), Fallen::Denied { by: Some(key(1)) })].into(),
        roots: [1, 2, 3, 4].map(|byte| Digest([byte; 32])),
        document_bytes: 1234,
        document_entries: 12,
    }
}

pub(crate) fn about() -> About {
    About { dir: "/var/lib/pln".into(), port: 60611, started: UnixMs(NOW.0 - 90_061_000), public: false }
}

pub(crate) fn numbers() -> Numbers {
    Numbers {
        peers: vec![PeerNumbers {
            peer: key(2),
            path: "direct".into(),
            via: None,
            remote: Some("192.0.2.2:60611".parse().expect("an address")),
            nats: Some(Nats { v4: NatKind::Easy, v6: NatKind::Unknown }),
            rtt: Duration::from_micros(1250),
            bytes_in: 4096,
            bytes_out: 1 << 20,
            datagrams_in: 7,
            datagrams_out: 9,
            lost: 1,
        }],
        datapath: datapath(),
        circuits: CircuitNumbers { relays: true, ends: 1, hops: 2, frames: 30, bytes: 40_000 },
        punches: PunchNumbers { nats: Nats { v4: NatKind::None, v6: NatKind::Hard }, rounds: 5, opened: 2 },
        socket: SocketNumbers {
            local: Some("[::]:60611".parse().expect("an address")),
            gso_segments: 64,
            gro_segments: 64,
            receive_buffer_bytes: 4 << 20,
            send_buffer_bytes: 4 << 20,
            sources_bound: 2,
        },
        dropped: [("unbound_source".to_owned(), 3)].into(),
        services: ServiceNumbers {
            streams_open: 2,
            streams: 40,
            sessions_open: 1,
            sessions: 5,
            bytes_in: 1000,
            bytes_out: 2000,
            dropped: [("queue_full".to_owned(), 6)].into(),
            refused: [("denied".to_owned(), 1)].into(),
        },
        seeds: seed_numbers(),
        events: [(EventKind::PeerUp, 4)].into(),
    }
}

fn seed_numbers() -> SeedNumbers {
    let counted = |counts: &[(&str, u64)]| counts.iter().map(|(label, n)| ((*label).to_owned(), *n)).collect();
    let standing = EngineStanding {
        allocator: "pooling".into(),
        reset: "pagemap_scan".into(),
        slots: 512,
        why_not_better: String::new(),
    };
    SeedNumbers {
        calls: CallNumbers {
            running: 3,
            waiting: 1,
            results: counted(&[("memory_limit", 1), ("ok", 120)]),
            refused: counted(&[("busy", 2)]),
            retries: 4,
            seconds: Histogram { buckets: vec![(0.001, 100), (0.1, 119)], sum: 0.75, count: 121 },
        },
        engine: EngineNumbers {
            standing: Some(standing),
            instances: 3,
            memory_bytes: 24 << 20,
            kept_bytes: 1 << 20,
            compilations: counted(&[("cached", 1), ("compiled", 2)]),
        },
        content: ContentNumbers { modules: 2, bytes: 163_840, fetched: counted(&[("ok", 1)]) },
        replicas: counted(&[("ready", 1), ("starting", 1)]),
    }
}

pub(crate) fn listeners() -> Vec<Listener> {
    vec![Listener {
        service: ServiceRef::Name("api".parse().expect("a name")),
        provider: None,
        protocol: Protocol::Tcp,
        local_port: 8080,
        waiting: None,
        local: vec!["127.0.0.1:8080".parse().expect("an address"), "[::1]:8080".parse().expect("an address")],
    }]
}

fn datapath() -> DatapathNumbers {
    let why_not_higher = "no circuits, so no frames to forward in the kernel".into();
    let count = |reason, frames| (reason, Count { frames, bytes: 1400 * frames });
    DatapathNumbers {
        standing: Standing { why_not_higher, ..Standing::default() },
        seen: vec![count(Reason::Forwarded, 12), count(Reason::NoCircuit, 2)],
    }
}
