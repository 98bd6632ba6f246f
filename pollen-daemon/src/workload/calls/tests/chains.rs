//! Calls that lead to further calls: requests of seeds and services, circles, depth, and tail calls.

use bytes::Bytes;
use pollen_common::identity::NodeKey;
use pollen_common::views::{Protocol, SeedVersion};
use pollen_common::wire::streams::call::{CALL_DEPTH_MAX, HOPS_MAX};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::cluster::{Cluster, Given, echo, relay, request};
use super::{seed_version, with_seed};
use crate::services::tests::view::ViewBuilder;
use crate::workload::CallError;
use crate::workload::calls::Limits;
use crate::workload::{CallRequest, SeedRef};

/// Seeds `s0`, `s1`... by turns on the first two nodes.
fn spread(view: ViewBuilder, hosts: [NodeKey; 2], count: u8) -> ViewBuilder {
    spread_as(view, hosts, count, seed_version)
}

/// The same, of whose seeds the first is one whose output may ask for tail calls.
fn spread_tailing(view: ViewBuilder, hosts: [NodeKey; 2], count: u8) -> ViewBuilder {
    spread_as(view, hosts, count, |index| if index == 0 { tailing() } else { seed_version(index) })
}

/// The version of `s0` whose publisher lets its output ask for tail calls.
fn tailing() -> SeedVersion {
    SeedVersion { tail_calls: true, ..seed_version(0) }
}

fn spread_as(view: ViewBuilder, hosts: [NodeKey; 2], count: u8, version: impl Fn(u8) -> SeedVersion) -> ViewBuilder {
    (0..count).fold(view, |view, index| {
        let version = version(index);
        with_seed(view, &format!("s{index}"), &[version], &[(version, &[hosts[usize::from(index % 2)]])])
    })
}

#[tokio::test]
async fn a_seed_asks_a_seed_on_another_node_and_that_sees_its_host_as_caller() {
    let cluster = Cluster::start(3);
    let hosts = [cluster.key(0), cluster.key(1)];
    cluster.0[0].host(seed_version(0), relay);
    cluster.0[1].host(seed_version(1), |given: Given| async move {
        let caller = &given.invocation.caller;
        Ok(format!("{} {:?}", caller.peer, caller.path).into())
    });
    cluster.publish(|view| spread(view, hosts, 2));
    let answer = cluster.call(2, "s0", b"pln://seed/s1/run").await.expect("both are hosted");
    assert_eq!(answer.output, format!("{} {:?}", hosts[0], [SeedRef::Name("s0".parse().expect("a name")).step()]));
}

#[tokio::test]
async fn on_the_same_node_the_first_caller_stays_known() {
    let cluster = Cluster::start(2);
    let here = [cluster.key(0), cluster.key(0)];
    cluster.0[0].host(seed_version(0), relay);
    cluster.0[0]
        .host(seed_version(1), |given: Given| async move { Ok(given.invocation.caller.peer.to_string().into()) });
    cluster.publish(|view| spread(view, here, 2));
    let answer = cluster.call(1, "s0", b"pln://seed/s1/run").await.expect("both are hosted");
    assert_eq!(answer.output, cluster.key(1).to_string());
}

#[tokio::test]
async fn a_call_in_a_circle_is_refused_where_it_closes() {
    let cluster = Cluster::start(3);
    let hosts = [cluster.key(0), cluster.key(1)];
    cluster.0[0].host(seed_version(0), relay);
    cluster.0[1].host(seed_version(1), |given: Given| async move {
        let uri = "pln://seed/s0/run".to_owned();
        let answer = given.world.request(&given.invocation, uri, Bytes::new()).await;
        Ok(answer.expect_err("a circle").into())
    });
    cluster.publish(|view| spread(view, hosts, 2));
    let answer = cluster.call(2, "s0", b"pln://seed/s1/run").await.expect("the first call itself is fine");
    assert_eq!(answer.output, "the call leads back to a seed that waits for it");
    let answer = cluster.call(2, "s0", b"pln://seed/s0/run").await.expect("the first call itself is fine");
    assert!(answer.output.starts_with(b"refused: the call leads back"), "{answer:?}");
}

