//! Why a local port was not opened or published, in the words of whoever asked, each with what to do.

use pollen_common::node::{Refusal, RefusalKind};
use pollen_common::wire::streams::service::Target;

use super::exports::TooManyExports;
use super::imports::IMPORTS_MAX;
use super::resolve::ResolveError;

/// Why a local port was not opened; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("port {port} is where this node serves {service} itself: a listener there would be connected to itself")]
    Itself { port: u16, service: Target },
    #[error("local port {port} is this node's listener for {service} already")]
    OursAlready { port: u16, service: Target },
    #[error("local port {port} is taken by another program of this machine")]
    Taken { port: u16 },
    #[error("cannot listen on local port {port}: {error}")]
    Bind { port: u16, error: std::io::Error },
    #[error("this node has {IMPORTS_MAX} listeners already")]
    TooMany,
    #[error("the mesh is not up yet")]
    NotStarted,
}

impl From<ConnectError> for Refusal {
    fn from(error: ConnectError) -> Self {
        let message = error.to_string();
        let (kind, hint) = match error {
            ConnectError::Resolve(error) => return error.into(),
            ConnectError::Itself { port, .. } => (
                RefusalKind::Failed,
                format!("it is at 127.0.0.1:{port} already; or name another local port as the last argument"),
            ),
            ConnectError::OursAlready { port, .. } => (
                RefusalKind::Failed,
                format!("name another local port as the last argument, or close that one: `pln disconnect {port}`"),
            ),
            ConnectError::Taken { .. } | ConnectError::Bind { .. } => {
                (RefusalKind::Failed, "name another local port as the last argument".into())
            }
            ConnectError::TooMany => (RefusalKind::Failed, "close one with `pln disconnect`".into()),
            ConnectError::NotStarted => (RefusalKind::Unreachable, "try again in a moment".into()),
        };
        Self { kind, message, hint: Some(hint) }
    }
}

impl From<TooManyExports> for Refusal {
    fn from(error: TooManyExports) -> Self {
        Self {
            kind: RefusalKind::Failed,
            message: error.to_string(),
            hint: Some("withdraw one with `pln unserve`".into()),
        }
    }
}
