//! The program of the fuzz target `service_header`: see `src/lib.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::service_header(data));
