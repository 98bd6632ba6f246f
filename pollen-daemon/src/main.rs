//! The binary `pln`: wires the command line to the machinery that needs no daemon, and that runs one. Owns which exit
//! code each of its failures has.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use pollen_common::node::join as core;
use pollen_common::roll::{SignError, TokenError};
use pollen_daemon::cli::offline::{Founded, Joined, Offline, code_of_open};
use pollen_daemon::config::UpOptions;
use pollen_daemon::daemon::{self, RunError};
use pollen_daemon::enroll::{self, EnrollError, JoinError, JoinOptions};
use pollen_daemon::http::failure::{Code, Failure};
use pollen_daemon::store::OpenError;

/// What an admin's refusal contains where another token is the way on and the refusal does not say so itself.
const SPENT: [&str; 2] = ["already used", "was revoked"];

fn main() -> ExitCode {
    pollen_daemon::cli::main(&Machinery)
}

/// The real thing.
struct Machinery;

impl Offline for Machinery {
    fn init(&self, dir: &Path, props: BTreeMap<String, String>) -> Result<Founded, Failure> {
        let founded = enroll::init(dir, &props).map_err(|error| {
            let failure = Failure::new(of_enroll(&error), error.to_string());
            match error {
                // Being founded or joining at this moment: a member would have said so.
                EnrollError::Open(OpenError::Locked { .. }) => {
                    failure.hint("another `pln` is at work there: try again")
                }
                _ => failure,
            }
        })?;
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
                JoinError::Open(OpenError::Locked { .. }) => failure.hint("another `pln` is at work there: try again"),
                JoinError::Refused(core::JoinError::Refused(reason)) if SPENT.iter().any(|it| reason.contains(it)) => {
                    failure.hint("ask for a new token with `pln invite` on a member")
                }
                _ => failure,
            }
        })?;
        Ok(Joined { cluster: joined.cluster, node: joined.node })
    }

    fn remember(&self, dir: &Path, options: UpOptions) -> Result<(), Failure> {
        daemon::remember(dir, options).map_err(|error| not_run(&error, true))
    }

    fn run(&self, dir: &Path, options: UpOptions) -> Result<(), Failure> {
        let with_options = options != UpOptions::default();
        daemon::run(dir, options).map_err(|error| not_run(&error, with_options))
    }
}

/// Why no node runs now; one that ran already is not in anyone's way.
fn not_run(error: &RunError, with_options: bool) -> Failure {
    let failure = Failure::new(of_run(error), error.to_string());
    match error {
        RunError::Open(OpenError::Locked { .. }) if with_options => {
            failure.hint("`pln down` first, for its options to change")
        }
        RunError::Open(OpenError::Locked { .. }) => failure.hint("`pln status` shows it"),
        _ => failure,
    }
}

fn of_enroll(error: &EnrollError) -> Code {
    match error {
        EnrollError::Open(error) => code_of_open(error),
        EnrollError::Key(_) => Code::Denied,
        // Nobody signs these properties.
        EnrollError::Sign(SignError::Statement(_)) => Code::Usage,
        _ => Code::Failed,
    }
}

fn of_join(error: &JoinError) -> Code {
    match error {
        JoinError::Open(error) => code_of_open(error),
        JoinError::Text(_) => Code::Usage,
        // Not as it was printed: typed wrong, whatever it once was.
        JoinError::Refused(core::JoinError::Token(
            TokenError::NotAToken | TokenError::Version(_) | TokenError::Damaged | TokenError::TooLong,
        )) => Code::Usage,
        JoinError::Key(_) | JoinError::Refused(_) | JoinError::OtherCluster { .. } => Code::Denied,
        JoinError::Enroll(error) => of_enroll(error),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn joined_with(token: &str) -> Failure {
        let temp = tempfile::tempdir().expect("temporary directory");
        Machinery.join(temp.path(), token).expect_err("no token")
    }

    #[test]
    fn text_that_is_no_token_is_bad_usage_and_no_reason_for_a_new_one() {
        for text in ["", "not base64!", "AAAA", "AQ"] {
            let failure = joined_with(text);
            assert_eq!((failure.code, failure.hint), (Code::Usage, None), "{text:?}: {}", failure.message);
        }
    }

    #[test]
    fn a_node_that_runs_is_told_of_and_not_sent_down() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let founded = Machinery.init(temp.path(), BTreeMap::new()).expect("a cluster");
        let _runs = pollen_daemon::store::StateDir::open(temp.path()).expect("ours");
        assert_eq!(Machinery.init(temp.path(), BTreeMap::new()), Ok(founded));
        let up = Machinery.run(temp.path(), UpOptions::default()).expect_err("it runs");
        assert!(up.message.ends_with("is running"), "{}", up.message);
        assert_eq!(up.hint.as_deref(), Some("`pln status` shows it"));
        let options = UpOptions { public: true, ..UpOptions::default() };
        for options in [Machinery.run(temp.path(), options.clone()), Machinery.remember(temp.path(), options)] {
            assert!(options.expect_err("it runs").hint.is_some_and(|hint| hint.contains("pln down")));
        }
        std::fs::remove_dir_all(temp.path().join("root")).expect("the root's keys are there");
        let member = Machinery.init(temp.path(), BTreeMap::new()).expect_err("no root");
        assert!(member.message.contains("already a member"), "{}", member.message);
    }

    #[test]
    fn properties_that_fit_no_statement_are_bad_usage() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let long = BTreeMap::from([("note".to_owned(), "x".repeat(2000))]);
        let failure = Machinery.init(temp.path(), long).expect_err("no statement holds that");
        assert_eq!(failure.code, Code::Usage, "{}", failure.message);
    }

    #[test]
    fn a_member_of_another_cluster_is_denied() {
        let cluster = pollen_common::identity::ClusterId([1; 32]);
        let other = JoinError::OtherCluster { mine: cluster, theirs: cluster };
        assert_eq!(of_join(&other), Code::Denied);
        assert_eq!(of_join(&core::JoinError::Refused("the token was already used".into()).into()), Code::Denied);
    }
}
