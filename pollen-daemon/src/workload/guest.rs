//! A module that is ready to be called: every call makes a fresh instance, gives it its input, and takes its output.
//! Must not know where calls come from. Invariant: what one call leaves behind, no other call sees.

mod blocks;
mod extism;
mod lines;
mod outcome;
mod state;
mod user;
mod variables;
mod wasi;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pollen_common::views::{SeedVersion, VersionId};
use tokio::time::{Instant, timeout_at};
use wasmtime::{Extern, Global, Instance, InstancePre, Linker, Memory, Module, ModuleExport, Store, TypedFunc, Val};

use super::engine::{Counted, Engine, Slots, give_back};
use super::{BODY_BYTES_MAX, CallError, Invocation, World};
pub(super) use state::CallState;

/// What a host function gives to its guest, or the trap that ends it.
type HostResult<T> = wasmtime::Result<T>;

/// A version of a seed, compiled and ready to be called on this node. Clones are the same guest.
#[derive(Clone)]
pub struct Guest(Arc<Ready>);

/// What all calls of a version share.
pub(super) struct Ready {
    engine: Engine,
    pre: InstancePre<CallState>,
    exports: Arc<Exports>,
    slots: Arc<Slots>,
    functions: Vec<String>,
    entries: BTreeMap<String, ModuleExport>,
    initialize: Option<ModuleExport>,
    version: SeedVersion,
    id: VersionId,
    /// Memory that an instance has from its start, in bytes.
    initial_bytes: u64,
    calls: AtomicU64,
}

/// Where the host finds its own exports in a merged module.
#[derive(Clone, Copy)]
pub(super) struct Exports {
    pub memory: ModuleExport,
    pub kernel: ModuleExport,
    pub alloc: ModuleExport,
    input: ModuleExport,
    pub length: ModuleExport,
    pub free: ModuleExport,
    output_offset: ModuleExport,
    output_length: ModuleExport,
    error_offset: ModuleExport,
    /// Whether the last attempt of the guest to grow its memory was refused.
    memory_refused: ModuleExport,
    /// Whether a block was refused.
    blocks_refused: ModuleExport,
}

/// A module without what every merged module has: our own merge is at fault.
#[derive(Debug, thiserror::Error)]
#[error("the merged module does not export {0}")]
pub struct Incomplete(&'static str);

impl Exports {
    pub(super) fn of(module: &Module) -> Result<Self, Incomplete> {
        let find = |name| module.get_export_index(name).ok_or(Incomplete(name));
        Ok(Self {
            memory: find(pollen_module::MEMORY)?,
            kernel: find(pollen_module::KERNEL)?,
            alloc: find(pollen_module::ALLOC)?,
            input: find(pollen_module::INPUT)?,
            length: find(pollen_module::LENGTH)?,
            free: find(pollen_module::FREE)?,
            output_offset: find(pollen_module::OUTPUT_OFFSET)?,
            output_length: find(pollen_module::OUTPUT_LENGTH)?,
            error_offset: find(pollen_module::ERROR_OFFSET)?,
            memory_refused: find(pollen_module::MEMORY_REFUSED)?,
            blocks_refused: find(pollen_module::BLOCKS_REFUSED)?,
        })
    }
}

/// Defines everything that a guest may import and the merge does not provide.
pub(super) fn linker(engine: &wasmtime::Engine) -> HostResult<Linker<CallState>> {
    let mut linker = Linker::new(engine);
    extism::define(&mut linker)?;
    user::define(&mut linker)?;
    wasi::define(&mut linker)?;
    Ok(linker)
}

/// Memory that instances of `module` have from their start, in bytes.
fn initial_bytes(module: &Module) -> u64 {
    module
        .exports()
        .filter(|export| [pollen_module::MEMORY, pollen_module::KERNEL].contains(&export.name()))
        .filter_map(|export| Some(export.ty().memory()?.minimum().saturating_mul(pollen_module::PAGE_BYTES)))
        .sum()
}

impl Guest {
    pub(super) fn new(
        engine: Engine,
        pre: InstancePre<CallState>,
        functions: Vec<String>,
        version: &SeedVersion,
    ) -> Result<Self, Incomplete> {
        let module = pre.module();
        let entry = |name: &String| Some((name.clone(), module.get_export_index(name)?));
        let exports = Arc::new(Exports::of(module)?);
        Ok(Self(Arc::new(Ready {
            slots: engine.slots_of(pre.clone(), Arc::clone(&exports)),
            exports,
            entries: functions.iter().filter_map(entry).collect(),
            initialize: module.get_export_index(pollen_module::INITIALIZE),
            initial_bytes: initial_bytes(module),
            id: version.id(),
            version: *version,
            functions,
            engine,
            pre,
            calls: AtomicU64::new(0),
        })))
    }

    #[must_use]
    pub fn version(&self) -> &SeedVersion {
        &self.0.version
    }

    #[must_use]
    pub fn id(&self) -> VersionId {
        self.0.id
    }

    /// Whether it has a function of that name to call.
    #[must_use]
    pub fn has(&self, function: &str) -> bool {
        self.0.entries.contains_key(function)
    }

    /// Every function that can be called.
    #[must_use]
    pub fn functions(&self) -> &[String] {
        &self.0.functions
    }

    /// Calls that began.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed)
    }

    /// Calls a function in a fresh instance, on a worker thread: on this one if it is a worker on which nothing computes
    /// at length, else on the one that has the least to do. Ends when the guest does, at its time limit, or at the
    /// deadline, whichever comes first; dropping the future stops the guest.
    pub async fn call(&self, invocation: Invocation, world: Arc<dyn World>) -> Result<Bytes, CallError> {
        let ready = Arc::clone(&self.0);
        let engine = self.0.engine.clone();
        let outcome = match engine.here().filter(|worker| !engine.is_long(*worker)) {
            Some(worker) => ready.call(worker, invocation, world).await,
            None => {
                let workers = engine.clone();
                let call = async move {
                    let worker = workers.here().expect("it was spawned on a worker");
                    ready.call(worker, invocation, world).await
                };
                engine.spawn(call).await.unwrap_or_else(|| Err(CallError::Failed("its host gave up".into())))
            }
        };
        if let Err(error) = &outcome {
            engine.count_failure(error);
        }
        outcome
    }
}

