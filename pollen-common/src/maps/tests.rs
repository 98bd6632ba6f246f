//! Replicas exchanging deltas and repairs, honest and not.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::identity::{ClusterId, NodeKey, SecretKey, Strict};
use crate::time::Instant;

const CLUSTER: ClusterId = ClusterId([9; 32]);

/// An author that seals whatever it is told, with none of the care of real authoring.
struct Author {
    secret: SecretKey,
    held: Option<Arc<Held>>,
    seq: u64,
}

impl Author {
    fn new(seed: u8) -> Self {
        Self { secret: SecretKey::from_seed(&[seed; 32]), held: None, seq: 0 }
    }

    fn key(&self) -> NodeKey {
        self.secret.public()
    }

    /// One head with these changes: `None` deletes.
    fn seal(&mut self, changes: &[(&[u8], Option<&[u8]>)]) -> Arc<Held> {
        self.seq += 1;
        let mut map = self.held.as_ref().map(|held| held.map().clone()).unwrap_or_default();
        let mut removed = Vec::new();
        for (key, value) in changes {
            match value {
                Some(value) => map.insert(Arc::new(Entry::new(key, self.seq, value).expect("within bounds"))),
                None => removed.extend(map.remove(key).map(|entry| entry.key().into())),
            }
        }
        let head = sign(&self.secret, self.seq, &map);
        let held = Arc::new(Held::sealed(head, map, self.held.as_deref(), removed));
        self.held = Some(held.clone());
        held
    }
}

fn sign(secret: &SecretKey, seq: u64, map: &AuthorMap) -> SignedHead {
    let head = Head {
        cluster: CLUSTER,
        author: secret.public(),
        lane: Lane::State,
        seq,
        root: map.root(),
        count: u32::try_from(map.len()).expect("small"),
        size_bytes: map.size_bytes(),
    };
    SignedHead::sign(head, secret)
}

fn anyone(_: &NodeKey, _: Lane) -> Option<u64> {
    Some(1 << 30)
}

fn document(held: &[&Arc<Held>]) -> Document {
    let mut document = Document::new(CLUSTER);
    held.iter().for_each(|held| document.place((*held).clone()));
    document
}

fn travelled(delta: &Delta) -> Delta {
    let bytes = delta.encode();
    assert!(bytes.len() <= DELTA_BYTES_MAX);
    Delta::decode(&bytes).expect("what was encoded decodes")
}

/// Lets `to` copy from `from` until complete; the number of questions, or why it gave up.
fn copy(mut repair: Repair, from: &Document, to: &mut Document) -> Result<usize, RepairError> {
    for asked in 1.. {
        let Some(ask) = repair.poll_ask() else { return Err(RepairError::NoProgress) };
        let ask = Ask::decode(&ask.encode()).expect("what was encoded decodes");
        let bytes = from.answer(&ask).encode();
        assert!(bytes.len() <= ANSWER_BYTES_MAX);
        let answer = Answer::decode(&bytes).expect("what was encoded decodes");
        if repair.answer(&answer, &Strict)? == Progress::Complete {
            let (head, map) = repair.into_content().expect("complete");
            assert!(matches!(to.commit(head, map, anyone, &Strict), Applied::Advanced { .. }));
            return Ok(asked);
        }
    }
    unreachable!("the loop ends by returning")
}

fn contents(document: &Document) -> BTreeMap<(NodeKey, Vec<u8>), Vec<u8>> {
    let held = document.iter(Lane::State);
    held.flat_map(|held| {
        let author = held.head().head().author;
        held.map().iter().map(move |entry| ((author, entry.key().to_vec()), entry.value().to_vec()))
    })
    .collect()
}

