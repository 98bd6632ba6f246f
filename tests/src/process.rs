//! Processes that end: fed, read and waited for. Knows nothing of what they do.
//! Invariant: none is waited for without a deadline.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::patience::eventually;

/// A command that takes longer hangs: publishing a large module with an image, in a build without optimisation, on a
/// machine that does something else too, takes half a minute.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

/// Runs a command with `input` on its standard input to its end, however it ends.
pub(crate) fn finish(mut command: Command, input: &[u8]) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().with_context(|| format!("{:?}", command.get_program()))?;
    let writer = child.stdin.take().map(|mut stdin| {
        let input = input.to_owned();
        // A command that fails may not read it to the end.
        std::thread::spawn(move || stdin.write_all(&input).unwrap_or_default())
    });
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.map(|mut pipe| pipe.read_to_end(&mut bytes)).transpose().map(|_| bytes)
        })
    };
    let stdout = read(stdout.map(|pipe| Box::new(pipe) as _));
    let stderr = read(stderr.map(|pipe| Box::new(pipe) as _));
    let status = wait(&mut child, COMMAND_DEADLINE)?;
    let joined = |reader: std::thread::JoinHandle<std::io::Result<Vec<u8>>>| {
        reader.join().map_err(|_| anyhow::anyhow!("the reader of a pipe panicked"))
    };
    let output = Output { status, stdout: joined(stdout)??, stderr: joined(stderr)?? };
    if writer.is_some_and(|writer| writer.join().is_err()) {
        bail!("the writer of a pipe panicked");
    }
    Ok(output)
}

/// Waits until a process ends; kills it at the deadline.
pub(crate) fn wait(child: &mut Child, deadline: Duration) -> Result<ExitStatus> {
    let waited = eventually("the process ends", deadline, || match child.try_wait() {
        Ok(Some(status)) => Ok(Ok(status)),
        Ok(None) => Err("it runs".to_owned()),
        Err(error) => Ok(Err(error)),
    });
    match waited {
        Ok((status, _)) => Ok(status?),
        Err(error) => {
            child.kill()?;
            child.wait()?;
            Err(error)
        }
    }
}
