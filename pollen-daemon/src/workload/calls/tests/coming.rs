//! A call of what is not there yet: its claim is on its way, or nobody is ready for it.

use std::time::Duration;

use pollen_common::node::RefusalKind;
use tokio::time::Instant;

use super::cluster::{Cluster, echo, request};
use super::{seed_version, with_seed};
use crate::services::COMING_MAX;
use crate::workload::CallRequest;

/// Long enough that a call which does not wait has failed by then.
const MEANWHILE: Duration = Duration::from_millis(400);

#[tokio::test]
async fn a_call_waits_for_a_claim_and_then_for_whoever_serves_it() {
    let (cluster, version) = (Cluster::start(2), seed_version(1));
    cluster.0[0].host(version, echo);
    let host = cluster.key(0);
    let calls = cluster.0[1].calls.clone();
    let call = tokio::spawn(async move { calls.call(CallRequest { retries: 0, ..request("late", b"hi") }).await });
    tokio::time::sleep(MEANWHILE).await;
    assert!(!call.is_finished(), "its name is not known");
    cluster.publish(|view| with_seed(view, "late", &[version], &[]));
    tokio::time::sleep(MEANWHILE).await;
    assert!(!call.is_finished(), "nobody is ready");
    cluster.publish(|view| with_seed(view, "late", &[version], &[(version, &[host])]));
    let answer = call.await.expect("no panic").expect("it is served now");
    assert_eq!((&answer.output[..], answer.retries), (&b"hi"[..], 0));
}

#[tokio::test]
async fn a_call_by_a_view_that_is_behind_waits_for_news_and_that_is_no_retry() {
    let (cluster, version) = (Cluster::start(3), seed_version(1));
    cluster.0[0].host(version, echo);
    let [now, before] = [cluster.key(0), cluster.key(1)];
    cluster.publish(|view| with_seed(view, "moved", &[version], &[(version, &[before])]));
    let calls = cluster.0[2].calls.clone();
    let call = tokio::spawn(async move { calls.call(CallRequest { retries: 0, ..request("moved", b"hi") }).await });
    tokio::time::sleep(MEANWHILE).await;
    assert!(!call.is_finished(), "only a host that left is known");
    cluster.publish(|view| with_seed(view, "moved", &[version], &[(version, &[now])]));
    assert_eq!(call.await.expect("no panic").expect("it is served there").served_by, now);
}

#[tokio::test]
async fn a_wait_ends_by_the_calls_time_and_counts_what_was_waited_before() {
    let cluster = Cluster::start(2);
    let began = Instant::now();
    let spent = CallRequest { waited: COMING_MAX, ..request("nope", b"") };
    let failure = cluster.0[1].calls.call(spent).await.expect_err("never published");
    assert_eq!(failure.kind, RefusalKind::NotFound);
    let hasty = CallRequest { timeout: MEANWHILE, ..request("nope", b"") };
    let failure = cluster.0[1].calls.call(hasty).await.expect_err("never published");
    assert_eq!((failure.kind, failure.may_have_run), (RefusalKind::NotFound, false));
    assert!(began.elapsed() < COMING_MAX, "{:?}", began.elapsed());
}

#[tokio::test]
async fn who_has_the_mesh_to_itself_is_told_at_once_what_there_is_not() {
    let cluster = Cluster::start(1);
    let began = Instant::now();
    let failure = cluster.call(0, "nope", b"").await.expect_err("never published");
    assert_eq!(failure.kind, RefusalKind::NotFound);
    assert!(began.elapsed() < COMING_MAX, "{:?}", began.elapsed());
}