#[tokio::test]
async fn two_names_of_one_version_are_two_seeds_and_two_versions_of_one_name_are_one() {
    let cluster = Cluster::start(3);
    let (one, other) = (seed_version(0), seed_version(1));
    // What it is asked, one line for each step; the last is answered with itself.
    for (index, version) in [(0, one), (1, one), (0, other), (1, other)] {
        cluster.0[index].host(version, |given: Given| async move {
            let input = given.invocation.input.clone();
            let Some(end) = input.iter().position(|byte| *byte == b' ') else { return Ok(input) };
            let uri = String::from_utf8(input[..end].to_vec()).expect("an address");
            let answer = given.world.request(&given.invocation, uri, input.slice(end + 1..)).await;
            Ok(answer.unwrap_or_else(|error| format!("refused: {error}").into()))
        });
    }
    let hosts = [cluster.key(0), cluster.key(1)];
    let named = |current| {
        move |view| {
            let view = with_seed(view, "a", &[current], &[(current, &hosts[..1])]);
            with_seed(view, "b", &[one], &[(one, &hosts[1..])])
        }
    };
    cluster.publish(named(one));
    let answer = cluster.call(2, "a", b"pln://seed/b/run hi").await.expect("both are hosted");
    assert_eq!(answer.output, "hi", "the same version by another name is no circle");
    let answer = cluster.call(2, "a", b"pln://seed/b/run pln://seed/a/run hi").await.expect("both are hosted");
    assert!(answer.output.starts_with(b"refused: the call leads back"), "{answer:?}");
    // By its hash: that is what waits, and the name is asked once.
    let by_hash = |input| CallRequest { seed: SeedRef::Module(one.module), ..request("x", input) };
    let answer = cluster.0[2].call(by_hash(b"pln://seed/b/run hi")).await.expect("hosted");
    assert_eq!(answer.output, "hi");
    let answer = cluster.0[2].call(by_hash(b"pln://seed/b/run pln://seed/b/run hi")).await.expect("hosted");
    assert!(answer.output.starts_with(b"refused: the call leads back"), "{answer:?}");
    // A new version of a name is the same seed: what waits for itself across an upgrade would wait for ever.
    cluster.publish(named(other));
    let answer = cluster.call(2, "b", b"pln://seed/a/run pln://seed/b/run hi").await.expect("both are hosted");
    assert!(answer.output.starts_with(b"refused: the call leads back"), "{answer:?}");
}

#[tokio::test]
async fn a_chain_may_be_so_long_and_no_longer() {
    let cluster = Cluster::start(3);
    let (hosts, count) = ([cluster.key(0), cluster.key(1)], u8::try_from(CALL_DEPTH_MAX).expect("small") + 1);
    for index in 0..count {
        // Each adds one to what the next answers; the one that cannot go on answers with its own place.
        cluster.0[usize::from(index % 2)].host(seed_version(index), move |given: Given| async move {
            let uri = format!("pln://seed/s{}/run", index + 1);
            let answer = given.world.request(&given.invocation, uri, Bytes::new()).await;
            Ok(answer.unwrap_or_else(|_| Bytes::from(format!("{}", index + 1))))
        });
    }
    cluster.publish(|view| spread(view, hosts, count));
    let answer = cluster.call(2, "s0", b"").await.expect("the first call itself is fine");
    assert_eq!(answer.output, CALL_DEPTH_MAX.to_string());
}

