//! The program of the fuzz target `exchange`: see `src/lib.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::exchange(data));
