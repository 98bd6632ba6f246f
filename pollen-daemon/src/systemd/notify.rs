//! What the daemon tells whoever started it: that it answers, that it stops. Owns systemd's protocol for that (one
//! datagram for each change to the socket named by `NOTIFY_SOCKET`); does nothing where nobody listens.
//! Invariant: telling never fails the daemon and never waits.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The variable in which systemd names its socket.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// The one who started this process, if it wants to know.
#[derive(Debug, Default)]
pub struct Notify(Option<(UnixDatagram, SocketAddr)>);

impl Notify {
    /// Whoever this process's environment names.
    #[must_use]
    pub fn of_process() -> Self {
        std::env::var_os(VARIABLE).filter(|name| !name.is_empty()).map_or_else(Self::default, |name| {
            Self::to(&name).unwrap_or_else(|error| {
                tracing::warn!("{VARIABLE} names no socket that can be told anything: {error}");
                Self::default()
            })
        })
    }

    /// The socket of that name; one that begins with `@` lies in the abstract namespace.
    fn to(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self(Some((socket, address))))
    }

    /// It answers on its control socket, takes part in the mesh, and serves what it hosted before.
    pub fn ready(&self) {
        self.tell("READY=1\n");
    }

    /// It was asked to end, and lets go of what it holds.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\n");
    }

    fn tell(&self, state: &str) {
        let Some((socket, address)) = &self.0 else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), address) {
            tracing::warn!("the service manager was not told {}: {error}", state.trim_end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        let len = socket.recv(&mut buffer).expect("it was told");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }

    #[test]
    fn both_kinds_of_socket_are_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).expect("an empty directory");
        let abstract_name = format!("pln-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name).expect("a short name");
        let by_name = UnixDatagram::bind_addr(&address).expect("a name of this process");
        for (socket, name) in [(by_path, path.into_os_string()), (by_name, format!("@{abstract_name}").into())] {
            let notify = Notify::to(&name).expect("a socket");
            notify.ready();
            notify.stopping();
            assert_eq!((heard(&socket), heard(&socket)), ("READY=1\n".into(), "STOPPING=1\n".into()));
        }
    }

    #[test]
    fn nobody_listening_is_no_failure() {
        let dir = tempfile::tempdir().expect("a directory");
        Notify::to(dir.path().join("gone").as_os_str()).expect("a path is enough").ready();
        Notify::default().stopping();
        assert!(Notify::to(OsStr::new(&"x".repeat(200))).is_err(), "longer than any socket's path");
    }
}
