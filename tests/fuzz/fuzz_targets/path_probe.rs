//! The program of the fuzz target `path_probe`: see `src/lib.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::path_probe(data));
