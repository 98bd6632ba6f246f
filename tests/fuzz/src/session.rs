//! Two nodes of one cluster, made of fixed keys, and what one of them does with anything the other might say.
//! Knows the core's interface alone. Invariant: the same input gives the same run.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pollen_common::identity::{SecretKey, Strict};
use pollen_common::node::{
    Command, Input, InviteTerms, LinkId, Node, NodeConfig, Output, Reply, RequestId, Write, found, join::Joining,
};
use pollen_common::roll::{Rights, Tier, commitment};
use pollen_common::time::{Instant, Now, UnixMs};

const START: Now = Now { mono: Instant(1_000_000_000), unix: UnixMs(1_800_000_000_000) };
const LINK: LinkId = LinkId(1);
/// Outputs that one input may lead to: far more than any does, so that an endless loop is found.
const OUTPUTS_MAX: usize = 100_000;

type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// The durable records of a founder and of a member it has admitted.
struct Pair {
    founder: Records,
    member: Records,
    /// The invite that let the member in, and the founder's answer to its redemption.
    token: Vec<u8>,
    answer: Vec<u8>,
}

fn founder_key() -> SecretKey {
    SecretKey::from_seed(&[21; 32])
}

fn member_key() -> SecretKey {
    SecretKey::from_seed(&[22; 32])
}

/// Feeds a founder whatever its member may say: `data` on the ordered stream, cut where its own bytes say.
pub fn member_says(data: &[u8]) {
    let mut node = restore(&founder_key(), &pair().founder);
    let mut now = later(START, Duration::from_secs(5));
    node.handle(Input::LinkUp { link: LINK, peer: member_key().public(), dialed: false, remote: None }, now);
    drain(&mut node);
    let mut rest = data;
    while let Some(first) = rest.first() {
        let (chunk, after) = rest.split_at(rest.len().min(1 + usize::from(*first) * 64));
        node.handle(Input::LinkBytes { link: LINK, bytes: chunk.to_vec() }, now);
        node.handle(Input::LinkDatagram { link: LINK, bytes: chunk.to_vec() }, now);
        node.handle(Input::LinkWritable { link: LINK }, now);
        drain(&mut node);
        rest = after;
    }
    for _ in 0..8 {
        now = later(now, Duration::from_secs(1));
        node.handle_timeout(now);
        drain(&mut node);
    }
    assert!(!node.view().nodes.is_empty(), "whatever a peer says, the node still knows itself");
}

/// Feeds one that joins whatever its contact may say: `data` at once, and cut where its own bytes say.
/// Whether that made it a member.
pub fn contact_answers(data: &[u8]) -> bool {
    let contact = founder_key().public();
    let joining = || {
        let mut joining =
            Joining::new(&pair().token, &member_key(), Arc::new(Strict), START.unix).expect("it is fresh");
        joining.request();
        joining
    };
    let whole = joining().answer(&contact, data, START.unix);
    if let Ok(Some(joined)) = &whole {
        let records = joined.records.iter().filter_map(|write| Some((write.key.clone(), write.value.clone()?)));
        // What it would write is a membership that it can start with.
        restore(&member_key(), &records.collect());
    }
    let mut cut = joining();
    let mut rest = data;
    while let Some(first) = rest.first() {
        let (chunk, after) = rest.split_at(rest.len().min(1 + usize::from(*first)));
        match cut.answer(&contact, chunk, START.unix) {
            Ok(None) => rest = after,
            // The link ends here, well or not.
            Ok(Some(_)) => {
                assert!(matches!(whole, Ok(Some(_))), "cutting an answer made it good");
                return true;
            }
            Err(_) => {
                assert!(whole.is_err(), "cutting an answer made it bad");
                return false;
            }
        }
    }
    assert!(matches!(whole, Ok(None)), "an answer that is never whole was taken for whole");
    false
}

/// What an honest contact answers to one that joins.
pub fn honest_answer() -> Vec<u8> {
    pair().answer.clone()
}

