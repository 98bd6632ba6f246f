//! Calls that the first host does not take: they go to another, as long as it is certain that nothing ran.

use std::time::Duration;

use pollen_common::node::RefusalKind;

use super::cluster::{Cluster, echo, hang, request};
use super::{seed_version, with_seed};
use crate::workload::CallRequest;
use crate::workload::calls::Limits;

fn one_at_a_time() -> Limits {
    Limits { waiting_max: 0, ..Limits::of_engine(1, 1) }
}

#[tokio::test]
async fn a_host_that_no_longer_has_the_seed_sends_its_callers_on() {
    let (cluster, version) = (Cluster::start(3), seed_version(1));
    cluster.0[1].host(version, echo);
    let both = [cluster.key(0), cluster.key(1)];
    cluster.publish(|view| with_seed(view, "echo", &[version], &[(version, &both)]));
    for _ in 0..10 {
        let answer = cluster.call(2, "echo", b"hi").await.expect("one has it");
        assert_eq!(answer.served_by, cluster.key(1));
    }
}

#[tokio::test]
async fn a_caller_whose_view_is_old_is_answered_by_the_version_that_is_new() {
    let (cluster, old, new) = (Cluster::start(2), seed_version(1), seed_version(2));
    cluster.0[0].host(new, echo);
    let host = cluster.key(0);
    cluster.publish_at(0, |view| with_seed(view, "echo", &[new], &[(new, &[host])]));
    cluster.publish_at(1, |view| with_seed(view, "echo", &[old], &[(old, &[host])]));
    let answer = cluster.call(1, "echo", b"hi").await.expect("the new one answers");
    assert_eq!((answer.version, answer.retries), (new.id(), 0));
}

#[tokio::test]
async fn a_caller_that_waits_for_news_finds_the_new_host() {
    let (cluster, version) = (Cluster::start(2), seed_version(1));
    let host = cluster.key(0);
    cluster.publish(|view| with_seed(view, "echo", &[version], &[(version, &[host])]));
    let call = {
        let calls = cluster.0[1].calls.clone();
        tokio::spawn(async move { calls.call(CallRequest { retries: 16, ..request("echo", b"hi") }).await })
    };
    cluster.0[0].until("it was refused", |calls| calls.numbers().refused.get("not_here") >= Some(&1)).await;
    cluster.0[0].host(version, echo);
    assert!(call.await.expect("no panic").expect("hosted by now").retries >= 1);
}

#[tokio::test]
async fn a_busy_host_sends_its_callers_to_one_with_room() {
    let (cluster, version) = (Cluster::start_with(3, one_at_a_time()), seed_version(1));
    cluster.0[0].host(version, hang);
    cluster.0[1].host(version, echo);
    let both = [cluster.key(0), cluster.key(1)];
    // The one call that the first host has room for.
    let first = cluster.key(0);
    cluster.publish(|view| with_seed(view, "echo", &[version], &[(version, &[first])]));
    let held = {
        let calls = cluster.0[2].calls.clone();
        tokio::spawn(async move { calls.call(request("echo", b"")).await })
    };
    cluster.0[0].until("it is full", |calls| calls.numbers().running == 1).await;
    cluster.publish(|view| with_seed(view, "echo", &[version], &[(version, &both)]));
    for _ in 0..10 {
        assert_eq!(cluster.call(2, "echo", b"hi").await.expect("room").served_by, cluster.key(1));
    }
    held.abort();
}

#[tokio::test]
async fn when_all_are_busy_the_caller_is_refused_early_and_nothing_ran() {
    let (cluster, version) = (Cluster::start_with(2, one_at_a_time()), seed_version(1));
    cluster.0[0].host(version, hang);
    let host = cluster.key(0);
    cluster.publish(|view| with_seed(view, "slow", &[version], &[(version, &[host])]));
    let held = {
        let calls = cluster.0[1].calls.clone();
        tokio::spawn(async move { calls.call(request("slow", b"")).await })
    };
    cluster.0[0].until("it is full", |calls| calls.numbers().running == 1).await;
    let failure = cluster.call(1, "slow", b"").await.expect_err("no room");
    assert_eq!((failure.kind, failure.may_have_run), (RefusalKind::Failed, false));
    assert_eq!(cluster.0[1].calls.numbers().results.get("busy"), Some(&1));
    assert!(cluster.0[0].calls.numbers().refused.values().sum::<u64>() >= 1);
    held.abort();
}

#[tokio::test]
async fn a_host_that_leaves_finishes_what_it_runs_and_sends_the_rest_on() {
    let (cluster, version) = (Cluster::start(3), seed_version(1));
    cluster.0[0].host(version, |given| async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        echo(given).await
    });
    cluster.0[1].host(version, echo);
    let (first, both) = ([cluster.key(0)], [cluster.key(0), cluster.key(1)]);
    cluster.publish(|view| with_seed(view, "echo", &[version], &[(version, &first)]));
    let under_way = {
        let calls = cluster.0[2].calls.clone();
        tokio::spawn(async move { calls.call(request("echo", b"hi")).await })
    };
    cluster.0[0].until("it runs", |calls| calls.numbers().running == 1).await;
    let drained = {
        let calls = cluster.0[0].calls.clone();
        tokio::spawn(async move { calls.drain(super::cluster::SOON).await })
    };
    cluster.publish(|view| with_seed(view, "echo", &[version], &[(version, &both)]));
    assert!(drained.await.expect("no panic"), "everything was answered in time");
    for _ in 0..5 {
        assert_eq!(cluster.call(2, "echo", b"hi").await.expect("one stays").served_by, cluster.key(1));
    }
    assert_eq!(under_way.await.expect("no panic").expect("finished").served_by, cluster.key(0));
}

#[tokio::test]
async fn a_node_nobody_can_reach_is_passed_over() {
    let (cluster, version) = (Cluster::start(3), seed_version(1));
    cluster.0[1].host(version, echo);
    let both = [cluster.key(0), cluster.key(1)];
    cluster.0[0].mesh.stop().await;
    cluster.publish(|view| with_seed(view, "echo", &[version], &[(version, &both)]));
    for _ in 0..4 {
        assert_eq!(cluster.call(2, "echo", b"hi").await.expect("one is there").served_by, cluster.key(1));
    }
}
