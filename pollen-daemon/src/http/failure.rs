//! What a failed request looks like, on the wire and on the terminal: `{code, message, hint}`. Owns the mapping of
//! codes to exit codes and HTTP status; must not know any particular request.
//! Invariant: the codes and their numbers are contract, they never change.

use std::fmt;
use std::process::ExitCode;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use pollen_common::node::{Refusal, RefusalKind};
use serde::{Deserialize, Serialize};

/// What kind of failure. Each is one exit code of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Anything not named below. Exit code 1.
    Failed,
    /// The request itself makes no sense. Exit code 2.
    Usage,
    /// There is nothing of that name. Exit code 3.
    NotFound,
    /// This node, or this user, may not. Exit code 4.
    Denied,
    /// Several things match. Exit code 5.
    Ambiguous,
    /// The daemon or a peer does not answer. Exit code 6.
    Unreachable,
}

impl Code {
    /// The exit code of the command line.
    #[must_use]
    pub const fn exit(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Denied => 4,
            Self::Ambiguous => 5,
            Self::Unreachable => 6,
        }
    }

    /// The status of the HTTP response.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Usage => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Ambiguous => StatusCode::CONFLICT,
            Self::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl From<RefusalKind> for Code {
    fn from(kind: RefusalKind) -> Self {
        match kind {
            RefusalKind::Failed => Self::Failed,
            RefusalKind::Usage => Self::Usage,
            RefusalKind::NotFound => Self::NotFound,
            RefusalKind::Denied => Self::Denied,
            RefusalKind::Ambiguous => Self::Ambiguous,
            RefusalKind::Unreachable => Self::Unreachable,
        }
    }
}

/// Why a request came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Failure {
    pub code: Code,
    /// What failed and why, one sentence without a full stop.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Of a call alone: whether the function began, or may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub may_have_run: Option<bool>,
}

impl Failure {
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, may_have_run: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What the process ends with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code.exit())
    }
}

impl fmt::Display for Failure {
    /// One line, or two where there is something to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\n  {hint}"))
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self { code: refusal.kind.into(), message: refusal.message, hint: refusal.hint, may_have_run: None }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.code.status(), Json(self)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_contract() {
        let codes = [Code::Failed, Code::Usage, Code::NotFound, Code::Denied, Code::Ambiguous, Code::Unreachable];
        let shown: Vec<String> = codes
            .iter()
            .map(|code| {
                let name = serde_json::to_string(code).expect("a unit variant is a string");
                format!("{name} {} {}", code.exit(), code.status().as_u16())
            })
            .collect();
        assert_eq!(
            shown,
            [
                "\"failed\" 1 500",
                "\"usage\" 2 400",
                "\"not_found\" 3 404",
                "\"denied\" 4 403",
                "\"ambiguous\" 5 409",
                "\"unreachable\" 6 503",
            ]
        );
    }

    #[test]
    fn a_failure_takes_a_second_line_only_where_there_is_something_to_do() {
        let plain = Failure::new(Code::Failed, "it broke");
        assert_eq!(plain.to_string(), "it broke");
        assert_eq!(plain.hint("mend it").to_string(), "it broke\n  mend it");
    }
}
