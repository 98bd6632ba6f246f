//! The roll's consequences as sentences, and its invariants under any order of arrival and any bytes.

mod bytes;
mod consequences;
mod hostile;
mod invites;
mod order;
mod vectors;
mod world;
