//! The formats as they are written down: every vector in `docs/protocol/roll.md` is what this code makes, and reads.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::time::Duration;

use super::world::key;
use crate::identity::{SecretKey, Strict};
use crate::roll::{Contact, Genesis, Parent, RedeemTerms, Rights, Roll, Standing, Statement, Tier, Token, commitment};
use crate::time::UnixMs;

const DOCUMENT: &str = include_str!("../../../../docs/protocol/roll.md");
const AT: UnixMs = UnixMs(1_800_000_000_000);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a string cannot fail");
        hex
    })
}

/// The first fenced block after the line `**name**`, without white space.
fn documented(name: &str) -> String {
    let start = std::format!("\n**{name}**");
    let block = DOCUMENT.split_once(&start).and_then(|(_, rest)| rest.split("```").nth(1));
    let block = block.unwrap_or_else(|| panic!("no vector named {name}"));
    block.trim_start_matches("text").split_whitespace().collect()
}

fn secret(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

/// Every signed object, made from keys whose seeds are one byte repeated: root 200, its successor 201, members 1 to 3,
/// invite 100.
fn vectors() -> Vec<(&'static str, Vec<u8>)> {
    let genesis = Genesis::sign(&secret(200), commitment(&key(201)));
    let mut vectors = alloc::vec![("genesis", genesis.bytes().to_vec())];
    let mut roll = Roll::new(genesis);
    let mut add = |name, statement: Statement, roll: &mut Roll| {
        vectors.push((name, statement.bytes().to_vec()));
        roll.merge([alloc::sync::Arc::new(statement)], &Strict);
    };
    add("member", roll.admit(&secret(200), key(1), Rights::first_admin(), AT).expect("signs"), &mut roll);
    add("stand on the root", roll.stand(&secret(1), Parent::Root, AT).expect("signs"), &mut roll);
    let admin = roll.default_rights(&key(1), Tier::Admin);
    add("member by an admin", roll.admit(&secret(1), key(2), admin, AT).expect("signs"), &mut roll);
    let parent = Parent::Key { parent: key(1), via: None };
    add("stand on an admin", roll.stand(&secret(2), parent, AT).expect("signs"), &mut roll);

    let rights = Rights {
        props: BTreeMap::from([("region".into(), "eu".into())]),
        expires: Some(AT.after(Duration::from_secs(86_400))),
        ..Rights::of(Tier::Publisher)
    };
    let terms = RedeemTerms { not_after: AT.after(Duration::from_secs(300)), bound: Some(key(3)) };
    let contacts = [Contact {
        key: key(1),
        addrs: alloc::vec![([192, 0, 2, 1], 60611).into(), ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 60611).into()],
    }];
    let token = Standing::of(&roll).invite(&secret(1), &[100; 32], rights, terms, &contacts, AT).expect("may invite");
    let shown = token.redemption(&secret(3), AT).expect("bound to it");
    let made = Standing::of(&roll).redeem(&shown, &secret(2), &Strict, AT).expect("valid");
    for (name, statement) in ["invite", "redemption with its witness", "stand by an invite"].into_iter().zip(&made) {
        add(name, (**statement).clone(), &mut roll);
    }
    assert!(Standing::of(&roll).stands(&key(3), AT).is_ok());
    add("denial", roll.deny(&secret(1), key(2), AT).expect("signs"), &mut roll);
    let rotation = roll.rotate(&secret(200), &secret(201), commitment(&key(202)), AT).expect("signs");
    add("rotation", rotation, &mut roll);
    assert_eq!(roll.root(), key(201));
    vectors.push(("token", token.encode().expect("short enough")));
    vectors
}

#[test]
fn every_vector_in_the_document_is_what_this_code_makes() {
    let differing: Vec<_> = vectors()
        .into_iter()
        .map(|(name, bytes)| (name, hex(&bytes)))
        .filter(|(name, hex)| documented(name) != *hex)
        .collect();
    assert!(differing.is_empty(), "the document should say {differing:#?}");
}

#[test]
fn every_vector_reads_back_and_verifies() {
    for (name, bytes) in vectors() {
        match name {
            "genesis" => assert!(Genesis::decode(&bytes).expect(name).verify(&Strict)),
            "token" => assert!(Token::decode(&bytes).expect(name).roll(&Strict, AT).is_ok()),
            _ => {
                let statement = Statement::decode(&bytes).expect(name);
                assert!(statement.verify(&Strict), "{name}");
                assert_eq!(statement.bytes(), bytes);
            }
        }
    }
}

#[test]
fn digests_and_slots_are_as_documented() {
    let (_, genesis) = vectors().swap_remove(0);
    let genesis = Genesis::decode(&genesis).expect("a vector");
    assert_eq!(documented("cluster id"), hex(&genesis.cluster().0));
    let made = vectors();
    let (_, redeem) = made.iter().find(|(name, _)| name.starts_with("redemption")).expect("a vector");
    let redeem = Statement::decode(redeem).expect("a vector");
    assert_eq!(documented("digest of the redemption"), hex(&redeem.digest().0));
    assert_eq!(documented("slot of the redemption"), hex(&redeem.slot().0));
}
