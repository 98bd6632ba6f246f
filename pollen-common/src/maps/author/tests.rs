use alloc::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::identity::{Digest, Strict};
use crate::maps::Applied;

const CLUSTER: ClusterId = ClusterId([9; 32]);
const ROOMY: u64 = 1 << 20;

fn secret() -> SecretKey {
    SecretKey::from_seed(&[1; 32])
}

fn at(seconds: u64) -> Now {
    Now { mono: Instant(0) + Duration::from_secs(seconds), unix: UnixMs((1_000_000 + seconds) * 1000) }
}

fn boot(document: &Document, reserved: u64, now: Now) -> Authoring {
    Authoring::boot(secret(), document, reserved, now)
}

/// A disk: the records that were written.
#[derive(Clone, Default)]
struct Disk(BTreeMap<Vec<u8>, Vec<u8>>);

impl Disk {
    fn write(&mut self, writes: &[Write]) {
        for write in writes {
            match &write.value {
                Some(value) => drop(self.0.insert(write.key.clone(), value.clone())),
                None => drop(self.0.remove(&write.key)),
            }
        }
    }

    fn restored(&self) -> records::Restored {
        records::restore(CLUSTER, self.0.iter().map(|(k, v)| (k.as_slice(), v.as_slice())), &Strict)
    }

    fn boot(&self, now: Now) -> Authoring {
        let restored = self.restored();
        assert!(restored.dropped.is_empty() && restored.cleanup.is_empty());
        boot(&restored.document, restored.reserved, now)
    }
}

fn facts(authoring: &Authoring) -> Vec<(Vec<u8>, Vec<u8>)> {
    let keys = authoring.keys(Lane::Facts, b"");
    keys.iter().map(|key| (key.to_vec(), authoring.value(Lane::Facts, key).expect("it is a key").to_vec())).collect()
}

fn pair(key: &[u8], value: &[u8]) -> (Vec<u8>, Vec<u8>) {
    (key.to_vec(), value.to_vec())
}

fn sealed(authoring: &mut Authoring, disk: &mut Disk, now: Now) -> Vec<Arc<Held>> {
    let sealed = authoring.seal(now).expect("something to seal");
    disk.write(&sealed.writes);
    sealed.held
}

fn seq(held: &Held) -> u64 {
    held.head().head().seq
}

#[test]
fn many_changes_make_one_head_and_no_change_makes_none() {
    let (mut node, mut disk) = (boot(&Document::new(CLUSTER), 0, at(0)), Disk::default());
    node.release();
    assert_eq!(node.put(Lane::Facts, b"a", b"1", ROOMY), Ok(true));
    assert_eq!(node.put(Lane::Facts, b"b", b"2", ROOMY), Ok(true));
    assert_eq!(node.put(Lane::Facts, b"b", b"3", ROOMY), Ok(true));
    assert_eq!(node.put(Lane::Facts, b"b", b"3", ROOMY), Ok(false));
    assert!(node.delete(Lane::Facts, b"a") && !node.delete(Lane::Facts, b"a"));
    let held = sealed(&mut node, &mut disk, at(0));
    assert_eq!(held.iter().map(|held| held.head().head().lane).collect::<Vec<_>>(), [Lane::Facts, Lane::Live]);
    assert_eq!(facts(&node), [pair(b"b", b"3")]);
    assert!(node.seal(at(1)).is_none() && node.sealable_at().is_none());
    assert!(held.iter().all(|held| held.head().verify(&Strict)));
}

