//! What each fuzz target does with its input: every decoder of bytes that a peer or a stranger may send.
//! Decoders must answer or refuse; what they accept must survive being written and read again.
//! Invariant: [`TARGETS`] names every target, and each has a corpus of its name.

pub mod session;

use pollen_common::abi::{self, Endpoint, Leg, NextHop};
use pollen_common::circuit::{Label, Labels, Use, Verdict};
use pollen_common::identity::Digest;
use pollen_common::maps::{Answer, Ask, Delta, Entry, Lane, SignedHead};
use pollen_common::packet::{parse, readdress, relay_label};
use pollen_common::path_probe::Probe;
use pollen_common::roll::{Genesis, Statement, Token};
use pollen_common::verdict::{self, Action, Table};
use pollen_common::views::entries::{self, Said};
use pollen_common::wire::streams::answer::{Remark, Status};
use pollen_common::wire::streams::circuit::{self, Header as Circuit};
use pollen_common::wire::streams::content::{Outline, Request, decode_size};
use pollen_common::wire::streams::credit::Credits;
use pollen_common::wire::streams::payload::{Incoming, PAYLOAD_BYTES_MAX, framed};
use pollen_common::wire::streams::punch;
use pollen_common::wire::streams::service::{Header, datagram_prefix, session_number};
use pollen_common::wire::streams::{Denial, call, decode_status};
use pollen_common::wire::{Frames, Message};
use pollen_module::{ModuleOptions, merge};

/// A target: its name, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets, by name.
pub const TARGETS: &[Target] = &[
    ("call_stream", call_stream),
    ("circuit", circuit),
    ("content_stream", content_stream),
    ("credit", credit),
    ("delta", delta),
    ("entry", entry),
    ("exchange", exchange),
    ("frame_of_ethernet", frame_of_ethernet),
    ("genesis", genesis),
    ("head", head),
    ("joining", joining),
    ("message", message),
    ("module", module),
    ("node_session", node_session),
    ("path_probe", path_probe),
    ("punch", punch),
    ("service_header", service_header),
    ("session_payload", session_payload),
    ("statement", statement),
    ("token", token),
];

/// What two ends tell each other to find a straight way: a question, or an answer.
pub fn punch(data: &[u8]) {
    if let Ok(read) = punch::Header::decode(data) {
        assert_eq!(punch::Header::decode(&read.encode()), Ok(read));
    }
    if let Ok(read) = punch::Answer::decode(data) {
        assert!(read.encode().len() <= punch::BYTES_MAX);
        assert_eq!(punch::Answer::decode(&read.encode()), Ok(read));
    }
}

/// What sets a circuit up, and a frame. The first byte says which; the second of a frame, whom it came from.
pub fn circuit(data: &[u8]) {
    match data {
        [0, header @ ..] => {
            if let Ok(read) = Circuit::decode(header) {
                assert_eq!(Circuit::decode(&read.encode()), Ok(read));
            }
        }
        [1, rest @ ..] => {
            if let Some((answer, _)) = rest.split_first_chunk()
                && let Ok(read) = circuit::decode_answer(*answer)
            {
                assert_eq!(circuit::encode_answer(read), *answer);
            }
        }
        [_, from, frame @ ..] => {
            let mut labels = Labels::default();
            let (hop, end) = (labels.make().expect("room"), labels.make().expect("room"));
            labels.set(hop, Use::Hop { from: 1, to: 2, out: Label(7) });
            labels.set(end, Use::End { relay: 3, peer: 4, out: Label(8) });
            match labels.decide(frame, Some(*from)) {
                Verdict::Forward { to, out } => {
                    assert_eq!((to, out, *from, relay_label(frame)), (2, Label(7), 1, Some(hop)))
                }
                Verdict::Deliver { peer } => assert_eq!((peer, *from, relay_label(frame)), (4, 3, Some(end))),
                Verdict::Drop(_) => {}
            }
        }
        _ => {}
    }
}

/// The messages of a credit stream. The first byte says in what pieces they come.
pub fn credit(data: &[u8]) {
    let [piece, stream @ ..] = data else { return };
    let (mut credits, mut said, mut written) = (Credits::default(), Vec::new(), Vec::new());
    let known =
        stream.chunks(usize::from(*piece) + 1).all(|bytes| credits.push(bytes, |credit| said.push(credit)).is_ok());
    said.iter().for_each(|credit| credit.put(&mut written));
    let mut again = Vec::new();
    assert_eq!(Credits::default().push(&written, |credit| again.push(credit)), Ok(()));
    assert_eq!(again, said);
    assert!(!known || written.len() <= stream.len(), "no message is written longer than it came");
}

