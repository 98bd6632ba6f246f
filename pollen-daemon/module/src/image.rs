//! An image: a merged module whose instances begin where its start ended, so that a language with a slow start pays
//! for it once. Must not know how guests run: whoever runs them instantiates and initialises, this takes what came of it.
//!
//! What an image freezes: everything that the start read or drew. Random seeds of a language, the environment and clocks
//! read then are the same in every call, on every host. So an image is made only for whoever asks for one.

use futures_util::FutureExt as _;
use wasm_encoder::{DataSection, Module, RawSection, reencode::Reencode, reencode::RoundtripReencoder};
use wasmparser::{DataKind, Operator, Parser, Payload, ValType};
use wasmtime::{Instance, Store, Val};
use wasmtime_wizer::{InstanceState, ModuleContext, SnapshotVal, Wizer};

use super::{INITIALIZE, Merged};

/// Names that the instrumented module exports in addition.
const INSTRUMENTS: &str = "__wizer_";

/// Why no image was taken. Nothing was kept; the module runs without one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("no image can be taken of this module: {0}; publish it without --image")]
    Unsupported(String),
    #[error("the module's export {0} begins with {INSTRUMENTS}, which images need; publish it without --image")]
    Reserved(String),
}

/// A merged module that is about to be run once, up to the end of its start.
pub struct Imaging<'a> {
    merged: &'a Merged,
    wizer: Wizer,
    context: ModuleContext<'a>,
    wasm: Vec<u8>,
}

impl<'a> Imaging<'a> {
    /// # Errors
    /// The module changes tables or drops segments: an image cannot hold those.
    pub fn of(merged: &'a Merged) -> Result<Self, ImageError> {
        if let Some(name) = merged.exports.iter().find(|name| name.starts_with(INSTRUMENTS)) {
            return Err(ImageError::Reserved(name.clone()));
        }
        let mut wizer = Wizer::new();
        wizer.init_func(INITIALIZE);
        let (context, wasm) = wizer.instrument(&merged.wasm).map_err(unsupported)?;
        Ok(Self { merged, wizer, context, wasm })
    }

    /// What to compile, instantiate, and initialise by calling `Merged::initialize`, with the imports and limits of any
    /// other instance.
    #[must_use]
    pub fn wasm(&self) -> &[u8] {
        &self.wasm
    }

    /// The module whose instances begin where this one is now. Nothing is left to initialise in them.
    ///
    /// # Errors
    /// What was captured cannot be said as a module.
    ///
    /// # Panics
    /// When the instance is not one of [`Imaging::wasm`].
    pub fn take<T: Send>(self, store: &mut Store<T>, instance: Instance) -> Result<Merged, ImageError> {
        let mut captured = Captured { store, instance };
        let snapshot = self.wizer.snapshot(&self.context, &mut captured);
        let wasm = snapshot.now_or_never().expect("reading a store waits for nothing").map_err(unsupported)?;
        let wasm = without_spent_segments(&wasm).map_err(|error| ImageError::Unsupported(error.to_string()))?;
        let Merged { exports, imports, .. } = self.merged.clone();
        Ok(Merged { wasm, exports, imports, initialize: None })
    }
}

fn unsupported(error: wasmtime::Error) -> ImageError {
    ImageError::Unsupported(format!("{error:#}"))
}

struct Captured<'a, T: 'static> {
    store: &'a mut Store<T>,
    instance: Instance,
}

impl<T: Send> InstanceState for Captured<'_, T> {
    async fn global_get(&mut self, name: &str, _: ValType) -> SnapshotVal {
        let global = self.instance.get_global(&mut *self.store, name).expect("the instrumented module exports it");
        match global.get(&mut *self.store) {
            Val::I32(value) => SnapshotVal::I32(value),
            Val::I64(value) => SnapshotVal::I64(value),
            Val::F32(bits) => SnapshotVal::F32(bits),
            Val::F64(bits) => SnapshotVal::F64(bits),
            Val::V128(value) => SnapshotVal::V128(value.as_u128()),
            _ => unreachable!("instrumenting refuses mutable globals of references"),
        }
    }

    async fn memory_contents(&mut self, name: &str, contents: impl FnOnce(&[u8]) + Send) {
        let memory = self.instance.get_memory(&mut *self.store, name).expect("the instrumented module exports it");
        contents(memory.data(&*self.store));
    }
}

/// Each segment that was applied at the start is left behind as an empty passive one, and every instance would look at
/// each: 28,725 in a Go guest, 70 us a call. Where no code names segments by index, they can go.
fn without_spent_segments(wasm: &[u8]) -> wasmparser::Result<Vec<u8>> {
    let named = names_segments(wasm)?;
    let mut module = Module::new();
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload?;
        match &payload {
            Payload::DataCountSection { .. } if !named => {}
            Payload::DataSection(segments) if !named => {
                let mut kept = DataSection::new();
                for segment in segments.clone() {
                    let segment = segment?;
                    if matches!(segment.kind, DataKind::Active { .. }) {
                        RoundtripReencoder.parse_data(&mut kept, segment).expect("constant addresses encode again");
                    }
                }
                module.section(&kept);
            }
            _ => {
                if let Some((id, range)) = payload.as_section() {
                    module.section(&RawSection { id, data: &wasm[range] });
                }
            }
        }
    }
    Ok(module.finish())
}

fn names_segments(wasm: &[u8]) -> wasmparser::Result<bool> {
    let mut counted = false;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload? {
            Payload::DataCountSection { .. } => counted = true,
            // Without the count, code that names a segment is not valid.
            Payload::CodeSectionStart { .. } if !counted => return Ok(false),
            Payload::CodeSectionEntry(body) => {
                let mut operators = body.get_operators_reader()?;
                while !operators.eof() {
                    if matches!(operators.read()?, Operator::MemoryInit { .. } | Operator::DataDrop { .. }) {
                        return Ok(true);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(false)
}
