//! Assembles the kernel that is merged into guests.
use std::path::Path;
use std::{env, fs};

const KERNEL_TEXT: &str = "src/kernel.wat";

fn main() {
    println!("cargo::rerun-if-changed={KERNEL_TEXT}");
    println!("cargo::rerun-if-changed=build.rs");
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    match wat::parse_file(KERNEL_TEXT) {
        Ok(wasm) => fs::write(Path::new(&out).join("kernel.wasm"), wasm).expect("OUT_DIR is writable"),
        Err(error) => panic!("{error}"),
    }
}
