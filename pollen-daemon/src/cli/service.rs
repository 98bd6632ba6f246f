//! Commands about services: `serve`, `unserve`, `connect`, `disconnect`.

use std::net::IpAddr;

use hyper::Method;

use super::output::Output;
use crate::control::api::{ConnectBody, Connected, Done, ServeBody, Served};
use crate::control::client::{Client, segment};
use crate::http::failure::Failure;
use crate::status::table::protocol;
use crate::status::{Connection, ProtocolName};
use spelling::{Form, Service};

mod bounds;
mod spelling;
mod stdio;

/// The listener that there is, or one at any free port.
const ANY_PORT: u16 = 0;

/// Publish a port of this machine to the mesh
///
/// Every member of the cluster may reach it, and its server takes them all for this machine: --allow, --allow-tier and
/// --allow-prop bound that. They hold until others are given; --allow-all takes them away.
///
/// With a name, it is `pln connect NAME` for those who may. A name may have a port for streams and one for datagrams: what is
/// served later adds to it. Without one it is reached by this node and the port. Kept across
/// restarts.
#[derive(Debug, clap::Args)]
pub(super) struct Serve {
    /// The port that the service has on this machine; HOST:PORT of a container or of another machine, or unix:PATH, which
    /// need a name
    #[arg(value_name = "[HOST:]PORT|unix:PATH")]
    port: String,
    /// What the mesh shall call it: letters, digits and - _ .
    name: Option<String>,
    /// Streams; so where --udp is not given
    #[arg(long)]
    tcp: bool,
    /// Datagrams; with --tcp both, under one name
    #[arg(long)]
    udp: bool,
    /// Let other publishers provide the name too; connections are spread over all
    #[arg(long, requires = "name")]
    shared: bool,
    #[command(flatten)]
    bounds: bounds::Bounds,
}

impl Serve {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let Self { port, name, tcp, udp, shared, bounds } = self;
        let (port, server) = match spelling::form(&port, name.as_deref())? {
            Form::Port(port) => (Some(port), None),
            Form::Elsewhere(server) => (None, Some(server)),
        };
        let also_udp = tcp && udp;
        let protocol = if udp && !tcp { ProtocolName::Udp } else { ProtocolName::Tcp };
        let body = ServeBody { port, server, name, protocol, also_udp, shared, allow: bounds.asked()? };
        let served: Served = client.exchange(Method::POST, "/v1/services", Some(&body)).await?;
        output.answer(&served, || {
            let named = served.name.as_ref().map_or_else(String::new, |name| format!(" as {name}"));
            let shared = if served.shared { ", shared" } else { "" };
            let both = if served.also_udp { " and udp" } else { "" };
            if let Some(server) = &served.server {
                return format!("serving {server}{named}{shared}");
            }
            format!("serving {}{both} port {}{named}{shared}", self::protocol(served.protocol), served.port)
        })?;
        output.note(&bounds::who(&served));
        served.warnings.iter().for_each(|warning| output.note(&format!("warning: {warning}")));
        Ok(())
    }
}

/// Stop publishing a port or name of this node's
#[derive(Debug, clap::Args)]
pub(super) struct Unserve {
    /// What `pln serve` published
    #[arg(value_name = "PORT|NAME")]
    service: String,
}

impl Unserve {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let path = format!("/v1/services/{}", segment(&Service::spelt(&self.service)?.0));
        let done: Done = client.exchange(Method::DELETE, &path, None::<&()>).await?;
        output.answer(&done, || format!("no longer serving {}", self.service))
    }
}

/// Reach a service of the mesh at a local port
///
/// Listens on this machine's loopback addresses, at the service's own port unless told otherwise. Where several nodes
/// provide the service, each new connection goes to one that answers. Kept across restarts.
#[derive(Debug, clap::Args)]
pub(super) struct Connect {
    /// A name; or a port, with the node that serves it
    service: String,
    /// Only the one on this node: its name or the start of its key. A lone number is LOCAL-PORT
    provider: Option<String>,
    /// Where to listen [default: the service's own port]
    #[arg(value_name = "LOCAL-PORT", value_parser = clap::value_parser!(u16).range(1..))]
    local_port: Option<u16>,
    /// Listen on this address of the machine, for a container or the LAN: whoever reaches it uses the service as this node
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<IpAddr>,
    /// Carry one TCP connection over standard input and output, as ssh's ProxyCommand wants it, by the listener that there
    /// is or by a new one at any free port
    #[arg(long, conflicts_with_all = ["bind", "local_port", "json"])]
    stdio: bool,
}

impl Connect {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let stdio = self.stdio;
        let mut body = self.body()?;
        if stdio {
            if body.local_port.is_some() {
                return Err(stdio::no_port());
            }
            body.local_port = Some(ANY_PORT);
            let connected: Connected = client.exchange(Method::POST, "/v1/connections", Some(&body)).await?;
            return stdio::carry(&connected);
        }
        let connected: Connected = client.exchange(Method::POST, "/v1/connections", Some(&body)).await?;
        output.answer(&connected, || {
            let Connected { first, also } = &connected;
            if also.is_empty() {
                return format!("{} is at {}", first.service, addresses(first));
            }
            let each = std::iter::once(first).chain(also);
            let lines =
                each.map(|one| format!("{} is at {} ({})", one.service, addresses(one), protocol(one.protocol)));
            lines.collect::<Vec<String>>().join("\n")
        })
    }

    fn body(self) -> Result<ConnectBody, Failure> {
        let Self { service, provider, local_port, bind, stdio: _ } = self;
        let service = Service::spelt(&service)?.0;
        if let Some(text) = &provider {
            spelling::provider(text, &service)?;
        }
        let lone = provider.as_deref().and_then(|s| s.parse::<u16>().ok()).filter(|port| *port > 0);
        Ok(match (lone, local_port) {
            (Some(port), None) => ConnectBody { service, provider: None, bind, local_port: Some(port) },
            (_, local_port) => ConnectBody { service, provider, bind, local_port },
        })
    }
}

/// Close a local port that `connect` opened
#[derive(Debug, clap::Args)]
pub(super) struct Disconnect {
    /// What `pln connect` opened
    #[arg(value_name = "SERVICE|LOCAL-PORT")]
    service: String,
    /// Only the one to this node
    provider: Option<String>,
}

impl Disconnect {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let query = self.provider.as_ref().map(|p| format!("?provider={}", segment(p))).unwrap_or_default();
        let path = format!("/v1/connections/{}{query}", segment(&Service::spelt(&self.service)?.0));
        let closed: Vec<Connection> = client.exchange(Method::DELETE, &path, None::<&()>).await?;
        output.answer(&closed, || {
            let lines = closed.iter().map(|one| format!("{} is no longer at {}", one.service, addresses(one)));
            lines.collect::<Vec<String>>().join("\n")
        })
    }
}

fn addresses(connection: &Connection) -> String {
    connection.local.iter().map(ToString::to_string).collect::<Vec<String>>().join(" and ")
}
