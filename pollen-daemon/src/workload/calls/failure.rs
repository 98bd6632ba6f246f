//! Why a call gave no output, inside this node. Owns what each failure means to people; knows nothing of how it came.
//! Invariant: a failure that does not say that nothing ran is taken as one where something may have.

use pollen_common::identity::NodeKey;
use pollen_common::node::RefusalKind;
use pollen_common::wire::streams::answer::{Remark, Status};
use pollen_common::wire::streams::call::{CALL_DEPTH_MAX, FUNCTION_BYTES_MAX, HOPS_MAX};

use crate::workload::{BODY_BYTES_MAX, CallError};
use crate::workload::{CallFailure, SeedRef};

/// A call that gave no output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub status: Status,
    pub kind: RefusalKind,
    /// The label of its metric.
    pub label: &'static str,
    /// A sentence.
    pub message: String,
    pub hint: Option<&'static str>,
    /// The guest ran, or may have.
    pub ran: bool,
    /// The node that said so, where one did.
    pub by: Option<NodeKey>,
}

impl Failure {
    /// A failure before anything ran.
    pub(super) fn before(status: Status, kind: RefusalKind, label: &'static str, message: String) -> Self {
        Self { status, kind, label, message, hint: None, ran: false, by: None }
    }

    pub(super) fn not_found(target: &SeedRef) -> Self {
        let message = match target {
            SeedRef::Name(name) => format!("no seed is called {name}"),
            SeedRef::Module(module) => format!("no seed has the module {module}"),
        };
        let failure = Self::before(Status::NotHere, RefusalKind::NotFound, "not_found", message);
        Self { hint: Some("see `pln status seeds`"), ..failure }
    }

    pub(super) fn cycle() -> Self {
        let message = "the call leads back to a seed that waits for it".into();
        Self::before(Status::Cycle, RefusalKind::Failed, "cycle", message)
    }

    pub(super) fn depth() -> Self {
        let message = format!("the call leads through more than {CALL_DEPTH_MAX} seeds, or {HOPS_MAX} tail calls");
        Self::before(Status::Depth, RefusalKind::Failed, "depth", message)
    }

    pub(super) fn function_name() -> Self {
        let message = format!("a function's name has 1 to {} bytes", FUNCTION_BYTES_MAX);
        Self::before(Status::NoFunction, RefusalKind::Usage, "no_function", message)
    }

    pub(super) fn input_too_large(bytes: usize) -> Self {
        let message = format!("the input of {bytes} bytes is over the limit of {BODY_BYTES_MAX}");
        Self::before(Status::InputTooLarge, RefusalKind::Failed, "input_too_large", message)
    }

    /// Time ran out; whether after it was sent to anyone is the argument.
    pub(super) fn deadline(ran: bool) -> Self {
        let message = if ran {
            "no answer came in time: it may have run".to_owned()
        } else {
            "time ran out before any node took the call".to_owned()
        };
        Self { ran, ..Self::before(Status::Deadline, RefusalKind::Failed, "deadline", message) }
    }

    /// It is not hosted here.
    pub(super) fn not_here() -> Self {
        Self::before(Status::NotHere, RefusalKind::Unreachable, "not_here", "it is not hosted here".into())
    }

    /// This node is at a limit.
    pub(super) fn busy(label: &'static str, why: String) -> Self {
        Self::before(Status::Busy, RefusalKind::Failed, label, why)
    }

    /// The guest ran and failed, or what it asked for then did.
    pub(super) fn after(self) -> Self {
        Self { ran: true, ..self }
    }

    /// Nobody is ready to serve it.
    pub(super) fn no_host(target: &str) -> Self {
        let message = format!("no node is ready to serve {target}");
        let failure = Self::before(Status::Busy, RefusalKind::Unreachable, "no_host", message);
        Self { hint: Some("`pln why` tells which nodes should, and what is in the way"), ..failure }
    }

    /// Everyone who could have served it did not, each with its reason. `worst` is the last's status, if it gave one.
    pub(super) fn refused(target: &str, reasons: &[String], worst: Option<Status>, ran: bool) -> Self {
        let (kind, label) = match worst {
            Some(Status::Busy) => (RefusalKind::Failed, "busy"),
            Some(Status::Denied) => (RefusalKind::Denied, "denied"),
            _ => (RefusalKind::Unreachable, "unreachable"),
        };
        let may = if ran { "; it may have run" } else { "" };
        let message = format!("no node took the call of {target}: {}{may}", reasons.join("; "));
        let hint = (worst == Some(Status::Busy)).then_some("try again in a moment, or ask for more replicas");
        Self { ran, hint, ..Self::before(Status::Busy, kind, label, message) }
    }

