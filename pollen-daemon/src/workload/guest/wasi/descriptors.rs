//! Descriptors of WASI preview 1: standard input is at its end, standard output and error are lines in the log, and
//! there are no others. Invariant: no descriptor reaches anything of the host.

use wasmtime::{Caller, Linker};

use super::{Errno, MODULE, Memory, WasiResult, code, with_memory};
use crate::workload::guest::{CallState, HostResult};

const STDIN: i32 = 0;
const STDOUT: i32 = 1;
const STDERR: i32 = 2;
/// Pieces of one write: what Linux allows.
const PIECES_MAX: u32 = 1024;
const PIECE_BYTES: u32 = 8;
const CHARACTER_DEVICE: u8 = 2;
/// `fd_read`, `fd_write`, `poll_fd_readwrite`.
const RIGHTS: u64 = 1 << 1 | 1 << 6 | 1 << 27;

pub fn define(linker: &mut Linker<CallState>) -> HostResult<()> {
    define_streams(linker)?;
    define_states(linker)?;
    define_absent_files(linker)?;
    define_absent_sockets(linker)
}

fn standard(descriptor: i32) -> WasiResult {
    if (STDIN..=STDERR).contains(&descriptor) { Ok(()) } else { Err(Errno::BadDescriptor) }
}

/// What a file would do and a terminal does not.
fn unseekable(descriptor: i32) -> i32 {
    code(standard(descriptor).and(Err(Errno::NotSeekable)))
}

fn unsuitable(descriptor: i32) -> i32 {
    code(standard(descriptor).and(Err(Errno::Invalid)))
}

const fn absent() -> i32 {
    Errno::BadDescriptor as i32
}

fn define_streams(linker: &mut Linker<CallState>) -> HostResult<()> {
    linker.func_wrap(
        MODULE,
        "fd_write",
        |caller: Caller<'_, CallState>, descriptor: i32, pieces: i32, count: i32, written: i32| {
            with_memory(caller, |memory, state| {
                if descriptor != STDOUT && descriptor != STDERR {
                    return Err(Errno::BadDescriptor);
                }
                let mut total = 0_u32;
                for (at, length) in read_pieces(memory, pieces, count.cast_unsigned())? {
                    state.print(descriptor == STDERR, memory.bytes(at, length)?);
                    total = total.saturating_add(length.cast_unsigned());
                }
                memory.write(written, 0, &total.to_le_bytes())
            })
        },
    )?;
    linker.func_wrap(
        MODULE,
        "fd_read",
        |caller: Caller<'_, CallState>, descriptor: i32, _pieces: i32, _count: i32, read: i32| {
            with_memory(caller, |memory, _| {
                if descriptor != STDIN {
                    return Err(Errno::BadDescriptor);
                }
                memory.write(read, 0, &0_u32.to_le_bytes())
            })
        },
    )?;
    Ok(())
}

fn read_pieces(memory: &Memory<'_>, at: i32, count: u32) -> WasiResult<Vec<(i32, i32)>> {
    if count > PIECES_MAX {
        return Err(Errno::Invalid);
    }
    (0..count)
        .map(|index| {
            let piece = |offset| memory.array(at, index * PIECE_BYTES + offset).map(i32::from_le_bytes);
            Ok((piece(0)?, piece(4)?))
        })
        .collect()
}