#[test]
fn a_delta_brings_puts_and_deletions_and_nothing_else_is_needed() {
    let mut author = Author::new(1);
    let first = author.seal(&[(b"a", Some(b"1")), (b"b", Some(b"2"))]);
    let second = author.seal(&[(b"a", None), (b"c", Some(b"3"))]);
    let mut reader = Document::new(CLUSTER);
    let built = first.delta(0);
    assert!(built.complete);
    assert!(matches!(
        reader.apply(&travelled(&built.delta), anyone, &Strict),
        Applied::Advanced { previous: None, .. }
    ));
    let built = second.delta(first.head().head().seq);
    assert!(built.complete);
    assert_eq!((built.delta.puts.len(), built.delta.deletions.len()), (1, 1), "only what changed travels");
    assert!(matches!(
        reader.apply(&travelled(&built.delta), anyone, &Strict),
        Applied::Advanced { previous: Some(_), .. }
    ));
    assert_eq!(reader.root(Lane::State), document(&[&second]).root(Lane::State));
    assert!(matches!(reader.apply(&second.delta(0).delta, anyone, &Strict), Applied::Same));
    assert!(
        matches!(reader.apply(&first.delta(0).delta, anyone, &Strict), Applied::Older { mine } if Arc::ptr_eq(&mine, reader.held(&author.key(), Lane::State).expect("held")))
    );
}

#[test]
fn a_lane_is_held_only_if_its_author_stands_signed_it_for_this_cluster_and_it_fits() {
    let mut author = Author::new(1);
    let delta = author.seal(&[(b"a", Some(&[0; 1000]))]).delta(0).delta;
    let mut reader = Document::new(CLUSTER);
    assert!(matches!(reader.apply(&delta, |_, _| None, &Strict), Applied::NotStanding));
    assert!(matches!(reader.apply(&delta, |_, _| Some(1000), &Strict), Applied::TooLarge));
    assert!(matches!(Document::new(ClusterId([8; 32])).apply(&delta, anyone, &Strict), Applied::BadSignature));
    let mut forged = *delta.head.bytes();
    forged[HEAD_BYTES - 1] ^= 1;
    let forged = Delta { head: SignedHead::decode(&forged).expect("the layout holds"), ..delta.clone() };
    assert!(matches!(reader.apply(&forged, anyone, &Strict), Applied::BadSignature));
    assert!(reader.trie(Lane::State).is_empty());
    assert!(matches!(reader.apply(&delta, |_, _| Some(1065), &Strict), Applied::Advanced { .. }));
}

#[test]
fn a_deletion_left_out_by_a_forwarder_is_noticed_and_repaired() {
    let mut author = Author::new(1);
    let first = author.seal(&[(b"a", Some(b"1")), (b"b", Some(b"2"))]);
    let second = author.seal(&[(b"a", None)]);
    let mut reader = document(&[&first]);
    let mut delta = second.delta(1).delta;
    delta.deletions.clear();
    let Applied::NeedsRepair(repair) = reader.apply(&delta, anyone, &Strict) else { panic!("the root tells") };
    assert_eq!(contents(&reader).len(), 2, "nothing changed yet");
    assert_eq!(copy(*repair, &document(&[&second]), &mut reader), Ok(1));
    assert_eq!(contents(&reader).len(), 1);
    // What it found to be gone it can tell a neighbour that still has it.
    let built = reader.held(&author.key(), Lane::State).expect("held").delta(1);
    let mut third = document(&[&first]);
    assert!(matches!(third.apply(&built.delta, anyone, &Strict), Applied::Advanced { .. }));
}

#[test]
fn a_forwarder_cannot_slip_in_alter_or_revive_an_entry() {
    let mut author = Author::new(1);
    let first = author.seal(&[(b"a", Some(b"1")), (b"b", Some(b"2"))]);
    let second = author.seal(&[(b"b", None), (b"c", Some(b"3"))]);
    let honest = second.delta(1).delta;
    let entry = |key: &[u8], seq, value: &[u8]| Arc::new(Entry::new(key, seq, value).expect("within bounds"));
    let tampered = [
        Delta { puts: alloc::vec![entry(b"c", 2, b"4")], ..honest.clone() },
        Delta { puts: alloc::vec![entry(b"c", 2, b"3"), entry(b"d", 2, b"")], ..honest.clone() },
        Delta { puts: alloc::vec![entry(b"c", 2, b"3"), entry(b"b", 2, b"2")], ..honest.clone() },
        Delta { puts: Vec::new(), ..honest.clone() },
        Delta { deletions: alloc::vec![(b"a"[..].into(), 2), (b"b"[..].into(), 2)], ..honest },
    ];
    for delta in tampered {
        let mut reader = document(&[&first]);
        assert!(matches!(reader.apply(&delta, anyone, &Strict), Applied::NeedsRepair(_)));
        assert_eq!(reader.root(Lane::State), document(&[&first]).root(Lane::State));
    }
}

