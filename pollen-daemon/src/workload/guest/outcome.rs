//! Why an instance ended, as the caller and the log are told. Invariant: each limit names itself; what a guest says is
//! cut to a bound.

use wasmtime::{Instance, PoolConcurrencyLimitError, Store, Trap, WasmBacktrace};

use super::state::Refused;
use super::{CallState, Ready};
use crate::workload::CallError;
use crate::workload::engine::STACK_BYTES_MAX;
use pollen_module::KERNEL_BYTES_MAX;

/// The most of a guest's message that travels with an error, in bytes.
pub const MESSAGE_BYTES_MAX: u64 = 4096;
/// Functions of the guest that a trap names, the innermost first.
const FRAMES_MAX: usize = 4;
/// The most of a function's name that is shown, in bytes: those of some languages carry all their types.
const NAME_BYTES_MAX: usize = 80;

/// How a guest ended itself by WASI's `proc_exit`.
#[derive(Debug, thiserror::Error)]
#[error("it exited with status {0}")]
pub struct Exit(pub i32);

pub fn exit_code(error: &wasmtime::Error) -> Option<i32> {
    error.downcast_ref::<Exit>().map(|exit| exit.0)
}

impl Ready {
    /// Why no instance came up.
    pub(super) fn start_failure(&self, error: &wasmtime::Error, store: &Store<CallState>) -> CallError {
        if error.is::<PoolConcurrencyLimitError>() {
            return CallError::PoolFull(self.engine.slots());
        }
        self.explain(error, store, false)
    }

    /// Why a call ended early.
    pub(super) fn run_failure(
        &self,
        error: &wasmtime::Error,
        store: &mut Store<CallState>,
        instance: &Instance,
    ) -> CallError {
        if super::global(store, instance, &self.exports.blocks_refused) != 0 {
            return match store.data().limiter.refused {
                Some(Refused::Budget { bytes }) => CallError::NodeMemory { max_bytes: bytes, ran: true },
                Some(Refused::Maximum) | None => CallError::Blocks { max_bytes: KERNEL_BYTES_MAX },
            };
        }
        let refused = super::global(store, instance, &self.exports.memory_refused) != 0;
        self.explain(error, store, refused)
    }

    fn explain(&self, error: &wasmtime::Error, store: &Store<CallState>, memory_refused: bool) -> CallError {
        let state = store.data();
        let trap = error.downcast_ref::<Trap>();
        if trap == Some(&Trap::StackOverflow) {
            return CallError::Stack { max_bytes: STACK_BYTES_MAX };
        }
        let exit = exit_code(error);
        // Allocators answer a refusal by a trap or by ending the program, so that is what brought it down.
        if trap.is_some() || exit.is_some() {
            if memory_refused {
                return CallError::Memory { max_bytes: self.limit() };
            }
            match state.limiter.refused {
                Some(Refused::Budget { bytes }) => return CallError::NodeMemory { max_bytes: bytes, ran: true },
                Some(Refused::Maximum) => return CallError::Blocks { max_bytes: KERNEL_BYTES_MAX },
                None => {}
            }
        }
        if let Some(code) = exit {
            let said = state.complaint().map(|line| format!(": {line}")).unwrap_or_default();
            return CallError::Failed(cut(format!("it exited with status {code}{said}"), MESSAGE_BYTES_MAX));
        }
        let cause = error.root_cause().to_string();
        let cause = cause.strip_prefix("wasm trap: ").unwrap_or(&cause);
        CallError::Trap(cut(format!("{cause}{}", place(error)), MESSAGE_BYTES_MAX))
    }
}

/// What a guest said of its failure comes first; how it ended then, unless that is a limit, which names itself.
pub fn said_and_ended(said: Option<String>, ended: CallError) -> CallError {
    match (said, ended) {
        (Some(said), CallError::Trap(how) | CallError::Failed(how)) => CallError::Failed(format!("{said} ({how})")),
        (_, ended) => ended,
    }
}

/// Where in the guest it happened, as far as the module still has its names.
fn place(error: &wasmtime::Error) -> String {
    let frames = error.downcast_ref::<WasmBacktrace>().map(WasmBacktrace::frames).unwrap_or_default();
    let names: Vec<String> = frames
        .iter()
        .filter_map(|frame| frame.func_name())
        .take(FRAMES_MAX)
        .map(|name| cut(name.to_owned(), NAME_BYTES_MAX as u64))
        .collect();
    if names.is_empty() { String::new() } else { format!(", in {}", names.join(" < ")) }
}

/// `text` with at most `max` bytes, cut between characters.
fn cut(mut text: String, max: u64) -> String {
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    if text.len() > max {
        let end = (0..=max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_between_characters() {
        assert_eq!(cut("short".into(), 5), "short");
        assert_eq!(cut("ääää".into(), 5), "ää…");
    }
}
