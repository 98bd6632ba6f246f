//! `extism:host/env`, as far as it needs the host: configuration, variables, log, HTTP. The memory functions are merged
//! into the guest. Must not know the mesh.

use wasmtime::{Caller, Linker};

use super::{CallState, HostResult, blocks};
use crate::workload::LogLevel;

const MODULE: &str = "extism:host/env";
/// What is kept of one message, in bytes: a line of the log is cut to less.
pub(super) const MESSAGE_BYTES_MAX: usize = 8 * 1024;
const VARIABLE_BYTES_MAX: usize = super::variables::VARIABLES_BYTES_MAX;
const HTTP_REFUSED: &str = "HTTP from guests is not allowed by any policy";

pub fn define(linker: &mut Linker<CallState>) -> HostResult<()> {
    // There is no configuration yet, so every key is unset.
    linker.func_wrap_async(MODULE, "config_get", |mut caller: Caller<'_, CallState>, (key,): (i64,)| {
        Box::new(async move { blocks::free(&mut caller, key).await.map(|()| 0_i64) })
    })?;
    define_variables(linker)?;
    define_log(linker)?;
    linker.func_wrap(MODULE, "http_request", |_request: i64, _body: i64| -> HostResult<i64> {
        Err(wasmtime::Error::msg(HTTP_REFUSED))
    })?;
    linker.func_wrap(MODULE, "http_status_code", || 0_i32)?;
    linker.func_wrap(MODULE, "http_headers", || 0_i64)?;
    Ok(())
}

fn define_variables(linker: &mut Linker<CallState>) -> HostResult<()> {
    linker.func_wrap_async(MODULE, "var_get", |mut caller: Caller<'_, CallState>, (key,): (i64,)| {
        Box::new(async move {
            let key = blocks::take(&mut caller, key, "the name of a variable", VARIABLE_BYTES_MAX, false).await?;
            let value = caller.data().variables.value(&key).map(<[u8]>::to_vec);
            match value {
                Some(value) => blocks::write(&mut caller, &value).await,
                None => Ok(0),
            }
        })
    })?;
    linker.func_wrap_async(MODULE, "var_set", |mut caller: Caller<'_, CallState>, (key, value): (i64, i64)| {
        Box::new(async move {
            let at = key;
            let key = blocks::take(&mut caller, key, "the name of a variable", VARIABLE_BYTES_MAX, false).await?;
            if value == 0 {
                caller.data_mut().variables.remove(&key);
                return Ok(());
            }
            // One block may be both; it was taken with the name.
            let value = if value == at {
                key.clone()
            } else {
                blocks::take(&mut caller, value, "a variable", VARIABLE_BYTES_MAX, false).await?
            };
            caller.data_mut().variables.set(key, value).map_err(wasmtime::Error::new)
        })
    })?;
    Ok(())
}

fn define_log(linker: &mut Linker<CallState>) -> HostResult<()> {
    for (name, level) in [
        ("log_trace", LogLevel::Trace),
        ("log_debug", LogLevel::Debug),
        ("log_info", LogLevel::Info),
        ("log_warn", LogLevel::Warn),
        ("log_error", LogLevel::Error),
    ] {
        linker.func_wrap_async(MODULE, name, move |mut caller: Caller<'_, CallState>, (message,): (i64,)| {
            Box::new(async move {
                if level < caller.data().world.log_level() {
                    return blocks::free(&mut caller, message).await;
                }
                let message = blocks::take(&mut caller, message, "a message", MESSAGE_BYTES_MAX, true).await?;
                caller.data_mut().log(level, &String::from_utf8_lossy(&message));
                HostResult::Ok(())
            })
        })?;
    }
    // PDKs spare themselves messages below this level.
    linker.func_wrap(MODULE, "get_log_level", |caller: Caller<'_, CallState>| {
        match caller.data().world.log_level() {
            LogLevel::Trace => 0_i32,
            LogLevel::Debug => 1,
            LogLevel::Info => 2,
            LogLevel::Warn => 3,
            LogLevel::Error => 4,
        }
    })?;
    Ok(())
}