#[test]
fn a_repair_refuses_pieces_that_the_root_does_not_prove() {
    let mut author = Author::new(1);
    let many: Vec<_> = (0u16..200).map(|n| n.to_be_bytes()).collect();
    let changes: Vec<(&[u8], Option<&[u8]>)> = many.iter().map(|key| (&key[..], Some(&b"v"[..]))).collect();
    let held = author.seal(&changes);
    let honest = document(&[&held]);
    let begin = || {
        let bare = Delta { puts: Vec::new(), ..held.delta(0).delta };
        let Applied::NeedsRepair(repair) = Document::new(CLUSTER).apply(&bare, anyone, &Strict) else {
            panic!("a bare head has no content")
        };
        repair
    };
    let mut liar = author.held.as_ref().expect("sealed").map().clone();
    liar.insert(Arc::new(Entry::new(b"x", 1, b"y").expect("within bounds")));
    let (author_key, lane) = (author.key(), Lane::State);

    let mut repair = begin();
    let Some(Ask { want: Want::Summaries(prefixes), .. }) = repair.poll_ask() else { panic!("first the root") };
    let summaries = prefixes.iter().map(|prefix| (*prefix, liar.trie().summary(prefix))).collect();
    let answer = Answer::Summaries { author: author_key, lane, summaries };
    assert_eq!(repair.answer(&answer, &Strict), Err(RepairError::Unproved));

    let mut repair = begin();
    while let Some(ask) = repair.poll_ask() {
        if matches!(ask.want, Want::Entries(_)) {
            let entries = alloc::vec![Arc::new(Entry::new(&many[0], 1, b"w").expect("within bounds"))];
            let answer = Answer::Entries { author: author_key, lane, entries };
            assert_eq!(repair.answer(&answer, &Strict), Err(RepairError::Unproved));
            break;
        }
        assert_eq!(repair.answer(&honest.answer(&ask), &Strict), Ok(Progress::More));
    }
    assert_eq!(repair.clone().into_content().err().map(|r| *r.head()), Some(*held.head()), "not complete");
    // Another peer serves it truthfully, and what was proved is kept.
    repair.restart();
    assert!(copy(*repair, &honest, &mut Document::new(CLUSTER)).is_ok());
}

#[test]
fn an_author_whose_head_no_content_has_is_given_up() {
    let secret = SecretKey::from_seed(&[1; 32]);
    let mut map = AuthorMap::new();
    map.insert(Arc::new(Entry::new(b"a", 1, b"1").expect("within bounds")));
    let head = Head { count: 2, size_bytes: 200, ..*sign(&secret, 1, &map).head() };
    let head = SignedHead::sign(head, &secret);
    let delta = Delta { head, base: 0, puts: map.iter().cloned().collect(), deletions: Vec::new() };
    let mut reader = Document::new(CLUSTER);
    let Applied::NeedsRepair(mut repair) = reader.apply(&delta, anyone, &Strict) else { panic!("counts differ") };
    let ask = repair.poll_ask().expect("the root");
    let Want::Summaries(prefixes) = ask.want else { panic!("first the root") };
    let summaries = prefixes.iter().map(|prefix| (*prefix, map.trie().summary(prefix))).collect();
    let answer = Answer::Summaries { author: ask.author, lane: ask.lane, summaries };
    assert_eq!(repair.answer(&answer, &Strict), Err(RepairError::Impossible));
}