impl Ready {
    async fn call(
        self: Arc<Self>,
        worker: usize,
        mut invocation: Invocation,
        world: Arc<dyn World>,
    ) -> Result<Bytes, CallError> {
        let Some(entry) = self.entries.get(&invocation.function).copied() else {
            return Err(CallError::no_function(invocation.function, &self.functions));
        };
        let input = std::mem::take(&mut invocation.input);
        if input.len() > BODY_BYTES_MAX {
            return Err(CallError::InputTooLarge { bytes: input.len(), max: BODY_BYTES_MAX });
        }
        let deadline = invocation.deadline;
        let own_limit = Duration::from_millis(self.version.timeout_ms.into());
        let now = Instant::now();
        if deadline <= now {
            return Err(CallError::Deadline);
        }
        let _place = self.engine.admit(self.initial_bytes)?;
        let counted = self.slots.count(worker);
        self.engine.sweep_later(worker);
        self.calls.fetch_add(1, Ordering::Relaxed);
        let state = CallState::new(invocation, world, Arc::clone(&self.exports), self.engine.budget());
        let mut store = self.engine.store(state);
        let end = deadline.min(now + own_limit);
        let result = timeout_at(end, self.run(&mut store, entry, input, &counted)).await;
        store.data_mut().finish_lines();
        match result {
            Ok(result) => result,
            Err(_) if deadline <= now + own_limit => Err(CallError::Deadline),
            Err(_) => Err(CallError::Time(own_limit)),
        }
    }

    async fn run(
        &self,
        store: &mut Store<CallState>,
        entry: ModuleExport,
        input: Bytes,
        counted: &Counted<'_>,
    ) -> Result<Bytes, CallError> {
        let instance = match self.pre.instantiate_async(&mut *store).await {
            Ok(instance) => instance,
            Err(error) => return Err(self.start_failure(&error, store)),
        };
        let code = match self.enter(store, &instance, entry, &input).await {
            Ok(code) => code,
            Err(error) => match outcome::exit_code(&error) {
                Some(0) => 0,
                _ => {
                    let ended = self.run_failure(&error, store, &instance);
                    let said = self.error_text(store, &instance).await;
                    return Err(outcome::said_and_ended(said, ended));
                }
            },
        };
        let exports = &self.exports;
        // An error that was set decides, whatever the function returned.
        if let Some(message) = self.error_text(store, &instance).await {
            return Err(CallError::Failed(message));
        }
        if code != 0 {
            return Err(CallError::Failed(format!("it returned {code}")));
        }
        let offset = global(store, &instance, &exports.output_offset);
        let length = global(store, &instance, &exports.output_length);
        if length > BODY_BYTES_MAX as u64 {
            return Err(CallError::OutputTooLarge { bytes: length, max: BODY_BYTES_MAX });
        }
        let kernel = memory(store, &instance, &exports.kernel).data(&*store);
        let output = blocks::range(kernel, offset, length)
            .map(Bytes::copy_from_slice)
            .ok_or_else(|| CallError::Trap("its output lies outside of its memory".into()))?;
        if counted.is_to_be_emptied(input.len() + output.len()) {
            give_back(store, &instance, exports);
        }
        Ok(output)
    }

