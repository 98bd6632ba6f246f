//! The server through its socket, as clients and strangers meet it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;

use super::Control;
use super::client::Client;
use super::server::BODY_BYTES_MAX;
use crate::handle::fake::Fake;
use crate::http::Limits;
use crate::http::failure::{Code, Failure};
use crate::http::refused::{Refused, Tally};

mod pace;
mod seeds;

struct Running {
    dir: TempDir,
    fake: Arc<Fake>,
    control: Control,
}

async fn start() -> Running {
    let dir = tempfile::tempdir().expect("a directory");
    let fake = Fake::new(dir.path());
    let control = Control::start(fake.clone()).await.expect("an empty directory");
    Running { dir, fake, control }
}

impl Running {
    fn client(&self) -> Client {
        Client::new(self.dir.path())
    }

    async fn ask(&self, path: &str) -> Result<Value, Failure> {
        self.client().ask(path).await
    }

    async fn send(&self, method: Method, path: &str, body: Value) -> Result<Value, Failure> {
        self.client().exchange(method, path, Some(&body)).await
    }
}

/// Sends `bytes` as they are and reads until the server closes.
async fn raw(dir: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(super::socket::path(dir)).await.expect("it listens");
    // The server may refuse and close before it has taken everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "the server closes after each exchange");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_status_crosses_the_socket_whole() {
    let running = start().await;
    let status: crate::status::Status = running.client().ask("/v1/status").await.expect("a status");
    assert_eq!(status.nodes.len(), 3);
    assert_eq!(status.me.dir, running.dir.path().display().to_string());
}

#[tokio::test]
async fn targets_are_resolved_and_missing_ones_are_not_found() {
    let running = start().await;
    let node = running.ask("/v1/inspect/berlin").await.expect("it stands");
    assert_eq!((node["kind"].as_str(), node["tier"].as_str()), (Some("node"), Some("publisher")));
    let service = running.ask("/v1/inspect/service/api").await.expect("it is claimed");
    assert_eq!(service["kind"], "service");
    assert_eq!(running.ask("/v1/inspect/paris").await.map_err(|f| f.code), Err(Code::NotFound));
    let why = running.ask("/v1/why/api").await.expect("it is claimed");
    assert_eq!(why["target"], "api");
    assert_eq!(why["reasons"][1], "because it is");
    assert_eq!(running.ask("/v1/nothing").await.map_err(|f| f.code), Err(Code::NotFound));
    assert_eq!(running.ask("/v1/inspect/%FF").await.map_err(|f| f.code), Err(Code::Usage));
}

#[tokio::test]
async fn publishing_carries_the_nodes_own_refusal() {
    let running = start().await;
    let served = running.send(Method::POST, "/v1/services", json!({"port": 8080, "name": "API"})).await;
    assert_eq!(served, Ok(json!({"port": 8080, "name": "api", "protocol": "tcp", "shared": false})));
    assert_eq!(running.fake.asked().served.len(), 1);

    let refused = running.send(Method::POST, "/v1/services", json!({"port": 60_001})).await.unwrap_err();
    assert_eq!(refused.code, Code::Denied);
    assert!(refused.message.contains("this node is a leaf") && refused.hint.is_some());

    assert_eq!(running.send(Method::DELETE, "/v1/services/api", json!(null)).await, Ok(json!({"ok": true})));
    let absent = running.send(Method::DELETE, "/v1/services/other", json!(null)).await;
    assert_eq!(absent.map_err(|f| f.code), Err(Code::NotFound));
}

#[tokio::test]
async fn a_body_that_is_not_understood_is_bad_usage_and_changes_nothing() {
    let running = start().await;
    for body in [
        json!({}),
        json!({"port": 0}),
        json!({"port": 70_000}),
        json!({"port": 80, "name": "-"}),
        json!({"port": 80, "name": "81"}),
        json!({"port": 80, "shred": true}),
        json!([1]),
    ] {
        let refused = running.send(Method::POST, "/v1/services", body.clone()).await;
        assert_eq!(refused.map_err(|f| f.code), Err(Code::Usage), "{body}");
    }
    assert!(running.fake.asked().served.is_empty());
}

