//! The hexadecimal blocks of `docs/protocol/state.md` are what the code produces, all of them and no others.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::*;
use crate::hash::{Context, digest};
use crate::identity::{ClusterId, Digest, NodeKey, SecretKey};
use crate::roll::Tier;
use crate::time::UnixMs;
use crate::trie::{Prefix, Trie};
use crate::views::{Capacity, Inability, Policy, Protocol, SeedVersion, entries};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol/state.md");

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| alloc::format!("{byte:02x}")).collect()
}

/// The blocks of the document: those that open with `hex` and a label.
fn documented() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(DOCUMENT).expect("the document is part of the tree");
    let mut blocks = BTreeMap::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match &mut open {
            None => open = line.strip_prefix("```hex ").map(|label| (label.to_string(), String::new())),
            Some(_) if line == "```" => {
                let (label, hex) = open.take().expect("it is open");
                assert!(blocks.insert(label.clone(), hex).is_none(), "two blocks are called {label}");
            }
            Some((_, hex)) => hex.push_str(line.trim()),
        }
    }
    blocks
}

fn cbor(value: &impl minicbor::Encode<()>) -> Vec<u8> {
    minicbor::to_vec(value).expect("writing to a vector cannot fail")
}

fn trie_vectors(add: &mut impl FnMut(&str, &[u8])) {
    let mut two = Trie::new();
    for (key, byte) in [(b"a", 0x0a), (b"b", 0x0b)] {
        two.insert(path_of_key(key), Digest([byte; 32]), ());
    }
    let mut forty = Trie::new();
    (0..40u8).for_each(|byte| forty.insert(digest(Context::Path, &[&[byte]]), Digest([byte; 32]), ()));
    add("trie bucket", &two.root().0);
    add("trie node", &forty.root().0);
    let prefix = [1, 2, 3].into_iter().try_fold(Prefix::ROOT, Prefix::child).expect("within the depth");
    add("prefix", &cbor(&prefix));
    add("summary", &cbor(&two.summary(&Prefix::ROOT)));
}

fn map_vectors(secret: &SecretKey, add: &mut impl FnMut(&str, &[u8])) {
    let entry = Arc::new(Entry::new(b"k", 7, b"v").expect("within bounds"));
    add("entry", &cbor(entry.as_ref()));
    add("entry digest", &entry.digest().0);
    add("entry path", &entry.path().0);
    let mut map = AuthorMap::new();
    map.insert(entry.clone());
    let head = Head {
        cluster: ClusterId([1; 32]),
        author: secret.public(),
        lane: Lane::State,
        seq: 7,
        root: map.root(),
        count: 1,
        size_bytes: map.size_bytes(),
    };
    let head = SignedHead::sign(head, secret);
    add("head", head.bytes());
    add("head digest", &head.digest().0);
    let delta = Delta { head, base: 5, puts: [entry.clone()].into(), deletions: [(b"gone"[..].into(), 6)].into() };
    add("delta", &delta.encode());

    let (author, lane, root) = (secret.public(), Lane::State, map.root());
    let mut document = Document::new(ClusterId([1; 32]));
    document.place(Arc::new(Held::restored(head, map).expect("its content")));
    let summaries = Ask { author, lane, root, want: Want::Summaries([Prefix::ROOT].into()) };
    let entries = Ask { author, lane, root, want: Want::Entries([entry.path()].into()) };
    add("ask summaries", &summaries.encode());
    add("ask entries", &entries.encode());
    add("answer summaries", &document.answer(&summaries).encode());
    add("answer entries", &document.answer(&entries).encode());
    add("answer moved", &document.answer(&Ask { root: Digest::ZERO, ..summaries.clone() }).encode());
    add("answer gone", &document.answer(&Ask { lane: Lane::Facts, ..summaries }).encode());
}

