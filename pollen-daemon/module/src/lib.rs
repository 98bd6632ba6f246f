//! From a published module (bytes that anyone may have sent) to the module that is compiled: validated, the Extism
//! kernel merged in, its memory presized; with an image taken after its start if that was asked for.
//! Must not know calls, replicas or the mesh. Invariant: what `merge` gives is valid, and it reaches the host through
//! nothing but the imports that it lists.

mod check;
#[cfg(feature = "image")]
pub mod image;
mod imports;
mod kernel;
mod merge;
mod open_code;
mod sections;

#[cfg(all(test, feature = "image"))]
mod tests;

pub use merge::merge;

/// The largest module that may be published, in bytes: what any node stores.
pub const MODULE_BYTES_MAX: usize = pollen_common::wire::streams::content::CONTENT_BYTES_MAX;
/// Bytes of a WebAssembly page.
pub const PAGE_BYTES: u64 = 64 * 1024;
/// The format of what [`merge`] gives: part of the compile cache's key, raised with any change of the output.
pub const MERGE_VERSION: u32 = 4;
/// The most bytes of Extism blocks in one instance: input, output, and what host functions bring. As `kernel.wat` says.
pub const KERNEL_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// What a guest's memory has beyond its initial size from the start, so that allocators ask the kernel for nothing:
/// growing and shrinking a slot again costs more than a small call. Rust and Go guests stay below it for small calls.
pub const PRESIZE_BYTES: u64 = 8 * 1024 * 1024;
/// What names of exports and modules of imports of a guest may not begin with: they are the host's.
pub const RESERVED: &str = "pln:";

/// The exported memory that the guest works in.
pub const MEMORY: &str = "pln:memory";
/// The exported memory of the Extism blocks.
pub const KERNEL: &str = "pln:kernel";
/// `(length: i64) -> i64`: the offset of a new block in [`KERNEL`]. Without room it is a trap, and [`BLOCKS_REFUSED`] is set.
pub const ALLOC: &str = "pln:alloc";
/// `(length: i64) -> i64`: like [`ALLOC`], and the block is the input from then on. Need not be called without input.
pub const INPUT: &str = "pln:input";
/// `(offset: i64) -> ()`: the block is the guest's no more; nothing where none begins there.
pub const FREE: &str = "pln:free";
/// `(offset: i64) -> i64`: the length of the block that begins there, 0 when none does.
pub const LENGTH: &str = "pln:length";
/// `() -> i32`: pages that the guest's memory has by its own reckoning.
pub const MEMORY_SIZE: &str = "pln:memory-size";
/// Mutable global, i32: 1 when the guest's last attempt to grow its memory was beyond its limit.
pub const MEMORY_REFUSED: &str = "pln:memory-refused";
/// Mutable global, i32: 1 when a block was refused, with which the call ended.
pub const BLOCKS_REFUSED: &str = "pln:blocks-refused";
/// Mutable global, i64: where the output lies in [`KERNEL`].
pub const OUTPUT_OFFSET: &str = "pln:output-offset";
/// Mutable global, i64: the output's length in bytes. Was within the memory when it was set.
pub const OUTPUT_LENGTH: &str = "pln:output-length";
/// Mutable global, i64: the block of the error message, 0 for none.
pub const ERROR_OFFSET: &str = "pln:error-offset";
/// `() -> ()`: what has to run in a new instance before any other export. Exported only where there is such a thing.
pub const INITIALIZE: &str = "pln:initialize";

/// What merging depends on beside the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleOptions {
    /// How large the guest's memory may grow, in bytes; part of a page is none.
    pub memory_bytes: u64,
}

/// The export that starts a language's runtime in a new instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartExport {
    /// Always [`INITIALIZE`]: `() -> ()`. It calls what Extism's runtimes call: `hs_init` after `_initialize`, else
    /// `__wasm_call_ctors`, else `_initialize`.
    pub name: &'static str,
}

/// A module that is ready to be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    pub wasm: Vec<u8>,
    /// Functions that a caller may name: `() -> i32` and `() -> ()`.
    pub exports: Vec<String>,
    /// What is left for the host to provide, as module and name; each known to this version by name and type.
    pub imports: Vec<(String, String)>,
    pub initialize: Option<StartExport>,
}

/// Why a module cannot become a seed. Nothing was kept; the module is at fault in each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    #[error("this is not a WebAssembly module: it does not begin with \\0asm and version 1")]
    NotWasm,
    #[error("this is a WebAssembly component; seeds are core modules, as the Extism PDKs build them")]
    Component,
    #[error("the module has {bytes} bytes, over the limit of {max}")]
    TooLarge { bytes: usize, max: usize },
    #[error("the module is not valid: {0}")]
    Invalid(String),
    #[error("the module uses a feature of WebAssembly that seeds may not use: {0}")]
    Feature(String),
    #[error("the module has {0} memories; a seed may have one")]
    Memories(usize),
    #[error("the module imports the {kind} {module} {name}; a seed may import functions only")]
    ImportKind { kind: &'static str, module: String, name: String },
    #[error("the module imports {module} {name}, which is not offered here")]
    UnknownImport { module: String, name: String },
    #[error("the module imports {module} {name} as {found}; it is {expected}")]
    ImportType { module: String, name: String, found: String, expected: String },
    #[error("the module's name {0} begins with {RESERVED}, which is reserved")]
    Reserved(String),
    #[error("the module's memory begins with {initial_bytes} bytes, over the limit of {limit_bytes}; raise --memory")]
    Memory { initial_bytes: u64, limit_bytes: u64 },
    #[error("the module has too many {0} to add what the host needs")]
    Full(&'static str),
}
