//! Seeds through the socket: modules in, lines out, calls by the thousand on connections that stay open.

use axum::body::Bytes;
use hyper::header::HeaderMap;

use super::*;
use crate::control::api::SeedLine;
use crate::control::call;
use crate::status::sample;
use crate::workload::BODY_BYTES_MAX;
use pollen_module::MODULE_BYTES_MAX;

async fn publish(running: &Running, query: &str, module: &'static [u8]) -> Result<Vec<SeedLine>, Failure> {
    let mut lines = Vec::new();
    let take = |line| {
        lines.push(line);
        Ok(true)
    };
    let path = format!("/v1/seeds?{query}");
    running.client().lines_of(Method::POST, &path, Bytes::from_static(module), take).await.map(|()| lines)
}

async fn call(running: &Running, path: &str, input: &'static [u8]) -> Result<(HeaderMap, Bytes), Failure> {
    let path = format!("{}{path}", call::PATH);
    running.client().raw(Method::POST, &path, Bytes::from_static(input), BODY_BYTES_MAX).await
}

#[tokio::test]
async fn publishing_tells_its_steps_and_then_how_it_ended() {
    let running = start().await;
    let query = "name=hello&min_replicas=3&everywhere=true&memory_bytes=65536&timeout_ms=5&idempotent=true&image=true";
    let lines = publish(&running, query, b"\0asm").await.expect("the daemon takes it");
    let (last, steps) = lines.split_last().expect("there is an end");
    assert!(matches!(last, SeedLine::Seeded(seeded) if seeded.name == "hello" && seeded.ready == 2), "{last:?}");
    assert!(steps.iter().all(|line| matches!(line, SeedLine::Progress(_))), "{steps:?}");
    assert!(!steps.is_empty());
    let asked = running.fake.asked().seeded.remove(0);
    assert_eq!((&asked.module[..], asked.min_replicas, asked.everywhere), (&b"\0asm"[..], 3, true));
    assert_eq!((asked.memory_bytes, asked.timeout_ms, asked.idempotent, asked.image), (65_536, 5, true, true));
}

#[tokio::test]
async fn a_module_that_cannot_run_ends_in_its_error_and_unsaid_terms_are_the_defaults() {
    let running = start().await;
    let lines = publish(&running, "name=bad", b"x").await.expect("it is taken in before it is looked at");
    let error = lines.last().expect("there is an end");
    assert!(matches!(error, SeedLine::Error(failure) if failure.message.contains("env.fork")), "{error:?}");
    publish(&running, "name=good", b"\0asm").await.expect("the daemon takes it");
    let asked = running.fake.asked().seeded.remove(0);
    assert_eq!((asked.min_replicas, asked.memory_bytes, asked.timeout_ms), (2, 8 << 20, 30_000));
}

#[tokio::test]
async fn what_is_no_seed_is_refused_before_its_body_is_read() {
    let running = start().await;
    for query in ["", "name=-", "name=a&min_replicas=-1", "name=a&memory_bytes=0", "name=a&timeout_ms=0", "name=a&x=1"]
    {
        let refused = publish(&running, query, b"\0asm").await;
        assert_eq!(refused.map_err(|f| f.code), Err(Code::Usage), "{query}");
    }
    let head = format!("POST /v1/seeds?name=a HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", MODULE_BYTES_MAX + 1);
    assert!(raw(running.dir.path(), head.as_bytes()).await.starts_with("HTTP/1.1 413"));
    assert!(running.fake.asked().seeded.is_empty());
}

#[tokio::test]
async fn a_seed_is_withdrawn_by_name_or_hash() {
    let running = start().await;
    let hash = sample::hello_version().module.to_string();
    let gone = json!({"ok": true, "still_served_by": [], "note": null});
    for target in ["hello", &hash[..8]] {
        let path = format!("/v1/seeds/{target}");
        assert_eq!(running.send(Method::DELETE, &path, json!(null)).await, Ok(gone.clone()), "{target}");
    }
    let lasting = running.send(Method::DELETE, "/v1/seeds/mine-that-lost", json!(null)).await.expect("withdrawn");
    assert_eq!(lasting["still_served_by"][0]["name"], "berlin");
    assert_eq!(lasting["note"], "not confirmed yet by berlin: they serve it until they have heard of it");
    let unseeded: Vec<String> = running.fake.asked().unseeded.iter().map(ToString::to_string).collect();
    assert_eq!(unseeded, ["hello", "hello", "mine-that-lost"]);
    let odd = running.send(Method::DELETE, "/v1/seeds/-", json!(null)).await;
    assert_eq!(odd.map_err(|f| f.code), Err(Code::NotFound));
}

#[tokio::test]
async fn a_call_brings_bytes_and_gets_bytes_with_who_served_them() {
    let running = start().await;
    let (headers, output) = call(&running, "hello/echo?timeout_ms=250&retries=7", b"\0\xFF").await.expect("it answers");
    assert_eq!(&output[..], b"\0\xFF");
    assert_eq!(headers[call::SERVED_BY], sample::key(2).to_string());
    assert_eq!(headers[call::VERSION], sample::hello_version().id().to_string());
    assert_eq!(headers[call::RETRIES], "0");
    let asked = running.fake.asked().called.remove(0);
    assert_eq!((asked.timeout, asked.retries), (Duration::from_millis(250), 7));
    let hash = sample::hello_version().module.to_string();
    assert!(call(&running, &format!("{}/echo", &hash[..6]), b"").await.expect("it answers").1.is_empty());
}

