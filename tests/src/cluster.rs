//! Making machines one mesh, by the commands a person would type.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::pln::Pln;
use crate::status::await_online;

/// All see all within this from when the last to join starts.
pub const TOGETHER_DEADLINE: Duration = Duration::from_secs(10);

/// Makes a new cluster on `node` and starts it.
///
/// # Errors
/// If a command fails.
pub fn found(node: &mut Pln) -> Result<()> {
    node.ok(&["init"])?;
    node.up().map(drop)
}

/// A token from `inviter`; `flags` are those of `invite`.
///
/// # Errors
/// If the command fails, or prints no token.
pub fn invite(inviter: &Pln, flags: &[&str]) -> Result<String> {
    let answer = inviter.json(&[&["invite"], flags].concat())?;
    Ok(answer["token"].as_str().context("invite answers no token")?.to_owned())
}

/// Enrols `node` with a token and starts it.
///
/// # Errors
/// If a command fails.
pub fn join(node: &mut Pln, token: &str) -> Result<()> {
    node.ok(&["join", token, "--no-up"])?;
    node.up().map(drop)
}

/// One cluster of all `nodes`, the first its root, the others admitted by it with `flags`; waits until all see all.
/// Returns how long that took from when the last was started.
///
/// # Errors
/// If a command fails, or they do not find together in time.
pub fn form(nodes: &mut [Pln], flags: &[&str]) -> Result<Duration> {
    let (first, others) = nodes.split_first_mut().context("a cluster has a first node")?;
    found(first)?;
    let mut started = Instant::now();
    for node in others {
        let token = invite(first, flags)?;
        node.ok(&["join", &token, "--no-up"])?;
        // Starting up is part of what has to happen in time.
        started = Instant::now();
        node.up()?;
    }
    let all: Vec<&Pln> = nodes.iter().collect();
    let names: Vec<&str> = all.iter().map(|node| node.host.name()).collect();
    await_online(&all, &names, TOGETHER_DEADLINE.saturating_sub(started.elapsed()))?;
    Ok(started.elapsed())
}
