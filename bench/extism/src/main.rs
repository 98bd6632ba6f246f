//! The guests of the call benchmark on the `extism` crate: a fresh plugin for every call, from one that is compiled, on
//! wasmtime's pooling allocator, which is its fastest way. Measured by the same clock as Pollen's own engine.
//! Each caller is a thread, as calls of this crate block.

#[path = "../../meter.rs"]
mod meter;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use extism::{CompiledPlugin, Manifest, PTR, Plugin, PluginBuilder, UserData, Val, ValType, Wasm};
use meter::{Bell, Run, Start};
use wasmtime::{Config, InstanceAllocationStrategy, PoolingAllocationConfig};

const NAMESPACE: &str = "extism:host/user";

fn main() -> Result<()> {
    let run = Run::of_arguments();
    let before_kib = meter::resident_kib();
    let compiled = compile(&run)?;
    let input = run.input();
    // The first call of all pays for what is made once.
    ensure!(call(&compiled, &input)? == input, "the guest echoes something else");

    let bell = Bell::new();
    let start = Start::now();
    let took = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..run.callers).map(|_| scope.spawn(|| caller(&compiled, &input, &bell))).collect();
        bell.ring_after(Duration::from_secs(run.seconds));
        callers.into_iter().flat_map(|caller| caller.join().expect("calls end well")).collect()
    });
    start.end(took).print(before_kib);
    Ok(())
}

fn caller(compiled: &CompiledPlugin, input: &[u8], bell: &Bell) -> Vec<u64> {
    let mut took = Vec::new();
    while !bell.rang() {
        let began = Instant::now();
        let output = call(compiled, input).expect("the guest answers");
        took.push(u64::try_from(began.elapsed().as_nanos()).expect("within five centuries"));
        assert_eq!(output.len(), input.len());
    }
    took
}

fn call(compiled: &CompiledPlugin, input: &[u8]) -> Result<Vec<u8>> {
    Plugin::new_from_compiled(compiled)?.call::<&[u8], Vec<u8>>("echo", input)
}

fn compile(run: &Run) -> Result<CompiledPlugin> {
    let mut config = Config::new();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(PoolingAllocationConfig::new()));
    // Read here: the crate takes files only with a feature that this build leaves out.
    let manifest = Manifest::new([Wasm::data(std::fs::read(&run.module)?)]);
    let none = |_: &mut extism::CurrentPlugin, _: &[Val], results: &mut [Val], _: UserData<()>| {
        results.fill(Val::I64(0));
        Ok(())
    };
    let builder = PluginBuilder::new(manifest).with_wasi(true).with_cache_disabled().with_wasmtime_config(config);
    // What Pollen's guests import, and no echo calls.
    let builder = builder
        .with_function_in_namespace(NAMESPACE, "pollen_caller_info", [], [PTR], UserData::new(()), none)
        .with_function_in_namespace(NAMESPACE, "pollen_log", [ValType::I64, PTR], [], UserData::new(()), none)
        .with_function_in_namespace(NAMESPACE, "pollen_request", [PTR, PTR], [PTR], UserData::new(()), none);
    CompiledPlugin::new(builder)
}
