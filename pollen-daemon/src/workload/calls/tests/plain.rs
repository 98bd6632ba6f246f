//! One call, one answer: here and elsewhere, small and large, and what the guest and the caller learn.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pollen_common::node::RefusalKind;

use super::cluster::{Cluster, echo, hang, request};
use super::{seed_version, with_seed};
use crate::workload::{BODY_BYTES_MAX, CallError};
use crate::workload::{CallRequest, SeedRef};

/// A call that does not wait long for what never comes.
fn hasty(seed: &str, input: &'static [u8]) -> CallRequest {
    CallRequest { timeout: Duration::from_millis(200), ..request(seed, input) }
}

#[tokio::test]
async fn a_call_reaches_a_seed_that_another_node_hosts() {
    let (cluster, version) = (Cluster::start(2), seed_version(1));
    cluster.0[0].host(version, echo);
    let host = cluster.key(0);
    cluster.publish(|view| with_seed(view, "echo", &[version], &[(version, &[host])]));
    let answer = cluster.call(1, "echo", b"hi").await.expect("hosted");
    assert_eq!(
        (&answer.output[..], answer.served_by, answer.version, answer.retries),
        (&b"hi"[..], host, version.id(), 0)
    );
    let large = Bytes::from((0..3_000_000u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<u8>>());
    let answer = cluster.0[1].call(CallRequest { input: large.clone(), ..request("echo", b"") }).await;
    assert!(answer.expect("hosted").output == large, "3 MB come back as they went");
    cluster.0[0].until("no body is held", |calls| calls.body_bytes() == 0).await;
    let numbers = cluster.0[0].calls.numbers();
    assert_eq!((numbers.results.get("ok"), numbers.seconds.count, numbers.running), (Some(&2), 2, 0));
    let why = cluster.0[1].calls.why(&"echo".parse().expect("a name"));
    assert!(why[0].starts_with("2 calls from here went to node-0"), "{why:?}");
}

#[tokio::test]
async fn a_node_that_hosts_a_seed_answers_its_own_calls() {
    let (cluster, version) = (Cluster::start(2), seed_version(1));
    cluster.0.iter().for_each(|node| node.host(version, echo));
    let both = [cluster.key(0), cluster.key(1)];
    cluster.publish(|view| with_seed(view, "echo", &[version], &[(version, &both)]));
    for (index, key) in both.iter().enumerate() {
        assert_eq!(cluster.call(index, "echo", b"hi").await.expect("hosted").served_by, *key);
    }
}

#[tokio::test]
async fn a_seed_is_reached_by_the_hash_of_its_module_too() {
    let (cluster, version) = (Cluster::start(2), seed_version(1));
    cluster.0[0].host(version, echo);
    let host = cluster.key(0);
    cluster.publish(|view| with_seed(view, "echo", &[version], &[(version, &[host])]));
    let is_here = |node: usize, module| cluster.0[node].calls.is_here(&SeedRef::Module(module));
    assert!(is_here(0, version.module) && !is_here(1, version.module) && !is_here(0, seed_version(2).module));
    let by_hash = |module| CallRequest { seed: SeedRef::Module(module), ..hasty("x", b"hi") };
    let answer = cluster.0[1].call(by_hash(version.module)).await.expect("hosted");
    assert_eq!(answer.version, version.id());
    let failure = cluster.0[1].call(by_hash(seed_version(2).module)).await.expect_err("nobody has it");
    assert_eq!(failure.kind, RefusalKind::NotFound);
}

#[tokio::test]
async fn a_guest_learns_who_called_and_not_more_than_is_proved() {
    let (cluster, version) = (Cluster::start(2), seed_version(1));
    cluster.0[0].host(version, |given| async move { Ok(given.invocation.caller.peer.to_string().into()) });
    let (host, caller) = (cluster.key(0), cluster.key(1));
    cluster.publish(|view| with_seed(view, "whoami", &[version], &[(version, &[host])]));
    let answer = cluster.call(1, "whoami", b"").await.expect("hosted");
    assert_eq!(answer.output, caller.to_string());
}

#[tokio::test]
async fn what_is_not_there_is_told_apart() {
    let (cluster, version) = (Cluster::start(2), seed_version(1));
    cluster.0[0].host(version, echo);
    let host = cluster.key(0);
    cluster.publish(|view| {
        let view = with_seed(view, "echo", &[version], &[(version, &[host])]);
        with_seed(view, "nowhere", &[seed_version(2)], &[])
    });
    let caller = &cluster.0[1];
    let kind = async |request: CallRequest| {
        let failure = caller.call(request).await.expect_err("refused");
        assert!(!failure.may_have_run, "{failure:?}");
        failure.kind
    };
    assert_eq!(kind(hasty("nope", b"")).await, RefusalKind::NotFound);
    assert_eq!(kind(hasty("nowhere", b"")).await, RefusalKind::Unreachable);
    assert_eq!(kind(CallRequest { function: "missing".into(), ..request("echo", b"") }).await, RefusalKind::NotFound);
    assert_eq!(kind(CallRequest { function: String::new(), ..request("echo", b"") }).await, RefusalKind::Usage);
    let huge = Bytes::from(vec![0; BODY_BYTES_MAX + 1]);
    assert_eq!(kind(CallRequest { input: huge, ..request("echo", b"") }).await, RefusalKind::Failed);
}

#[tokio::test]
async fn a_failure_of_the_guest_names_itself_and_is_not_tried_elsewhere() {
    let (cluster, version) = (Cluster::start(3), seed_version(1));
    for node in &cluster.0[..2] {
        node.host(version, |_| async { Err(CallError::Memory { max_bytes: 8 << 20 }) });
    }
    let both = [cluster.key(0), cluster.key(1)];
    cluster.publish(|view| with_seed(view, "greedy", &[version], &[(version, &both)]));
    let failure = cluster.call(2, "greedy", b"").await.expect_err("it fails");
    assert_eq!(failure.message, "it reached its memory limit of 8 MiB");
    assert!(failure.may_have_run && failure.served_by.is_some());
    let numbers = cluster.0[2].calls.numbers();
    assert_eq!((numbers.retries, numbers.results.get("memory_limit")), (0, Some(&1)));
}

/// Tells when it is dropped.
struct Ends(Arc<tokio::sync::Notify>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn a_call_ends_by_its_deadline_and_so_does_its_guest() {
    let (cluster, version) = (Cluster::start(2), seed_version(1));
    let ended = Arc::new(tokio::sync::Notify::new());
    let tell = Arc::clone(&ended);
    cluster.0[0].host(version, move |given| {
        let ends = Ends(Arc::clone(&tell));
        async move {
            let _ends = ends;
            hang(given).await
        }
    });
    let host = cluster.key(0);
    cluster.publish(|view| with_seed(view, "slow", &[version], &[(version, &[host])]));
    let hasty = CallRequest { timeout: Duration::from_millis(700), ..request("slow", b"") };
    let failure = cluster.0[1].call(hasty).await.expect_err("too slow");
    assert!(failure.may_have_run, "{failure:?}");
    assert_eq!(cluster.0[1].calls.numbers().results.get("deadline"), Some(&1));
    tokio::time::timeout(super::cluster::SOON, ended.notified()).await.expect("the guest has ended");
    cluster.0[0].until("its place is free", |calls| calls.numbers().running == 0).await;
}

#[tokio::test]
async fn who_stops_waiting_ends_the_guest() {
    let (cluster, version) = (Cluster::start(2), seed_version(1));
    cluster.0[0].host(version, hang);
    let host = cluster.key(0);
    cluster.publish(|view| with_seed(view, "slow", &[version], &[(version, &[host])]));
    let call = {
        let calls = cluster.0[1].calls.clone();
        tokio::spawn(async move { calls.call(request("slow", b"")).await })
    };
    cluster.0[0].until("it runs", |calls| calls.numbers().running == 1).await;
    call.abort();
    cluster.0[0].until("it is ended", |calls| calls.numbers().running == 0).await;
}

#[tokio::test]
async fn who_does_not_stand_is_refused_and_learns_nothing() {
    let (cluster, version) = (Cluster::start(2), seed_version(1));
    cluster.0[0].host(version, echo);
    let (host, caller) = (cluster.key(0), cluster.key(1));
    cluster.publish(|view| with_seed(view, "echo", &[version], &[(version, &[host])]));
    cluster.publish_at(0, |view| with_seed(view.without(caller), "echo", &[version], &[(version, &[host])]));
    let failure = cluster.0[1].call(CallRequest { retries: 0, ..request("echo", b"") }).await.expect_err("refused");
    assert_eq!((failure.kind, failure.may_have_run), (RefusalKind::Denied, false));
    assert!(failure.message.contains("denied or absent"), "{failure:?}");
    assert_eq!(cluster.0[0].calls.numbers().refused.get("denied"), Some(&1));
}
