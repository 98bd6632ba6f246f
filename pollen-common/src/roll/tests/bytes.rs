//! Bytes from anyone: no decoder panics, and what decodes is kept byte for byte.

use alloc::sync::Arc;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::hostile::{genesis, said};
use super::world::World;
use crate::hash::{Context, digest};
use crate::identity::Strict;
use crate::roll::{Genesis, Roll, STATEMENT_BYTES_MAX, Statement, StatementError, Tier, Token};

/// One change of bytes.
fn spoil(bytes: &mut Vec<u8>, at: usize, how: u8, with: u8) {
    let at = at % bytes.len();
    match how {
        0 => bytes[at] ^= with.max(1),
        1 => bytes.truncate(at),
        2 => bytes.insert(at, with),
        _ => {
            bytes.remove(at);
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_or_kept(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Statement::decode(&bytes).is_err());
        prop_assert!(Genesis::decode(&bytes).is_err());
        prop_assert!(Token::decode(&bytes).is_err());
    }

    #[test]
    fn a_spoiled_statement_is_refused(
        said in said(), at in any::<prop::sample::Index>(), how in 0..4_u8, with in any::<u8>(),
    ) {
        let whole = said.sign(genesis().cluster());
        prop_assert_eq!(&Statement::decode(whole.bytes()).expect("own bytes"), &*whole);
        let mut bytes = whole.bytes().to_vec();
        spoil(&mut bytes, at.index(1 << 16), how, with);
        if let Ok(other) = Statement::decode(&bytes) {
            prop_assert_eq!(other.bytes(), &bytes[..]);
            prop_assert!(!other.verify(&Strict) || bytes == whole.bytes());
            let refused = Roll::new(genesis()).merge([Arc::new(other)], &Strict);
            prop_assert!(!refused.changed() || bytes == whole.bytes());
        }
    }

    #[test]
    fn a_spoiled_token_with_a_good_checksum_does_no_harm(
        at in any::<prop::sample::Index>(), how in 0..4_u8, with in any::<u8>(),
    ) {
        let mut world = World::founded();
        let token = world.invites(1, 100, Tier::Leaf, None);
        let whole = token.encode().expect("short enough");
        let mut content = whole[..whole.len() - 8].to_vec();
        spoil(&mut content, at.index(1 << 16), how, with);
        let sum = digest(Context::Token, &[&content]);
        let bytes = [&content[..], &sum.0[..8]].concat();
        if let Ok(other) = Token::decode(&bytes) {
            prop_assert_eq!(other.encode().expect("as long"), bytes);
            if let Ok(roll) = other.roll(&Strict, world.now()) {
                prop_assert_eq!(roll.cluster(), world.roll.cluster());
            }
        }
    }
}

#[test]
fn a_longer_statement_than_any_is_refused_before_it_is_looked_at() {
    let long = std::vec![0; STATEMENT_BYTES_MAX + 1];
    assert_eq!(Statement::decode(&long), Err(StatementError::Length));
}
