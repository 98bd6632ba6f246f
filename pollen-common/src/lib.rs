//! The pure part of Pollen: no sockets, clocks, threads or files, and no ambient randomness.
//!
//! Two layers. The kernel layer (`abi`, `packet`, `verdict`) needs no allocator and is shared with the eBPF
//! programs. The core layer (feature `core`) is everything a node decides: who stands ([`roll`]), what is
//! replicated ([`maps`]), what it means ([`views`]), and the state machine that joins them ([`node`]).
//! Invariant: equal inputs give equal outputs; time and entropy are arguments.
#![no_std]

#[cfg(feature = "core")]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod abi;
pub mod packet;
pub mod verdict;

#[cfg(feature = "core")]
pub mod circuit;
#[cfg(feature = "core")]
pub mod hash;
#[cfg(feature = "core")]
pub mod identity;
#[cfg(feature = "core")]
pub mod mapping;
#[cfg(feature = "core")]
pub mod maps;
#[cfg(feature = "core")]
pub mod names;
#[cfg(feature = "core")]
pub mod node;
#[cfg(feature = "core")]
pub mod path_probe;
#[cfg(feature = "core")]
pub mod placement;
#[cfg(feature = "core")]
pub mod roll;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "core")]
pub mod time;
#[cfg(feature = "core")]
pub mod topology;
#[cfg(feature = "core")]
pub mod trie;
#[cfg(feature = "core")]
pub mod views;
#[cfg(feature = "core")]
pub mod wire;
