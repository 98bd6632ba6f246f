//! The unit file: what the service may do, and how systemd watches over it. Owns its text and which program it can run;
//! touches no file but to look at that program.
//! Invariant: the daemon gets the capabilities named in [`CAPABILITIES`], and no right that nothing here needs.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What systemd calls the service.
pub const NAME: &str = "pln.service";
/// The user that it runs as, and the group whose members may operate it.
pub const USER: &str = "pln";
/// What the service keeps under `/var/lib`.
pub const STATE: &str = "pln";

/// How long a stop may take before systemd kills: above all that the daemon itself waits for, which is 30 s until other
/// hosts have taken over its seeds, 30 s for calls that run, and a few for words to others and goodbyes.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(75);
/// How long a start may take: reading the state of a large cluster from a slow disk.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause before a daemon that failed is started again: one that fails each time costs a few percent of a core, for
/// as long as what is wrong lasts.
const RESTART_PAUSE: Duration = Duration::from_secs(2);
/// Connections of a full mesh, listeners, and streams of services at their limits, with room.
const FILES_MAX: u32 = 1 << 20;
/// Threads: one for each core and a few beside them.
const TASKS_MAX: u32 = 4096;

/// What the daemon may do beyond other users: load BPF programs and attach them to interfaces, enlarge the socket's
/// buffers, listen where `pln connect` is told to (80, 443).
pub const CAPABILITIES: [&str; 4] = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_PERFMON"];

/// Where a service cannot look: `ProtectHome` and `PrivateTmp` put empty directories there.
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

/// Why a program cannot be the service's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("{} lies in {dir}, which the service cannot see", path.display())]
    Hidden { path: PathBuf, dir: &'static str },
    #[error("{} can be changed by users other than root, and the service would run it", path.display())]
    Writable { path: PathBuf },
    #[error("{} has a name that a unit file cannot hold", path.display())]
    Name { path: PathBuf },
    #[error("{} cannot be looked at: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
}

/// The program behind `path`, if the service can run it.
///
/// # Errors
/// [`Unfit`]
pub fn program(path: &Path) -> Result<PathBuf, Unfit> {
    let unreadable = |error: std::io::Error| Unfit::Unreadable { path: path.to_owned(), reason: error.to_string() };
    let path = path.canonicalize().map_err(unreadable)?;
    if path.to_str().is_none_or(|path| path.contains(char::is_control)) {
        return Err(Unfit::Name { path });
    }
    if let Some(dir) = HIDDEN.into_iter().find(|dir| path.starts_with(dir)) {
        return Err(Unfit::Hidden { path, dir });
    }
    // Whoever can exchange a directory on the way can exchange the program.
    for part in path.ancestors() {
        let found = part.metadata().map_err(unreadable)?;
        if found.uid() != 0 || found.mode() & 0o022 != 0 {
            return Err(Unfit::Writable { path });
        }
    }
    Ok(path)
}

/// A path as a word of a unit file, where `%` and `$` mean something and blanks end words.
fn word(path: &Path) -> String {
    let escaped = path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", escaped.replace('%', "%%").replace('$', "$$"))
}

/// The unit that runs `program` on the state in `/var/lib/pln`.
#[must_use]
pub fn text(program: &Path) -> String {
    [HEAD.to_owned(), service(program), privileges(), SANDBOX.to_owned(), INSTALL.to_owned()].join("\n")
}

const HEAD: &str = "\
# Written by `pln daemon install`, and again by the next one: changes belong in `systemctl edit pln`.

[Unit]
Description=Pollen mesh node
Wants=network-online.target
After=network-online.target
# Never given up: a full disk or a port in use may be mended by someone who does not know of this service.
StartLimitIntervalSec=0
";

fn service(program: &Path) -> String {
    format!(
        "\
[Service]
Type=notify
NotifyAccess=main
ExecStart={program} --dir /var/lib/{STATE} up
Restart=on-failure
RestartSec={}
# Bad options, and keys and state that it may not use, do not mend themselves.
RestartPreventExitStatus=2 4
TimeoutStartSec={}
# Open streams may finish, and other hosts take over this one's seeds.
TimeoutStopSec={}
User={USER}
Group={USER}
UMask=0027
StateDirectory={STATE}
StateDirectoryMode=0750
WorkingDirectory=/var/lib/{STATE}
SyslogIdentifier=pln
LimitNOFILE={FILES_MAX}
TasksMax={TASKS_MAX}
# BPF maps are locked memory on older kernels.
LimitMEMLOCK=infinity
# wasmtime reserves terabytes of address space, and uses little of it.
LimitAS=infinity
",
        RESTART_PAUSE.as_secs(),
        START_TIMEOUT.as_secs(),
        STOP_TIMEOUT.as_secs(),
        program = word(program),
    )
}

fn privileges() -> String {
    let capabilities = CAPABILITIES.join(" ");
    format!(
        "\
# BPF programs on interfaces, larger socket buffers, and ports below 1024.
AmbientCapabilities={capabilities}
CapabilityBoundingSet={capabilities}
NoNewPrivileges=yes
# The root's keys are for commands that a person runs, never for the daemon.
InaccessiblePaths=-/var/lib/{STATE}/root
"
    )
}

/// The sandbox. `MemoryDenyWriteExecute` is off because seeds are compiled to machine code at run time: wasmtime writes
/// it and then makes it executable by `mprotect`. `RestrictNamespaces` and the rest cost nothing here.
const SANDBOX: &str = "\
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateMounts=yes
DevicePolicy=closed
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
LockPersonality=yes
# Off: seeds are compiled here, and their code is made executable once it is written.
MemoryDenyWriteExecute=no
RemoveIPC=yes
KeyringMode=private
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@resources @privileged
SystemCallFilter=bpf perf_event_open
SystemCallErrorNumber=EPERM
";

const INSTALL: &str = "\
[Install]
WantedBy=multi-user.target
";

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_unit_as_it_is_installed() {
        insta::assert_snapshot!(text(Path::new("/usr/local/bin/pln")));
    }

    #[test]
    fn a_path_stays_one_word_whatever_is_in_it() {
        assert_eq!(word(Path::new("/opt/my \"pln\" 100%/$x\\y")), r#""/opt/my \"pln\" 100%%/$$x\\y""#);
    }

    #[test]
    fn a_program_where_the_service_cannot_look_is_refused() {
        // Of another user and in a temporary directory: hidden is what is said, for moving it mends both.
        let dir = tempfile::tempdir_in("/tmp").expect("a directory");
        let path = dir.path().join("pln");
        fs::write(&path, "").expect("it is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("it is ours");
        assert!(matches!(program(&path), Err(Unfit::Hidden { dir: "/tmp", .. })));
        assert!(matches!(program(&dir.path().join("absent")), Err(Unfit::Unreadable { .. })));
    }

    #[test]
    fn a_link_is_followed_to_the_program_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let link = dir.path().join("pln");
        std::os::unix::fs::symlink("/usr/bin/env", &link).expect("it is ours");
        let env = fs::canonicalize("/usr/bin/env").expect("every machine has it");
        assert_eq!(program(&link), Ok(env));
    }
}
