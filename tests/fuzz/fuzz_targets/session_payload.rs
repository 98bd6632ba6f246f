//! The program of the fuzz target `session_payload`: see `src/lib.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::session_payload(data));
