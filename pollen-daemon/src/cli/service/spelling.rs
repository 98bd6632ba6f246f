//! How people write services and ports, and what they meant who wrote them as other tools do. Owns the grammar of the
//! arguments; asks nobody. Invariant: what is refused is answered with the command line that does it.

use std::net::IpAddr;

use crate::http::failure::{Code, Failure};

/// What `pln serve` may be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Port(u16),
    /// `HOST:PORT` or `unix:PATH`: what each means, the daemon knows.
    Elsewhere(String),
}

/// A service's name or port, as one segment of a path.
#[derive(Debug)]
pub(super) struct Service(pub(super) String);

/// Reads what is to be served; `name` is the argument behind it.
pub(super) fn form(text: &str, name: Option<&str>) -> Result<Form, Failure> {
    if let Some(port) = port(text) {
        return Ok(Form::Port(port));
    }
    if let Some((bare, protocol)) = with_protocol(text) {
        return Err(usage(format!("`{text}` is no port")).hint(serve(bare, name, protocol)));
    }
    if let Some(given) = name.and_then(port) {
        return Err(usage(format!("`{text}` is no port; the port comes first")).hint(serve(given, Some(text), "tcp")));
    }
    match host_and_port(text) {
        Some((host, port)) if is_loopback(host) => Ok(Form::Port(port)),
        Some(_) => Ok(Form::Elsewhere(text.to_owned())),
        None if text.starts_with("unix:") => Ok(Form::Elsewhere(text.to_owned())),
        _ => Err(usage(format!("`{text}` is no port: a service's port is between 1 and 65535"))
            .hint("`pln serve 8080 web` makes the port 8080 of this machine the service web")),
    }
}

impl Service {
    /// A name or a port.
    pub(super) fn spelt(text: &str) -> Result<Self, Failure> {
        if let Some((bare, _)) = with_protocol(text) {
            return Err(usage(format!("`{text}` is neither a name nor a port")).hint(format!("`{bare}` is enough")));
        }
        if let Some((_, port)) = host_and_port(text) {
            return Err(usage(format!("`{text}` is neither a service's name nor its port"))
                .hint(format!("a port with its node: `{port} PROVIDER`")));
        }
        if text.is_empty() || text.contains('/') {
            return Err(usage(format!("`{text}` is neither a name nor a port")).hint("see `pln status services`"));
        }
        Ok(Self(text.into()))
    }
}

/// Refuses an address where a node or a local port should stand.
pub(super) fn provider(text: &str, service: &str) -> Result<(), Failure> {
    match host_and_port(text) {
        Some((host, port)) => {
            let bind = if is_loopback(host) { String::new() } else { format!(" --bind {host}") };
            let hint = format!("`pln connect {service} {port}{bind}` listens there");
            Err(usage(format!("`{text}` is no node")).hint(hint))
        }
        None => Ok(()),
    }
}

fn serve(port: u16, name: Option<&str>, protocol: &str) -> String {
    let name = name.map_or_else(String::new, |name| format!(" {name}"));
    let udp = if protocol.eq_ignore_ascii_case("udp") { " --udp" } else { "" };
    format!("`pln serve {port}{name}{udp}`")
}

fn usage(message: String) -> Failure {
    Failure::new(Code::Usage, message)
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

/// `53/udp`, as container tools write it.
fn with_protocol(text: &str) -> Option<(u16, &str)> {
    let (bare, protocol) = text.rsplit_once('/')?;
    let known = ["tcp", "udp"].iter().any(|known| protocol.eq_ignore_ascii_case(known));
    port(bare).filter(|_| known).map(|port| (port, protocol))
}

/// `HOST:PORT`, `[ADDRESS]:PORT` or `:PORT`.
fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, digits) = text.rsplit_once(':')?;
    let bare = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    Some((bare, port(digits)?))
}

fn is_loopback(host: &str) -> bool {
    host.is_empty()
        || host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip == IpAddr::from([127, 0, 0, 1]) || ip == IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_people_write_them() {
        for text in ["8080", "127.0.0.1:8080", "localhost:8080", "[::1]:8080", ":8080"] {
            assert_eq!(form(text, Some("web")), Ok(Form::Port(8080)), "{text}");
        }
        for text in ["db.lan:5432", "172.17.0.2:80", "[fd00::2]:80", "unix:/run/x.sock"] {
            assert_eq!(form(text, Some("web")), Ok(Form::Elsewhere(text.to_owned())));
        }
    }

    #[test]
    fn what_is_written_otherwise_is_answered_with_what_to_type() {
        let hint = |text, name| form(text, name).expect_err(text).hint.expect("what to do");
        assert_eq!(hint("web", Some("8080")), "`pln serve 8080 web`");
        assert_eq!(hint("53/udp", Some("dns")), "`pln serve 53 dns --udp`");
        assert_eq!(hint("53/UDP", None), "`pln serve 53 --udp`");
        assert_eq!(hint("80/tcp", Some("web")), "`pln serve 80 web`");
        for text in ["0", "70000", "", "web", "/", ":", "::", "[::1", "1:2:3", "[]:x"] {
            assert!(hint(text, None).contains("pln serve 8080 web"), "{text}");
        }
        let hint = |text| Service::spelt(text).expect_err(text).hint.expect("what to do");
        assert_eq!(hint("127.0.0.1:80"), "a port with its node: `80 PROVIDER`");
        assert_eq!(hint("53/udp"), "`53` is enough");
        let hint = |text| provider(text, "web").expect_err(text).hint.expect("what to do");
        assert_eq!(hint("127.0.0.1:80"), "`pln connect web 80` listens there");
        assert_eq!(hint("10.0.0.1:80"), "`pln connect web 80 --bind 10.0.0.1` listens there");
        assert!(provider("berlin", "web").is_ok());
    }
}
