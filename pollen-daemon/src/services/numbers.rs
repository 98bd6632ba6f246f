//! What the services of a node carried, in numbers.

use std::collections::BTreeMap;

/// What the services carry.
#[derive(Clone, Debug, Default)]
pub struct ServiceNumbers {
    /// TCP streams open now.
    pub streams_open: u64,
    pub streams: u64,
    /// UDP sessions open now.
    pub sessions_open: u64,
    pub sessions: u64,
    /// Payload from the mesh to local sockets.
    pub bytes_in: u64,
    /// Payload from local sockets to the mesh.
    pub bytes_out: u64,
    /// UDP payloads dropped and sessions given up for newer ones, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Callers turned away, by reason.
    pub refused: BTreeMap<String, u64>,
}
