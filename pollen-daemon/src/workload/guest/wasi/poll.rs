//! `poll_oneoff` of WASI preview 1: sleeping, and descriptors that are always ready. Invariant: a sleeping guest holds
//! no thread, and what it asks for is bounded.

use std::time::Duration;

use wasmtime::{Caller, Linker};

use super::{Errno, MODULE, Memory, WasiResult, code, time};
use crate::workload::guest::{CallState, HostResult, blocks};

/// Subscriptions at once: runtimes use one or two.
const SUBSCRIPTIONS_MAX: u32 = 64;
const SUBSCRIPTION_BYTES: u32 = 48;
const EVENT_BYTES: u32 = 32;
/// The longest sleep that is asked of the timer; every call's limit is far shorter.
const SLEEP_MAX: Duration = Duration::from_secs(24 * 3600);

const KIND_CLOCK: u8 = 0;
const KIND_READ: u8 = 1;
const KIND_WRITE: u8 = 2;
const FLAG_ABSOLUTE: u16 = 1;

/// What a guest waits for.
struct Subscription {
    userdata: [u8; 8],
    kind: u8,
    wait: Wait,
}

enum Wait {
    For(Duration),
    /// It has happened already, or never will.
    Now(WasiResult),
}

pub fn define(linker: &mut Linker<CallState>) -> HostResult<()> {
    linker.func_wrap_async(
        MODULE,
        "poll_oneoff",
        |mut caller: Caller<'_, CallState>, (wanted, events, count, happened): (i32, i32, i32, i32)| {
            Box::new(async move {
                let (memory, _) = blocks::guest_memory(&mut caller)?;
                let subscriptions = match read(&Memory(memory), wanted, count.cast_unsigned()) {
                    Ok(subscriptions) => subscriptions,
                    Err(errno) => return Ok(code(Err(errno))),
                };
                caller.data_mut().waits();
                let earliest = sleep(&subscriptions).await;
                let (memory, _) = blocks::guest_memory(&mut caller)?;
                HostResult::Ok(code(write(&mut Memory(memory), &subscriptions, earliest, events, happened)))
            })
        },
    )?;
    Ok(())
}

/// Sleeps until the first one has happened, and gives how long that took.
async fn sleep(subscriptions: &[Subscription]) -> Duration {
    let length = |subscription: &Subscription| match subscription.wait {
        Wait::For(length) => length,
        Wait::Now(_) => Duration::ZERO,
    };
    let earliest = subscriptions.iter().map(length).min().unwrap_or_default().min(SLEEP_MAX);
    if earliest.is_zero() {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(earliest).await;
    }
    earliest
}

fn read(memory: &Memory<'_>, at: i32, count: u32) -> WasiResult<Vec<Subscription>> {
    if count == 0 || count > SUBSCRIPTIONS_MAX {
        return Err(Errno::Invalid);
    }
    (0..count).map(|index| read_one(memory, at, index * SUBSCRIPTION_BYTES)).collect()
}

fn read_one(memory: &Memory<'_>, at: i32, offset: u32) -> WasiResult<Subscription> {
    let userdata = memory.array(at, offset)?;
    let [kind] = memory.array(at, offset + 8)?;
    let wait = match kind {
        KIND_CLOCK => {
            let clock = i32::from_le_bytes(memory.array(at, offset + 16)?);
            let timeout = u64::from_le_bytes(memory.array(at, offset + 24)?);
            let flags = u16::from_le_bytes(memory.array(at, offset + 40)?);
            match time::now(clock) {
                Ok(now) if flags & FLAG_ABSOLUTE != 0 => Wait::For(Duration::from_nanos(timeout.saturating_sub(now))),
                Ok(_) => Wait::For(Duration::from_nanos(timeout)),
                Err(errno) => Wait::Now(Err(errno)),
            }
        }
        KIND_READ | KIND_WRITE => {
            let descriptor = i32::from_le_bytes(memory.array(at, offset + 16)?);
            let exists = (0..=2).contains(&descriptor);
            Wait::Now(if exists { Ok(()) } else { Err(Errno::BadDescriptor) })
        }
        _ => return Err(Errno::Invalid),
    };
    Ok(Subscription { userdata, kind, wait })
}

fn write(
    memory: &mut Memory<'_>,
    subscriptions: &[Subscription],
    passed: Duration,
    events: i32,
    happened: i32,
) -> WasiResult {
    let mut count = 0;
    for subscription in subscriptions {
        let result = match subscription.wait {
            Wait::For(length) if length.min(SLEEP_MAX) > passed => continue,
            Wait::For(_) => Ok(()),
            Wait::Now(result) => result,
        };
        let mut event = [0_u8; EVENT_BYTES as usize];
        event[..8].copy_from_slice(&subscription.userdata);
        event[8..10].copy_from_slice(&result.map_or_else(|errno| errno as u16, |()| 0).to_le_bytes());
        event[10] = subscription.kind;
        memory.write(events, count * EVENT_BYTES, &event)?;
        count += 1;
    }
    memory.write(happened, 0, &count.to_le_bytes())
}
