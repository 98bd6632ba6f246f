//! Bytes in a guest's memories, as host functions read and write them. Invariant: every range is checked against the
//! memory as it is now; a range that does not fit gives nothing.

use wasmtime::{AsContextMut, Caller, Extern, Memory, ModuleExport};

use super::{CallState, HostResult};

/// `length` bytes from `offset` on, if they are within `memory`.
pub fn range(memory: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    memory.get(start..start.checked_add(usize::try_from(length).ok()?)?)
}

/// The same, to be written.
pub fn range_mut(memory: &mut [u8], offset: u64, length: u64) -> Option<&mut [u8]> {
    let start = usize::try_from(offset).ok()?;
    memory.get_mut(start..start.checked_add(usize::try_from(length).ok()?)?)
}

/// The guest's own memory and the state of its call.
pub fn guest_memory<'a>(caller: &'a mut Caller<'_, CallState>) -> HostResult<(&'a mut [u8], &'a mut CallState)> {
    let export = caller.data().exports.memory;
    Ok(memory(caller, &export)?.data_and_store_mut(caller))
}

/// A copy of the block at `offset`; empty when none begins there. One longer than `max` bytes is a trap that says so.
pub async fn read(caller: &mut Caller<'_, CallState>, offset: i64, what: &str, max: usize) -> HostResult<Vec<u8>> {
    if offset == 0 {
        return Ok(Vec::new());
    }
    let exports = std::sync::Arc::clone(&caller.data().exports);
    let length = call(caller, &exports.length, offset).await?;
    if length == 0 {
        return Ok(Vec::new());
    }
    if length.cast_unsigned() > max as u64 {
        return Err(wasmtime::Error::msg(format!("{what} of {length} bytes is over the limit of {max}")));
    }
    let kernel = memory(caller, &exports.kernel)?;
    let block = range(kernel.data(&*caller), offset.cast_unsigned(), length.cast_unsigned());
    Ok(block.ok_or_else(|| wasmtime::Error::msg("a block lies outside of the memory"))?.to_vec())
}

/// The same, of a block that the host takes over, as Extism's does: it is free afterwards. With `cut`, of one that is
/// longer only the beginning is given, and it is no trap.
pub async fn take(
    caller: &mut Caller<'_, CallState>,
    offset: i64,
    what: &str,
    max: usize,
    cut: bool,
) -> HostResult<Vec<u8>> {
    let bytes = if cut { beginning(caller, offset, max).await? } else { read(caller, offset, what, max).await? };
    free(caller, offset).await?;
    Ok(bytes)
}

/// A copy of the first `max` bytes of the block at `offset`.
pub async fn beginning(caller: &mut Caller<'_, CallState>, offset: i64, max: usize) -> HostResult<Vec<u8>> {
    let exports = std::sync::Arc::clone(&caller.data().exports);
    let length = call(caller, &exports.length, offset).await?.cast_unsigned().min(max as u64);
    let kernel = memory(caller, &exports.kernel)?;
    Ok(range(kernel.data(&*caller), offset.cast_unsigned(), length).unwrap_or_default().to_vec())
}

/// The block at `offset` is the guest's no more.
pub async fn free(caller: &mut Caller<'_, CallState>, offset: i64) -> HostResult<()> {
    let export = caller.data().exports.free;
    let Some(Extern::Func(function)) = caller.get_module_export(&export) else {
        return Err(wasmtime::Error::msg("a host function was called by another module"));
    };
    function.typed::<i64, ()>(&*caller)?.call_async(caller.as_context_mut(), offset).await
}

/// A new block with `bytes` in it, also when they are none. Without room the call ends.
pub async fn write(caller: &mut Caller<'_, CallState>, bytes: &[u8]) -> HostResult<i64> {
    let exports = std::sync::Arc::clone(&caller.data().exports);
    let Ok(length) = i64::try_from(bytes.len()) else { return Ok(0) };
    let offset = call(caller, &exports.alloc, length).await?;
    let kernel = memory(caller, &exports.kernel)?;
    match range_mut(kernel.data_mut(&mut *caller), offset.cast_unsigned(), bytes.len() as u64) {
        Some(block) if offset != 0 => {
            block.copy_from_slice(bytes);
            Ok(offset)
        }
        _ => Ok(0),
    }
}

async fn call(caller: &mut Caller<'_, CallState>, export: &ModuleExport, argument: i64) -> HostResult<i64> {
    let Some(Extern::Func(function)) = caller.get_module_export(export) else {
        return Err(wasmtime::Error::msg("a host function was called by another module"));
    };
    function.typed::<i64, i64>(&*caller)?.call_async(caller.as_context_mut(), argument).await
}

fn memory(caller: &mut Caller<'_, CallState>, export: &ModuleExport) -> HostResult<Memory> {
    match caller.get_module_export(export) {
        Some(Extern::Memory(memory)) => Ok(memory),
        _ => Err(wasmtime::Error::msg("a host function was called by another module")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ranges_within_the_memory_are_given() {
        let memory = [1_u8, 2, 3];
        assert_eq!(range(&memory, 1, 2), Some(&memory[1..]));
        assert_eq!(range(&memory, 3, 0), Some(&[][..]));
        for (offset, length) in [(1, 3), (4, 0), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
            assert_eq!(range(&memory, offset, length), None, "{offset} {length}");
        }
    }
}