#[test]
fn durable_lanes_wait_for_a_neighbour_or_five_seconds_and_live_does_not() {
    let mut node = boot(&Document::new(CLUSTER), 0, at(0));
    node.put(Lane::Facts, b"a", b"1", ROOMY).expect("room");
    let sealed = node.seal(at(4)).expect("live");
    assert_eq!(sealed.held.iter().map(|held| held.head().head().lane).collect::<Vec<_>>(), [Lane::Live]);
    assert!(sealed.reserves, "its sequence must be on disk before it is sent");
    assert_eq!(node.sealable_at(), Some(at(5).mono));
    assert!(node.seal(at(4)).is_none());
    assert!(node.seal(at(5)).is_some());
    let mut node = boot(&Document::new(CLUSTER), 0, at(0));
    node.put(Lane::Facts, b"a", b"1", ROOMY).expect("room");
    node.release();
    assert_eq!(node.seal(at(0)).expect("both").held.len(), 2);
}

#[test]
fn what_was_sealed_is_on_disk_and_nothing_deleted_comes_back() {
    let (mut node, mut disk) = (boot(&Document::new(CLUSTER), 0, at(0)), Disk::default());
    node.release();
    for n in 0u8..100 {
        node.put(Lane::Facts, &[n], &[n], ROOMY).expect("room");
        node.put(Lane::Live, &[n], &[n], ROOMY).expect("room");
        node.put(Lane::State, &[n], &[n], ROOMY).expect("room");
        if n >= 10 {
            node.delete(Lane::Facts, &[n - 10]);
        }
        sealed(&mut node, &mut disk, at(0));
    }
    let again = disk.boot(at(1));
    assert_eq!(facts(&again), facts(&node));
    assert_eq!(again.keys(Lane::State, b"").len(), 100);
    assert!(again.keys(Lane::Live, b"").is_empty(), "live lanes never outlive the process");
    let heads = disk.0.keys().filter(|key| key[0] == b'h').count();
    let entries = disk.0.keys().filter(|key| key[0] == b'e').count();
    assert_eq!((heads, entries, disk.0.len()), (2, 110, 113), "and nothing else is left behind");
}

#[test]
fn no_sequence_is_used_twice_however_often_a_node_crashes_and_its_clock_jumps() {
    let mut disk = Disk::default();
    let mut last = 0;
    for (round, clock) in [5u64, 5, 5, 2, 0, 9].into_iter().enumerate() {
        let mut node = disk.boot(at(clock));
        node.release();
        for n in 0..3 {
            node.put(Lane::Facts, b"k", &[u8::try_from(round).expect("few"), n], ROOMY).expect("room");
            // Sent, but the process may die before the next one: what is on disk must still lie above it.
            for held in sealed(&mut node, &mut disk, at(clock)) {
                assert!(seq(&held) > last);
                last = seq(&held);
            }
        }
    }
}

#[test]
fn a_lane_that_was_damaged_on_disk_is_dropped_whole() {
    let (mut node, mut disk) = (boot(&Document::new(CLUSTER), 0, at(0)), Disk::default());
    node.release();
    for n in 0u8..40 {
        node.put(Lane::Facts, &[n], &[n], ROOMY).expect("room");
        node.put(Lane::State, &[n], &[n], ROOMY).expect("room");
    }
    sealed(&mut node, &mut disk, at(0));
    let facts_records: Vec<_> = disk.0.keys().filter(|key| key[1..].starts_with(&[0])).cloned().collect();
    for victim in &facts_records {
        let value = &disk.0[victim];
        let mut flipped = value.clone();
        *flipped.last_mut().expect("not empty") ^= 1;
        for damage in [None, Some(flipped), Some(value[1..].to_vec())] {
            let mut disk = disk.clone();
            disk.write(&[Write { key: victim.clone(), value: damage }]);
            let restored = disk.restored();
            assert_eq!(restored.dropped, [(secret().public(), Lane::Facts)]);
            assert!(restored.document.held(&secret().public(), Lane::State).is_some());
            disk.write(&restored.cleanup);
            assert!(disk.0.keys().all(|key| !key[1..].starts_with(&[0])), "its records are gone");
        }
    }
}

