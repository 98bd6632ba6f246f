//! The QUIC endpoint and its settings. Owns every number that QUIC is told; knows no links.
//! Invariant: nothing here lets quinn treat a path change as its own business: no migration, no greased bits.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pollen_common::identity::NodeKey;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
};

use super::congestion;
use super::path::PathSocket;
use super::reset::{Cids, ResetKey};
use super::tls::Tls;

/// The longest QUIC packet: 1500 bytes of Ethernet without IPv6 and UDP headers and a circuit's 8 bytes, so that a
/// connection fits every path it may move to.
const PACKET_BYTES_MAX: u16 = 1444;
/// The longest packet that peers may send us; times 64 segments and 32 messages it is the receive buffer: 3 MiB.
const RECEIVED_PACKET_BYTES_MAX: u16 = 1472;
/// Unread bytes of one stream. Below the socket buffer, or a burst at LAN round trips overflows it; at 50 ms it still
/// allows 320 Mbit/s.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// Sent and unacknowledged bytes of one connection; with it all streams together stay about the socket buffer.
const SEND_WINDOW_BYTES: u64 = 8 << 20;
/// Later packets whose arrival makes an earlier one lost. QUIC's 3 takes every packet that another overtakes for lost, and
/// on a path with jitter they overtake each other all the time: 10 MB over 40 ms and up to 1 ms more took 18 to 47 s
/// instead of 0.5 s. Time alone finds what is lost soon enough.
const PACKETS_OVERTAKEN_MAX: u32 = 1000;
/// Round trips after which a packet is lost if a later one has arrived. QUIC's 9/8 is less than the jitter of radio paths.
const LATE_FACTOR: f32 = 1.25;
/// Datagrams that wait in one connection to be sent: little, because those of all sessions wait behind each other here;
/// a burst waits in the queue of its session.
const DATAGRAMS_TO_SEND_BYTES: usize = 1 << 20;
/// Datagrams that have come and wait for their sessions: what a peer sends at once, while this node does something else.
const DATAGRAMS_TO_READ_BYTES: usize = 4 << 20;
/// Handshakes under way at once; each holds some 10 KiB.
const HANDSHAKES_MAX: usize = 1024;

/// What a connection may use before its peer is admitted to the cluster: the link's stream and a few to spare.
pub const STRANGER: Allowance = Allowance { streams: 16, window_bytes: 4 << 20 };
/// What a member may use: the TCP streams and UDP sessions that services may have with one peer (`services::live`), and
/// 1024 for calls, content, the link and credit. Streams of services are read at once, and bounded by credit
/// (`docs/adr/0304`): readers that have stopped take nothing of this window.
pub const MEMBER: Allowance = Allowance { streams: 8192, window_bytes: 128 << 20 };

/// Streams a peer may have open towards us, and the bytes of all of them that may wait unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    pub streams: u32,
    pub window_bytes: u32,
}

impl Allowance {
    /// Gives it to the peer of `connection`.
    pub fn grant(self, connection: &quinn::Connection) {
        connection.set_receive_window(VarInt::from_u32(self.window_bytes));
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(self.streams));
    }
}

/// The endpoint over `path`; must be called within its runtime.
pub fn endpoint(tls: &Tls, reset: ResetKey, path: Arc<PathSocket>, idle_timeout: Duration) -> io::Result<Endpoint> {
    let (mut config, server) = settings(tls, idle_timeout)?;
    config.reset_key(Arc::new(reset)).cid_generator(|| Box::new(Cids));
    Endpoint::new_with_abstract_socket(config, Some(server), path, Arc::new(TokioRuntime))
}

/// The settings of an endpoint, over whatever socket.
pub fn settings(tls: &Tls, idle_timeout: Duration) -> io::Result<(EndpointConfig, ServerConfig)> {
    let crypto = tls.server().map_err(io::Error::other)?;
    let crypto = QuicServerConfig::try_from(crypto).map_err(io::Error::other)?;
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server.transport_config(Arc::new(transport(idle_timeout)?));
    server.migration(false);
    server.max_incoming(HANDSHAKES_MAX);
    let mut config = EndpointConfig::default();
    // On by default, and it is the receiver's setting that makes the sender flip the bit that we demultiplex by.
    config.grease_quic_bit(false);
    config.max_udp_payload_size(RECEIVED_PACKET_BYTES_MAX).map_err(io::Error::other)?;
    Ok((config, server))
}

/// The settings for dialling `peer`.
pub fn client(tls: &Tls, peer: NodeKey, idle_timeout: Duration) -> io::Result<ClientConfig> {
    let crypto = tls.client(peer).map_err(io::Error::other)?;
    let crypto = QuicClientConfig::try_from(crypto).map_err(io::Error::other)?;
    let mut client = ClientConfig::new(Arc::new(crypto));
    client.transport_config(Arc::new(transport(idle_timeout)?));
    Ok(client)
}

fn transport(idle_timeout: Duration) -> io::Result<TransportConfig> {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(PACKET_BYTES_MAX);
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::try_from(idle_timeout).map_err(io::Error::other)?))
        .keep_alive_interval(None)
        .max_concurrent_bidi_streams(VarInt::from_u32(STRANGER.streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(STRANGER.window_bytes))
        .send_window(SEND_WINDOW_BYTES)
        .packet_threshold(PACKETS_OVERTAKEN_MAX)
        .time_threshold(LATE_FACTOR)
        .congestion_controller_factory(Arc::<congestion::Config>::default())
        .datagram_receive_buffer_size(Some(DATAGRAMS_TO_READ_BYTES))
        .datagram_send_buffer_size(DATAGRAMS_TO_SEND_BYTES)
        .mtu_discovery_config(Some(discovery));
    Ok(config)
}
