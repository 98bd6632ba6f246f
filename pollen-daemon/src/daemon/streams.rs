//! Which part of the node takes what connections carry beside their link. Owns that choice alone.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use pollen_common::identity::NodeKey;
use pollen_common::topology;
use pollen_common::views::View;
use pollen_common::wire::streams::StreamKind;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::watch;

use crate::content::Content;
use crate::services::Services;
use crate::transport::StreamHandler;
use crate::workload::calls::Calls;

/// The parts that take streams.
pub(super) struct Streams {
    pub(super) services: Services,
    pub(super) content: Content,
    pub(super) calls: Calls,
    pub(super) view: watch::Receiver<Arc<View>>,
}

impl StreamHandler for Streams {
    fn stream(&self, peer: NodeKey, connection: &Connection, kind: StreamKind, send: SendStream, recv: RecvStream) {
        match kind {
            StreamKind::Content => self.content.take_stream(peer, send, recv),
            StreamKind::Call => self.calls.take_stream(peer, send, recv),
            StreamKind::Link
            | StreamKind::Circuit
            | StreamKind::Punch
            | StreamKind::Tcp
            | StreamKind::Udp
            | StreamKind::Credit => {
                self.services.stream(peer, connection, kind, send, recv);
            }
        }
    }

    fn datagram(&self, peer: NodeKey, connection: &Connection, bytes: Bytes) {
        self.services.datagram(peer, connection, bytes);
    }

    fn closed(&self, stable_id: usize) {
        self.services.closed(stable_id);
    }

    fn admitted(&self, peer: NodeKey) -> bool {
        self.services.admitted(peer)
    }

    fn addresses(&self, peer: &NodeKey) -> Vec<SocketAddr> {
        self.view.borrow().nodes.get(peer).map(|node| node.addrs.clone()).unwrap_or_default()
    }

    fn relays(&self, peer: &NodeKey) -> Vec<NodeKey> {
        topology::relays(&self.view.borrow(), peer)
    }
}
