//! Writes a few valid inputs for each target whose format random bytes would hardly hit:
//! `cargo run --package tests --example seeds`.
//! Made of fixed keys, so that a second run changes nothing.

use std::path::Path;
use std::sync::Arc;

use pollen_common::identity::{ClusterId, Digest, SecretKey, Strict};
use pollen_common::maps::{Ask, AuthorMap, Document, Entry, Head, Held, Lane, SignedHead, Want};
use pollen_common::path_probe::{Cookie, Nonce, Probe};
use pollen_common::roll::{Contact, Genesis, Parent, RedeemTerms, Rights, Roll, Standing, Tier, commitment};
use pollen_common::time::UnixMs;
use pollen_common::trie::Prefix;
use pollen_common::views::entries::{self, Claim, SeedClaim};
use pollen_common::views::{Capacity, Name, Policy, Protocol, SeedVersion};
use pollen_common::wire::{Frames, Message, framed};

const NOW: UnixMs = UnixMs(1_800_000_000_000);

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name), bytes).unwrap();
}

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

// By path: the crate of the fuzz targets is a workspace of its own, built by cargo-fuzz on nightly.
#[path = "../fuzz/src/session.rs"]
#[allow(dead_code, reason = "the fuzz target's half of it")]
mod session;

fn main() {
    let said = session::honest_transcript();
    write("node_session", "honest", &said);
    messages(&said);
    roll();
    maps();
    probes();
    entries();
    write("joining", "redeemed", &session::honest_answer());
    write("joining", "refused", &framed(&Message::Refused { reason: "no longer".into() }));
    // Well-formed, and no proof of anything.
    let (statements, contacts) = (Vec::new(), vec![(key(1).public(), vec!["192.0.2.1:1".parse().unwrap()])]);
    write("joining", "unproven", &framed(&Message::Redeemed { statements, contacts }));
}

/// One of each kind: lane, length of the key, key, value.
fn entries() {
    let (name, owner): (Name, _) = ("web".parse().unwrap(), key(1).public());
    let addrs = ["192.0.2.1:60611".parse().unwrap(), "[2001:db8::1]:1".parse().unwrap()];
    let claim = Claim {
        protocol: Protocol::Udp,
        port: Some(53),
        also: None,
        shared: true,
        claimed: NOW,
        hashes: vec![Digest::ZERO, Digest::ZERO],
        policy: Policy {
            peers: [owner].into(),
            tier: Some(Tier::Publisher),
            props: [("env".into(), "prod".into())].into(),
        },
    };
    let version = SeedVersion {
        module: Digest::ZERO,
        size_bytes: 4096,
        memory_bytes: 8 << 20,
        timeout_ms: 30_000,
        idempotent: true,
        image: false,
        tail_calls: false,
    };
    let next = SeedVersion { image: true, ..version };
    let seed = SeedClaim { versions: vec![version, next], min_replicas: 2, everywhere: false, claimed: NOW };
    let seeds = [
        ("node", 0, entries::node(Some(&name), &addrs)),
        ("claim", 0, entries::claim(&name, &claim)),
        (
            "provider",
            0,
            entries::provider(&name, &owner, &entries::Offered { of_claim: Some(80), ..Default::default() }),
        ),
        ("port", 0, entries::unnamed(Protocol::Tcp, 22, &claim.policy)),
        ("link", 1, entries::link(&owner)),
        ("seed", 0, entries::seed(&name, &seed)),
        ("host", 0, entries::host(&Capacity { memory_mib: 512, cores: 4 })),
        ("replica", 1, entries::replica(&version.id(), &name)),
        ("hold", 1, entries::holding(&version.module)),
        ("drain", 1, entries::drain()),
    ];
    for (seed, lane, (key, value)) in seeds {
        write("entry", seed, &[&[lane, u8::try_from(key.len()).unwrap()], &key[..], &value[..]].concat());
    }
}

/// Each message of an honest member, and all of them as the stream they are.
fn messages(said: &[u8]) {
    let mut frames = Frames::default();
    frames.push(said);
    write("message", "stream", said);
    let mut tags = std::collections::BTreeSet::new();
    while let Some(body) = frames.poll().unwrap() {
        // Behind the head of the array, which is one byte, stands the tag.
        if tags.insert(body[1]) {
            write("message", &format!("tag-{}", body[1]), &body);
        }
    }
}

