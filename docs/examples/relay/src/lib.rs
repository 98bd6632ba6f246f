//! A seed that asks others. Its input is a line that says whom, `pln://seed/NAME/FUNCTION` or `pln://service/NAME`, and
//! below it what to send there. So one relay can be told to ask the next.

use extism_pdk::{Error, FnResult, Memory, plugin_fn};

// What Pollen offers beyond Extism. Text and bytes travel as handles of Extism's memory; 0 is a request that failed.
#[link(wasm_import_module = "extism:host/user")]
unsafe extern "C" {
    fn pollen_request(uri: u64, input: u64) -> u64;
    fn pollen_tail_call(uri: u64, input: u64) -> u64;
}

/// Asks, waits for the answer, and gives it back.
#[plugin_fn]
pub fn ask(input: Vec<u8>) -> FnResult<Vec<u8>> {
    let (uri, rest) = split(&input)?;
    Ok(request(uri, rest)?)
}

/// Asks the same twice, one after the other, and gives back both answers, a line each.
#[plugin_fn]
pub fn twice(input: Vec<u8>) -> FnResult<Vec<u8>> {
    let (uri, rest) = split(&input)?;
    let mut answers = request(uri, rest)?;
    answers.push(b'\n');
    answers.extend(request(uri, rest)?);
    Ok(answers)
}

/// Hands its caller on: this instance ends, and what the other one answers is the answer.
#[plugin_fn]
pub fn hand_over(input: Vec<u8>) -> FnResult<()> {
    let (uri, rest) = split(&input)?;
    let (uri_handle, input_handle) = (Memory::from_bytes(uri)?, Memory::from_bytes(rest)?);
    // SAFETY: both handles are alive, and the host only reads them.
    if unsafe { pollen_tail_call(uri_handle.offset(), input_handle.offset()) } == 0 {
        return Err(Error::msg(format!("{uri} names no seed")).into());
    }
    Ok(())
}

fn request(uri: &str, input: &[u8]) -> Result<Vec<u8>, Error> {
    let uri_handle = Memory::from_bytes(uri)?;
    let input_handle = Memory::from_bytes(input)?;
    // SAFETY: both handles are alive, and the host only reads them.
    let answer = unsafe { pollen_request(uri_handle.offset(), input_handle.offset()) };
    if answer == 0 {
        return Err(Error::msg(format!("{uri} gave no answer; the log of this node says why")));
    }
    // An answer without bytes has a handle that is not 0, and no length.
    Ok(Memory::find(answer).map(|memory| memory.to_vec()).unwrap_or_default())
}

/// The first line, and all below it.
fn split(input: &[u8]) -> Result<(&str, &[u8]), Error> {
    let end = input.iter().position(|&byte| byte == b'\n').unwrap_or(input.len());
    let uri = std::str::from_utf8(&input[..end]).map_err(|_| Error::msg("the first line is no URI"))?;
    Ok((uri, input.get(end + 1..).unwrap_or_default()))
}
