//! A store alone, over restarts and accidents.

use std::fs;

use super::*;
use crate::services::tests::view::ViewBuilder;

fn content(dir: &Path) -> Content {
    let me = NodeKey([1; 32]);
    let (view, views) = watch::channel(ViewBuilder::new(me).build());
    // The store looks at views for as long as it lives.
    std::mem::forget(view);
    Content::open(dir, views).expect("a directory of its own")
}

#[tokio::test]
async fn what_was_put_is_there_after_a_restart() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let store = content(temp.path());
    let digest = store.put(Bytes::from_static(b"module")).await.expect("stored");
    assert_eq!(digest, digest_of(b"module"));
    assert_eq!(store.put(Bytes::from_static(b"module")).await.expect("stored"), digest);
    drop(store);
    let store = content(temp.path());
    assert_eq!(store.held(), BTreeSet::from([digest]));
    assert_eq!(store.read(digest).await.expect("whole"), &b"module"[..]);
}

#[tokio::test]
async fn a_changed_file_is_noticed_no_more_held_and_can_be_put_again() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let store = content(temp.path());
    let digest = store.put(Bytes::from_static(b"module")).await.expect("stored");
    let mut changes = store.changes();
    changes.mark_unchanged();
    fs::write(temp.path().join("content").join(digest.to_string()), b"mobule").expect("changed");
    assert!(matches!(store.read(digest).await, Err(ReadError::Damaged)));
    assert!(!store.has(&digest) && changes.has_changed().expect("the store lives"));
    assert_eq!(store.numbers().damaged, 1);

    store.put(Bytes::from_static(b"module")).await.expect("stored again");
    fs::write(temp.path().join("content").join(digest.to_string()), b"mobule").expect("changed");
    store.put(Bytes::from_static(b"module")).await.expect("it looks at what is there");
    assert_eq!(store.read(digest).await.expect("whole"), &b"module"[..]);
}

#[tokio::test]
async fn content_over_the_limit_is_refused() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let store = content(temp.path());
    let put = store.put(Bytes::from(vec![0; CONTENT_BYTES_MAX + 1])).await;
    assert!(matches!(put, Err(PutError::TooLarge { .. })));
    assert_eq!(store.numbers(), ContentNumbers::default());
}

#[tokio::test]
async fn what_is_removed_is_gone_from_the_disk() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let store = content(temp.path());
    let digest = store.put(Bytes::from_static(b"module")).await.expect("stored");
    store.remove(digest).await.expect("removed");
    store.remove(digest).await.expect("nothing to do");
    assert!(matches!(store.read(digest).await, Err(ReadError::Absent)));
    assert_eq!(store.numbers().held, 0);
}
