//! Hosts that die, or are cut off, while they serve a call.

use std::time::{Duration, Instant};

use pollen_common::identity::NodeKey;
use pollen_common::node::RefusalKind;
use pollen_common::views::SeedVersion;
use tokio::task::JoinHandle;

use super::cluster::{Cluster, SOON, echo, hang, request};
use super::{seed_version, with_seed};
use crate::workload::{CallAnswer, CallFailure};

type Called = JoinHandle<Result<CallAnswer, CallFailure>>;

/// Two hosts and a caller: the first hangs and runs the caller's call by now, the second would answer.
async fn stuck(version: SeedVersion) -> (Cluster, Called, [NodeKey; 2]) {
    let cluster = Cluster::start(3);
    cluster.0[0].host(version, hang);
    cluster.0[1].host(version, echo);
    let hosts = [cluster.key(0), cluster.key(1)];
    cluster.publish(|view| with_seed(view, "seed", &[version], &[(version, &hosts[..1])]));
    let call = {
        let calls = cluster.0[2].calls.clone();
        tokio::spawn(async move { calls.call(request("seed", b"hi")).await })
    };
    cluster.0[0].until("it runs", |calls| calls.numbers().running == 1).await;
    (cluster, call, hosts)
}

async fn ended(call: Called) -> Result<CallAnswer, CallFailure> {
    tokio::time::timeout(SOON, call).await.expect("in time").expect("no panic")
}

#[tokio::test]
async fn a_call_whose_host_died_fails_as_soon_as_that_is_known_and_says_that_it_may_have_run() {
    let version = seed_version(1);
    let (cluster, call, hosts) = stuck(version).await;
    cluster.0[0].mesh.stop().await;
    let known = Instant::now();
    cluster.publish(|view| with_seed(view.offline(hosts[0]), "seed", &[version], &[(version, &hosts[1..])]));
    let failure = ended(call).await.expect_err("its host is gone");
    assert!(known.elapsed() < Duration::from_secs(5), "not only at the deadline");
    assert!(failure.may_have_run);
    assert_eq!((failure.kind, failure.served_by), (RefusalKind::Unreachable, Some(hosts[0])));
    assert!(failure.message.contains("node-0 was lost") && failure.message.contains("may have run"), "{failure:?}");
    assert_eq!(cluster.0[2].calls.numbers().results.get("lost"), Some(&1));
    assert_eq!(cluster.call(2, "seed", b"again").await.expect("the other serves").output, "again");
}

#[tokio::test]
async fn an_idempotent_call_goes_elsewhere_when_its_host_falls_silent_before_anyone_knows_why() {
    let version = SeedVersion { idempotent: true, ..seed_version(1) };
    let cluster = Cluster::start(3);
    cluster.0[0].host(version, hang);
    cluster.0[1].host(version, echo);
    let hosts = [cluster.key(0), cluster.key(1)];
    cluster.publish(|view| with_seed(view, "seed", &[version], &[(version, &hosts)]));
    // By lot, some of them go to the host that is about to die.
    let calls: Vec<Called> = (0..16)
        .map(|_| {
            let calls = cluster.0[2].calls.clone();
            tokio::spawn(async move { calls.call(request("seed", b"hi")).await })
        })
        .collect();
    cluster.0[0].until("some run there", |calls| calls.numbers().running >= 1).await;
    let began = Instant::now();
    cluster.0[0].mesh.stop().await;
    for call in calls {
        assert_eq!(ended(call).await.expect("the other serves").served_by, hosts[1]);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "long before the deadline");
    assert!(cluster.0[2].calls.numbers().retries >= 1);
    // Who is known to be silent is not asked again, though no view says so yet.
    let next = Instant::now();
    assert_eq!(cluster.call(2, "seed", b"hi").await.expect("the other serves").retries, 0);
    assert!(next.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_slow_guest_on_a_host_that_lives_is_neither_given_up_nor_run_twice() {
    let version = SeedVersion { idempotent: true, ..seed_version(1) };
    let cluster = Cluster::start(2);
    cluster.0[0].host(version, |given| async move {
        // Several times as long as the silence after which a host is given up.
        tokio::time::sleep(Duration::from_millis(1800)).await;
        echo(given).await
    });
    let host = [cluster.key(0)];
    cluster.publish(|view| with_seed(view, "slow", &[version], &[(version, &host)]));
    let answer = cluster.call(1, "slow", b"hi").await.expect("it comes");
    assert_eq!((&answer.output[..], answer.retries), (&b"hi"[..], 0));
    assert_eq!(cluster.0[0].calls.numbers().seconds.count, 1);
}

#[tokio::test]
async fn a_connection_that_closes_under_a_call_is_a_lost_host() {
    let version = seed_version(1);
    let (cluster, call, hosts) = stuck(version).await;
    cluster.0[0].mesh.shutdown("gone").await;
    let failure = ended(call).await.expect_err("its host is gone");
    assert!(failure.may_have_run && failure.served_by == Some(hosts[0]), "{failure:?}");
}