fn roll() {
    let (root, next, admin, leaf) = (key(1), key(2), key(3), key(4));
    let genesis = Genesis::sign(&root, commitment(&next.public()));
    write("genesis", "genesis", genesis.bytes());
    let mut roll = Roll::new(genesis);
    let stand = |roll: &Roll, me: &SecretKey, parent| roll.stand(me, parent, NOW).unwrap();
    let edge = roll.admit(&root, admin.public(), Rights::first_admin(), NOW).unwrap();
    write("statement", "edge", edge.bytes());
    let admin_stand = stand(&roll, &admin, Parent::Root);
    write("statement", "stand", admin_stand.bytes());
    roll.merge([edge, admin_stand].map(Arc::new), &Strict);
    let mut rights = Rights::of(Tier::Publisher);
    rights.props.insert("region".into(), "eu".into());
    let edge = roll.admit(&admin, leaf.public(), rights.clone(), NOW).unwrap();
    write("statement", "edge-with-props", edge.bytes());
    write("statement", "rotate", roll.rotate(&root, &next, commitment(&leaf.public()), NOW).unwrap().bytes());
    roll.merge([Arc::new(edge)], &Strict);
    write("statement", "deny", roll.deny(&admin, leaf.public(), NOW).unwrap().bytes());

    let standing = Standing::of(&roll);
    let terms = RedeemTerms { not_after: NOW, bound: Some(leaf.public()) };
    let contact = Contact {
        key: admin.public(),
        addrs: vec!["192.0.2.1:60611".parse().unwrap(), "[2001:db8::1]:1".parse().unwrap()],
    };
    let token = standing.invite(&admin, &[9; 32], rights, terms, &[contact], NOW).unwrap();
    write("token", "token", &token.encode().unwrap());
}

fn maps() {
    let author = key(5);
    let cluster = ClusterId([6; 32]);
    let seal = |map: &AuthorMap, seq: u64, previous: Option<&Held>, removed: Vec<Box<[u8]>>| {
        let head = Head {
            cluster,
            author: author.public(),
            lane: Lane::State,
            seq,
            root: map.root(),
            count: u32::try_from(map.len()).unwrap(),
            size_bytes: map.iter().map(|entry| entry.size_bytes()).sum(),
        };
        Held::sealed(SignedHead::sign(head, &author), map.clone(), previous, removed)
    };
    let mut map = AuthorMap::new();
    for n in 0u8..24 {
        map.insert(Arc::new(Entry::new(&[b'k', n], 1, &[n; 20]).unwrap()));
    }
    let first = seal(&map, 1, None, Vec::new());
    map.remove(b"k\x03");
    map.insert(Arc::new(Entry::new(b"k\x04", 2, b"changed").unwrap()));
    let second = seal(&map, 2, Some(&first), vec![b"k\x03".as_slice().into()]);
    write("head", "head", second.head().bytes());
    write("delta", "whole", &first.delta(0).delta.encode());
    write("delta", "change-and-deletion", &second.delta(1).delta.encode());
    let mut document = Document::new(cluster);
    let root = second.map().root();
    let path = second.map().iter().next().unwrap().path();
    document.place(Arc::new(second));
    let ask = |root: Digest, want| Ask { author: author.public(), lane: Lane::State, root, want };
    let asks = [
        ("summaries", ask(root, Want::Summaries(vec![Prefix::ROOT]))),
        ("entries", ask(root, Want::Entries(vec![path]))),
        ("moved", ask(Digest::ZERO, Want::Entries(Vec::new()))),
    ];
    for (name, ask) in asks {
        write("exchange", &format!("ask-{name}"), &ask.encode());
        write("exchange", &format!("answer-{name}"), &document.answer(&ask).encode());
    }
}

fn probes() {
    let (from, to) = (key(1).public(), key(2).public());
    let (nonce, cookie) = (Nonce([1; 16]), Cookie([2; 16]));
    let signature = key(1).sign(b"seed");
    let probes = [
        ("hello", Probe::Hello { from, to, nonce }),
        ("challenge", Probe::Challenge { nonce, cookie }),
        ("bind", Probe::Bind { from, to, nonce, cookie, signature }),
        ("bound", Probe::Bound { nonce, signature }),
    ];
    for (name, probe) in probes {
        write("path_probe", name, &probe.encode());
    }
}
