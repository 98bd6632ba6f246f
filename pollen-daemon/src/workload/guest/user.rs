//! `extism:host/user`: what Pollen offers beyond Extism. Offsets are blocks of the guest's kernel memory; 0 is any
//! failure, as guests of the Go Pollen expect, and its reason goes to the log.
//! Must not know how requests travel.

use std::time::SystemTime;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;
use wasmtime::{Caller, Linker};

use super::extism::MESSAGE_BYTES_MAX;
use super::{CallState, HostResult, blocks};
use crate::workload::{BODY_BYTES_MAX, Invocation, LogLevel};

const MODULE: &str = "extism:host/user";
/// The longest URI of a request, in bytes: names of seeds and functions are far shorter.
const URI_BYTES_MAX: usize = 1024;

pub fn define(linker: &mut Linker<CallState>) -> HostResult<()> {
    linker.func_wrap_async(
        MODULE,
        "pollen_request",
        |mut caller: Caller<'_, CallState>, (uri, input): (i64, i64)| {
            Box::new(async move {
                match request(&mut caller, uri, input).await? {
                    Ok(output) => blocks::write(&mut caller, &output).await,
                    Err(reason) => {
                        caller.data_mut().log(LogLevel::Warn, &format!("a request of the guest failed: {reason}"));
                        HostResult::Ok(0)
                    }
                }
            })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "pollen_tail_call",
        |mut caller: Caller<'_, CallState>, (uri, input): (i64, i64)| {
            Box::new(async move {
                let uri = blocks::read(&mut caller, uri, "the URI of a tail call", URI_BYTES_MAX).await?;
                let input = blocks::read(&mut caller, input, "the input of a tail call", BODY_BYTES_MAX).await?;
                let state = caller.data_mut();
                let world = state.world.clone();
                let noted =
                    std::str::from_utf8(&uri).is_ok_and(|uri| world.tail_call(&state.invocation, uri, input.into()));
                if !noted {
                    state.log(LogLevel::Warn, "a tail call of the guest names no seed");
                }
                HostResult::Ok(i64::from(noted))
            })
        },
    )?;
    linker.func_wrap_async(MODULE, "pollen_caller_info", |mut caller: Caller<'_, CallState>, ()| {
        Box::new(async move {
            let info = caller_info(&caller.data().invocation, Instant::now(), SystemTime::now());
            blocks::write(&mut caller, info.as_bytes()).await
        })
    })?;
    linker.func_wrap_async(
        MODULE,
        "pollen_log",
        |mut caller: Caller<'_, CallState>, (level, message): (i64, i64)| {
            Box::new(async move {
                let level = match level {
                    0 => LogLevel::Debug,
                    2 => LogLevel::Warn,
                    3 => LogLevel::Error,
                    _ => LogLevel::Info,
                };
                if level < caller.data().world.log_level() {
                    return Ok(());
                }
                // The block stays the guest's: those written for the Go Pollen free it themselves.
                let message = blocks::beginning(&mut caller, message, MESSAGE_BYTES_MAX).await?;
                caller.data_mut().log(level, &String::from_utf8_lossy(&message));
                HostResult::Ok(())
            })
        },
    )?;
    Ok(())
}

/// Asks the world around the guest. The outer error is a trap: the guest broke a limit.
async fn request(caller: &mut Caller<'_, CallState>, uri: i64, input: i64) -> HostResult<Result<Bytes, String>> {
    let uri = blocks::read(caller, uri, "the URI of a request", URI_BYTES_MAX).await?;
    let Ok(uri) = String::from_utf8(uri) else { return Ok(Err("the URI is not text".into())) };
    let input = Bytes::from(blocks::read(caller, input, "the input of a request", BODY_BYTES_MAX).await?);
    let state = caller.data_mut();
    state.waits();
    let answer = state.world.request(&state.invocation, uri, input);
    // As a task of its own: what is polled from here runs on the guest's small stack, and whatever a request takes to
    // travel is not to be measured by that. Dropped with the guest.
    let mut task = JoinSet::new();
    task.spawn(answer);
    let answer = match task.join_next().await {
        Some(Ok(answer)) => answer,
        Some(Err(_)) | None => Err("the request was given up".into()),
    };
    Ok(answer.and_then(|output| {
        if output.len() > BODY_BYTES_MAX {
            return Err(format!("the answer of {} bytes is over the limit of {BODY_BYTES_MAX}", output.len()));
        }
        Ok(output)
    }))
}

/// What a guest is told of its caller, as JSON.
fn caller_info(invocation: &Invocation, now: Instant, wall: SystemTime) -> String {
    let left = invocation.deadline.saturating_duration_since(now);
    let deadline = (wall + left).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serde_json::json!({
        "peerKey": invocation.caller.peer.to_string(),
        "attributes": invocation.caller.attributes,
        "deadlineUnixMs": u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
    })
    .to_string()
}
