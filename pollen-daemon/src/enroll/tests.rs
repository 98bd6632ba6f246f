//! Founding a cluster, again and again.

use super::*;
use std::collections::BTreeMap;

fn no_props() -> BTreeMap<String, String> {
    BTreeMap::new()
}

#[test]
fn founding_twice_answers_the_same() {
    let temp = tempfile::tempdir().expect("temporary directory");
    assert_eq!(id(temp.path()).expect("readable"), None);
    let founded = init(temp.path(), &no_props()).expect("a new cluster");
    assert!(founded.new);
    let again = init(temp.path(), &no_props()).expect("the same cluster");
    assert_eq!(again, Founded { new: false, ..founded });
    let identity = id(temp.path()).expect("readable").expect("a node");
    assert_eq!(identity, Identity { node: founded.node, cluster: Some(founded.cluster), root: Some(founded.root) });
}

#[test]
fn founding_answers_while_the_daemon_holds_the_directory() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let founded = init(temp.path(), &no_props()).expect("a new cluster");
    let held = store::open_or_create(temp.path()).expect("ours");
    assert_eq!(init(temp.path(), &no_props()).expect("the same"), Founded { new: false, ..founded });
    drop(held);

    let other = tempfile::tempdir().expect("temporary directory");
    let _held = store::open_or_create(other.path()).expect("ours");
    assert!(matches!(init(other.path(), &no_props()), Err(EnrollError::Open(OpenError::Locked { .. }))));
}

#[test]
fn a_crash_at_any_step_of_founding_is_made_good_by_the_next_call() {
    let whole = tempfile::tempdir().expect("temporary directory");
    let founded = init(whole.path(), &no_props()).expect("a new cluster");
    // The cluster file is the last step.
    fs::remove_file(whole.path().join("cluster")).expect("written by init");
    assert_eq!(init(whole.path(), &no_props()).expect("the same"), Founded { new: false, ..founded });
    assert!(whole.path().join("cluster").exists());
    // Before it the records, before them the keys.
    fs::remove_file(whole.path().join("cluster")).expect("written by init");
    fs::remove_file(whole.path().join("state.redb")).expect("written by init");
    let again = init(whole.path(), &no_props()).expect("founded with the same keys");
    assert_eq!((again.root, again.node), (founded.root, founded.node));
}

#[test]
fn a_founder_whose_database_is_lost_does_not_found_again() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let founded = init(temp.path(), &no_props()).expect("a new cluster");
    for lost in [None, Some("")] {
        let database = temp.path().join("state.redb");
        match lost {
            None => fs::remove_file(&database).expect("written by init"),
            Some(text) => fs::write(&database, text).expect("ours"),
        }
        let error = init(temp.path(), &no_props()).expect_err("a member already");
        assert!(matches!(error, EnrollError::Lost { cluster } if cluster == founded.cluster.to_string()));
    }
    fs::write(temp.path().join("cluster"), "nonsense").expect("ours");
    assert!(matches!(init(temp.path(), &no_props()), Err(EnrollError::Lost { .. })), "an unreadable mark is a mark");
}

#[test]
fn a_member_whose_root_is_elsewhere_founds_nothing() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let founded = init(temp.path(), &no_props()).expect("a new cluster");
    fs::rename(temp.path().join("root"), temp.path().join("taken-offline")).expect("the root can be taken away");
    let error = init(temp.path(), &no_props()).expect_err("no root here");
    assert!(matches!(error, EnrollError::Member { cluster } if cluster == founded.cluster), "{error}");
    assert!(!temp.path().join("root").exists(), "no second root was made");
}

#[test]
fn text_that_is_no_token_is_refused_with_a_sentence_and_leaves_nothing() {
    let temp = tempfile::tempdir().expect("temporary directory");
    for text in ["", "ä", "not base64!", "AAAA"] {
        let error = join(temp.path(), text, JoinOptions::default()).expect_err("no token");
        assert!(!error.is_unreachable() && !error.to_string().is_empty(), "{text:?}: {error}");
    }
    assert!(!temp.path().join("cluster").exists());
}
