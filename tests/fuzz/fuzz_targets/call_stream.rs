//! The program of the fuzz target `call_stream`: see `src/lib.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::call_stream(data));