#[tokio::test]
async fn a_call_waits_for_news_of_its_seed_within_its_own_time() {
    let running = start().await;
    let mut without = sample::view();
    let hello = without.seeds.pop_first().expect("the sample has one").1;
    running.fake.sees(without.clone());
    let late = call(&running, "hello/echo?timeout_ms=100", b"").await.unwrap_err();
    assert_eq!(late.code, Code::NotFound);
    let news = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(running.fake.asked().called.is_empty(), "it is not known yet");
        without.seeds.insert(hello.name.clone(), hello);
        running.fake.sees(without);
    };
    let (answer, ()) = tokio::join!(call(&running, "hello/echo", b"x"), news);
    assert_eq!(&answer.expect("it is known now").1[..], b"x");
    let asked = running.fake.asked().called.remove(0);
    assert!(asked.waited >= Duration::from_millis(50), "{:?}", asked.waited);
}

#[tokio::test]
async fn a_call_without_output_says_whether_it_may_have_run() {
    let running = start().await;
    let none = call(&running, "hello/none", b"").await.unwrap_err();
    assert_eq!((none.code, none.may_have_run), (Code::Unreachable, Some(false)));
    let died = call(&running, "hello/die", b"").await.unwrap_err();
    assert_eq!((died.code, died.may_have_run), (Code::Unreachable, Some(true)));
    let trap = call(&running, "hello/trap", b"").await.unwrap_err();
    assert_eq!((trap.code, trap.may_have_run), (Code::Failed, Some(true)));
    let answer =
        raw(running.dir.path(), b"POST /v1/calls/hello/die HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("pln-may-have-run: true") && answer.starts_with("HTTP/1.1 503"), "{answer}");
}

#[tokio::test]
async fn what_is_no_call_is_refused_and_the_connection_ends() {
    let running = start().await;
    let absent = call(&running, "absent/echo?timeout_ms=50", b"").await.unwrap_err();
    assert_eq!(absent.code, Code::NotFound);
    for (request, status) in [
        ("GET /v1/calls/hello/echo HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), "405"),
        ("POST /v1/calls/hello HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), "400"),
        ("POST /v1/calls/hello/echo?retries=x HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), "400"),
        (
            format!("POST /v1/calls/hello/echo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", BODY_BYTES_MAX + 1),
            "413",
        ),
    ] {
        let answer = raw(running.dir.path(), request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
    }
    assert!(running.fake.asked().called.is_empty());
}

#[tokio::test]
async fn an_input_arrives_whole_however_it_is_cut() {
    let running = start().await;
    let input = vec![0xA5; 3 * 1024 * 1024 + 7];
    let path = format!("{}hello/echo", call::PATH);
    let (_, output) =
        running.client().raw(Method::POST, &path, input.clone().into(), BODY_BYTES_MAX).await.expect("it answers");
    assert!(output == input);

    let mut chunked = format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n").into_bytes();
    chunked.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    let answer = raw(running.dir.path(), &chunked).await;
    assert!(answer.ends_with("abcde"), "{answer}");
}

/// Reads one answer of a known length from a connection that stays open.
async fn answer(stream: &mut UnixStream, body_bytes: usize) -> String {
    let mut read = Vec::new();
    while !read.windows(4).any(|end| end == b"\r\n\r\n") {
        read.push(stream.read_u8().await.expect("the connection is open"));
    }
    let mut body = vec![0; body_bytes];
    stream.read_exact(&mut body).await.expect("the connection is open");
    read.extend(body);
    String::from_utf8(read).expect("it is text")
}

#[tokio::test]
async fn a_connection_brings_call_after_call_and_ends_with_any_other_request() {
    let running = start().await;
    let path = crate::control::socket::path(running.dir.path());
    let mut stream = UnixStream::connect(path).await.expect("it listens");
    for _ in 0..3 {
        stream
            .write_all(b"POST /v1/calls/hello/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi")
            .await
            .expect("it reads");
        let answer = answer(&mut stream, 2).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hi"), "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
    }
    stream.write_all(b"GET /v1/version HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it reads");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.expect("it is closed after that");
    assert!(rest.contains("connection: close"), "{rest}");
}

#[tokio::test]
async fn a_caller_that_waits_for_nothing_is_no_refusal() {
    let limits = Limits { head: Duration::from_millis(50), ..Limits::connections(4) };
    let Counting { dir, refused, .. } = &counting(limits);
    let mut stream = UnixStream::connect(crate::control::socket::path(dir.path())).await.expect("it listens");
    stream.write_all(b"POST /v1/calls/hello/echo HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it reads");
    let mut all = String::new();
    let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut all)).await;
    assert!(ended.is_ok_and(|read| read.is_ok()), "an idle connection is closed");
    assert!(all.starts_with("HTTP/1.1 200"), "{all}");
    assert_eq!(refused.counted().count(), 0, "{refused:?}");
}

#[tokio::test]
async fn stopping_does_not_wait_for_callers_between_two_calls() {
    let Running { dir, control, .. } = start().await;
    let mut stream = UnixStream::connect(crate::control::socket::path(dir.path())).await.expect("it listens");
    stream
        .write_all(b"POST /v1/calls/hello/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi")
        .await
        .expect("it reads");
    answer(&mut stream, 2).await;
    let stopped = tokio::time::timeout(Duration::from_millis(900), control.stop()).await;
    assert!(stopped.is_ok(), "nothing is under way");
}