fn tail(uri: &str, input: &str) -> Bytes {
    let input = data_encoding::BASE64.encode(input.as_bytes());
    format!(r#"{{"kind":"tail_call","uri":"{uri}","input":"{input}"}}"#).into()
}

#[tokio::test]
async fn an_output_that_reads_like_a_tail_call_is_data_unless_the_publisher_said_otherwise() {
    let cluster = Cluster::start(2);
    let here = [cluster.key(0), cluster.key(0)];
    cluster.0[0].host(seed_version(0), move |given: Given| async move { Ok(given.invocation.input) });
    cluster.0[0].host(seed_version(1), |_| async { panic!("nobody called it") });
    cluster.publish(|view| spread(view, here, 2));
    for output in [r#"{"kind":"tail_call","uri":"pln://seed/s1/run"}"#, r#"{"kind":"tail_call"}"#] {
        assert_eq!(cluster.call(1, "s0", output.as_bytes()).await.expect("an echo").output, output);
    }
}

#[tokio::test]
async fn a_guest_that_asks_for_a_tail_call_has_it_whatever_it_puts_out() {
    let cluster = Cluster::start(2);
    let here = [cluster.key(0), cluster.key(0)];
    cluster.0[0].host(seed_version(0), |given: Given| async move {
        let ask = |uri: &str, input: &'static str| given.world.tail_call(&given.invocation, uri, input.into());
        assert!(!ask("pln://service/s1", "not to a service") && !ask("elsewhere", "nor to anything else"));
        assert!(ask("pln://seed/s1/run", "first") && ask("pln://seed/s1/run", "last"));
        Ok("not this".into())
    });
    cluster.0[0].host(seed_version(1), echo);
    cluster.publish(|view| spread(view, here, 2));
    assert_eq!(cluster.call(1, "s0", b"").await.expect("the last it asked for").output, "last");
}

#[tokio::test]
async fn a_tail_call_answers_in_the_place_of_who_made_it_and_frees_its_instance_first() {
    let one = Limits { waiting_max: 0, ..Limits::of_engine(1, 1) };
    let cluster = Cluster::start_with(2, one);
    let here = [cluster.key(0), cluster.key(0)];
    cluster.0[0].host(tailing(), |_| async { Ok(tail("pln://seed/s1/run", "hi")) });
    cluster.0[0].host(seed_version(1), echo);
    cluster.publish(|view| spread_tailing(view, here, 2));
    // The only slot would still be taken if the first instance lived on.
    assert_eq!(cluster.call(1, "s0", b"").await.expect("room for one at a time").output, "hi");
}

#[tokio::test]
async fn a_seed_may_go_on_with_itself_but_not_for_ever() {
    let cluster = Cluster::start(2);
    let here = [cluster.key(0), cluster.key(0)];
    cluster.0[0].host(tailing(), |given: Given| async move {
        let left: u32 = std::str::from_utf8(&given.invocation.input).expect("text").parse().expect("a number");
        Ok(if left == 0 { "done".into() } else { tail("pln://seed/s0/run", &(left - 1).to_string()) })
    });
    cluster.publish(|view| spread_tailing(view, here, 1));
    assert_eq!(cluster.call(1, "s0", b"32").await.expect("as often as it may").output, "done");
    assert_eq!(HOPS_MAX, 32);
    let failure = cluster.call(1, "s0", b"33").await.expect_err("once too often");
    assert!(failure.message.contains("32 tail calls") && failure.may_have_run, "{failure:?}");
}

#[tokio::test]
async fn a_broken_tail_call_fails_and_is_not_handed_on() {
    let cluster = Cluster::start(2);
    let here = [cluster.key(0), cluster.key(0)];
    cluster.0[0].host(tailing(), |_| async { Ok(r#"{"kind":"tail_call"}"#.into()) });
    cluster.publish(|view| spread_tailing(view, here, 1));
    let failure = cluster.call(1, "s0", b"").await.expect_err("broken");
    assert!(failure.message.contains("broken tail call"), "{failure:?}");
}

#[tokio::test]
async fn with_the_pool_full_a_call_within_a_call_is_refused_at_once() {
    let one = Limits { waiting_max: 8, ..Limits::of_engine(1, 1) };
    let cluster = Cluster::start_with(2, one);
    let here = [cluster.key(0), cluster.key(0)];
    cluster.0[0].host(seed_version(0), relay);
    cluster.0[0].host(seed_version(1), echo);
    cluster.publish(|view| spread(view, here, 2));
    let answer = cluster.call(1, "s0", b"pln://seed/s1/run").await.expect("the first call itself is fine");
    assert!(answer.output.starts_with(b"refused: no node took the call of s1"), "{answer:?}");
    assert!(
        cluster.0[0].calls.numbers().refused.contains_key("pool_full")
            || cluster.0[0].calls.numbers().refused.contains_key("caller_limit")
    );
}

/// A server that answers each connection with what it read, behind a word.
async fn parrot() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut heard = Vec::new();
                tcp.read_to_end(&mut heard).await?;
                tcp.write_all(b"heard ").await?;
                tcp.write_all(&heard).await
            });
        }
    });
    port
}

#[tokio::test]
async fn a_seed_asks_a_service_here_and_on_another_node() {
    let (cluster, port) = (Cluster::start(2), parrot().await);
    let provider = cluster.key(0);
    cluster.0[0].serve("api", port);
    cluster.0.iter().for_each(|node| node.host(seed_version(0), relay));
    for host in [cluster.key(0), cluster.key(1)] {
        cluster.publish(|view| spread(view, [host, host], 1).service("api", Protocol::Tcp, &[(provider, port)]));
        let answer = cluster.call(1, "s0", b"pln://service/api").await.expect("the call itself is fine");
        assert_eq!(answer.output, "heard asked");
    }
    let answer = cluster.call(1, "s0", b"pln://service/nope").await.expect("the call itself is fine");
    assert_eq!(answer.output, "refused: no service is called nope");
}

#[tokio::test]
async fn a_failure_behind_a_tail_call_is_told_by_who_passed_it_on() {
    let cluster = Cluster::start(3);
    let hosts = [cluster.key(0), cluster.key(1)];
    cluster.0[0].host(tailing(), |_| async { Ok(tail("pln://seed/s1/run", "hi")) });
    cluster.0[1].host(seed_version(1), |_| async { Err(CallError::Trap("unreachable".into())) });
    cluster.publish(|view| spread_tailing(view, hosts, 2));
    let failure = cluster.call(2, "s0", b"").await.expect_err("it traps");
    assert_eq!((failure.message.as_str(), failure.served_by), ("it trapped: unreachable", Some(hosts[0])));
}
