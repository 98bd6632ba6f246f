//! Users of the system, as `/etc/passwd` names them. Read directly: a static binary has no name service.
//! Invariant: a line that is not understood names nobody.

use std::path::Path;

/// A user of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The user called `name`, on the machine whose files are below `root`.
pub(super) fn user(root: &Path, name: &str) -> Option<Account> {
    user_in(&std::fs::read_to_string(root.join("etc/passwd")).ok()?, name)
}

fn user_in(passwd: &str, name: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        found.then_some(Account { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_exact_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nplnx:x:7:7::/:\nbroken\npln:x:990:991:Pollen:/var/lib/pln:\n";
        assert_eq!(user_in(passwd, "pln"), Some(Account { uid: 990, gid: 991 }));
        assert_eq!(user_in(passwd, "pl"), None);
        assert_eq!(user_in("pln:x:many:1::/:\n", "pln"), None);
    }
}
