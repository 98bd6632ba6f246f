//! Small modules, merged and run: each test is a guest that would notice.

mod image;
mod kernel;
mod mapping;
mod memory;
mod refusals;

use wasmtime::{Engine, Instance, Linker, Module, Store, Val};

use super::{
    INITIALIZE, INPUT, KERNEL, MEMORY, Merged, ModuleError, ModuleOptions, OUTPUT_LENGTH, OUTPUT_OFFSET, merge,
};

const MIB: u64 = 1024 * 1024;
const OPTIONS: ModuleOptions = ModuleOptions { memory_bytes: 64 * MIB };

fn merged(text: &str) -> Result<Merged, ModuleError> {
    merge(&wat::parse_str(text).expect("the test's text assembles"), &OPTIONS)
}

/// An instance of a merged module. What it may import of the host traps.
struct Running {
    store: Store<()>,
    instance: Instance,
}

impl Running {
    fn of(text: &str) -> Self {
        Self::of_merged(&merged(text).expect("the test's module may be a seed"))
    }

    fn of_merged(merged: &Merged) -> Self {
        Self::try_of(merged).expect("a merged module instantiates")
    }

    fn try_of(merged: &Merged) -> wasmtime::Result<Self> {
        let engine = Engine::default();
        let module = Module::new(&engine, &merged.wasm)?;
        let mut linker = Linker::new(&engine);
        linker.define_unknown_imports_as_traps(&module)?;
        let mut store = Store::new(&engine, ());
        let instance = linker.instantiate(&mut store, &module)?;
        let mut running = Self { store, instance };
        if let Some(start) = merged.initialize {
            assert_eq!(start.name, INITIALIZE);
            running.call(start.name, &[])?;
        }
        Ok(running)
    }

    /// Calls an export and gives its result, 0 for none.
    fn call(&mut self, name: &str, args: &[i64]) -> wasmtime::Result<i64> {
        let function = self.instance.get_func(&mut self.store, name).expect("the export is a function");
        let ty = function.ty(&self.store);
        let args: Vec<Val> = ty
            .params()
            .zip(args)
            .map(|(ty, arg)| match ty {
                wasmtime::ValType::I32 => Val::I32(i32::try_from(*arg).expect("the test's argument fits")),
                _ => Val::I64(*arg),
            })
            .collect();
        let mut results = vec![Val::I64(0); ty.results().len()];
        function.call(&mut self.store, &args, &mut results)?;
        Ok(results.first().map_or(0, |value| value.i64().unwrap_or_else(|| value.unwrap_i32().into())))
    }

    fn get(&mut self, name: &str) -> i64 {
        self.call(name, &[]).expect("the export does not trap")
    }

    fn global(&mut self, name: &str) -> i64 {
        let global = self.instance.get_global(&mut self.store, name).expect("the export is a global");
        global.get(&mut self.store).unwrap_i64()
    }

    fn memory(&mut self, name: &str) -> &mut [u8] {
        self.instance.get_memory(&mut self.store, name).expect("the export is a memory").data_mut(&mut self.store)
    }

    fn set_input(&mut self, input: &[u8]) {
        let offset = self.call(INPUT, &[i64::try_from(input.len()).expect("small")]).expect("input never traps");
        let offset = usize::try_from(offset).expect("offsets are no negative numbers");
        self.memory(KERNEL)[offset..offset + input.len()].copy_from_slice(input);
    }

    fn output(&mut self) -> Vec<u8> {
        let offset = usize::try_from(self.global(OUTPUT_OFFSET)).expect("checked by the kernel");
        let length = usize::try_from(self.global(OUTPUT_LENGTH)).expect("checked by the kernel");
        self.memory(KERNEL)[offset..offset + length].to_vec()
    }

    fn guest_pages(&mut self) -> usize {
        self.memory(MEMORY).len() / 65_536
    }
}