fn kind_vectors(author: &NodeKey, add: &mut impl FnMut(&str, &[u8])) {
    let name = |text: &str| text.parse().expect("a name");
    let addrs = ["192.0.2.1:60611", "[2001:db8::1]:60611"].map(|addr| addr.parse().expect("an address"));
    add("value node", &entries::node(Some(&name("ams")), &addrs).1);
    let claim = entries::Claim {
        protocol: Protocol::Tcp,
        port: Some(8080),
        also: None,
        shared: true,
        claimed: UnixMs(1_800_000_000_000),
        hashes: Vec::new(),
        policy: Policy::default(),
    };
    let (key, value) = entries::claim(&name("api"), &claim);
    add("key claim", &key);
    add("value claim", &value);
    let both = entries::Claim { also: Some(53), ..claim.clone() };
    add("value claim both", &entries::claim(&name("api"), &both).1);
    let held = entries::Claim { port: None, hashes: [Digest([0x0c; 32])].into(), ..claim.clone() };
    add("value claim held", &entries::claim(&name("api"), &held).1);
    let policy = Policy {
        peers: [NodeKey([0x0f; 32])].into(),
        tier: Some(Tier::Publisher),
        props: [("env".into(), "prod".into())].into(),
    };
    let bounded = entries::Claim { policy: policy.clone(), ..claim };
    add("value claim bounded", &entries::claim(&name("api"), &bounded).1);
    let mut offered = entries::Offered::default();
    offered.set_port(Protocol::Tcp, Some(8081));
    let (key, value) = entries::provider(&name("api"), author, &offered);
    add("key provider", &key);
    add("value provider", &value);
    let (key, value) = entries::unnamed(Protocol::Udp, 53, &Policy::default());
    add("key unnamed", &key);
    add("value unnamed", &value);
    add("value unnamed bounded", &entries::unnamed(Protocol::Udp, 53, &policy).1);
    add("key link", &entries::link_key(author));
}

fn seed_vectors(add: &mut impl FnMut(&str, &[u8])) {
    let name = "hello".parse().expect("a name");
    let version = SeedVersion {
        module: Digest([0x0d; 32]),
        size_bytes: 4096,
        memory_bytes: 8 << 20,
        timeout_ms: 30_000,
        idempotent: true,
        image: false,
        tail_calls: false,
    };
    let next = SeedVersion { module: Digest([0x0e; 32]), ..version };
    let claimed = UnixMs(1_800_000_000_000);
    let claim = entries::SeedClaim { versions: [version].into(), min_replicas: 2, everywhere: false, claimed };
    let (key, value) = entries::seed(&name, &claim);
    add("key seed", &key);
    add("value seed", &value);
    let both = entries::SeedClaim { versions: [version, next].into(), ..claim };
    add("value seed upgrade", &entries::seed(&name, &both).1);
    add("version", &version.id().0.0);
    add("value host", &entries::host(&Capacity { memory_mib: 512, cores: 4 }).1);
    let (key, value) = entries::replica(&version.id(), &name);
    add("key replica", &key);
    add("value replica", &value);
    let (key, value) = entries::unable(&version.id(), Inability::Disk);
    add("key unable", &key);
    add("value unable", &value);
    add("key hold", &entries::holding(&version.module).0);
    add("key drain", &entries::drain().0);
}

#[test]
fn the_protocol_document_shows_what_the_code_produces() {
    let secret = SecretKey::from_seed(&[7; 32]);
    let mut produced = BTreeMap::new();
    let mut add = |label: &str, bytes: &[u8]| drop(produced.insert(label.to_string(), hex(bytes)));
    add("author", &secret.public().0);
    trie_vectors(&mut add);
    map_vectors(&secret, &mut add);
    kind_vectors(&secret.public(), &mut add);
    seed_vectors(&mut add);
    let documented = documented();
    for (label, expected) in &produced {
        assert_eq!(documented.get(label), Some(expected), "block {label}");
    }
    let labels = |blocks: &BTreeMap<String, String>| blocks.keys().cloned().collect::<Vec<_>>();
    assert_eq!(labels(&documented), labels(&produced));
}
