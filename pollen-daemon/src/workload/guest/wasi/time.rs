//! Clocks of WASI preview 1: wall and monotonic. How much processor time was used is nobody's business here.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use wasmtime::Linker;

use super::{Errno, MODULE, WasiResult, with_memory};
use crate::workload::guest::{CallState, HostResult};

const REALTIME: i32 = 0;
const MONOTONIC: i32 = 1;
/// What the clocks resolve, in nanoseconds.
const RESOLUTION_NS: u64 = 1;

/// Where the monotonic clock of all guests begins, less a second: runtimes take zero for "unset".
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

pub fn define(linker: &mut Linker<CallState>) -> HostResult<()> {
    linker.func_wrap(MODULE, "clock_res_get", |caller: wasmtime::Caller<'_, CallState>, clock: i32, at: i32| {
        with_memory(caller, |memory, _| {
            now(clock)?;
            memory.write(at, 0, &RESOLUTION_NS.to_le_bytes())
        })
    })?;
    linker.func_wrap(
        MODULE,
        "clock_time_get",
        |caller: wasmtime::Caller<'_, CallState>, clock: i32, _precision: i64, at: i32| {
            with_memory(caller, |memory, _| memory.write(at, 0, &now(clock)?.to_le_bytes()))
        },
    )?;
    Ok(())
}

/// Nanoseconds that a clock shows.
pub fn now(clock: i32) -> WasiResult<u64> {
    let since = match clock {
        REALTIME => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
        MONOTONIC => START.elapsed() + Duration::from_secs(1),
        _ => return Err(Errno::Invalid),
    };
    Ok(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
