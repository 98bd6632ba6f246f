//! WASI preview 1: clocks, randomness, standard output, and a definite "no" to everything else. No files, no
//! environment, no arguments, no sockets. Invariant: a pointer of the guest that is out of bounds is `EFAULT`.

mod descriptors;
mod poll;
mod time;

use wasmtime::{Caller, Linker};

use super::outcome::Exit;
use super::{CallState, HostResult, blocks};

const MODULE: &str = "wasi_snapshot_preview1";
/// Random bytes that are made before others have their turn.
const RANDOM_PIECE_BYTES: usize = 256 * 1024;

/// Error numbers of WASI preview 1 that are given here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Errno {
    BadDescriptor = 8,
    Fault = 21,
    Invalid = 28,
    Io = 29,
    NotSupportedHere = 52,
    NotSocket = 57,
    NotSeekable = 70,
}

type WasiResult<T = ()> = Result<T, Errno>;

/// The number that a guest is given.
fn code(result: WasiResult) -> i32 {
    result.map_or_else(|errno| i32::from(errno as u16), |()| 0)
}

/// The guest's memory, addressed as guests do.
struct Memory<'a>(&'a mut [u8]);

impl Memory<'_> {
    fn bytes(&self, at: i32, length: i32) -> WasiResult<&[u8]> {
        blocks::range(self.0, at.cast_unsigned().into(), length.cast_unsigned().into()).ok_or(Errno::Fault)
    }

    fn bytes_mut(&mut self, at: i32, length: i32) -> WasiResult<&mut [u8]> {
        blocks::range_mut(self.0, at.cast_unsigned().into(), length.cast_unsigned().into()).ok_or(Errno::Fault)
    }

    fn array<const N: usize>(&self, at: i32, offset: u32) -> WasiResult<[u8; N]> {
        let start = u64::from(at.cast_unsigned()) + u64::from(offset);
        let found = blocks::range(self.0, start, N as u64).ok_or(Errno::Fault)?;
        Ok(found.try_into().expect("the range has that length"))
    }

    fn write(&mut self, at: i32, offset: u32, bytes: &[u8]) -> WasiResult {
        let start = u64::from(at.cast_unsigned()) + u64::from(offset);
        let found = blocks::range_mut(self.0, start, bytes.len() as u64).ok_or(Errno::Fault)?;
        found.copy_from_slice(bytes);
        Ok(())
    }
}

/// Runs `body` on the guest's memory and the call's state, and gives what it came to as an error number.
fn with_memory(
    mut caller: Caller<'_, CallState>,
    body: impl FnOnce(&mut Memory<'_>, &mut CallState) -> WasiResult,
) -> HostResult<i32> {
    let (memory, state) = blocks::guest_memory(&mut caller)?;
    Ok(code(body(&mut Memory(memory), state)))
}

pub fn define(linker: &mut Linker<CallState>) -> HostResult<()> {
    define_surroundings(linker)?;
    define_process(linker)?;
    time::define(linker)?;
    poll::define(linker)?;
    descriptors::define(linker)
}

/// Arguments and environment: none.
fn define_surroundings(linker: &mut Linker<CallState>) -> HostResult<()> {
    for name in ["args_sizes_get", "environ_sizes_get"] {
        linker.func_wrap(MODULE, name, |caller: Caller<'_, CallState>, count: i32, bytes: i32| {
            with_memory(caller, |memory, _| {
                memory.write(count, 0, &0_u32.to_le_bytes())?;
                memory.write(bytes, 0, &0_u32.to_le_bytes())
            })
        })?;
    }
    for name in ["args_get", "environ_get"] {
        linker.func_wrap(MODULE, name, |_pointers: i32, _bytes: i32| 0_i32)?;
    }
    Ok(())
}

fn define_process(linker: &mut Linker<CallState>) -> HostResult<()> {
    linker
        .func_wrap(MODULE, "proc_exit", |status: i32| -> HostResult<()> { Err(wasmtime::Error::new(Exit(status))) })?;
    linker.func_wrap(MODULE, "proc_raise", |_signal: i32| code(Err(Errno::NotSupportedHere)))?;
    linker.func_wrap_async(MODULE, "sched_yield", |_: Caller<'_, CallState>, ()| {
        Box::new(async {
            tokio::task::yield_now().await;
            0_i32
        })
    })?;
    linker.func_wrap_async(MODULE, "random_get", |mut caller: Caller<'_, CallState>, (at, length): (i32, i32)| {
        Box::new(async move {
            let (memory, _) = blocks::guest_memory(&mut caller)?;
            let Ok(buffer) = Memory(memory).bytes_mut(at, length).map(|buffer| buffer.len()) else {
                return Ok(code(Err(Errno::Fault)));
            };
            let start = usize::try_from(at.cast_unsigned()).expect("it was in the memory");
            for piece in (0..buffer).step_by(RANDOM_PIECE_BYTES) {
                let (memory, _) = blocks::guest_memory(&mut caller)?;
                let piece = &mut memory[start + piece..start + buffer.min(piece + RANDOM_PIECE_BYTES)];
                if getrandom::fill(piece).is_err() {
                    return Ok(code(Err(Errno::Io)));
                }
                if buffer > RANDOM_PIECE_BYTES {
                    tokio::task::yield_now().await;
                }
            }
            HostResult::Ok(0_i32)
        })
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_beyond_the_memory_are_a_fault() {
        let mut bytes = [0_u8; 16];
        let mut memory = Memory(&mut bytes);
        assert_eq!(memory.bytes(8, 8).map(<[u8]>::len), Ok(8));
        assert_eq!(memory.bytes(8, 9), Err(Errno::Fault));
        assert_eq!(memory.bytes(-1, 1), Err(Errno::Fault));
        assert_eq!(memory.bytes_mut(0, -1).map(|bytes| bytes.len()), Err(Errno::Fault));
        assert_eq!(memory.write(12, 4, &[1]), Err(Errno::Fault));
        assert_eq!(memory.array::<4>(-1, u32::MAX), Err(Errno::Fault));
        assert_eq!(memory.write(12, 3, &[1]), Ok(()));
    }
}
