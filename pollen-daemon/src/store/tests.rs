//! What the store promises, with a process that is killed while it writes.

use std::io::BufRead as _;
use std::process::{Command, Stdio};

use super::*;

fn put(key: &[u8], value: &[u8]) -> Change {
    Change::Node(vec![Write { key: key.to_vec(), value: Some(value.to_vec()) }])
}

#[test]
fn records_and_settings_survive_reopening() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let store = open_or_create(temp.path()).expect("a new store");
    assert!(store.node_records().expect("empty").is_empty());
    assert_eq!(store.config::<u16>("port").expect("empty"), None);
    let removal = Change::Node(vec![Write { key: b"a".to_vec(), value: None }]);
    store.apply(&[put(b"a", b"1"), put(b"b", b"2"), removal, Change::set("port", &7)]).expect("writable");
    drop(store);
    let store = open_or_create(temp.path()).expect("the same store");
    assert_eq!(store.node_records().expect("readable"), [(b"b".to_vec(), b"2".to_vec())]);
    assert_eq!(store.config::<u16>("port").expect("readable"), Some(7));
    assert!(matches!(store.config::<String>("port"), Err(StoreError::Config { .. })));
}

#[test]
fn a_damaged_database_is_refused_with_a_sentence() {
    let temp = tempfile::tempdir().expect("temporary directory");
    drop(open_or_create(temp.path()).expect("a new store"));
    std::fs::write(temp.path().join(DATABASE_FILE), [0x55; 8192]).expect("write");
    let error = open_or_create(temp.path()).expect_err("not a database");
    assert!(error.to_string().contains("state.redb: the database does not open"), "{error}");
}

#[test]
fn a_purge_leaves_keys_unless_told() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let key = crate::keys::load_or_make_node(temp.path()).map(|key| key.public());
    assert!(matches!(StateDir::create(temp.path()), Err(OpenError::Foreign { .. })), "keys alone are not a state");
    std::fs::remove_dir_all(temp.path().join("keys")).expect("made above");
    drop(key);

    drop(open_or_create(temp.path()).expect("a new store"));
    let key = crate::keys::load_or_make_node(temp.path()).expect("a new key").public();
    purge(StateDir::open(temp.path()).expect("ours"), false).expect("purged");
    let store = open_or_create(temp.path()).expect("still ours");
    assert!(store.node_records().expect("readable").is_empty());
    drop(store);
    assert_eq!(crate::keys::load_or_make_node(temp.path()).expect("kept").public(), key);
    purge(StateDir::open(temp.path()).expect("ours"), true).expect("purged");
    assert_eq!(std::fs::read_dir(temp.path()).expect("there").count(), 0);
}

const CHILD_DIR: &str = "PLN_TEST_STORE_CHILD";

/// Not a test of its own: the process that the next test kills. Writes batches of two records that must stay
/// together, through the writer thread, and prints the number of each batch once it is acknowledged.
#[test]
fn child_that_writes_until_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let store = open_or_create(Path::new(&dir)).expect("the parent's directory");
    let first = store.node_records().expect("readable").len() as u64;
    let (written, mut acks) = tokio::sync::mpsc::unbounded_channel();
    let (writer, _thread) = writer::Writer::start(store, written);
    for number in first.. {
        let record = |side: u8| Write {
            key: [&number.to_be_bytes()[..], &[side]].concat(),
            value: Some(number.to_le_bytes().repeat(64)),
        };
        writer.persist(pollen_common::node::PersistId(number), vec![record(0), record(1)]);
        // Some batches stay under way, so that groups are cut too.
        if number - first < 8 {
            continue;
        }
        match acks.blocking_recv() {
            Some(writer::Written::Batch(id)) => eprintln!("acknowledged {}", id.0),
            other => panic!("the writer stopped: {other:?}"),
        }
    }
}

#[test]
fn killing_the_writer_at_any_moment_loses_nothing_acknowledged() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let this = std::env::current_exe().expect("a test runs from a file");
    for round in 0..12_u64 {
        let mut child = Command::new(&this)
            .args(["store::tests::child_that_writes_until_killed", "--exact", "--nocapture"])
            .env(CHILD_DIR, temp.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this program runs again");
        let lines = std::io::BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut acknowledged = Vec::new();
        for line in lines.map_while(Result::ok) {
            acknowledged.extend(line.strip_prefix("acknowledged ").and_then(|number| number.parse::<u64>().ok()));
            // The moments differ by round and by how the system schedules; what is printed after the kill counts too.
            if acknowledged.len() as u64 == 8 + round * 5 {
                child.kill().expect("our own child");
            }
        }
        child.wait().expect("our own child");
        assert!(!acknowledged.is_empty(), "round {round}: the child never wrote");

        let store = open_or_create(temp.path()).expect("sound after a kill");
        let records = store.node_records().expect("readable");
        for number in acknowledged {
            for side in [0, 1] {
                let key = [&number.to_be_bytes()[..], &[side]].concat();
                assert!(records.iter().any(|(stored, _)| *stored == key), "round {round}: lost {number}/{side}");
            }
        }
        assert_eq!(records.len() % 2, 0, "round {round}: half a batch was stored");
        for pair in records.chunks(2) {
            assert_eq!(pair[0].0[..8], pair[1].0[..8], "round {round}: half a batch was stored");
        }
    }
}

#[test]
fn a_node_is_read_from_a_disk_that_takes_no_writes_and_written_once_it_does() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let disk = failing::Disk::default();
    let store = failing::open(temp.path(), &disk).expect("a new store");
    store.apply(&[put(b"a", b"1")]).expect("there is room");
    disk.fails_with(libc::ENOSPC);
    store.apply(&[put(b"b", b"2")]).expect_err("there is none");
    drop(store);

    let store = failing::open(temp.path(), &disk).expect("what it holds can be read");
    assert_eq!(store.node_records().expect("readable"), [(b"a".to_vec(), b"1".to_vec())]);
    store.apply(&[put(b"b", b"2")]).expect_err("there still is none");
    assert_eq!(store.node_records().expect("readable").len(), 1, "a refused write changes nothing");
    disk.is_fine();
    store.apply(&[put(b"b", b"2")]).expect("there is room again");
    drop(store);
    let store = failing::open(temp.path(), &disk).expect("sound");
    assert_eq!(store.node_records().expect("readable").len(), 2);
}

#[test]
fn a_database_that_was_cut_or_damaged_anywhere_is_noticed_and_left_as_it_is() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let store = open_or_create(temp.path()).expect("a new store");
    for number in 0..64_u8 {
        store.apply(&[put(&[number], &[number; 700])]).expect("writable");
    }
    let records = store.node_records().expect("readable");
    drop(store);
    let path = temp.path().join(DATABASE_FILE);
    let whole = std::fs::read(&path).expect("made");
    let mut noticed = 0;
    for part in 1..16 {
        let cut = whole[..whole.len() * part / 16].to_vec();
        let mut flipped = whole.clone();
        let middle = whole.len() * part / 16;
        flipped[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0x5a);
        for bytes in [cut, flipped] {
            std::fs::write(&path, &bytes).expect("write");
            match open_or_create(temp.path()) {
                Err(OpenError::Database { .. }) => {
                    noticed += 1;
                    assert_eq!(std::fs::read(&path).expect("there"), bytes, "part {part}: it was changed");
                }
                Err(other) => panic!("part {part}: {other}"),
                // Where nothing is stored, nothing is damaged.
                Ok(store) => assert_eq!(store.node_records().expect("readable"), records, "part {part}"),
            }
        }
    }
    assert!(noticed > 8, "only {noticed} were noticed");
}
