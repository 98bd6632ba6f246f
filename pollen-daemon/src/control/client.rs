//! The other end of the control socket: what the command line speaks with. Owns one exchange at a time; knows no
//! command. Invariant: whatever answers is read within bounds, and every failure says which daemon and what to do.

use std::io;
use std::path::{Path, PathBuf};

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::socket;
use crate::http::failure::{Code, Failure};

/// The most that one answer may hold, in bytes: a status of 10,000 nodes takes some 8 MiB.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The longest line of a stream, in bytes.
const LINE_BYTES_MAX: usize = 1024 * 1024;

const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";

/// Speaks with the daemon whose state directory it was made for.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { socket: socket::path(dir) }
    }

    /// Asks `GET path`.
    ///
    /// # Errors
    /// What the daemon answered, or `Unreachable` when none is there.
    pub async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.exchange(Method::GET, path, None::<&()>).await
    }

    /// Sends `body` (nothing where absent) and reads the answer.
    ///
    /// # Errors
    /// What the daemon answered, or `Unreachable` when none is there.
    pub async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        let answer = self.send(method, path, body).await?;
        let bytes = whole(answer.into_body(), ANSWER_BYTES_MAX).await?;
        serde_json::from_slice(&bytes).map_err(|error| misread(&error))
    }

    /// Reads the lines of an endless answer, each handed to `take` until it returns false.
    ///
    /// # Errors
    /// What the daemon answered, or `Unreachable` when none is there. A daemon that ends also ends the lines: no error.
    pub async fn lines<T: DeserializeOwned>(
        &self,
        path: &str,
        take: impl FnMut(T) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        self.lines_of(Method::GET, path, Bytes::new(), take).await
    }

    /// Sends `body` as it is and reads the lines of the answer, each handed to `take` until it returns false.
    ///
    /// # Errors
    /// As of [`Self::lines`].
    pub async fn lines_of<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        mut take: impl FnMut(T) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let mut body = self.send_bytes(method, path, body, BYTES).await?.into_body();
        let mut pending = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { break };
            pending.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                if !take(serde_json::from_slice(&line).map_err(|error| misread(&error))?)? {
                    return Ok(());
                }
            }
            if pending.len() > LINE_BYTES_MAX {
                return Err(Failure::new(Code::Failed, "the daemon sent a line without end"));
            }
        }
        Ok(())
    }

    /// Sends `body` as it is and reads an answer of at most `answer_bytes_max`, with its headers.
    ///
    /// # Errors
    /// What the daemon answered, or `Unreachable` when none is there.
    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        answer_bytes_max: usize,
    ) -> Result<(HeaderMap, Bytes), Failure> {
        let (head, body) = self.send_bytes(method, path, body, BYTES).await?.into_parts();
        Ok((head.headers, whole(body, answer_bytes_max).await?))
    }

    /// Whether a daemon listens.
    pub async fn is_up(&self) -> bool {
        UnixStream::connect(&self.socket).await.is_ok()
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Response<Incoming>, Failure> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| misread(&error))?,
            None => Vec::new(),
        };
        self.send_bytes(method, path, body.into(), JSON).await
    }

    async fn send_bytes(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        content_type: &str,
    ) -> Result<Response<Incoming>, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.absent(&error))?;
        let broke = |error: hyper::Error| {
            Failure::new(Code::Unreachable, format!("the daemon broke off: {error}"))
                .hint("look at `pln logs` for what happened to it")
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
        // It ends when `sender` goes, or the daemon closes.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "pln")
            .header("content-type", content_type)
            .body(Full::new(body))
            .map_err(|error| Failure::new(Code::Usage, format!("`{path}` cannot be asked for: {error}")))?;
        let response = sender.send_request(request).await.map_err(broke)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = whole(response.into_body(), ANSWER_BYTES_MAX).await?;
        Err(serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Failure::new(Code::Failed, format!("the daemon answered {status}"))))
    }

    fn absent(&self, error: &io::Error) -> Failure {
        let socket = self.socket.display();
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                Failure::new(Code::Denied, format!("{socket} may not be opened by this user"))
                    .hint("run it with sudo, or add the user to the group pln")
            }
            _ => Failure::new(Code::Unreachable, format!("no daemon answers at {socket}: {error}"))
                .hint("start it with `pln up`, or name its state directory with --dir"),
        }
    }
}

async fn whole(body: Incoming, bytes_max: usize) -> Result<Bytes, Failure> {
    let collected = Limited::new(body, bytes_max).collect().await;
    collected
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| Failure::new(Code::Failed, format!("the daemon's answer broke off: {error}")))
}

fn misread(error: &serde_json::Error) -> Failure {
    Failure::new(Code::Failed, format!("the daemon's answer is not understood: {error}"))
        .hint("the daemon and this command may be of different versions: restart the daemon")
}

/// `text` as one segment of a path: everything but what never means anything there is percent-encoded.
#[must_use]
pub fn segment(text: &str) -> String {
    text.bytes().fold(String::new(), |mut path, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push('%');
            path.push_str(&data_encoding::HEXUPPER.encode(&[byte]));
        }
        path
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_keep_nothing_that_a_path_would_read() {
        assert_eq!(segment("node/api-1_x.y~z"), "node/api-1_x.y~z");
        assert_eq!(segment("a b?c#d%é"), "a%20b%3Fc%23d%25%C3%A9");
    }

    #[tokio::test]
    async fn no_daemon_is_unreachable_and_says_where() {
        let dir = tempfile::tempdir().expect("a directory");
        let failure = Client::new(dir.path()).ask::<()>("/v1/status").await.unwrap_err();
        assert_eq!(failure.code, Code::Unreachable);
        assert!(failure.message.contains("pln.sock"), "{}", failure.message);
    }
}