/// What an honest member says to its founder, from its greeting until both have nothing left to say.
pub fn honest_transcript() -> Vec<u8> {
    let mut founder = restore(&founder_key(), &pair().founder);
    let mut member = restore(&member_key(), &pair().member);
    let mut now = later(START, Duration::from_secs(5));
    founder.handle(Input::LinkUp { link: LINK, peer: member_key().public(), dialed: false, remote: None }, now);
    member.handle(Input::LinkUp { link: LINK, peer: founder_key().public(), dialed: true, remote: None }, now);
    let put = Command::PutState { key: b"key".to_vec(), value: b"value".to_vec() };
    member.handle(Input::Command { id: RequestId(1), command: put }, now);
    let mut said = Vec::new();
    for _ in 0..20 {
        now = later(now, Duration::from_millis(200));
        for from_member in [true, false] {
            let (from, to) = if from_member { (&mut member, &mut founder) } else { (&mut founder, &mut member) };
            from.handle_timeout(now);
            let (bytes, _) = drain(from);
            if from_member {
                said.extend_from_slice(&bytes);
            }
            if !bytes.is_empty() {
                to.handle(Input::LinkBytes { link: LINK, bytes }, now);
                from.handle(Input::LinkWritable { link: LINK }, now);
            }
        }
    }
    assert!(founder.view().nodes.len() == 2 && !said.is_empty(), "an honest pair meets");
    said
}

fn pair() -> &'static Pair {
    static PAIR: OnceLock<Pair> = OnceLock::new();
    PAIR.get_or_init(admit)
}

/// Founds a cluster and lets a member in, by the same exchange as real nodes.
fn admit() -> Pair {
    let (root, next) = (SecretKey::from_seed(&[23; 32]), SecretKey::from_seed(&[24; 32]));
    let writes = found(&root, commitment(&next.public()), &founder_key(), &BTreeMap::new(), START.unix);
    let mut founder_records = BTreeMap::new();
    keep(&mut founder_records, writes.expect("no properties fit anywhere"));
    let mut founder = restore(&founder_key(), &founder_records.clone().into_iter().collect::<Records>());
    keep(&mut founder_records, drain(&mut founder).1);

    let terms = InviteTerms {
        rights: Rights::of(Tier::Publisher),
        subject: None,
        not_after: later(START, Duration::from_secs(60)).unix,
    };
    founder.handle(Input::Command { id: RequestId(1), command: Command::Invite { terms } }, START);
    let token = loop {
        match founder.poll_output().expect("an invite is answered") {
            Output::Reply { result, .. } => match result.expect("a founder may invite") {
                Reply::Token(token) => break token,
                other => panic!("an invite is answered by a token, not {other:?}"),
            },
            Output::Persist { id, writes } => {
                keep(&mut founder_records, writes);
                founder.handle(Input::Persisted { id }, START);
            }
            _ => {}
        }
    };
    let mut joining = Joining::new(&token, &member_key(), Arc::new(Strict), START.unix).expect("a fresh token");
    founder.handle(Input::LinkUp { link: LINK, peer: member_key().public(), dialed: false, remote: None }, START);
    founder.handle(Input::LinkBytes { link: LINK, bytes: joining.request() }, START);
    let (answer, writes) = drain(&mut founder);
    keep(&mut founder_records, writes);
    let joined = joining.answer(&founder_key().public(), &answer, START.unix).expect("accepted").expect("whole");
    let mut member_records = BTreeMap::new();
    keep(&mut member_records, joined.records);
    Pair { founder: founder_records.into_iter().collect(), member: member_records.into_iter().collect(), token, answer }
}

fn restore(key: &SecretKey, records: &Records) -> Node {
    let config = NodeConfig::new(key.clone(), [7; 32], Arc::new(Strict));
    Node::restore(config, records.clone(), START).unwrap_or_else(|error| panic!("our own records: {error}"))
}

/// Carries all outputs out: what is to be sent on the link, and what is to be kept, which is said to be on disk.
fn drain(node: &mut Node) -> (Vec<u8>, Vec<Write>) {
    let (mut sent, mut kept) = (Vec::new(), Vec::new());
    for _ in 0..OUTPUTS_MAX {
        match node.poll_output() {
            None => return (sent, kept),
            Some(Output::Send { bytes, .. }) => sent.extend(bytes),
            Some(Output::Persist { id, writes }) => {
                kept.extend(writes);
                node.handle(Input::Persisted { id }, START);
            }
            Some(_) => {}
        }
    }
    panic!("one input led to {OUTPUTS_MAX} outputs");
}

fn keep(records: &mut BTreeMap<Vec<u8>, Vec<u8>>, writes: Vec<Write>) {
    for Write { key, value } in writes {
        match value {
            Some(value) => records.insert(key, value),
            None => records.remove(&key),
        };
    }
}

fn later(now: Now, by: Duration) -> Now {
    Now { mono: now.mono + by, unix: now.unix.after(by) }
}
