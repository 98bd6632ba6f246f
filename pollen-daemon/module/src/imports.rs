//! Every function that a guest may import, with its type: the memory functions, which the merge itself provides, and
//! those that the host does. An import that is not in these tables is refused when a module is published.

use wasmparser::{FuncType, ValType};

/// The module of Extism's functions, as guests import them since version 1.
pub(super) const EXTISM: &str = "extism:host/env";
/// Where guests of Extism before version 1 import them, each name with `extism_` before it.
const EXTISM_OLD: &str = "env";
const EXTISM_OLD_PREFIX: &str = "extism_";
/// What Pollen adds to Extism's.
const USER: &str = "extism:host/user";
const WASI: &str = "wasi_snapshot_preview1";

/// Parameters and results, one letter each: `i` for i32, `I` for i64.
type Shape = (&'static str, &'static str);

/// What the merge provides: functions of `kernel.wat`.
const MEMORY_FUNCTIONS: &[(&str, Shape)] = &[
    ("alloc", ("I", "I")),
    ("error_get", ("", "I")),
    ("error_set", ("I", "")),
    ("free", ("I", "")),
    ("input_length", ("", "I")),
    ("input_load_u64", ("I", "I")),
    ("input_load_u8", ("I", "i")),
    ("input_offset", ("", "I")),
    ("input_set", ("II", "")),
    ("length", ("I", "I")),
    ("length_unsafe", ("I", "I")),
    ("load_u64", ("I", "I")),
    ("load_u8", ("I", "i")),
    ("memory_bytes", ("", "I")),
    ("output_length", ("", "I")),
    ("output_offset", ("", "I")),
    ("output_set", ("II", "")),
    ("reset", ("", "")),
    ("store_u64", ("II", "")),
    ("store_u8", ("Ii", "")),
];

const HOST_FUNCTIONS: &[(&str, Shape)] = &[
    ("config_get", ("I", "I")),
    ("get_log_level", ("", "i")),
    ("http_headers", ("", "I")),
    ("http_request", ("II", "I")),
    ("http_status_code", ("", "i")),
    ("log_debug", ("I", "")),
    ("log_error", ("I", "")),
    ("log_info", ("I", "")),
    ("log_trace", ("I", "")),
    ("log_warn", ("I", "")),
    ("var_get", ("I", "I")),
    ("var_set", ("II", "")),
];

const USER_FUNCTIONS: &[(&str, Shape)] = &[
    ("pollen_caller_info", ("", "I")),
    ("pollen_log", ("II", "")),
    ("pollen_request", ("II", "I")),
    ("pollen_tail_call", ("II", "I")),
];

/// WASI preview 1, whole: what of it works is the host's to say.
const WASI_FUNCTIONS: &[(&str, Shape)] = &[
    ("args_get", ("ii", "i")),
    ("args_sizes_get", ("ii", "i")),
    ("clock_res_get", ("ii", "i")),
    ("clock_time_get", ("iIi", "i")),
    ("environ_get", ("ii", "i")),
    ("environ_sizes_get", ("ii", "i")),
    ("fd_advise", ("iIIi", "i")),
    ("fd_allocate", ("iII", "i")),
    ("fd_close", ("i", "i")),
    ("fd_datasync", ("i", "i")),
    ("fd_fdstat_get", ("ii", "i")),
    ("fd_fdstat_set_flags", ("ii", "i")),
    ("fd_fdstat_set_rights", ("iII", "i")),
    ("fd_filestat_get", ("ii", "i")),
    ("fd_filestat_set_size", ("iI", "i")),
    ("fd_filestat_set_times", ("iIIi", "i")),
    ("fd_pread", ("iiiIi", "i")),
    ("fd_prestat_dir_name", ("iii", "i")),
    ("fd_prestat_get", ("ii", "i")),
    ("fd_pwrite", ("iiiIi", "i")),
    ("fd_read", ("iiii", "i")),
    ("fd_readdir", ("iiiIi", "i")),
    ("fd_renumber", ("ii", "i")),
    ("fd_seek", ("iIii", "i")),
    ("fd_sync", ("i", "i")),
    ("fd_tell", ("ii", "i")),
    ("fd_write", ("iiii", "i")),
    ("path_create_directory", ("iii", "i")),
    ("path_filestat_get", ("iiiii", "i")),
    ("path_filestat_set_times", ("iiiiIIi", "i")),
    ("path_link", ("iiiiiii", "i")),
    ("path_open", ("iiiiiIIii", "i")),
    ("path_readlink", ("iiiiii", "i")),
    ("path_remove_directory", ("iii", "i")),
    ("path_rename", ("iiiiii", "i")),
    ("path_symlink", ("iiiii", "i")),
    ("path_unlink_file", ("iii", "i")),
    ("poll_oneoff", ("iiii", "i")),
    ("proc_exit", ("i", "")),
    ("proc_raise", ("i", "i")),
    ("random_get", ("ii", "i")),
    ("sched_yield", ("", "i")),
    ("sock_accept", ("iii", "i")),
    ("sock_recv", ("iiiiii", "i")),
    ("sock_send", ("iiiii", "i")),
    ("sock_shutdown", ("ii", "i")),
];

/// Who provides an imported function, and what it is called there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    /// A function of the kernel, by the name of its export.
    Kernel(&'static str),
    Host {
        module: &'static str,
        name: &'static str,
    },
}

/// A function that a guest may import.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub provider: Provider,
    shape: Shape,
}

impl Known {
    pub(super) fn find(module: &str, name: &str) -> Option<Self> {
        let (module, name) = match module {
            EXTISM_OLD => (EXTISM, name.strip_prefix(EXTISM_OLD_PREFIX)?),
            _ => (module, name),
        };
        let in_table = |table: &'static [(&'static str, Shape)]| table.iter().find(|(known, _)| *known == name);
        if module == EXTISM
            && let Some((name, shape)) = in_table(MEMORY_FUNCTIONS)
        {
            return Some(Self { provider: Provider::Kernel(name), shape: *shape });
        }
        let (module, table) = match module {
            EXTISM => (EXTISM, HOST_FUNCTIONS),
            USER => (USER, USER_FUNCTIONS),
            WASI => (WASI, WASI_FUNCTIONS),
            _ => return None,
        };
        let (name, shape) = in_table(table)?;
        Some(Self { provider: Provider::Host { module, name }, shape: *shape })
    }

    pub(super) fn has_type(&self, ty: &FuncType) -> bool {
        let same = |letters: &str, types: &[ValType]| {
            letters.len() == types.len() && letters.chars().zip(types).all(|(letter, ty)| value_type(letter) == *ty)
        };
        same(self.shape.0, ty.params()) && same(self.shape.1, ty.results())
    }

    /// Its type as a person reads it.
    pub(super) fn expected(&self) -> String {
        let types = |letters: &str| letters.chars().map(value_type).collect::<Vec<_>>();
        sentence(&types(self.shape.0), &types(self.shape.1))
    }
}

const fn value_type(letter: char) -> ValType {
    match letter {
        'i' => ValType::I32,
        _ => ValType::I64,
    }
}

/// A function's type as a person reads it, such as `(i64, i32) -> (i64)`.
pub(super) fn sentence(params: &[ValType], results: &[ValType]) -> String {
    let list = |types: &[ValType]| types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!("({}) -> ({})", list(params), list(results))
}