#[test]
fn a_repair_follows_a_peer_that_moves_on_and_keeps_what_it_has() {
    let mut author = Author::new(1);
    let many: Vec<_> = (0u16..3000).map(|n| n.to_be_bytes()).collect();
    let changes: Vec<(&[u8], Option<&[u8]>)> = many.iter().map(|key| (&key[..], Some(&b"v"[..]))).collect();
    let first = author.seal(&changes);
    let second = author.seal(&[(&many[7], None)]);
    let bare = Delta { puts: Vec::new(), ..first.delta(0).delta };
    let mut reader = Document::new(CLUSTER);
    let Applied::NeedsRepair(mut repair) = reader.apply(&bare, anyone, &Strict) else { panic!("no content") };
    let before = document(&[&first]);
    for _ in 0..6 {
        let ask = repair.poll_ask().expect("more to ask");
        assert_eq!(repair.answer(&before.answer(&ask), &Strict), Ok(Progress::More));
    }
    let mut from_scratch = Document::new(CLUSTER);
    let bare = Delta { puts: Vec::new(), ..second.delta(0).delta };
    let Applied::NeedsRepair(fresh) = from_scratch.apply(&bare, anyone, &Strict) else { panic!("no content") };
    let mut advanced = repair.clone();
    advanced.advance((*fresh).clone());
    let after = document(&[&second]);
    let fresh = copy(*fresh, &after, &mut from_scratch).expect("an honest peer");
    let followed = copy(*repair, &after, &mut reader).expect("an honest peer");
    assert!(followed < fresh, "{followed} questions, {fresh} from scratch");
    let advanced = copy(*advanced, &after, &mut Document::new(CLUSTER)).expect("an honest peer");
    assert!(advanced < fresh, "{advanced} questions, {fresh} from scratch");
    assert_eq!(reader.root(Lane::State), after.root(Lane::State));
}

#[test]
fn two_heads_at_one_sequence_are_kept_as_evidence_and_all_replicas_choose_alike() {
    let (mut one, mut two) = (Author::new(1), Author::new(1));
    let a = one.seal(&[(b"k", Some(b"one"))]);
    let b = two.seal(&[(b"k", Some(b"two"))]);
    let mut replicas = [document(&[&a]), document(&[&b])];
    let mut roots = Vec::new();
    for (replica, (theirs, from)) in replicas.iter_mut().zip([(&b, document(&[&b])), (&a, document(&[&a]))]) {
        match replica.apply(&theirs.delta(0).delta, anyone, &Strict) {
            Applied::NeedsRepair(repair) => drop(copy(*repair, &from, replica).expect("an honest peer")),
            applied => assert!(matches!(applied, Applied::Older { .. } | Applied::Advanced { .. })),
        }
        let evidence: Vec<_> = replica.evidence().collect();
        assert_eq!(evidence.len(), 1);
        assert_eq!(evidence[0].greater.rank(), a.head().rank().max(b.head().rank()));
        roots.push(replica.root(Lane::State));
    }
    assert_eq!(roots[0], roots[1]);
}

#[test]
fn lanes_leave_with_their_authors_standing_and_return_with_it() {
    let mut author = Author::new(1);
    let held = author.seal(&[(b"a", Some(b"1"))]);
    let mut reader = document(&[&held]);
    let nobody = |_: &NodeKey, _: Lane| None;
    let week = core::time::Duration::from_secs(7 * 24 * 60 * 60);
    assert_eq!(reader.settle(anyone, Instant(0)).left.len(), 0);
    assert_eq!(reader.settle(nobody, Instant(0)).left.len(), 1);
    assert!(reader.held(&author.key(), Lane::State).is_none());
    assert_eq!(reader.root(Lane::State), crate::identity::Digest::ZERO);
    assert_eq!(reader.clone().settle(anyone, Instant(0) + week).back.len(), 1);
    let late = Instant(1) + week;
    assert_eq!(reader.clone().settle(anyone, late).back.len(), 0, "forgotten after a week");
    assert_eq!(reader.settle(|_, _| Some(10), Instant(0)).back.len(), 0, "it must also fit");
}

