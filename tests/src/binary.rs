//! Which `pln` is tested: the one that `PLN_BIN` names, else the one cargo builds now.
//! Invariant: one process tests one binary.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, ensure};

/// The program to run. Built once a process if `PLN_BIN` is not set.
///
/// # Panics
/// If it cannot be built: nothing can be tested then.
#[must_use]
pub fn pln() -> &'static PathBuf {
    static PLN: OnceLock<PathBuf> = OnceLock::new();
    PLN.get_or_init(|| match std::env::var_os("PLN_BIN") {
        Some(path) => path.into(),
        None => build("dev").unwrap_or_else(|error| panic!("{error:#}")),
    })
}

/// Builds `pln` in a profile of the workspace; returns where it lies.
///
/// # Errors
/// If cargo fails: it has told why.
pub fn build(profile: &str) -> Result<PathBuf> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--locked", "--package", "pollen-daemon", "--bin", "pln", "--profile", profile])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stderr(Stdio::inherit())
        .output()
        .context("cargo")?;
    ensure!(output.status.success(), "cargo build failed");
    let messages = String::from_utf8(output.stdout)?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)))
        .context("cargo named no executable")
}
