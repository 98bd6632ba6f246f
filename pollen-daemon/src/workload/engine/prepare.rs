//! From a published module to a guest: merged, imaged if its version says so, compiled or loaded from disk. Must not
//! know who wants it. Invariant: a module is prepared on a thread of its own, once at a time, and only if its bytes are
//! those that its version names.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::io;
use std::sync::{Arc, Mutex, Weak};
use std::thread;

use pollen_common::identity::Digest;
use pollen_common::views::SeedVersion;
use tokio::sync::{Semaphore, oneshot};
use wasmtime::Module;

use super::cache::Found;
use super::{Engine, TakeError, image, numbers};
use crate::workload::guest::{Guest, Incomplete};
use pollen_module::{MERGE_VERSION, ModuleError, ModuleOptions};

/// Modules that are prepared at once: compiling takes a processor for a second, and calls need them too.
const PREPARATIONS_MAX: usize = 2;
/// The compiler's recursion follows the nesting of the module's blocks, which is its author's choice.
const STACK_BYTES: usize = 16 * 1024 * 1024;
/// The most functions whose names are kept; what a module may export is bounded far below.
const FUNCTIONS_MAX: u64 = 1_000_000;

/// Why a module is not ready to be called. Nothing of it has run, save its start for an image.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("its bytes are not those of {0}")]
    WrongBytes(Digest),
    #[error(transparent)]
    Module(#[from] ModuleError),
    #[error(transparent)]
    Image(#[from] TakeError),
    #[error("it does not compile: {0}")]
    Compile(String),
    #[error("it does not fit the engine: {0}")]
    Link(String),
    #[error(transparent)]
    Incomplete(#[from] Incomplete),
    #[error("no thread to prepare it on: {0}")]
    Thread(io::Error),
    #[error("the compiler gave up on it")]
    GaveUp,
}

/// Who prepares what now.
pub(super) struct Preparations {
    turns: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
    places: Arc<Semaphore>,
}

impl Default for Preparations {
    fn default() -> Self {
        Self { turns: Mutex::default(), places: Arc::new(Semaphore::new(PREPARATIONS_MAX)) }
    }
}

impl Preparations {
    /// What one has to hold to prepare the module of that name.
    fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().expect("nothing panics while it looks");
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = turns.get(name).and_then(Weak::upgrade).unwrap_or_default();
        turns.insert(name.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

/// Compiled code, and what of it can be called.
struct Compiled {
    module: Module,
    functions: Vec<String>,
}

impl Engine {
    /// Makes a module callable: `wasm` as it was published, whose digest is `module`. Takes about a second for a large
    /// one, and a millisecond if this node has compiled it before.
    pub async fn prepare(&self, module: Digest, wasm: Vec<u8>, version: &SeedVersion) -> Result<Guest, PrepareError> {
        let name = self.code_name(&module, version);
        let turn = self.0.preparations.turn(&name).lock_owned().await;
        let place = Arc::clone(&self.0.preparations.places).acquire_owned().await.map_err(|_| PrepareError::GaveUp)?;
        let (done, outcome) = oneshot::channel();
        let engine = self.clone();
        let version = *version;
        thread::Builder::new()
            .name("pln-prepare".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let result = engine.build(&name, module, &wasm, &version);
                drop((wasm, turn, place));
                trim();
                // Whoever waited may be gone; the code is on disk all the same.
                let _ = done.send(result);
            })
            .map_err(PrepareError::Thread)?;
        outcome.await.map_err(|_| PrepareError::GaveUp)?
    }

    fn build(&self, name: &str, digest: Digest, wasm: &[u8], version: &SeedVersion) -> Result<Guest, PrepareError> {
        if blake3::hash(wasm).as_bytes() != &digest.0 {
            return Err(PrepareError::WrongBytes(digest));
        }
        let compiled = match self.load(name) {
            Some(compiled) => {
                numbers::count(&self.0.counters.cache_hits);
                compiled
            }
            None => self.compile(name, wasm, version)?,
        };
        let pre = self
            .0
            .linker
            .instantiate_pre(&compiled.module)
            .map_err(|error| PrepareError::Link(error.root_cause().to_string()))?;
        Ok(Guest::new(self.clone(), pre, compiled.functions, version)?)
    }

    fn compile(&self, name: &str, wasm: &[u8], version: &SeedVersion) -> Result<Compiled, PrepareError> {
        let merged = pollen_module::merge(wasm, &ModuleOptions { memory_bytes: version.memory_bytes })?;
        let merged = if version.image {
            numbers::count(&self.0.counters.images);
            image::take(merged, version.memory_bytes)?
        } else {
            merged
        };
        let module = Module::new(&self.0.wasmtime, &merged.wasm)
            .map_err(|error| PrepareError::Compile(error.root_cause().to_string()))?;
        numbers::count(&self.0.counters.compilations);
        let compiled = Compiled { module, functions: merged.exports };
        match compiled.module.serialize() {
            Ok(code) => {
                if let Err(error) = self.0.cache.store(name, &pack(&compiled.functions, &code)) {
                    tracing::warn!(%error, "compiled code cannot be kept: it is compiled again after a restart");
                }
            }
            Err(error) => tracing::warn!(%error, "compiled code cannot be kept: it is compiled again after a restart"),
        }
        Ok(compiled)
    }

    fn load(&self, name: &str) -> Option<Compiled> {
        let content = match self.0.cache.load(name) {
            Found::Nothing => return None,
            Found::Stored(content) => content,
            Found::Damaged => {
                numbers::count(&self.0.counters.cache_damaged);
                tracing::warn!(name, "compiled code on disk was changed: it is removed and compiled again");
                return None;
            }
        };
        let (functions, code) = unpack(&content)?;
        // SAFETY: these bytes are what `serialize` gave to this node for this very engine: the checksum that was just
        // verified is keyed with a secret of the node, covers the name that engine and options are part of, and was
        // taken over a copy in memory, so that nobody can change them now.
        match unsafe { Module::deserialize(&self.0.wasmtime, code) } {
            Ok(module) => Some(Compiled { module, functions }),
            Err(error) => {
                tracing::warn!(name, %error, "compiled code on disk does not load: it is compiled again");
                self.0.cache.remove(name);
                None
            }
        }
    }

    /// What a version's compiled code is called on disk: all that it depends on.
    fn code_name(&self, module: &Digest, version: &SeedVersion) -> String {
        let options = format!("{} {} {} {MERGE_VERSION}", self.0.id, version.memory_bytes, version.image);
        format!("{module}-{}", &blake3::hash(options.as_bytes()).to_hex()[..16])
    }
}

/// What compiled code depends on beside the module: wasmtime's version, its settings, the processor.
pub(super) fn engine_id(engine: &wasmtime::Engine) -> String {
    struct Digester(blake3::Hasher);
    impl Hasher for Digester {
        fn finish(&self) -> u64 {
            let hash = self.0.finalize();
            u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash is longer"))
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
    }
    let mut digester = Digester(blake3::Hasher::new());
    engine.precompile_compatibility_hash().hash(&mut digester);
    digester.0.finalize().to_hex()[..16].to_owned()
}

/// Names of functions before the code, so that a cached module need not be merged to know them.
fn pack(functions: &[String], code: &[u8]) -> Vec<u8> {
    let mut packed = minicbor::to_vec(functions).expect("writing to memory does not fail");
    packed.extend_from_slice(code);
    packed
}

fn unpack(packed: &[u8]) -> Option<(Vec<String>, &[u8])> {
    let mut decoder = minicbor::Decoder::new(packed);
    let count = decoder.array().ok()?.filter(|count| *count <= FUNCTIONS_MAX)?;
    let functions = (0..count).map(|_| decoder.str().map(str::to_owned)).collect::<Result<_, _>>().ok()?;
    Some((functions, &packed[decoder.position()..]))
}

/// Gives back what the compiler took: it leaves some hundred megabytes with the allocator, which would count as this
/// node's resident memory for ever.
fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointers and only returns free pages to the kernel.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_code_are_packed_and_unpacked() {
        let functions = vec!["greet".to_owned(), String::new()];
        let packed = pack(&functions, b"code");
        assert_eq!(unpack(&packed), Some((functions, &b"code"[..])));
        assert_eq!(unpack(b""), None);
        assert_eq!(unpack(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
