//! The command line: what `pln` accepts and how it answers. Owns parsing and showing; does nothing itself: every command
//! asks the daemon through its socket, or the machinery that the binary passes in (see [`offline`]).
//! Invariant: parsing touches nothing, neither files nor the network; only running a command may.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::control::client::Client;
use crate::http::failure::{Code, Failure};
use crate::store::layout;
use offline::Offline;
use output::{Output, Terminal};

mod authority;
mod daemon;
mod invite;
mod look;
mod node;
pub mod offline;
mod output;
mod props;
#[cfg(test)]
mod reference;
mod seed;
mod service;
mod setting;
#[cfg(test)]
mod tests;
mod units;

/// A zero-trust mesh: machines that reach each other's services, without a server in the middle.
#[derive(Debug, Parser)]
#[command(name = "pln", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, clap::Args)]
struct Common {
    /// Answer in JSON: one document, or one object a line where the answer is a stream
    #[arg(long, global = true, help_heading = "Everywhere")]
    json: bool,
    /// State directory [default: /var/lib/pln if provisioned, else ~/.pln]
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        value_name = "PATH",
        env = "PLN_DIR",
        hide_env_values = true
    )]
    dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(node::Init),
    Up(node::Up),
    Join(node::Join),
    Down(node::Down),
    Restart(daemon::Restart),
    Daemon(daemon::Daemon),
    Invite(invite::Invite),
    Grant(authority::Grant),
    Deny(authority::Deny),
    Retire(authority::Retire),
    Allow(authority::Allow),
    Can(authority::Can),
    Id(node::Id),
    Seed(seed::Seed),
    Unseed(seed::Unseed),
    Call(seed::Call),
    Serve(service::Serve),
    Unserve(service::Unserve),
    Connect(service::Connect),
    Disconnect(service::Disconnect),
    Status(look::Status),
    Inspect(look::Inspect),
    Why(look::Why),
    Events(look::Events),
    Logs(look::Logs),
    Set(setting::Set),
    Unset(setting::Unset),
    Purge(node::Purge),
    Version(node::Version),
}

/// Runs the command line of this process.
#[must_use]
pub fn main(offline: &dyn Offline) -> ExitCode {
    let mut terminal = Terminal::of_process();
    ExitCode::from(run(std::env::args_os(), &mut terminal, offline))
}

/// Runs one command line and says what the process should end with.
fn run(args: impl IntoIterator<Item = OsString>, terminal: &mut Terminal<'_>, offline: &dyn Offline) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return terminal.usage(&error, asks_for_json(&args)),
    };
    let mut output = Output::new(terminal, cli.common.json);
    match execute(cli, &mut output, offline) {
        Ok(exit) => exit,
        Err(failure) => {
            output.failure(&failure);
            failure.code.exit()
        }
    }
}

/// Whether a command line that makes no sense asks for JSON: what reads the answer must understand that one, too.
fn asks_for_json(args: &[OsString]) -> bool {
    args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json")
}

fn execute(cli: Cli, output: &mut Output<'_, '_>, offline: &dyn Offline) -> Result<u8, Failure> {
    let dir = layout::resolve(cli.common.dir.as_deref(), std::env::var_os("HOME").as_deref());
    let dirs = daemon::Dirs { given: cli.common.dir.as_deref(), resolved: &dir };
    let client = Client::new(&dir);
    let done = match cli.command {
        // Without a daemon.
        Command::Init(command) => command.run(&dir, output, offline),
        Command::Up(command) => command.run(&dirs, output, offline),
        Command::Join(command) => command.run(&dir, output, offline),
        Command::Id(command) => command.run(&dir, output),
        Command::Purge(command) => command.run(&dir, output),
        // Through systemd.
        Command::Daemon(command) => command.run(&dirs, output),
        Command::Restart(command) => command.run(&dirs, output),
        // Through its socket.
        Command::Down(command) => asking(command.run(&client, &dir, output)),
        Command::Invite(command) => command.run(&client, output),
        Command::Grant(command) => asking(command.run(&client, output)),
        Command::Deny(command) => asking(command.run(&client, output)),
        Command::Retire(command) => asking(command.run(&client, output)),
        Command::Allow(command) => asking(command.run(&client, output)),
        // The answer is no failure, but a script must be told of it, too.
        Command::Can(command) => {
            let yes = asking(command.run(&client, output))?;
            return Ok(if yes { 0 } else { Code::Denied.exit() });
        }
        Command::Seed(command) => asking(command.run(&client, output)),
        Command::Unseed(command) => asking(command.run(&client, output)),
        Command::Call(command) => asking(command.run(&client, output)),
        Command::Serve(command) => asking(command.run(&client, output)),
        Command::Unserve(command) => asking(command.run(&client, output)),
        Command::Connect(command) => asking(command.run(&client, output)),
        Command::Disconnect(command) => asking(command.run(&client, output)),
        Command::Status(command) => asking(command.run(&client, output)),
        Command::Inspect(command) => asking(command.run(&client, output)),
        Command::Why(command) => asking(command.run(&client, output)),
        Command::Events(command) => asking(command.run(&client, output)),
        Command::Logs(command) => asking(command.run(&client, &dir, output)),
        Command::Set(command) => asking(command.run(&client, output)),
        Command::Unset(command) => asking(command.run(&client, output)),
        Command::Version(command) => asking(command.run(&client, output)),
    };
    done.map(|()| 0)
}

/// Waits for what is asked of a daemon. `up` must not come here: it makes runtimes of its own.
fn asking<T>(answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .map_err(|error| Failure::new(Code::Failed, format!("this process gets no event loop: {error}")))?
        .block_on(answer)
}