#[test]
fn a_delta_too_large_for_one_message_is_finished_by_trie() {
    let mut author = Author::new(1);
    let keys: Vec<_> = (0u8..50).map(|n| [n]).collect();
    let changes: Vec<(&[u8], Option<&[u8]>)> =
        keys.iter().map(|key| (&key[..], Some(&[7; VALUE_BYTES_MAX][..]))).collect();
    let held = author.seal(&changes);
    let built = held.delta(0);
    assert!(!built.complete);
    let mut reader = Document::new(CLUSTER);
    let Applied::NeedsRepair(repair) = reader.apply(&travelled(&built.delta), anyone, &Strict) else {
        panic!("it did not fit")
    };
    assert!(repair.staged_entries() > 20, "what fitted is kept");
    assert!(copy(*repair, &document(&[&held]), &mut reader).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Three authors change their maps; replicas exchange deltas from any base, losing some, in any order.
    #[test]
    fn replicas_that_exchange_in_any_order_converge(
        steps in prop::collection::vec((0usize..3, 0u8..12, prop::option::of(any::<u8>()), 0usize..3, 0usize..3, 0u64..6, any::<bool>()), 1..60),
    ) {
        let mut authors = [Author::new(1), Author::new(2), Author::new(3)];
        let mut replicas: Vec<_> = (0..3).map(|_| Document::new(CLUSTER)).collect();
        for (author, key, value, from, to, back, push) in steps {
            let value = value.map(|v| [v]);
            let held = authors[author].seal(&[(&[key], value.as_ref().map(|v| &v[..]))]);
            replicas[author].place(held);
            if push && from != to {
                let source = replicas[from].clone();
                let held: Vec<_> = source.iter(Lane::State).cloned().collect();
                for held in held {
                    let base = held.head().head().seq.saturating_sub(back);
                    exchange(&held.delta(base).delta, &source, &mut replicas[to]);
                }
            }
        }
        for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 1), (1, 2)] {
            let source = replicas[from].clone();
            for held in source.iter(Lane::State) {
                exchange(&held.delta(0).delta, &source, &mut replicas[to]);
            }
        }
        let model: BTreeMap<_, _> = authors.iter().filter_map(|author| author.held.as_ref()).flat_map(|held| {
            held.map().iter().map(|e| ((held.head().head().author, e.key().to_vec()), e.value().to_vec()))
        }).collect();
        for replica in &replicas {
            prop_assert_eq!(replica.root(Lane::State), replicas[0].root(Lane::State));
            prop_assert_eq!(contents(replica), model.clone());
        }
    }

    /// Whatever a forwarder does to a delta's items, the document holds the old content or the new, never another.
    #[test]
    fn a_tampered_delta_never_applies(
        puts in prop::collection::vec((0u8..8, 0u64..5, 0u8..3), 0..8),
        deletions in prop::collection::vec((0u8..8, 0u64..5), 0..8),
        base in 0u64..4,
    ) {
        let mut author = Author::new(1);
        let first = author.seal(&[(&[0], Some(&[0])), (&[1], Some(&[0])), (&[2], Some(&[0]))]);
        let second = author.seal(&[(&[0], None), (&[1], Some(&[1])), (&[3], Some(&[1]))]);
        let puts = puts.into_iter().map(|(k, seq, v)| Arc::new(Entry::new(&[k], seq, &[v]).expect("within bounds"))).collect();
        let deletions = deletions.into_iter().map(|(k, seq)| ([k].as_slice().into(), seq)).collect();
        let mut reader = document(&[&first]);
        let delta = Delta { head: *second.head(), base, puts, deletions };
        let (old, new) = (document(&[&first]), document(&[&second]));
        match reader.apply(&delta, anyone, &Strict) {
            Applied::Advanced { .. } => prop_assert_eq!(contents(&reader), contents(&new)),
            Applied::NeedsRepair(repair) => {
                prop_assert_eq!(contents(&reader), contents(&old));
                copy(*repair, &new, &mut reader).expect("an honest peer");
                prop_assert_eq!(contents(&reader), contents(&new));
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }

    /// A peer that answers with whatever it likes cannot bring a repair to other content than the head's.
    #[test]
    fn a_lying_peer_never_completes_a_repair_with_other_content(
        have in prop::collection::btree_map(0u8..120, 0u8..3, 0..80),
        want in prop::collection::btree_map(0u8..120, 0u8..3, 0..120),
        lies in prop::collection::vec(prop::option::weighted(0.2, (any::<prop::sample::Index>(), any::<u8>())), 1..40),
    ) {
        let mut author = Author::new(1);
        let seal = |author: &mut Author, items: &BTreeMap<u8, u8>| {
            let absent = (0..120u8).filter(|key| !items.contains_key(key)).map(|key| ([key], None));
            let present = items.iter().map(|(key, value)| ([*key], Some([*value])));
            let changes: Vec<_> = absent.chain(present).collect();
            let changes: Vec<(&[u8], Option<&[u8]>)> =
                changes.iter().map(|(key, value)| (&key[..], value.as_ref().map(|value| &value[..]))).collect();
            author.seal(&changes)
        };
        let first = seal(&mut author, &have);
        let second = seal(&mut author, &want);
        let honest = document(&[&second]);
        let mut reader = document(&[&first]);
        let bare = Delta { puts: Vec::new(), deletions: Vec::new(), ..second.delta(0).delta };
        let Applied::NeedsRepair(mut repair) = reader.apply(&bare, anyone, &Strict) else { return Ok(()) };
        let mut lies = lies.into_iter().cycle();
        for _ in 0..200 {
            let Some(ask) = repair.poll_ask() else { break };
            let mut bytes = honest.answer(&ask).encode();
            if let Some((at, to)) = lies.next().flatten() {
                let at = at.index(bytes.len());
                bytes[at] = to;
            }
            let outcome = Answer::decode(&bytes).ok().map(|answer| repair.answer(&answer, &Strict));
            match outcome {
                Some(Ok(Progress::Complete)) => {
                    let (head, map) = repair.into_content().expect("complete");
                    let committed = matches!(reader.commit(head, map, anyone, &Strict), Applied::Advanced { .. });
                    prop_assert!(committed);
                    prop_assert_eq!(contents(&reader), contents(&honest));
                    return Ok(());
                }
                Some(Ok(Progress::More)) => {}
                // Caught, or unreadable: begin again with what is proved.
                Some(Err(_)) | None => repair.restart(),
            }
        }
        prop_assert_eq!(contents(&reader), contents(&document(&[&first])), "nothing was taken");
    }

    #[test]
    fn decoders_survive_arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = (Delta::decode(&bytes), Ask::decode(&bytes), Answer::decode(&bytes), SignedHead::decode(&bytes));
    }

    #[test]
    fn decoders_survive_damage_to_real_messages(at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut author = Author::new(1);
        author.seal(&[(b"a", Some(b"1")), (b"b", Some(b"2"))]);
        let held = author.seal(&[(b"b", None)]);
        let document = document(&[&held]);
        let ask = Ask { author: author.key(), lane: Lane::State, root: held.map().root(), want: Want::Summaries(alloc::vec![crate::trie::Prefix::ROOT]) };
        for mut bytes in [held.delta(0).delta.encode(), ask.encode(), document.answer(&ask).encode()] {
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _ = (Delta::decode(&bytes), Ask::decode(&bytes), Answer::decode(&bytes));
            bytes.truncate(cut.index(bytes.len()));
            prop_assert!(Delta::decode(&bytes).is_err() && Ask::decode(&bytes).is_err() && Answer::decode(&bytes).is_err());
        }
    }
}

fn exchange(delta: &Delta, from: &Document, to: &mut Document) {
    if let Applied::NeedsRepair(repair) = to.apply(&travelled(delta), anyone, &Strict) {
        copy(*repair, from, to).expect("an honest peer");
    }
}
