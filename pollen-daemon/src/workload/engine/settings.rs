//! How wasmtime is set up on this machine: a pool of instances where the address space has room for one, instances made
//! on demand where it has not. Must not know seeds. Invariant: a step down is a value that says why.

use std::num::NonZeroUsize;

use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

/// The stack that a guest's own functions may use in one call. wasmtime's default, as other hosts of such guests have
/// it: languages keep their large values in linear memory.
pub const STACK_BYTES_MAX: usize = 512 * 1024;
/// What host functions have beyond that, on the same stack. Formatting a message in an unoptimised build needs some
/// 30 KiB; requests run on the worker's own stack.
const HOST_STACK_BYTES: usize = 256 * 1024;
/// Address space of each memory: all that 32 bits can reach, so that no access needs a comparison.
const RESERVATION_BYTES: u64 = 1 << 32;
/// The guest's own, and the one on which a host function makes a block in the guest's memory: wasmtime keeps that with
/// the instance once it was needed.
const STACKS_EACH: u32 = 2;
/// The guest's own and that of its blocks.
const MEMORIES_EACH: u32 = 2;
/// More than compilers make; a table beyond it is refused when the module is prepared.
const TABLE_ELEMENTS_MAX: usize = 100_000;
/// Guests written by compilers have one; two leave room for those written by hand.
const TABLES_EACH: u32 = 2;
/// What a memory keeps when its slot is returned, as far as it was touched: calls of up to about a megabyte find their
/// pages again. Idle slots are emptied by `warm`.
const KEEP_BYTES: usize = 4 * 1024 * 1024;
/// The same where the kernel cannot say which pages were touched, so that this much is cleared by every call.
const KEEP_BLIND_BYTES: usize = 64 * 1024;
/// Slots that keep another module's image rather than being taken for this one, so that several seeds that are called in
/// turns do not map and unmap each other's.
const WARM_SLOTS: u32 = 128;
const KEEP_TABLE_BYTES: usize = 64 * 1024;
/// The fewest slots that make a pool worth having.
const SLOTS_MIN: usize = 16;
/// Memory reserved for growth without moving, where instances are made on demand and address space is scarce.
const ON_DEMAND_RESERVATION_BYTES: u64 = 64 * 1024 * 1024;

/// How the memory of a slot is made new again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The kernel lists the touched pages (`PAGEMAP_SCAN`, Linux 6.7): only they are cleared.
    Scan,
    /// The lowest pages are cleared, the others given back to the kernel.
    Blind,
}

impl Reset {
    /// The method as a person reads it.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Scan => "touched pages are cleared",
            Self::Blind => {
                "the kernel has no PAGEMAP_SCAN (Linux 6.7): the lowest 64 KiB are cleared, the rest unmapped"
            }
        }
    }
}

/// Where instances come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instances {
    /// Slots that are kept, and how they are made new.
    Pool { slots: usize, reset: Reset, stepped_down: Option<String> },
    /// Mapped for each call and unmapped after it: some fifty microseconds more.
    OnDemand { slots: usize, why: String },
}

impl Instances {
    /// The most instances at once.
    #[must_use]
    pub const fn slots(&self) -> usize {
        match self {
            Self::Pool { slots, .. } | Self::OnDemand { slots, .. } => *slots,
        }
    }
}

/// wasmtime cannot run here at all.
#[derive(Debug, thiserror::Error)]
#[error("WebAssembly cannot run on this machine: {0}")]
pub struct Unable(String);

/// An engine with as many slots as there is address space for, `slots` at the most, and what it came to.
pub fn probe(slots: NonZeroUsize) -> Result<(wasmtime::Engine, Instances), Unable> {
    let wanted = slots.get();
    let reset = if PoolingAllocationConfig::is_pagemap_scan_available() { Reset::Scan } else { Reset::Blind };
    let mut why = String::new();
    let mut fewer = wanted.max(SLOTS_MIN);
    while fewer >= SLOTS_MIN {
        match wasmtime::Engine::new(&pooled(fewer, reset)) {
            Ok(engine) => {
                let stepped_down = (!why.is_empty()).then(|| format!("no room for {wanted} slots: {why}"));
                return Ok((engine, Instances::Pool { slots: fewer.min(wanted), reset, stepped_down }));
            }
            Err(error) if why.is_empty() => why = error.root_cause().to_string(),
            Err(_) => {}
        }
        fewer /= 2;
    }
    let engine = apart().map_err(|error| Unable(error.root_cause().to_string()))?;
    Ok((engine, Instances::OnDemand { slots: wanted, why }))
}

/// An engine without a pool, for what does not run as a call.
pub fn apart() -> wasmtime::Result<wasmtime::Engine> {
    wasmtime::Engine::new(&on_demand())
}

fn pooled(slots: usize, reset: Reset) -> Config {
    let slots = u32::try_from(slots).unwrap_or(u32::MAX / (MEMORIES_EACH * 2));
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(slots)
        .total_memories(slots * MEMORIES_EACH)
        .max_memories_per_module(MEMORIES_EACH)
        .total_tables(slots * TABLES_EACH)
        .max_tables_per_module(TABLES_EACH)
        .table_elements(TABLE_ELEMENTS_MAX)
        .total_stacks(slots * STACKS_EACH)
        .max_memory_size(usize::try_from(RESERVATION_BYTES).unwrap_or(usize::MAX))
        .max_unused_warm_slots(WARM_SLOTS)
        .table_keep_resident(KEEP_TABLE_BYTES);
    match reset {
        Reset::Scan => pool.pagemap_scan(Enabled::Yes).linear_memory_keep_resident(KEEP_BYTES),
        Reset::Blind => pool.pagemap_scan(Enabled::No).linear_memory_keep_resident(KEEP_BLIND_BYTES),
    };
    let mut config = common();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool)).memory_reservation(RESERVATION_BYTES);
    config
}

fn on_demand() -> Config {
    let mut config = common();
    config
        .allocation_strategy(InstanceAllocationStrategy::OnDemand)
        .memory_reservation(ON_DEMAND_RESERVATION_BYTES)
        .memory_reservation_for_growth(ON_DEMAND_RESERVATION_BYTES)
        .memory_guard_size(64 * 1024);
    config
}

fn common() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES_MAX)
        .async_stack_size(STACK_BYTES_MAX + HOST_STACK_BYTES)
        .concurrency_support(false)
        // Merged modules have a second memory; guests themselves may not.
        .wasm_multi_memory(true)
        // Names of functions are kept for traps; places in source files are not shown.
        .generate_address_map(false)
        .native_unwind_info(false);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_has_the_slots_that_were_asked_for_where_there_is_room() {
        let (_, instances) = probe(NonZeroUsize::new(100).expect("not zero")).expect("wasmtime runs here");
        assert_eq!(instances.slots(), 100);
        assert!(matches!(instances, Instances::Pool { stepped_down: None, .. }), "{instances:?}");
    }

    #[test]
    fn more_slots_than_fit_the_address_space_step_down_and_say_so() {
        // 2^47 bytes hold 16,000 pairs of 4 GiB at the most.
        let (_, instances) = probe(NonZeroUsize::new(40_000).expect("not zero")).expect("wasmtime runs here");
        match instances {
            Instances::Pool { slots, stepped_down: Some(why), .. } => {
                assert!((SLOTS_MIN..40_000).contains(&slots), "{slots}");
                assert!(why.contains("40000"), "{why}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_engine_without_a_pool_is_configured_validly() {
        assert!(apart().is_ok());
    }
}