#[tokio::test]
async fn connections_are_opened_and_closed() {
    let running = start().await;
    let opened = running.send(Method::POST, "/v1/connections", json!({"service": "api", "local_port": 9000})).await;
    assert_eq!(opened.expect("it connects")["local"][0], "127.0.0.1:8080");
    let unnamed = running.send(Method::POST, "/v1/connections", json!({"service": "8080"})).await.unwrap_err();
    assert_eq!(unnamed.code, Code::Usage, "a port is some node's: {unnamed}");
    let closed = running.send(Method::DELETE, "/v1/connections/api?provider=berlin", json!(null)).await;
    assert_eq!(closed.expect("it was open").as_array().map(Vec::len), Some(1));
    assert_eq!(running.fake.asked().disconnected[0].provider.as_deref(), Some("berlin"));
}

#[tokio::test]
async fn an_invite_comes_back_as_a_token() {
    let running = start().await;
    let body = json!({"ttl_ms": 300_000, "tier": "publisher", "props": {"region": "eu"}});
    let invited = running.send(Method::POST, "/v1/invites", body).await.expect("a token");
    assert_eq!(invited["token"], "-_8B", "base64url without padding");
    assert_eq!(running.fake.asked().commands.len(), 1);
}

#[tokio::test]
async fn the_timeline_is_told_and_then_followed() {
    let running = start().await;
    let mut told = Vec::new();
    running
        .client()
        .lines("/v1/events?lines=2", |line: Value| {
            Ok({
                told.push(line["seq"].clone());
                true
            })
        })
        .await
        .expect("it ends");
    assert_eq!(told, [2, 3], "the newest two, and no more without `follow`");

    let client = running.client();
    let following = tokio::spawn(async move {
        let mut told = Vec::new();
        let take = |line: Value| {
            Ok({
                told.push(line["seq"].as_u64().unwrap_or(0));
                told.len() < 5
            })
        };
        client.lines("/v1/events?follow=true", take).await.map(|()| told)
    });
    let mut seq = 4;
    while !following.is_finished() {
        seq += u64::try_from(running.fake.happen(seq).min(1)).expect("at most one");
        tokio::task::yield_now().await;
    }
    assert_eq!(following.await.expect("it does not panic"), Ok(vec![1, 2, 3, 4, 5]));
}

#[tokio::test]
async fn logs_are_told_by_the_line() {
    let running = start().await;
    let mut told = Vec::new();
    running
        .client()
        .lines("/v1/logs?lines=2", |line: Value| {
            Ok({
                told.push(line["line"].clone());
                true
            })
        })
        .await
        .expect("it ends");
    assert_eq!(told, ["two", "three"]);
    assert_eq!(running.ask("/v1/logs?lines=-1").await.map_err(|f| f.code), Err(Code::Usage));
}

#[tokio::test]
async fn metrics_move_live_and_stay_where_they_were_when_that_fails() {
    let running = start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let free = {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        probe.local_addr().expect("it is bound")
    };
    let set = |address: String| running.send(Method::PUT, "/v1/settings/http", json!({"value": address}));
    assert_eq!(set(free.to_string()).await.expect("it is free")["http"], free.to_string());
    assert!(scrape(free).await.contains("pln_build_info"));

    let failed = set(taken.local_addr().expect("it is bound").to_string()).await.unwrap_err();
    assert_eq!(failed.code, Code::Failed);
    assert!(scrape(free).await.contains("pln_build_info"), "it goes on where it was");
    assert_eq!(running.fake.asked().settings.http, Some(free), "and what failed is not kept");

    running.fake.asked().refuse_settings = true;
    assert!(running.send(Method::DELETE, "/v1/settings/http", json!(null)).await.is_err());
    assert!(scrape(free).await.contains("pln_build_info"), "what is not kept is not put in force");

    running.fake.asked().refuse_settings = false;
    assert_eq!(
        running.send(Method::DELETE, "/v1/settings/http", json!(null)).await.expect("unset")["http"],
        json!(null)
    );
    let gone = async {
        while TcpStream::connect(free).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(5), gone).await.is_ok(), "it stops listening");
    assert_eq!(set("nowhere".into()).await.map_err(|f| f.code), Err(Code::Usage));
    let nothing_set = json!({"name": null, "http": null, "log-level": null, "seed-memory": null,
        "stream-patience": null, "relay": null, "datapath": null});
    assert_eq!(running.ask("/v1/settings").await, Ok(nothing_set));
}

