//! What this node can tell of a module on its disk: its digest as others compute it, and what can be called. Owns neither
//! the store nor the rules for modules. Invariant: only bytes that are what their hash says are looked at.

use pollen_common::views::SeedVersion;
use sha2::{Digest as _, Sha256};

use crate::content::Content;
use crate::status::HeldModule;
use pollen_module::ModuleOptions;

/// What is known of a version's module; none where it is not held whole.
pub(super) async fn of_version(content: &Content, version: SeedVersion) -> Option<HeldModule> {
    if !content.has(&version.module) {
        return None;
    }
    // The store has told of what it found damaged, and fetches it again.
    let wasm = content.read(version.module).await.ok()?;
    let looked_at = tokio::task::spawn_blocking(move || {
        let options = ModuleOptions { memory_bytes: version.memory_bytes };
        // Merged as it is when it is made ready: so what is listed is what a call finds.
        let functions = pollen_module::merge(&wasm, &options).map(|merged| merged.exports).unwrap_or_default();
        HeldModule { sha256: data_encoding::HEXLOWER.encode(&Sha256::digest(&wasm)), functions }
    });
    looked_at.await.ok()
}
