//! The binary `pln`: wires the command line to the machinery that needs no daemon, and that runs one. Owns which exit
//! code each of its failures has.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use pollen_daemon::cli::offline::{Founded, Joined, Offline, code_of_open};
use pollen_daemon::config::UpOptions;
use pollen_daemon::control::failure::{Code, Failure};
use pollen_daemon::daemon::{self, RunError};
use pollen_daemon::enroll::{self, EnrollError, JoinError, JoinOptions};

fn main() -> ExitCode {
    pollen_daemon::cli::main(&Machinery)
}

/// The real thing.
struct Machinery;

impl Offline for Machinery {
    fn init(&self, dir: &Path, props: BTreeMap<String, String>) -> Result<Founded, Failure> {
        let founded = enroll::init(dir, &props).map_err(|error| Failure::new(of_enroll(&error), error.to_string()))?;
        Ok(Founded { root: founded.root, cluster: founded.cluster, node: founded.node })
    }

    fn join(&self, dir: &Path, token: &str) -> Result<Joined, Failure> {
        let joined = enroll::join(dir, token, JoinOptions::default());
        let joined = joined.map_err(|error| {
            let failure = Failure::new(of_join(&error), error.to_string());
            match error {
                JoinError::Unreachable(_) => {
                    failure.hint("check that one of them is up and that its UDP port can be reached from here")
                }
                JoinError::Refused(_) => failure.hint("ask for a new token with `pln invite` on a member"),
                _ => failure,
            }
        })?;
        Ok(Joined { cluster: joined.cluster, node: joined.node })
    }

    fn run(&self, dir: &Path, options: UpOptions) -> Result<(), Failure> {
        daemon::run(dir, options).map_err(|error| Failure::new(of_run(&error), error.to_string()))
    }
}

fn of_enroll(error: &EnrollError) -> Code {
    match error {
        EnrollError::Open(error) => code_of_open(error),
        EnrollError::Key(_) => Code::Denied,
        _ => Code::Failed,
    }
}

fn of_join(error: &JoinError) -> Code {
    match error {
        JoinError::Open(error) => code_of_open(error),
        JoinError::Key(_) | JoinError::Refused(_) => Code::Denied,
        JoinError::Enroll(error) => of_enroll(error),
        JoinError::Text(_) => Code::Usage,
        JoinError::Unreachable(_) => Code::Unreachable,
        _ => Code::Failed,
    }
}

fn of_run(error: &RunError) -> Code {
    match error {
        RunError::Open(error) => code_of_open(error),
        RunError::Key(_) | RunError::KeyMissing(_) => Code::Denied,
        RunError::Option(_) => Code::Usage,
        RunError::Found(error) => of_enroll(error),
        _ => Code::Failed,
    }
}