/// A statement of the roll, as a member or a stranger sends it.
pub fn statement(data: &[u8]) {
    if let Ok(statement) = Statement::decode(data) {
        assert_eq!(statement.bytes(), data);
    }
}

/// An invite, as somebody pastes it.
pub fn token(data: &[u8]) {
    if let Ok(token) = Token::decode(data) {
        assert_eq!(token.encode().as_deref(), Ok(data));
    }
}

/// A probe of the path layer: a UDP payload from anybody.
pub fn path_probe(data: &[u8]) {
    if let Ok(probe) = Probe::decode(data) {
        assert_eq!(probe.encode(), data);
    }
}

/// The genesis of a cluster, as a token carries it.
pub fn genesis(data: &[u8]) {
    if let Ok(genesis) = Genesis::decode(data) {
        assert_eq!(genesis.bytes(), data);
    }
}

/// The signed head of an author's lane.
pub fn head(data: &[u8]) {
    if let Ok(head) = SignedHead::decode(data) {
        assert_eq!(head.bytes(), data);
    }
}

/// A delta of an author's lane.
pub fn delta(data: &[u8]) {
    if let Ok(delta) = Delta::decode(data) {
        assert_eq!(Delta::decode(&delta.encode()), Ok(delta));
    }
}

/// The questions and answers of repair by trie.
pub fn exchange(data: &[u8]) {
    if let Ok(ask) = Ask::decode(data) {
        assert_eq!(Ask::decode(&ask.encode()), Ok(ask));
    }
    if let Ok(answer) = Answer::decode(data) {
        assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
    }
}

/// What neighbours say to each other: frames of one ordered stream, each a message.
pub fn message(data: &[u8]) {
    if let Ok(message) = Message::decode(data) {
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }
    let mut frames = Frames::default();
    frames.push(data);
    while let Ok(Some(body)) = frames.poll() {
        let _message = Message::decode(&body);
    }
}

/// One entry of a member's facts or live lane: its name and addresses, its claims, its links, what
/// it says of seeds. The first byte chooses the
/// lane, the second says how long the key is; a version counts for nothing here.
pub fn entry(data: &[u8]) {
    let [lane, key_len, rest @ ..] = data else { return };
    let lane = [Lane::Facts, Lane::Live, Lane::State][usize::from(lane % 3)];
    let (key, value) = rest.split_at(usize::from(*key_len).min(rest.len()));
    let _named = (entries::target_in(key), entries::claimed_at(value), entries::is_link(key), entries::is_hosting(key));
    assert!(!entries::show_key(key).contains(char::is_control), "a key is shown as people can read it");
    let Ok(entry) = Entry::new(key, 1, value) else { return };
    let Ok(said) = entries::read(lane, &entry) else { return };
    // What was understood means the same when this version writes it. Fields of newer versions are not kept.
    let (key, value) = match &said {
        Said::Node { name, addrs } => entries::node(name.as_ref(), addrs),
        Said::Claim { name, claim } => entries::claim(name, claim),
        Said::Provider { name, owner, offered } => entries::provider(name, owner, offered),
        Said::Unnamed { protocol, port, policy } => entries::unnamed(*protocol, *port, policy),
        Said::Link { peer } => entries::link(peer),
        Said::Seed { name, claim } => entries::seed(name, claim),
        Said::Host(capacity) => entries::host(capacity),
        Said::Replica { version, name } => entries::replica(version, name),
        Said::Holds { module } => entries::holding(module),
        Said::Unable { version, why } => entries::unable(version, *why),
        Said::Drains => entries::drain(),
    };
    assert_eq!(key, entry.key());
    let written = Entry::new(&key, 1, &value).expect("no longer than what was read");
    assert_eq!(entries::read(lane, &written), Ok(said));
}

/// A joiner that hears anything from the contact of its invite.
pub fn joining(data: &[u8]) {
    let _joined = session::contact_answers(data);
}

/// A whole node that hears anything from a member of its cluster.
pub fn node_session(data: &[u8]) {
    session::member_says(data);
}