#[test]
fn an_allowance_is_exact_and_a_refusal_changes_nothing() {
    let mut node = boot(&Document::new(CLUSTER), 0, at(0));
    assert_eq!(node.put(Lane::Facts, b"a", &[0; 35], 100), Ok(true));
    let refused = AuthorError::TooLarge { lane: Lane::Facts, size_bytes: 101, allowance_bytes: 100 };
    assert_eq!(node.put(Lane::Facts, b"a", &[0; 36], 100), Err(refused));
    assert_eq!(node.put(Lane::Facts, b"", b"", 100), Err(AuthorError::Entry(EntryError::Key)));
    assert_eq!(node.size_bytes(Lane::Facts), 100);
    node.delete(Lane::Facts, b"a");
    assert_eq!(node.size_bytes(Lane::Facts), 0);
}

/// A node whose disk was brought back from before its last changes, and what neighbours hold of it.
fn set_back() -> (Authoring, Disk, Arc<Held>) {
    let (mut node, mut disk) = (boot(&Document::new(CLUSTER), 0, at(0)), Disk::default());
    node.release();
    for key in [b"kept", b"gone"] {
        node.put(Lane::Facts, key, b"old", ROOMY).expect("room");
    }
    sealed(&mut node, &mut disk, at(0));
    node.delete(Lane::Facts, b"gone");
    for key in [&b"kept"[..], b"new", b"rewritten", b"deleted"] {
        node.put(Lane::Facts, key, b"newer", ROOMY).expect("room");
    }
    let newest = node.seal(at(1)).expect("changes").held.remove(0);
    (disk.boot(at(10)), disk, newest)
}

fn adopted() -> Vec<(Vec<u8>, Vec<u8>)> {
    alloc::vec![pair(b"kept", b"newer"), pair(b"new", b"newer"), pair(b"rewritten", b"mine")]
}

#[test]
fn a_head_of_ours_that_the_disk_lost_is_adopted_but_for_what_was_rewritten() {
    let (mut node, mut disk, newest) = set_back();
    node.put(Lane::Facts, b"rewritten", b"mine", ROOMY).expect("room");
    node.delete(Lane::Facts, b"deleted");
    let heard = node.heard(&newest.delta(0).delta, roomy, at(10), &Strict);
    assert!(matches!(heard, Heard::Adopted));
    node.release();
    let held = sealed(&mut node, &mut disk, at(10)).remove(0);
    assert_eq!(facts(&node), adopted());
    assert_eq!(facts(&disk.boot(at(20))), adopted(), "and so it is on disk");
    assert_eq!(node.offered(newest.head(), at(10), &Strict), Offer::Stale, "taken over already");
    let mut neighbour = Document::new(CLUSTER);
    neighbour.place(newest.clone());
    let delta = held.delta(seq(&newest)).delta;
    assert!(matches!(neighbour.apply(&delta, roomy, &Strict), Applied::Advanced { .. }));
}

#[test]
fn even_after_signing_the_lost_changes_are_taken_in() {
    let (mut node, mut disk, newest) = set_back();
    node.put(Lane::Facts, b"rewritten", b"mine", ROOMY).expect("room");
    node.delete(Lane::Facts, b"deleted");
    let first = sealed(&mut node, &mut disk, at(15)).remove(0);
    // A neighbour that shows its head alone: the content has to be copied.
    let bare = Delta { puts: Vec::new(), deletions: Vec::new(), ..newest.delta(0).delta };
    let heard = node.heard(&bare, |_, _| None, at(16), &Strict);
    assert!(matches!(heard, Heard::NotAllowed));
    let Heard::NeedsRepair(mut repair) = node.heard(&bare, roomy, at(16), &Strict) else { panic!("it is bare") };
    let mut other = Document::new(CLUSTER);
    other.place(newest);
    while let Some(ask) = repair.poll_ask() {
        repair.answer(&other.answer(&ask), &Strict).expect("an honest peer");
    }
    let (head, map) = repair.into_content().expect("all was answered");
    node.adopt(head, map);
    let second = sealed(&mut node, &mut disk, at(16)).remove(0);
    assert_eq!(facts(&node), adopted());
    let mut neighbour = Document::new(CLUSTER);
    neighbour.place(first.clone());
    let delta = second.delta(seq(&first)).delta;
    assert!(matches!(neighbour.apply(&delta, roomy, &Strict), Applied::Advanced { .. }));
    assert_eq!(facts(&disk.boot(at(20))), adopted());
}

