//! How calls went here, in numbers.

use std::collections::BTreeMap;

/// Calls that ran here or were asked for here.
#[derive(Clone, Debug, Default)]
pub struct CallNumbers {
    /// Guests that run here now.
    pub running: u64,
    /// Calls that wait here for their turn.
    pub waiting: u64,
    /// Calls that were asked for here or came here, by how they ended: `ok`, or the reason's label.
    pub results: BTreeMap<String, u64>,
    /// Calls that this node turned away before they ran, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Calls that were tried again elsewhere.
    pub retries: u64,
    /// How long the calls took that ran here.
    pub seconds: Histogram,
}

/// How long things took: counts of those at most so long, as Prometheus counts them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// An upper bound in seconds and how many took at most that long, ascending in both.
    pub buckets: Vec<(f64, u64)>,
    /// Of all, in seconds.
    pub sum: f64,
    pub count: u64,
}
