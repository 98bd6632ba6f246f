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

/// A founder's directory with its way back, and who it is.
fn member() -> (tempfile::TempDir, Founded) {
    let temp = tempfile::tempdir().expect("temporary directory");
    let founded = init(temp.path(), &no_props()).expect("a new cluster");
    let store = store::open_or_create(temp.path()).expect("ours");
    let node = open_node(&store, &member_key(&store).expect("made")).expect("a node");
    let records = node.way_back();
    let settings = crate::config::Settings { port: Some(4321), ..Default::default() };
    let back = way_back::WayBack::new(founded.node, founded.cluster, settings, Default::default(), &records);
    back.write(temp.path()).expect("writable");
    (temp, founded)
}

/// What may become of a database, and how.
type Harm<'a> = (&'static str, &'a dyn Fn(&Path));

#[test]
fn a_member_comes_back_as_itself_whatever_became_of_its_database() {
    let whole = |path: &Path| fs::read(path).expect("written by init");
    let cases: [Harm<'_>; 4] = [
        ("missing", &|path| fs::remove_file(path).expect("there")),
        ("empty", &|path| fs::write(path, []).expect("writable")),
        ("cut", &|path| fs::write(path, &whole(path)[..5000]).expect("writable")),
        ("damaged", &|path| fs::write(path, vec![0x55; whole(path).len()]).expect("writable")),
    ];
    for (case, harm) in cases {
        let (temp, founded) = member();
        harm(&temp.path().join("state.redb"));
        let store = way_back::open_member(temp.path()).unwrap_or_else(|error| panic!("{case}: {error}"));
        let node = open_node(&store, &member_key(&store).expect("there")).expect("a node");
        let me = (node.view().cluster, node.me(), node.view().nodes.contains_key(&founded.node));
        assert_eq!(me, (founded.cluster, founded.node, true), "{case}");
        let settings: Option<crate::config::Settings> = store.config(crate::config::SETTINGS_KEY).expect("readable");
        assert_eq!(settings.and_then(|settings| settings.port), Some(4321), "{case}");
        let names = fs::read_dir(temp.path()).expect("there").map(|entry| entry.expect("there").file_name());
        let kept = names.filter(|name| name.to_string_lossy().starts_with("state.redb.damaged-")).count();
        assert_eq!(kept, usize::from(matches!(case, "cut" | "damaged")), "{case}");
    }
}

#[test]
fn a_directory_with_parts_of_a_member_leads_to_no_membership_and_founds_nothing() {
    let cases: [(&str, &[&str]); 3] = [
        ("the key and the cluster's name", &["state.redb", "way-back"]),
        ("no key", &["state.redb", "keys/node.key"]),
        ("the way back without a key", &["state.redb", "keys/node.key", "cluster"]),
    ];
    for (case, gone) in cases {
        let (temp, founded) = member();
        for name in gone {
            fs::remove_file(temp.path().join(name)).expect("there");
        }
        let store = way_back::open_member(temp.path()).expect(case);
        assert!(!is_member(&store).expect("readable"), "{case}");
        let error = found_in(&store, &no_props()).expect_err(case);
        assert!(matches!(error, EnrollError::Lost { cluster } if cluster == founded.cluster.to_string()), "{case}");
    }
}

#[test]
fn a_way_back_of_another_node_or_to_another_cluster_is_not_taken() {
    for foreign in ["keys/node.key", "cluster"] {
        let ((temp, _), (other, _)) = (member(), member());
        fs::remove_file(temp.path().join("state.redb")).expect("there");
        fs::copy(other.path().join(foreign), temp.path().join(foreign)).expect("copied");
        let store = way_back::open_member(temp.path()).expect("nothing to open");
        assert!(!is_member(&store).expect("readable"), "{foreign}");
    }
}

#[test]
fn a_member_without_its_key_or_with_the_name_of_another_cluster_is_refused() {
    let (temp, _) = member();
    fs::remove_file(temp.path().join("keys/node.key")).expect("there");
    assert!(matches!(init(temp.path(), &no_props()), Err(EnrollError::KeyMissing { .. })));
    assert!(!temp.path().join("keys/node.key").exists(), "a stranger's key was made");

    let ((temp, _), (other, _)) = (member(), member());
    fs::copy(other.path().join("cluster"), temp.path().join("cluster")).expect("copied");
    let store = way_back::open_member(temp.path()).expect("the database is whole");
    let node = open_node(&store, &member_key(&store).expect("there")).expect("a node");
    assert!(matches!(check_cluster(temp.path(), &node), Err(EnrollError::Mixed { .. })));
}
