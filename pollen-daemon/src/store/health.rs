//! How the disk of the state directory is: whether it takes what must be durable, and if not, why and since when. Owns
//! the words; must not know what waits to be written. Invariant: what is not fine says what a person can do.

use std::io;

use pollen_common::time::UnixMs;

use super::StoreError;

/// Why writes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No room, or no more of a user's share of it.
    Full,
    ReadOnly,
    /// Anything else that a write ended with.
    Failing,
}

/// The state of the disk, published by [`super::writer::Writer::health`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DiskHealth {
    #[default]
    Fine,
    Refusing(Refusing),
}

/// A disk that takes nothing now. Writes are tried again until it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusing {
    pub cause: Cause,
    pub since: UnixMs,
    /// What the last attempt ended with.
    pub error: String,
    /// Records held in memory until there is room.
    pub waiting: usize,
}

impl Cause {
    /// A label for metrics and documents.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ReadOnly => "read-only",
            Self::Failing => "failing",
        }
    }

    /// What an I/O error says of the disk.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            _ => Self::Failing,
        }
    }

    pub(super) fn of(error: &StoreError) -> Self {
        match error {
            StoreError::Database(error) => match error.as_ref() {
                redb::Error::Io(error) => Self::of_io(error),
                _ => Self::Failing,
            },
            StoreError::Config { .. } => Self::Failing,
        }
    }
}

impl Refusing {
    /// One sentence for people.
    #[must_use]
    pub fn message(&self) -> String {
        match self.cause {
            Cause::Full => "the disk with this node's state is full".into(),
            Cause::ReadOnly => "this node's state directory is read-only".into(),
            Cause::Failing => format!("this node's state cannot be written: {}", self.error),
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self.cause {
            Cause::Full => "make room there; the node goes on meanwhile, and writes what waits by itself",
            Cause::ReadOnly => "make it writable (`mount -o remount,rw`); what waits is then written by itself",
            Cause::Failing => "look at the disk; what waits is written by itself once it can be",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_the_system_is_told_from_the_others() {
        let cause = |errno| Cause::of_io(&io::Error::from_raw_os_error(errno));
        let told = [libc::ENOSPC, libc::EDQUOT, libc::EROFS, libc::EIO].map(cause);
        assert_eq!(told, [Cause::Full, Cause::Full, Cause::ReadOnly, Cause::Failing]);
    }
}
