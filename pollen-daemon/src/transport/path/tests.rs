//! Messages as a kernel that coalesces hands them over: segments of several kinds in one buffer.

use pollen_common::identity::{NodeKey, SecretKey};
use pollen_common::path_probe::{Nonce, Probe};

use super::*;

const KEY: NodeKey = NodeKey([9; 32]);
const STRIDE: usize = 4;

fn socket() -> PathSocket {
    PathSocket::bind(SecretKey::from_seed(&[1; 32]), [1; 32], 0, Arc::default()).unwrap()
}

fn peer_addr() -> SocketAddr {
    "192.0.2.7:4000".parse().unwrap()
}

fn admitted(socket: &PathSocket, message: &[u8], stride: usize) -> Option<(SocketAddr, Vec<u8>)> {
    let mut bytes = message.to_vec();
    let mut meta = RecvMeta { addr: peer_addr(), len: message.len(), stride, ..RecvMeta::default() };
    let address = socket.admit(&mut bytes, &mut meta)?;
    Some((address, bytes[..meta.len].to_vec()))
}

#[tokio::test]
async fn only_the_quic_segments_of_a_mixed_message_are_left_and_in_their_order() {
    let socket = socket();
    socket.change(|routes| routes.bind(peer_addr().into(), KEY, Nonce([0; 16]))).unwrap();
    let message = [
        [0x41, 1, 1, 1].as_slice(),
        &[circuit::FIRST_BYTE, 0, 0, 0],
        &[0xc1, 2, 2, 2],
        &[0x00, 9, 9, 9],
        &[FIRST_BYTE, 9, 9, 9],
        &[0x7f, 3],
    ]
    .concat();
    let (address, left) = admitted(&socket, &message, STRIDE).unwrap();
    assert_eq!(address, VirtualAddr::of(&KEY).to_socket());
    assert_eq!(left, [0x41, 1, 1, 1, 0xc1, 2, 2, 2, 0x7f, 3]);
    for reason in [DropReason::CircuitMalformed, DropReason::UnknownFrame, DropReason::ProbeMalformed] {
        assert_eq!(socket.drops.of(reason), 1, "{reason:?}");
    }
}

#[tokio::test]
async fn a_message_of_an_unbound_source_counts_each_packet_and_leaves_none() {
    let socket = socket();
    assert_eq!(admitted(&socket, &[0x40; 10], STRIDE), None);
    assert_eq!(socket.drops.of(DropReason::UnboundSource), 3);
    assert_eq!(admitted(&socket, &[], 0), None);
    assert_eq!(admitted(&socket, &[circuit::FIRST_BYTE], 0), None, "a stride of nothing is no endless loop");
}

#[tokio::test]
async fn probes_beside_quic_packets_of_one_message_are_answered() {
    let socket = socket();
    let to = SecretKey::from_seed(&[1; 32]).public();
    let hello = Probe::Hello { from: KEY, to, nonce: Nonce([3; 16]) }.encode();
    let quic = vec![0x40; hello.len()];
    assert_eq!(admitted(&socket, &[quic, hello.clone()].concat(), hello.len()), None, "not bound yet");
    let unanswered = [DropReason::ProbeMalformed, DropReason::ProbeNotForUs, DropReason::ProbeRate];
    assert!(unanswered.iter().all(|reason| socket.drops.of(*reason) == 0));
}

#[tokio::test]
async fn a_packet_for_nobody_is_dropped_and_not_an_error() {
    let socket = socket();
    let transmit = Transmit {
        destination: VirtualAddr::of(&KEY).to_socket(),
        ecn: None,
        contents: &[0x40; 100],
        segment_size: None,
        src_ip: None,
    };
    assert!(socket.try_send(&transmit).is_ok(), "an error would kill the connection's driver without closing it");
    assert_eq!(socket.drops.of(DropReason::NoRoute), 1);
}
