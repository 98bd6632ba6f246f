//! `seed`, `unseed` and `call` as people and scripts meet them.

use super::*;

fn wasm(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, b"\0asm\x01\0\0\0").expect("a temporary directory can be written");
    path.display().to_string()
}

#[test]
fn a_seed_takes_its_files_name_and_the_known_defaults() {
    let daemon = Daemon::start();
    let files = tempfile::tempdir().expect("a directory");
    let answer = daemon.pln(&["seed", &wasm(files.path(), "hello.wasm")]);
    let hash = sample::hello_version().module;
    assert_eq!((answer.code, answer.out, answer.err), (0, format!("hello {hash}\n"), String::new()));
    let asked = daemon.fake.asked().seeded.remove(0);
    assert_eq!((asked.name.as_str(), asked.min_replicas, asked.memory_bytes), ("hello", 2, 8 << 20));
    assert_eq!((asked.timeout_ms, asked.everywhere, asked.idempotent, asked.image), (30_000, false, false, false));
}

#[test]
fn a_seed_is_published_as_it_was_asked_for() {
    let daemon = Daemon::start();
    let files = tempfile::tempdir().expect("a directory");
    let file = wasm(files.path(), "v2.wasm");
    let flags = ["--min-replicas", "3", "--everywhere", "--mem", "64KiB", "--timeout", "1s", "--idempotent", "--image"];
    let answer = daemon.pln(&[&["seed", &file, "other", "--json"][..], &flags].concat());
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert_eq!((answer.json()["name"].as_str(), answer.json()["ready"].as_u64()), (Some("other"), Some(2)));
    let asked = daemon.fake.asked().seeded.remove(0);
    assert_eq!((asked.name.as_str(), asked.min_replicas, asked.memory_bytes), ("other", 3, 65_536));
    assert_eq!((asked.timeout_ms, asked.everywhere, asked.idempotent, asked.image), (1000, true, true, true));
}

#[test]
fn what_is_no_module_is_refused_without_a_daemon() {
    let files = tempfile::tempdir().expect("a directory");
    let site = files.path().display().to_string();
    let odd = wasm(files.path(), "-.wasm");
    for (args, said) in [
        (["seed", &site], "sites are not built yet"),
        (["seed", "README.md"], "blobs are not built yet"),
        (["seed", &odd], "pln seed"),
    ] {
        let answer = pln(&args);
        assert_eq!(answer.code, 2, "{args:?}");
        assert!(answer.err.contains(said), "{args:?}: {}", answer.err);
    }
    let absent = pln(&["seed", "/nowhere/hello.wasm"]);
    assert_eq!(absent.code, 1);
    assert!(absent.err.contains("/nowhere/hello.wasm"), "{}", absent.err);
}

#[test]
fn a_module_that_cannot_run_says_why() {
    let daemon = Daemon::start();
    let files = tempfile::tempdir().expect("a directory");
    let path = files.path().join("bad.wasm");
    std::fs::write(&path, b"x").expect("a temporary directory can be written");
    let answer = daemon.pln(&["seed", &path.display().to_string()]);
    assert_eq!(answer.code, 2);
    assert!(answer.err.contains("env.fork"), "{}", answer.err);
}

#[test]
fn unseed_takes_a_name_or_a_hash() {
    let daemon = Daemon::start();
    let hash = sample::hello_version().module.to_string();
    for target in ["hello", &hash[..10]] {
        let answer = daemon.pln(&["unseed", target]);
        assert_eq!((answer.code, answer.out), (0, format!("no longer publishing {target}\n")));
    }
    assert_eq!(daemon.fake.asked().unseeded.len(), 2);
    let lasting = daemon.pln(&["unseed", "mine-that-lost"]);
    assert_eq!((lasting.code, &lasting.out[..]), (0, "no longer publishing mine-that-lost\n"));
    assert!(lasting.err.contains("not confirmed yet by berlin"), "{}", lasting.err);
    assert_eq!(daemon.pln(&["unseed", "a/b"]).code, 2);
}

#[test]
fn a_call_prints_the_output_and_nothing_else() {
    let daemon = Daemon::start();
    let answer = daemon.pln(&["call", "hello", "echo", "--greeting--", "--timeout", "2s", "--retries", "1"]);
    assert_eq!((answer.code, answer.out.as_str(), answer.err.as_str()), (0, "--greeting--", ""));
    let asked = daemon.fake.asked().called.remove(0);
    assert_eq!((asked.function.as_str(), asked.timeout.as_secs(), asked.retries), ("echo", 2, 1));

    let document = daemon.pln(&["call", "hello", "a b/é", "hi", "--json"]);
    assert_eq!(document.code, 2, "a slash is no part of a function's name: {}", document.err);
    let document = daemon.pln(&["call", "hello", "a b é", "hi", "--json"]).json();
    assert_eq!((document["output"].as_str(), document["retries"].as_u64()), (Some("hi"), Some(0)));
    assert_eq!(document["served_by"], sample::key(2).to_string());
    assert_eq!(daemon.fake.asked().called.remove(0).function, "a b é");
}

#[test]
fn a_call_that_fails_ends_with_its_code_and_says_whether_it_may_have_run() {
    let daemon = Daemon::start();
    assert_eq!(daemon.pln(&["call", "absent", "echo", ""]).code, 3);
    let died = daemon.pln(&["call", "hello", "die", ""]);
    assert_eq!((died.code, died.err.contains("may have run")), (6, true), "{}", died.err);
    let json = daemon.pln(&["--json", "call", "hello", "die", ""]);
    let failure: Value = serde_json::from_str(&json.err).expect("a document");
    assert_eq!((failure["code"].as_str(), failure["may_have_run"].as_bool()), (Some("unreachable"), Some(true)));
    assert_eq!(daemon.pln(&["call", "hello", "trap", ""]).code, 1);
}

#[test]
fn status_and_inspect_show_seeds() {
    let daemon = Daemon::start();
    let table = daemon.pln(&["status", "seeds"]);
    assert!(table.out.starts_with("SEEDS\n") && table.out.contains("hello"), "{}", table.out);
    assert_eq!(daemon.pln(&["status", "seeds", "--json"]).json()[0]["name"], "hello");
    let seed = daemon.pln(&["inspect", "hello", "--json"]).json();
    assert_eq!((seed["kind"].as_str(), seed["modules"][0]["functions"][1].as_str()), (Some("seed"), Some("greet")));
    assert!(daemon.pln(&["why", "hello"]).out.starts_with("seed hello"), "reasons are asked of the core");
}
