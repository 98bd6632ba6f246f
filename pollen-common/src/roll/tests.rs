//! The roll's consequences as sentences, and its invariants under any order of arrival and any bytes.

mod consequences;
mod invites;
mod world;
