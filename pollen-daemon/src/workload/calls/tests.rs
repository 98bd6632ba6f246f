//! Calls between two and three nodes, over the real transport on loopback, with guests written in Rust.

mod chains;
mod cluster;
mod coming;
mod death;
mod elsewhere;
mod plain;
mod real;

use pollen_common::identity::{Digest, NodeKey};
use pollen_common::time::UnixMs;
use pollen_common::views::{SeedInfo, SeedVersion};

use crate::services::tests::view::ViewBuilder;

/// One of many versions.
pub(super) fn seed_version(byte: u8) -> SeedVersion {
    SeedVersion {
        module: Digest([byte; 32]),
        size_bytes: 1000,
        memory_bytes: 8 << 20,
        timeout_ms: 30_000,
        idempotent: false,
        image: false,
        tail_calls: false,
    }
}

/// Adds a seed, with those who serve its versions, to a view.
pub(super) fn with_seed(
    view: ViewBuilder,
    name: &str,
    versions: &[SeedVersion],
    replicas: &[(SeedVersion, &[NodeKey])],
) -> ViewBuilder {
    let name: pollen_common::views::Name = name.parse().expect("a name");
    view.with_seed(SeedInfo {
        name,
        owner: NodeKey([0xee; 32]),
        claimed: UnixMs(1),
        min_replicas: 2,
        everywhere: false,
        versions: versions.to_vec(),
        replicas: replicas.iter().map(|(version, hosts)| (version.id(), hosts.iter().copied().collect())).collect(),
        conflicts: Vec::new(),
    })
}
