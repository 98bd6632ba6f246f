//! The program of the fuzz target `frame_of_ethernet`: see `src/lib.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::frame_of_ethernet(data));
