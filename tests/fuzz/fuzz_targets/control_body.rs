//! The program of the fuzz target `control_body`: see `src/lib.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::control_body(data));
