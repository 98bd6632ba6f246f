//! Content from node to node, a stream for each transfer. The rooms: `serve` is the holder's side, `fetch` the other.
//! Invariants: a byte is kept only once it is proved to belong to the digest that was asked for, and
//! each side holds one group of a transfer in memory.

pub mod fetch;
pub(super) mod serve;

#[cfg(test)]
mod tests;