    /// Initialises, hands over the input and calls the function; gives what it returned.
    async fn enter(
        &self,
        store: &mut Store<CallState>,
        instance: &Instance,
        entry: ModuleExport,
        input: &[u8],
    ) -> HostResult<i32> {
        if let Some(initialize) = &self.initialize {
            function::<(), ()>(store, instance, initialize)?.call_async(&mut *store, ()).await?;
        }
        if !input.is_empty() {
            let make = function::<i64, i64>(store, instance, &self.exports.input)?;
            // Cannot wrap: bodies are far below 2^63.
            let length = i64::try_from(input.len()).unwrap_or(i64::MAX);
            let offset = make.call_async(&mut *store, length).await?;
            let kernel = memory(store, instance, &self.exports.kernel).data_mut(&mut *store);
            let block = blocks::range_mut(kernel, offset.cast_unsigned(), input.len() as u64)
                .filter(|_| offset != 0)
                .ok_or_else(|| wasmtime::Error::msg("there was no room for its input"))?;
            block.copy_from_slice(input);
        }
        let Some(Extern::Func(entry)) = instance.get_module_export(&mut *store, &entry) else {
            return Err(wasmtime::Error::msg("the function is not where it was"));
        };
        if let Ok(entry) = entry.typed::<(), i32>(&*store) {
            return entry.call_async(&mut *store, ()).await;
        }
        entry.typed::<(), ()>(&*store)?.call_async(&mut *store, ()).await.map(|()| 0)
    }

    /// What the guest said of its failure.
    async fn error_text(&self, store: &mut Store<CallState>, instance: &Instance) -> Option<String> {
        let offset = global(store, instance, &self.exports.error_offset);
        if offset == 0 {
            return None;
        }
        let length = function::<i64, i64>(store, instance, &self.exports.length).ok()?;
        let length = length.call_async(&mut *store, offset.cast_signed()).await.ok()?.cast_unsigned();
        let kernel = memory(store, instance, &self.exports.kernel).data(&*store);
        let text = blocks::range(kernel, offset, length.min(outcome::MESSAGE_BYTES_MAX))?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// The most memory that one call may have, in bytes.
    fn limit(&self) -> u64 {
        self.version.memory_bytes
    }
}

fn memory(store: &mut Store<CallState>, instance: &Instance, export: &ModuleExport) -> Memory {
    match instance.get_module_export(&mut *store, export) {
        Some(Extern::Memory(memory)) => memory,
        _ => unreachable!("the export was found in this module, and the merge made it a memory"),
    }
}

fn global(store: &mut Store<CallState>, instance: &Instance, export: &ModuleExport) -> u64 {
    let value = |global: Global, store: &mut Store<CallState>| match global.get(store) {
        Val::I64(value) => value.cast_unsigned(),
        Val::I32(value) => value.cast_unsigned().into(),
        _ => unreachable!("the merge made it an integer"),
    };
    match instance.get_module_export(&mut *store, export) {
        Some(Extern::Global(found)) => value(found, store),
        _ => unreachable!("the export was found in this module, and the merge made it a global"),
    }
}

fn function<Params: wasmtime::WasmParams, Results: wasmtime::WasmResults>(
    store: &mut Store<CallState>,
    instance: &Instance,
    export: &ModuleExport,
) -> HostResult<TypedFunc<Params, Results>> {
    match instance.get_module_export(&mut *store, export) {
        Some(Extern::Func(found)) => found.typed(&*store),
        _ => unreachable!("the export was found in this module, and the merge made it a function"),
    }
}

#[cfg(test)]
mod tests;
