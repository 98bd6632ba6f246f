//! The roll: who may speak. A set of small signed statements, merged by union; what is *stored* depends on signatures
//! and sizes alone ([`Roll`]), who *stands* is computed from it when asked ([`Standing`]), never trusted because it
//! was issued. Pure; knows nothing of sessions, sockets or what members publish. Formats: `docs/protocol/roll.md`.

mod body;
mod cbor;
mod explain;
mod genesis;
mod redeem;
mod rights;
mod settle;
mod sign;
mod stand;
mod statement;
mod store;
mod token;

pub use body::{Body, BodyError, EdgeBody, Parent, RedeemTerms, RotateBody, Verdict};
pub use explain::NotStanding;
pub use genesis::{Genesis, GenesisError, Lineage, LineageError, commitment};
pub use redeem::RedeemError;
pub use rights::{Rights, Tier};
pub use settle::Usage;
pub use sign::SignError;
pub use stand::{Member, PATH_KEYS_MAX, Standing};
pub use statement::{
    BODY_BYTES_MAX, Kind, ROTATE_BODY_BYTES_MAX, STATEMENT_BYTES_MAX, Statement, StatementError, Witness,
};
pub use store::{Merged, Roll, RollRefusal};
pub use token::{CONTACT_ADDRS_MAX, CONTACTS_MAX, Contact, TOKEN_BYTES_MAX, Token, TokenError};

#[cfg(test)]
mod tests;
