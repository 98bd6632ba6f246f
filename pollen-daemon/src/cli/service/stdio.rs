//! One connection over standard input and output. Owns the two copies and how they end; the listener that it goes through
//! is the daemon's. Invariant: what was cut is a failure, never an end in good order.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use crate::control::api::Connected;
use crate::http::failure::{Code, Failure};
use crate::status::ProtocolName;

const BUFFER_BYTES: usize = 64 * 1024;

/// What `--stdio` cannot be given.
pub(super) fn no_port() -> Failure {
    Failure::new(Code::Usage, "--stdio listens at no port of yours").hint("leave the port out")
}

/// Carries standard input to the service and what it says to standard output, until it has said all.
pub(super) fn carry(connected: &Connected) -> Result<(), Failure> {
    let each = std::iter::once(&connected.first).chain(&connected.also);
    let at: Option<SocketAddr> =
        each.filter(|one| one.protocol == ProtocolName::Tcp).find_map(|one| one.local.first().copied());
    let service = &connected.first.service;
    let at = at.ok_or_else(|| Failure::new(Code::Failed, format!("{service} has no TCP listener here")))?;
    let tcp = TcpStream::connect(at).map_err(|error| broken(service, &error))?;
    let up = tcp.try_clone().map_err(|error| broken(service, &error))?;
    // Not waited for: whoever feeds it may say nothing more and not end, when the service has ended.
    std::thread::spawn(move || {
        // What cannot be written is told by what cannot be read.
        let _ = copy(&mut io::stdin(), &mut &up);
        let _ = up.shutdown(Shutdown::Write);
    });
    copy(&mut &tcp, &mut io::stdout()).map_err(|error| broken(service, &error))
}

fn broken(service: &str, error: &io::Error) -> Failure {
    Failure::new(Code::Unreachable, format!("the connection to {service} broke: {error}"))
        .hint(format!("`pln why {service}` tells where it went"))
}

/// All of `from`, each piece as it comes.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                to.write_all(&buffer[..read])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_passed_on_before_the_next_is_read() {
        struct Pieces(Vec<&'static [u8]>);
        impl Read for Pieces {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                let Some(next) = self.0.pop() else { return Err(io::ErrorKind::ConnectionReset.into()) };
                into[..next.len()].copy_from_slice(next);
                Ok(next.len())
            }
        }
        let mut to = Vec::new();
        let ended = copy(&mut Pieces(vec![b"lo", b"hel"]), &mut to);
        assert_eq!((to.as_slice(), ended.map_err(|e| e.kind())), (&b"hello"[..], Err(io::ErrorKind::ConnectionReset)));
        assert!(copy(&mut &b"whole"[..], &mut to).is_ok());
    }
}
