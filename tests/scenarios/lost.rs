//! A node stays who it is: a member whose database is lost founds nothing, says what to do, and is itself again with a new
//! invite: the same key, and what it had published.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tests::cluster::{form, invite, join};
use tests::lab::{Family, lab_or_skip};
use tests::patience::eventually;
use tests::pln::{Pln, exit};
use tests::status::{Status, await_online};
use tests::traffic::{Server, http_get};

use crate::services::connect;

const BACK_DEADLINE: Duration = Duration::from_secs(20);

/// What may become of a database, and how.
type Loss = (&'static str, fn(&Path));

const LOSSES: [Loss; 4] = [
    ("missing", |database| fs::remove_file(database).unwrap()),
    ("empty", |database| fs::write(database, b"").unwrap()),
    ("cut", |database| fs::write(database, &fs::read(database).unwrap()[..5000]).unwrap()),
    ("overwritten", |database| fs::write(database, vec![0x5a; 100_000]).unwrap()),
];

#[test]
fn a_member_without_its_database_founds_nothing_and_comes_back_by_a_new_invite() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a", "b", "c"]).unwrap().map(Pln::on);
    form(&mut nodes, &["--publisher"]).unwrap();
    let [a, mut b, c] = nodes;
    let page = Server::http(&b.host, 0, b"from b".to_vec()).unwrap();
    b.ok(&["serve", &page.port.to_string(), "page"]).unwrap();
    let local = connect(&c, "page");
    let who = b.json(&["id"]).unwrap();
    let database = b.dir().join("state.redb");
    for (loss, lose) in LOSSES {
        b.kill().unwrap();
        lose(&database);
        // With it the member would come back by itself.
        fs::remove_file(b.dir().join("way-back")).unwrap();
        let cluster = fs::read(b.dir().join("cluster")).unwrap();
        for command in ["up", "init"] {
            let said = b.fails(exit::FAILURE, &[command]).unwrap();
            assert!(said.contains("pln join"), "{loss}, {command}: {said}");
        }
        assert_eq!(fs::read(b.dir().join("cluster")).unwrap(), cluster, "{loss}: the cluster file is what it was");
        join(&mut b, &invite(&a, &["--publisher"]).unwrap()).unwrap();
        assert_eq!(b.json(&["id"]).unwrap(), who, "{loss}: the same node of the same cluster");
        await_online(&[&a, &b, &c], &["a", "b", "c"], BACK_DEADLINE).unwrap();
        let served = || {
            let by =
                Status::of(&b).and_then(|status| status.providers("page")).map_err(|error| format!("{error:#}"))?;
            let got = http_get(&c.host, local, "/").map_err(|error| format!("{error:#}"))?;
            if by.contains("b") && got == b"from b" { Ok(()) } else { Err(format!("{by:?}, {} bytes", got.len())) }
        };
        eventually(&format!("{loss}: what it published is served again"), BACK_DEADLINE, served).unwrap();
    }
    let aside = fs::read_dir(b.dir()).unwrap().filter_map(Result::ok);
    let aside = aside.filter(|entry| entry.file_name().to_string_lossy().starts_with("state.redb.damaged-"));
    assert_eq!(aside.count(), 2, "what does not open is kept for people to look at");
}

#[test]
fn a_key_alone_founds_nothing_and_another_clusters_token_is_refused() {
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::V4, ["a", "b", "other"]).unwrap().map(Pln::on);
    let [_, _, other] = &mut nodes;
    tests::cluster::found(other).unwrap();
    let foreign = invite(other, &[]).unwrap();
    let [a, mut b, _other] = nodes;
    let mut pair = [a, b];
    form(&mut pair, &[]).unwrap();
    let [_a, again] = pair;
    b = again;
    b.terminate().unwrap();
    fs::remove_file(b.dir().join("state.redb")).unwrap();
    let said = b.fails(exit::DENIED, &["join", &foreign, "--no-up"]).unwrap();
    assert!(said.contains("already a member of the cluster"), "{said}");
    fs::remove_file(b.dir().join("cluster")).unwrap();
    fs::remove_file(b.dir().join("way-back")).unwrap();
    let said = b.fails(exit::FAILURE, &["up"]).unwrap();
    assert!(said.contains("no membership") && said.contains("pln join"), "{said}");
}