fn define_states(linker: &mut Linker<CallState>) -> HostResult<()> {
    linker.func_wrap(MODULE, "fd_fdstat_get", |caller: Caller<'_, CallState>, descriptor: i32, at: i32| {
        with_memory(caller, |memory, _| {
            standard(descriptor)?;
            let mut state = [0_u8; 24];
            state[0] = CHARACTER_DEVICE;
            state[8..16].copy_from_slice(&RIGHTS.to_le_bytes());
            memory.write(at, 0, &state)
        })
    })?;
    linker.func_wrap(MODULE, "fd_filestat_get", |caller: Caller<'_, CallState>, descriptor: i32, at: i32| {
        with_memory(caller, |memory, _| {
            standard(descriptor)?;
            let mut state = [0_u8; 64];
            state[16] = CHARACTER_DEVICE;
            memory.write(at, 0, &state)
        })
    })?;
    for name in ["fd_close", "fd_sync", "fd_datasync"] {
        linker.func_wrap(MODULE, name, |descriptor: i32| code(standard(descriptor)))?;
    }
    linker.func_wrap(MODULE, "fd_fdstat_set_flags", |descriptor: i32, _flags: i32| code(standard(descriptor)))?;
    linker.func_wrap(MODULE, "fd_fdstat_set_rights", |descriptor: i32, _base: i64, _inheriting: i64| {
        code(standard(descriptor))
    })?;
    linker
        .func_wrap(MODULE, "fd_seek", |descriptor: i32, _offset: i64, _whence: i32, _at: i32| unseekable(descriptor))?;
    linker.func_wrap(MODULE, "fd_tell", |descriptor: i32, _at: i32| unseekable(descriptor))?;
    for name in ["fd_pread", "fd_pwrite"] {
        linker.func_wrap(MODULE, name, |descriptor: i32, _pieces: i32, _count: i32, _offset: i64, _at: i32| {
            unseekable(descriptor)
        })?;
    }
    linker.func_wrap(MODULE, "fd_readdir", |descriptor: i32, _at: i32, _length: i32, _cookie: i64, _used: i32| {
        unsuitable(descriptor)
    })?;
    linker.func_wrap(MODULE, "fd_advise", |descriptor: i32, _offset: i64, _length: i64, _advice: i32| {
        unseekable(descriptor)
    })?;
    linker.func_wrap(MODULE, "fd_allocate", |descriptor: i32, _offset: i64, _length: i64| unsuitable(descriptor))?;
    linker.func_wrap(MODULE, "fd_filestat_set_size", |descriptor: i32, _size: i64| unsuitable(descriptor))?;
    linker.func_wrap(MODULE, "fd_filestat_set_times", |descriptor: i32, _access: i64, _change: i64, _flags: i32| {
        unsuitable(descriptor)
    })?;
    linker.func_wrap(MODULE, "fd_renumber", |from: i32, to: i32| {
        code(standard(from).and(standard(to)).and(Err(Errno::NotSupportedHere)))
    })?;
    Ok(())
}

/// No directory is open, so every path is below a descriptor that does not exist.
fn define_absent_files(linker: &mut Linker<CallState>) -> HostResult<()> {
    linker.func_wrap(MODULE, "fd_prestat_get", |_descriptor: i32, _at: i32| absent())?;
    linker.func_wrap(MODULE, "fd_prestat_dir_name", |_descriptor: i32, _at: i32, _length: i32| absent())?;
    for name in ["path_create_directory", "path_remove_directory", "path_unlink_file"] {
        linker.func_wrap(MODULE, name, |_directory: i32, _path: i32, _length: i32| absent())?;
    }
    linker.func_wrap(MODULE, "path_filestat_get", |_: i32, _: i32, _: i32, _: i32, _: i32| absent())?;
    linker.func_wrap(MODULE, "path_filestat_set_times", |_: i32, _: i32, _: i32, _: i32, _: i64, _: i64, _: i32| {
        absent()
    })?;
    linker.func_wrap(MODULE, "path_link", |_: i32, _: i32, _: i32, _: i32, _: i32, _: i32, _: i32| absent())?;
    linker.func_wrap(
        MODULE,
        "path_open",
        |_: i32, _: i32, _: i32, _: i32, _: i32, _: i64, _: i64, _: i32, _: i32| absent(),
    )?;
    for name in ["path_readlink", "path_rename"] {
        linker.func_wrap(MODULE, name, |_: i32, _: i32, _: i32, _: i32, _: i32, _: i32| absent())?;
    }
    linker.func_wrap(MODULE, "path_symlink", |_: i32, _: i32, _: i32, _: i32, _: i32| absent())?;
    Ok(())
}

fn define_absent_sockets(linker: &mut Linker<CallState>) -> HostResult<()> {
    let not_a_socket = |descriptor: i32| code(standard(descriptor).and(Err(Errno::NotSocket)));
    linker.func_wrap(MODULE, "sock_accept", move |descriptor: i32, _: i32, _: i32| not_a_socket(descriptor))?;
    linker.func_wrap(MODULE, "sock_recv", move |descriptor: i32, _: i32, _: i32, _: i32, _: i32, _: i32| {
        not_a_socket(descriptor)
    })?;
    linker.func_wrap(MODULE, "sock_send", move |descriptor: i32, _: i32, _: i32, _: i32, _: i32| {
        not_a_socket(descriptor)
    })?;
    linker.func_wrap(MODULE, "sock_shutdown", move |descriptor: i32, _: i32| not_a_socket(descriptor))?;
    Ok(())
}