async fn scrape(at: std::net::SocketAddr) -> String {
    let mut stream = TcpStream::connect(at).await.expect("it listens");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers and closes");
    answer
}

#[tokio::test]
async fn garbage_is_refused_and_the_next_is_served() {
    let running = start().await;
    let dir = running.dir.path();
    let long_head = format!("GET /v1/status HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(256 * 1024));
    let many_headers = format!("GET /v1/status HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000));
    for garbage in [
        &b"\x16\x03\x01\x00\xa5\x01\x00\x00"[..],
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/status HTTP/9.9\r\n\r\n",
        b"POST /v1/services HTTP/1.1\r\nhost: x\r\ncontent-length: nine\r\n\r\n{}",
        long_head.as_bytes(),
        many_headers.as_bytes(),
    ] {
        let answer = raw(dir, garbage).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert!(raw(dir, b"DELETE /v1/status HTTP/1.1\r\nhost: x\r\n\r\n").await.contains("405"));
    assert!(running.ask("/v1/version").await.is_ok());
}

#[tokio::test]
async fn an_oversized_body_is_refused_before_it_is_read() {
    let running = start().await;
    let declared = format!("POST /v1/invites HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", BODY_BYTES_MAX + 1);
    let mut request = declared.into_bytes();
    request.resize(request.len() + 64 * 1024, b' ');
    let answer = raw(running.dir.path(), &request).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("\"usage\""), "{answer}");

    let mut chunked = b"POST /v1/invites HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..20 {
        chunked.extend_from_slice(b"10000\r\n");
        chunked.resize(chunked.len() + 0x10000, b' ');
        chunked.extend_from_slice(b"\r\n");
    }
    let answer = raw(running.dir.path(), &chunked).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(running.fake.asked().commands.is_empty());
}

#[tokio::test]
async fn clients_that_stall_lose_their_place_in_time() {
    let limits = Limits {
        connections: 4,
        head: Duration::from_millis(50),
        exchange: Duration::from_millis(200),
        ..Limits::connections(4)
    };
    let Counting { dir, refused, .. } = &counting(limits);
    let mut stalled = Vec::new();
    for i in 0..20 {
        let mut stream = UnixStream::connect(super::socket::path(dir.path())).await.expect("the backlog takes it");
        let body = &b"POST /v1/invites HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"[..];
        let sent = if i % 2 == 0 { stream.write_all(b"GET /v1/sta").await } else { stream.write_all(body).await };
        sent.expect("the socket's buffer takes it");
        stalled.push(stream);
    }
    let client = Client::new(dir.path());
    let served = tokio::time::timeout(Duration::from_secs(20), client.ask::<Value>("/v1/version")).await;
    assert!(served.is_ok_and(|answer| answer.is_ok()), "those behind stalled clients are served");
    // Ten stalled in each way; the last three may still hold the other places.
    assert!(refused.of(Refused::HeadSlow) + refused.of(Refused::Displaced) >= 7, "{refused:?}");
    assert!(refused.of(Refused::ExchangeSlow) >= 7, "{refused:?}");
}

/// A server whose tally is at hand; ends when dropped.
struct Counting {
    dir: TempDir,
    refused: Arc<Tally>,
    _stop: watch::Sender<bool>,
}

fn counting(limits: Limits) -> Counting {
    let dir = tempfile::tempdir().expect("a directory");
    let fake = Fake::new(dir.path());
    let router = super::server::Api::new(fake.clone(), Arc::new(crate::metrics::Exporter::new(fake.clone()))).router();
    let app = super::call::Front::new(fake, router);
    let listener = super::socket::bind(dir.path()).expect("an empty directory");
    let (stop, stopped) = watch::channel(false);
    let refused = Arc::new(Tally::default());
    tokio::spawn(crate::http::serve(listener, app, limits, Arc::clone(&refused), stopped));
    Counting { dir, refused, _stop: stop }
}

#[tokio::test]
async fn whoever_is_turned_away_is_counted_by_reason_and_once() {
    let Counting { dir, refused, .. } = &counting(Limits::connections(4));
    let post = |rest: &str| format!("POST /v1/services HTTP/1.1\r\nhost: x\r\n{rest}").into_bytes();
    let long_head = format!("GET /v1/status HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(64 * 1024));
    let cases = [
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00".to_vec(), Refused::HeadMalformed),
        (post("content-length: nine\r\n\r\n{}"), Refused::HeadMalformed),
        (long_head.into_bytes(), Refused::HeadTooLarge),
        (b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), Refused::Route),
        (b"DELETE /v1/status HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), Refused::Method),
        (b"GET /v1/inspect/%FF HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), Refused::Target),
        (b"GET /v1/events?lines=many HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), Refused::Target),
        (post("content-length: 2000000\r\n\r\n{"), Refused::BodyTooLarge),
        (post("transfer-encoding: chunked\r\n\r\nzz\r\n"), Refused::BodyBroken),
        (post("content-length: 4\r\n\r\nnull"), Refused::BodyMalformed),
        (post("content-length: 10\r\n\r\n{\"port\":-1}"), Refused::BodyMalformed),
    ];
    let mut expected = std::collections::BTreeMap::<_, u64>::new();
    for (request, reason) in cases {
        raw(dir.path(), &request).await;
        *expected.entry(reason.label()).or_default() += 1;
        let counted: std::collections::BTreeMap<_, _> = refused.counted().map(|(r, n)| (r.label(), n)).collect();
        assert_eq!(counted, expected, "after {}", String::from_utf8_lossy(&request[..request.len().min(80)]));
    }
    drop(UnixStream::connect(super::socket::path(dir.path())).await.map(|stream| stream.try_write(b"GET /v1/st")));
    let broken_off = async {
        while refused.of(Refused::BrokenOff) == 0 {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(5), broken_off).await.is_ok(), "{refused:?}");
    let client = Client::new(dir.path());
    assert!(client.ask::<Value>("/v1/version").await.is_ok());
    assert_eq!(refused.counted().map(|(_, n)| n).sum::<u64>(), expected.values().sum::<u64>() + 1);
}

#[tokio::test]
async fn followers_are_bounded_so_that_commands_get_through() {
    let running = start().await;
    let mut followers = Vec::new();
    for _ in 0..32 {
        let mut stream = UnixStream::connect(super::socket::path(running.dir.path())).await.expect("it listens");
        stream.write_all(b"GET /v1/logs?follow=true HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it reads");
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.expect("it answers");
        assert_eq!(&head, b"HTTP/1.1 200");
        followers.push(stream);
    }
    let one_more = running.client().lines("/v1/events?follow=true", |_: Value| Ok(true)).await.unwrap_err();
    assert_eq!(one_more.code, Code::Failed);
    assert!(running.ask("/v1/version").await.is_ok());
    drop(followers);
}

#[tokio::test]
async fn stopping_removes_the_socket_and_cuts_followers() {
    let Running { dir, fake, control } = start().await;
    let client = Client::new(dir.path());
    let asked: Value = client.exchange(Method::POST, "/v1/shutdown", None::<&()>).await.expect("it answers first");
    assert_eq!(asked, json!({"ok": true}));
    assert!(fake.asked().shutdown);

    let mut follower = UnixStream::connect(super::socket::path(dir.path())).await.expect("it listens");
    follower.write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it reads");
    let mut head = [0; 12];
    follower.read_exact(&mut head).await.expect("it answers");
    control.stop().await;
    let mut rest = Vec::new();
    follower.read_to_end(&mut rest).await.expect("it is closed");
    assert!(!super::socket::path(dir.path()).exists());
    assert!(!client.is_up().await);
}
