//! Where services meet the transport: streams and datagrams that come in, connections that are asked for.

use pollen_common::wire::streams::StreamKind;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;

use bytes::Bytes;
use pollen_common::identity::NodeKey;
use pollen_common::views::Protocol;
use quinn::{Connection, RecvStream, SendStream};

use super::{Reach, Services, Unreachable};
use crate::transport::{Mesh, StreamHandler};

impl StreamHandler for Services {
    fn stream(&self, peer: NodeKey, connection: &Connection, kind: StreamKind, send: SendStream, recv: RecvStream) {
        let protocol = match kind {
            StreamKind::Tcp => Protocol::Tcp,
            StreamKind::Udp => Protocol::Udp,
            StreamKind::Credit => return drop(tokio::spawn(self.0.credit.of(connection).read(recv))),
            // Streams of these kinds have their own rooms, or stay with the transport.
            StreamKind::Link | StreamKind::Circuit | StreamKind::Punch | StreamKind::Content | StreamKind::Call => {
                return;
            }
        };
        self.take_stream(peer, connection, protocol, send, recv);
    }

    fn datagram(&self, _: NodeKey, connection: &Connection, bytes: Bytes) {
        self.take_datagram(connection, &bytes);
    }

    fn closed(&self, stable_id: usize) {
        // Each session sees its own stream break, and leaves nothing behind.
        self.0.credit.closed(stable_id);
    }

    fn admitted(&self, peer: NodeKey) -> bool {
        self.stands(&peer)
    }
}

impl Reach for Mesh {
    fn connection(
        &self,
        peer: NodeKey,
        addrs: Vec<SocketAddr>,
    ) -> Pin<Box<dyn Future<Output = Result<Connection, Unreachable>> + Send + '_>> {
        Box::pin(async move {
            if let Some(connection) = Mesh::connection(self, peer).await {
                return Ok(connection);
            }
            self.connect(peer, addrs).await.map_err(|error| Unreachable(error.to_string()))
        })
    }
}