/// What opens a service stream, its answer, and the prefix of a datagram.
pub fn service_header(data: &[u8]) {
    if let Ok(header) = Header::decode(data) {
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
    if let Some((session, len)) = session_number(data) {
        assert!(len <= data.len());
        // The first byte says that it is a service's datagram; the number's shortest form follows.
        let written = datagram_prefix(session);
        assert_eq!(session_number(&written[1..]).map(|(session, _)| session), Some(session));
    }
    if let [status, code, ..] = data {
        let _accepts = decode_status(*status);
        assert_eq!(Denial::from_code(*code).code(), *code);
    }
}

/// The stream of a UDP session, cut into pieces as the network pleases: the first byte says how large they are.
pub fn session_payload(data: &[u8]) {
    let [piece, stream @ ..] = data else { return };
    let piece = usize::from(*piece) + 1;
    let (mut incoming, mut rest, mut written) = (Incoming::default(), stream, Vec::new());
    loop {
        match incoming.poll() {
            Ok(Some(payload)) => {
                assert!(payload.len() <= PAYLOAD_BYTES_MAX);
                written.extend(framed(&payload).expect("no longer than what was read"));
                assert!(incoming.is_between());
            }
            Ok(None) if rest.is_empty() => break,
            Ok(None) => {
                assert!(incoming.wanted() > 0, "a reader that wants nothing would wait for ever");
                let (now, later) = rest.split_at(incoming.wanted().min(piece).min(rest.len()));
                incoming.push(now);
                rest = later;
            }
            Err(_) => break,
        }
    }
    assert!(stream.starts_with(&written), "payloads are what the stream says, and in its order");
    assert!(!incoming.is_between() || written == stream, "nothing is lost between two payloads");
}

/// What opens a call stream, and the remark of its answer.
pub fn call_stream(data: &[u8]) {
    if let Ok(header) = call::Header::decode(data) {
        assert_eq!(call::Header::decode(&header.encode()), Ok(header));
    }
    if let Ok(remark) = Remark::decode(data) {
        assert_eq!(Remark::decode(&remark.encode()), Ok(remark));
    }
    if let [status, ..] = data {
        assert!(Status::from_code(*status).is_none_or(|known| known.code() == *status));
    }
}

/// A request for content, and the answer to one: status, size and values of groups.
pub fn content_stream(data: &[u8]) {
    if let Ok(request) = Request::decode(data) {
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
    if let [status, code, ..] = data {
        let _accepts = decode_status(*status);
        assert_eq!(Denial::from_code(*code).code(), *code);
    }
    let Some((size, values)) = data.split_first_chunk() else { return };
    let Some((size_bytes, values_len)) = decode_size(*size) else { return };
    let Some(values) = values.get(..values_len) else { return };
    let values: Vec<[u8; 32]> = values.chunks_exact(32).map(|value| value.try_into().expect("32 bytes")).collect();
    // No root: nothing leads there but by chance, and one group needs no values.
    if let Some(outline) = Outline::verified(Digest::ZERO, size_bytes, values) {
        assert!(outline.groups() == 1 && !outline.proves(0, data));
    }
}

/// A module that somebody published: refused, or merged into one that is valid, the same on every host.
pub fn module(data: &[u8]) {
    let options = ModuleOptions { memory_bytes: 16 * 1024 * 1024 };
    if let Ok(merged) = merge(data, &options) {
        wasmparser::validate(&merged.wasm).expect("what merging gives is valid");
        assert_eq!(merge(data, &options), Ok(merged));
    }
}

/// A frame as the datapath sees it, before anything is known of it.
pub fn frame_of_ethernet(data: &[u8]) {
    /// Every label is of the same hop, so that whatever has the right ends goes on.
    struct All(abi::Entry);
    impl Table for All {
        fn entry(&self, _slot: u32) -> Option<&abi::Entry> {
            Some(&self.0)
        }

        fn is_here(&self, _at: &Endpoint) -> bool {
            true
        }
    }
    let leg = match parse(data) {
        Ok(datagram) => Leg { remote: datagram.source, local: datagram.destination },
        Err(_) => Leg { remote: Endpoint::v4([0; 4], [0; 2]), local: Endpoint::v4([0; 4], [0; 2]) },
    };
    let label = parse(data).ok().and_then(|datagram| relay_label(data.get(datagram.payload_offset..)?));
    let next = NextHop { interface: 1, mtu: 1500, source: [1; 3], destination: [2; 3] };
    let table = All(abi::Entry::hop(label.unwrap_or(Label(0)), leg, leg, next, Label(7)));
    if let Action::Forward(forward) = verdict::decide(data, &table).action {
        let mut sent = data.to_vec();
        readdress(&mut sent[..], &forward.datagram, forward.to, &forward.entry.next, forward.out)
            .expect("it was parsed");
        let packet = forward.datagram.payload_offset + 8;
        assert_eq!(sent[packet..], data[packet..], "the packet is not touched");
        assert!(parse(&sent[..]).is_ok());
    }
}