fn roomy(_: &NodeKey, _: Lane) -> Option<u64> {
    Some(ROOMY)
}

#[test]
fn a_restarted_nodes_live_lane_replaces_the_old_one_without_a_copy_by_trie() {
    let mut before = boot(&Document::new(CLUSTER), 0, at(0));
    before.put(Lane::Live, b"link", b"1", ROOMY).expect("room");
    let old = before.seal(at(0)).expect("live").held.remove(0);
    let mut after = boot(&Document::new(CLUSTER), 0, at(9));
    after.put(Lane::Live, b"other", b"1", ROOMY).expect("room");
    let new = after.seal(at(9)).expect("live").held.remove(0);
    assert_eq!(after.offered(old.head(), at(9), &Strict), Offer::Stale);
    let mut neighbour = Document::new(CLUSTER);
    neighbour.place(old.clone());
    let delta = new.delta(seq(&old)).delta;
    assert!(matches!(neighbour.apply(&delta, roomy, &Strict), Applied::Advanced { .. }));
}

#[test]
fn a_twin_makes_a_node_rest_longer_each_time_and_is_never_outbid() {
    let (mut node, mut disk) = (boot(&Document::new(CLUSTER), 0, at(0)), Disk::default());
    let mut twin = boot(&Document::new(CLUSTER), 0, at(100));
    node.release();
    sealed(&mut node, &mut disk, at(0));
    let theirs = twin.seal(at(100)).expect("live").held.remove(0);
    assert_eq!(node.offered(theirs.head(), at(100), &Strict), Offer::Twin);
    node.put(Lane::Facts, b"a", b"1", ROOMY).expect("changes may still be made");
    assert!(node.seal(at(159)).is_none());
    assert_eq!(node.sealable_at(), Some(at(160).mono));
    assert_eq!(node.offered(theirs.head(), at(150), &Strict), Offer::Twin);
    assert_eq!(node.twin().map(|twin| twin.until), Some(at(160).mono), "the same news prolongs nothing");
    let held = sealed(&mut node, &mut disk, at(160));
    assert!(held.iter().all(|held| seq(held) >= clock_seq(at(160).unix)), "the clock decides");
    let mut pause = 60;
    let mut now = 160;
    for _ in 0..8 {
        let mut twin = boot(&Document::new(CLUSTER), 0, at(now + 1));
        let theirs = twin.seal(at(now + 1)).expect("live").held.remove(0);
        assert_eq!(node.offered(theirs.head(), at(now + 1), &Strict), Offer::Twin);
        pause = (pause * 2).min(3600);
        now += 1 + pause;
        assert!(node.seal(at(now - 1)).is_none());
        let held = sealed(&mut node, &mut disk, at(now));
        assert!(held.iter().all(|held| seq(held) < clock_seq(at(now + 1).unix)), "no higher than the clock");
    }
    assert_eq!(pause, 3600);
}

