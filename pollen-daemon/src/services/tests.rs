//! The services of two or three nodes, over the real transport on loopback.

mod bounds;
mod cluster;
mod fair;
mod forms;
mod tcp;
mod trust;
mod udp;
pub(crate) mod view;