    /// Whoever ran it is gone, or was lost sight of.
    pub(super) fn lost(by: NodeKey, host: &str, why: &str) -> Self {
        let message = format!("{host} was lost while it served the call ({why}): it may have run");
        Self {
            ran: true,
            by: Some(by),
            hint: Some("if calling it twice does no harm, publish it with --idempotent, and such calls are made again"),
            ..Self::before(Status::Lost, RefusalKind::Unreachable, "lost", message)
        }
    }

    /// What a host answered.
    pub(super) fn answered(status: Status, remark: Remark, by: NodeKey) -> Self {
        let kind = match status {
            Status::NoFunction => RefusalKind::NotFound,
            Status::Denied => RefusalKind::Denied,
            Status::Lost | Status::Draining => RefusalKind::Unreachable,
            _ => RefusalKind::Failed,
        };
        let label = known_label(&remark.label).unwrap_or(status.label());
        let message = if remark.message.is_empty() {
            format!("the host answered: {}", status.label().replace('_', " "))
        } else {
            printable(&remark.message)
        };
        Self { status, kind, label, message, hint: None, ran: remark.ran, by: Some(by) }
    }

    /// What a failed run is answered with.
    pub(super) fn of_run(error: &CallError, by: NodeKey) -> Self {
        let status = match error {
            CallError::NoFunction { .. } => Status::NoFunction,
            CallError::PoolFull(_) | CallError::NodeMemory { ran: false, .. } => Status::Busy,
            CallError::InputTooLarge { .. } => Status::InputTooLarge,
            CallError::Deadline => Status::Deadline,
            _ => Status::Failed,
        };
        let (label, message) = (error.label().to_owned(), error.to_string());
        Self::answered(status, Remark { ran: !error.never_ran(), label, message, ..Remark::default() }, by)
    }

    /// As it is passed on to whoever called.
    pub(super) fn remark(&self) -> Remark {
        Remark { ran: self.ran, label: self.label.to_owned(), message: self.message.clone(), ..Remark::default() }
    }

    pub(super) fn for_people(self) -> CallFailure {
        CallFailure {
            kind: self.kind,
            message: self.message,
            hint: self.hint.map(str::to_owned),
            may_have_run: self.ran,
            served_by: self.by,
        }
    }
}

/// Every way in which a call ends but well: the labels of metrics, explained in the guide.
pub(super) const LABELS: [&str; 31] = [
    "block_limit",
    "body_room",
    "busy",
    "caller_limit",
    "cycle",
    "deadline",
    "denied",
    "depth",
    "draining",
    "failed",
    "given_up",
    "input_too_large",
    "lost",
    "malformed",
    "memory_limit",
    "no_function",
    "no_host",
    "node_memory",
    "not_found",
    "not_here",
    "other",
    "output_too_large",
    "pool_full",
    "queue_full",
    "seed_limit",
    "stack_limit",
    "time_limit",
    "trap",
    "unknown_version",
    "unreachable",
    "waited_too_long",
];

/// A host's label as one of ours: a peer must not make up labels of metrics.
fn known_label(label: &str) -> Option<&'static str> {
    LABELS.binary_search(&label).ok().map(|index| LABELS[index])
}

/// A peer's text as it may be shown: without control characters but line ends.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_words_cannot_become_labels_or_move_a_cursor() {
        let remark =
            Remark { ran: true, label: "made_up".into(), message: "a\u{1b}[2Jb\nc".into(), ..Remark::default() };
        let failure = Failure::answered(Status::Failed, remark, NodeKey([1; 32]));
        assert_eq!((failure.label, failure.message.as_str()), ("failed", "a[2Jb\nc"));
        assert!(failure.for_people().may_have_run);
    }

    #[test]
    fn each_label_is_explained_in_the_guide_and_can_be_found() {
        let guide = include_str!("../../../../docs/guide/metrics.md");
        for label in LABELS {
            assert!(guide.contains(&format!("| `{label}` |")), "{label} is not explained");
            assert_eq!(known_label(label), Some(label), "the list is in order");
        }
    }

    #[test]
    fn a_limit_of_a_guest_is_answered_with_its_name() {
        let failure = Failure::of_run(&CallError::Memory { max_bytes: 8 << 20 }, NodeKey([1; 32]));
        assert_eq!((failure.status, failure.label, failure.ran), (Status::Failed, "memory_limit", true));
        assert_eq!(failure.message, "it reached its memory limit of 8 MiB", "as docs/protocol/calls.md shows it");
    }

    #[test]
    fn a_failure_survives_being_passed_on() {
        let lost = Failure::lost(NodeKey([1; 32]), "alpha", "its connection broke");
        let again = Failure::answered(lost.status, lost.remark(), NodeKey([2; 32]));
        assert_eq!((again.label, again.kind, again.ran), (lost.label, lost.kind, lost.ran));
        assert_eq!(again.message, lost.message);
    }
}