#[test]
fn our_own_heads_coming_back_to_us_are_no_twin_and_forged_ones_are_nothing() {
    let (mut node, mut disk) = (boot(&Document::new(CLUSTER), 0, at(0)), Disk::default());
    node.release();
    node.put(Lane::Facts, b"a", b"1", ROOMY).expect("room");
    let first = sealed(&mut node, &mut disk, at(0)).remove(0);
    node.put(Lane::Facts, b"a", b"2", ROOMY).expect("room");
    let second = sealed(&mut node, &mut disk, at(0)).remove(0);
    assert_eq!(node.offered(first.head(), at(1), &Strict), Offer::Stale);
    assert_eq!(node.offered(second.head(), at(1), &Strict), Offer::Current);
    let higher = Head { seq: u64::MAX >> 1, root: Digest([1; 32]), ..*second.head().head() };
    let mut forged = *SignedHead::sign(higher, &secret()).bytes();
    forged[150] ^= 1;
    let forged = SignedHead::decode(&forged).expect("the layout holds");
    assert_eq!(node.offered(&forged, at(1), &Strict), Offer::Forged);
    assert!(node.twin().is_none());
    assert_eq!(boot(&Document::new(CLUSTER), 0, at(2)).offered(second.head(), at(2), &Strict), Offer::Adopt);
}

/// What happens to a node in the story below.
#[derive(Clone, Debug)]
enum Step {
    Put(Lane, u8, u8),
    Delete(Lane, u8),
    Seal,
    /// Killed with this many of its batches not yet on disk, and started again so many seconds later.
    Kill {
        lost: usize,
        after: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let lane = || prop_oneof![Just(Lane::Facts), Just(Lane::State)];
    prop_oneof![
        4 => (lane(), 0u8..8, any::<u8>()).prop_map(|(lane, key, value)| Step::Put(lane, key, value)),
        3 => (lane(), 0u8..8).prop_map(|(lane, key)| Step::Delete(lane, key)),
        4 => Just(Step::Seal),
        1 => (0usize..3, 0u64..3).prop_map(|(lost, after)| Step::Kill { lost, after }),
    ]
}

type Contents = BTreeMap<(Lane, Vec<u8>), Vec<u8>>;

fn contents(node: &Authoring) -> Contents {
    let keys = Lane::ALL.into_iter().flat_map(|lane| node.keys(lane, b"").into_iter().map(move |key| (lane, key)));
    keys.map(|(lane, key)| ((lane, key.to_vec()), node.value(lane, &key).expect("it is a key").to_vec())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Killed at any moment, a node starts with exactly what its last complete batch held: all that could have been
    /// acknowledged is there, nothing deleted came back, and no sequence is used twice.
    #[test]
    fn a_killed_node_starts_with_exactly_what_was_on_disk(steps in prop::collection::vec(step(), 1..80)) {
        let mut batches: Vec<(Vec<Write>, Contents)> = alloc::vec![(Vec::new(), Contents::new())];
        let disk = |batches: &[(Vec<Write>, Contents)]| {
            let mut disk = Disk::default();
            batches.iter().for_each(|(writes, _)| disk.write(writes));
            disk
        };
        let mut clock = 0;
        let mut used = alloc::collections::BTreeSet::new();
        let mut node = disk(&batches).boot(at(clock));
        node.release();
        for step in steps {
            match step {
                Step::Put(lane, key, value) => drop(node.put(lane, &[key], &[value], ROOMY).expect("room")),
                Step::Delete(lane, key) => drop(node.delete(lane, &[key])),
                Step::Seal => {
                    let Some(sealed) = node.seal(at(clock)) else { continue };
                    batches.push((sealed.writes, contents(&node)));
                    for held in sealed.held {
                        prop_assert!(used.insert(seq(&held)), "a sequence was used twice");
                    }
                }
                Step::Kill { lost, after } => {
                    // What was not on disk was never sent, so only sequences that were reserved there count as used.
                    batches.truncate(batches.len().saturating_sub(lost).max(1));
                    let disk = disk(&batches);
                    let reserved = disk.restored().reserved;
                    used.retain(|seq| *seq <= reserved);
                    clock += after;
                    node = disk.boot(at(clock));
                    node.release();
                    prop_assert_eq!(contents(&node), batches.last().expect("the first stays").1.clone());
                }
            }
        }
    }
}
