//! The services of two or three nodes, over real QUIC connections on loopback.

pub(super) mod view;
