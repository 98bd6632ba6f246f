//! The deterministic simulator: the same [`Node`](crate::node::Node)s that the daemon runs, on a virtual network with
//! virtual disks and virtual time. Owns faults (latency, loss, cuts, partitions, crashes); knows nothing of what the
//! nodes decide. Invariant: a seed is the whole cause of a run, so a failing one replays.

mod hosting;
mod machine;
mod model;
mod network;
mod publishing;
mod schedule;
mod world;

pub use model::{Expected, Model};
pub use schedule::{Failure, Schedule, Summary};
pub use world::World;

#[cfg(test)]
mod gate;
#[cfg(test)]
mod stories;
