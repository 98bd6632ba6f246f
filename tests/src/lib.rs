//! The lab: real `pln` processes in network namespaces on switches that live in namespaces of their own.
//! Owns what tests, the demo and the benchmarks need of it; knows `pln` only by its command line and its files.
//! Invariant: dropping a [`lab::Lab`] leaves nothing behind, and [`lab::sweep`] clears what a killed process left.

pub mod binary;
pub mod calls;
pub mod cluster;
pub mod lab;
pub mod link;
pub mod machine;
pub mod nat;
pub mod netns;
pub mod patience;
pub mod pln;
mod process;
pub mod seeds;
pub mod status;
pub mod traffic;
