use alloc::vec;
use core::net::Ipv6Addr;

use proptest::prelude::*;

use super::*;

fn every_message() -> Vec<Message> {
    let (digest, key) = (Digest([1; 32]), NodeKey([2; 32]));
    let prefix = Prefix::ROOT.child(5).and_then(|p| p.child(6)).expect("shallow");
    let bucket = Summary::Bucket(vec![(digest, Digest([3; 32]))]);
    let lane = Lane::State;
    vec![
        Message::Hello {
            versions: Versions::OURS,
            cluster: ClusterId([4; 32]),
            roll: digest,
            lanes: [digest; 3],
            bundle: vec![vec![1, 2], vec![]],
            instance: 5,
        },
        Message::RollDone,
        Message::RollAsk { prefix },
        Message::RollAnswer { prefix, summary: Summary::Branch([digest; 16]) },
        Message::RollWant { slots: vec![digest] },
        Message::Roll { statements: vec![vec![7; 40]], asked: true },
        Message::Roots { roll: digest, lanes: [digest; 3], answer: true },
        Message::YourHeads { heads: vec![] },
        Message::LaneAsk { lane, prefix: Prefix::ROOT },
        Message::LaneAnswer { lane, prefix, summary: bucket },
        Message::LaneWant { lane, authors: vec![(digest, 77)] },
        Message::Delta { delta: vec![9; 9] },
        Message::MapAsk { ask: vec![1, 2] },
        Message::MapAnswer { answer: vec![] },
        Message::Bye,
        Message::Redeem { statements: vec![vec![1]] },
        Message::Redeemed {
            statements: vec![],
            contacts: vec![(key, vec![SocketAddr::from((Ipv6Addr::LOCALHOST, 60611)), ([10, 0, 0, 1], 1).into()])],
        },
        Message::Refused { reason: "the invite has expired".into() },
        Message::SharedKey { here: Some(([10, 0, 0, 1], 1).into()), there: None },
    ]
}

#[test]
fn every_message_survives_the_wire() {
    for (tag, message) in (0u8..).zip(every_message()) {
        assert_eq!(message.tag(), tag);
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }
}

#[test]
fn a_later_version_s_message_is_told_from_a_broken_one() {
    assert_eq!(Message::decode(&[0x81, 0x18, 0x63]), Err(MessageError::Unknown));
    assert_eq!(Message::decode(&[0x81, 0x02]), Err(MessageError::Malformed));
    assert_eq!(Message::decode(&[]), Err(MessageError::Malformed));
}

#[test]
fn the_greeting_of_an_older_version_is_read_so_that_it_can_be_refused_by_its_version() {
    let Message::Hello { cluster, roll, lanes, .. } = every_message().remove(0) else {
        unreachable!("it is the first")
    };
    let versions = Versions { lowest: 1, highest: 1 };
    let mut writer = Writer::new(0);
    writer.put(&versions).put(&cluster).put(&roll).put(&lanes).blobs(&[]);
    let hello = Message::decode(&writer.finish());
    assert_eq!(hello, Ok(Message::Hello { versions, cluster, roll, lanes, bundle: vec![], instance: 0 }));
    assert_eq!(Versions::OURS.common(versions), None);
}

#[test]
fn versions_agree_on_the_highest_that_both_know() {
    let range = |lowest, highest| Versions { lowest, highest };
    assert_eq!(range(1, 3).common(range(2, 5)), Some(3));
    assert_eq!(range(1, 1).common(range(2, 5)), None);
    assert_eq!(range(4, 6).common(range(1, 3)), None);
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Message::decode(&bytes);
    }

    #[test]
    fn no_change_to_a_message_makes_the_decoder_panic(at in any::<prop::sample::Index>(), which in 0usize..19, byte: u8) {
        let mut bytes = every_message()[which].encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = Message::decode(&bytes);
    }
}

#[test]
fn the_document_shows_every_message_as_it_is_sent() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol/session.md");
    let document = std::fs::read_to_string(path).expect("the protocol is documented");
    for message in every_message() {
        let hex: String = message.encode().iter().map(|byte| alloc::format!("{byte:02x}")).collect();
        let line = alloc::format!("| {} | `{hex}` |", message.tag());
        assert!(document.contains(&line), "{message:?}: session.md lacks the row\n{line}");
    }
}
