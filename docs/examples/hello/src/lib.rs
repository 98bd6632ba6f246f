//! A first seed. Each function below is called by its name: `pln call hello greet Ada`.
//! What a function is given and gives back are bytes; the Extism PDK makes them strings where that is wanted.

use std::sync::atomic::{AtomicU32, Ordering};

use extism_pdk::{FnResult, LogLevel, Memory, WithReturnCode, log, plugin_fn};

// What Pollen offers beyond Extism. Text and bytes travel as handles of Extism's memory; 0 is none.
#[link(wasm_import_module = "extism:host/user")]
unsafe extern "C" {
    fn pollen_caller_info() -> u64;
    fn pollen_log(level: u64, message: u64);
}

// Of WASI, which works here as it does everywhere; Rust's own `std` has no randomness for this target.
#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn random_get(buffer: *mut u8, length: usize) -> u16;
}

/// Greets whoever is named.
#[plugin_fn]
pub fn greet(name: String) -> FnResult<String> {
    let name = if name.is_empty() { "world" } else { name.trim_end() };
    Ok(format!("Hello, {name}!"))
}

/// Gives back what it was given, whatever it is.
#[plugin_fn]
pub fn echo(input: Vec<u8>) -> FnResult<Vec<u8>> {
    Ok(input)
}

/// How often it was called. Always once: every call has an instance of its own, and nothing outlives it.
#[plugin_fn]
pub fn count() -> FnResult<String> {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    Ok((CALLS.fetch_add(1, Ordering::Relaxed) + 1).to_string())
}

/// Sixteen random bytes in hexadecimal, others in each call.
#[plugin_fn]
pub fn random() -> FnResult<String> {
    let mut bytes = [0_u8; 16];
    // SAFETY: the host fills exactly the bytes that are ours.
    let errno = unsafe { random_get(bytes.as_mut_ptr(), bytes.len()) };
    if errno != 0 {
        return Err(WithReturnCode::new(extism_pdk::Error::msg("no randomness here"), 1));
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Who calls, as JSON: `peerKey`, `attributes` and `deadlineUnixMs`.
#[plugin_fn]
pub fn whoami() -> FnResult<String> {
    // SAFETY: it takes nothing and gives a handle, or 0.
    let info = unsafe { pollen_caller_info() };
    let info = Memory::find(info).ok_or_else(|| extism_pdk::Error::msg("nobody knows who calls"))?;
    Ok(info.to_string()?)
}

/// Writes its input to the log of the node that it runs on, where `pln logs` shows it: once Extism's way, once Pollen's.
#[plugin_fn]
pub fn note(message: String) -> FnResult<()> {
    const INFO: u64 = 1;
    log!(LogLevel::Info, "{message}");
    let handle = Memory::from_bytes(&message)?;
    // SAFETY: the handle is alive for as long as the call.
    unsafe { pollen_log(INFO, handle.offset()) };
    Ok(())
}
