//! Embeds the eBPF object that `cargo xtask ebpf` built, if it is there (a build without the BPF toolchain works and
//! embeds nothing), and assembles the kernel that is merged into guests.
use std::path::Path;
use std::{env, fs};

const OBJECT_DIR: &str = "../pollen-ebpf/object";
const KERNEL_TEXT: &str = "src/workload/module/kernel.wat";

fn main() {
    // The folder is in the tree, so watching it does not make every build a changed one, as a missing file would.
    println!("cargo::rerun-if-changed={OBJECT_DIR}");
    println!("cargo::rerun-if-changed={KERNEL_TEXT}");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(ebpf_object)");
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    match wat::parse_file(KERNEL_TEXT) {
        Ok(wasm) => fs::write(Path::new(&out).join("kernel.wasm"), wasm).expect("OUT_DIR is writable"),
        Err(error) => panic!("{error}"),
    }
    let object = Path::new(OBJECT_DIR).join("pollen-ebpf.o");
    if object.exists() {
        fs::copy(&object, Path::new(&out).join("pollen-ebpf.o")).expect("OUT_DIR is writable");
        println!("cargo::rustc-cfg=ebpf_object");
    }
}
