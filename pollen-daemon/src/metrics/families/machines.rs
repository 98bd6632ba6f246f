//! What clocks and dates say: whose clock is off, and until when this node is a member. Owns these families' names.
//! Invariant: at most as many series as there are peers with series of their own.

use super::{PEERS_LISTED_MAX, Result, Scrape};
use crate::handle::Daemon;

pub(super) fn machines(scrape: &Scrape, daemon: &dyn Daemon) -> Result {
    let signs = daemon.troubles().signs;
    let clocks = signs.clocks.iter().take(PEERS_LISTED_MAX);
    let clocks: Vec<([String; 1], f64)> = clocks.map(|(key, off_ms)| ([key.to_string()], seconds(*off_ms))).collect();
    let clocks: Vec<([&str; 1], f64)> = clocks.iter().map(|([key], off)| ([key.as_str()], *off)).collect();
    let series: Vec<(&[&str], f64)> = clocks.iter().map(|(labels, off)| (&labels[..], *off)).collect();
    scrape.gauge_seconds(
        "pln_peer_clock_offset_seconds",
        "By how much a neighbour's clock is ahead of this node's, negative where it is behind; only where that is more \
         than 5 s.",
        &["peer"],
        &series,
    )?;
    let view = daemon.view();
    let expires = view.nodes.get(&view.me).and_then(|me| me.member.rights.expires);
    let expires: Vec<(&[&str], u64)> = expires.iter().map(|end| (&[][..], end.0 / 1000)).collect();
    scrape.gauge(
        "pln_membership_end_seconds",
        "When this node's membership ends, in seconds since 1970; absent where it does not.",
        &[],
        &expires,
    )
}

/// Exact: an offset is a few decades at most.
fn seconds(ms: i64) -> f64 {
    let size = std::time::Duration::from_millis(ms.unsigned_abs()).as_secs_f64();
    if ms < 0 { -size } else { size }
}
