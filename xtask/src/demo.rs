//! The first thing people run: three machines become one mesh, and a service on one is reached from another.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tests::lab::{self, Family, Host, Lab};
use tests::pln::Pln;
use tests::traffic::{Server, http_get};
use tests::{binary, cluster};

use crate::{interrupt, needs, seeds, shell};

#[derive(clap::Args, Debug)]
pub struct Flags {
    /// Go through it once and exit
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    needs: needs::Install,
}

const NAMES: [&str; 3] = ["ams", "berlin", "cork"];
const PAGE: &[u8] = b"Hello from ams, through the mesh.\n";

/// `cargo xtask demo`.
pub fn run(flags: &Flags) -> Result<()> {
    let namespaces = namespaces(flags.needs)?;
    let greeter = greeter(flags.needs)?;
    println!("\nBuilding pln ...");
    let pln = binary::pln();
    interrupt::catch();

    // Dropped in reverse: nodes first, then the machines they run on.
    let lab_holder;
    let folder;
    let mut nodes: Vec<Pln> = if namespaces {
        let mut lab = Lab::new()?;
        let hosts = lab.hosts(Family::Both, NAMES)?;
        lab_holder = Some(lab);
        folder = None;
        hosts.into_iter().map(Pln::on).collect()
    } else {
        lab_holder = None;
        let (dir, hosts) = loopback_hosts()?;
        folder = Some(dir);
        hosts.into_iter().map(|host| Pln::on(host).with_up_flags(&["--ips", "127.0.0.1"])).collect()
    };
    let result = show(flags.once, pln, greeter.as_deref(), &mut nodes);
    drop(nodes);
    drop(lab_holder);
    if let Some(folder) = folder {
        std::fs::remove_dir_all(folder)?;
    }
    result
}

fn show(once: bool, pln: &Path, greeter: Option<&Path>, nodes: &mut [Pln]) -> Result<()> {
    println!("\nThree machines become one mesh: init on ams, an invite each, join on berlin and cork.");
    let took = cluster::form(nodes, &["--publisher"])?;
    println!("All three saw three nodes online {:.1} s after the last was started.", took.as_secs_f64());
    if interrupt::came() {
        return Ok(());
    }

    let [ams, _, cork] = nodes else { unreachable!("three nodes were made") };
    let server = Server::http(&ams.host, 0, PAGE.to_vec())?;
    println!("\nA small HTTP server listens on ams, on loopback only. It is published, and connected on cork:");
    let connect = connect_command(cork)?;
    println!("  ams$  pln serve {} hello\n  cork$ pln {}", server.port, connect.join(" "));
    ams.ok(&["serve", &server.port.to_string(), "hello"])?;
    let local_port = local_port(cork, &connect)?;
    let page = http_get(&cork.host, local_port, "/")?;
    ensure!(page == PAGE, "cork got something else: {}", String::from_utf8_lossy(&page));
    println!("  cork$ curl localhost:{local_port}\n{}", String::from_utf8_lossy(&page));

    if let Some(module) = greeter {
        println!(
            "Code runs anywhere in the mesh too. A seed is published on ams, placed on two of them, and called on cork:"
        );
        let file = module.file_name().context("a module is a file")?.to_string_lossy();
        println!("  ams$  pln seed {file} greeter\n  cork$ pln call greeter greet Ada");
        ams.ok(&["seed", module.to_str().context("a path that is no text")?, "greeter"])?;
        println!("{}\n", called(cork, &["call", "greeter", "greet", "Ada"])?);
    }
    println!("  cork$ pln status\n{}", cork.ok(&["status"])?);
    if once {
        println!("\nThe demo went through.");
        return Ok(());
    }
    let (a, c) = (prefix(pln, ams), prefix(pln, cork));
    println!("\nNow try, in another terminal:");
    println!("  alias on-ams='{a}'\n  alias on-cork='{c}'");
    println!("  on-cork why hello     # why this provider was chosen");
    if greeter.is_some() {
        println!("  on-cork call greeter whoami   # what a seed knows of who calls");
        println!("  on-cork why greeter   # why it is where it is");
    }
    println!("  on-ams invite         # a token for one more machine");
    println!("  on-ams events         # what happened so far");
    println!("  on-cork inspect ams   # one node, in full");
    println!("  kill -9 {}; sleep 3; on-cork status --include-offline   # ams dies, and cork knows", ams.pid()?);
    println!("\nCtrl-C ends the demo and leaves nothing behind.");
    interrupt::wait();
    println!("\nEnding.");
    Ok(())
}

/// With a port of its own where the nodes share this machine's: the service's is taken, by the service.
fn connect_command(cork: &Pln) -> Result<Vec<String>> {
    let mut words = vec!["connect".to_owned(), "hello".to_owned()];
    if cork.host.namespace().is_none() {
        words.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port().to_string());
    }
    Ok(words)
}

/// Connects; the service may reach cork a moment after it was published on ams.
fn local_port(cork: &Pln, command: &[String]) -> Result<u16> {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let connect = || cork.json(&words).map_err(|error| format!("{error:#}"));
    let (answer, _) = tests::patience::eventually("cork knows the service", cluster::TOGETHER_DEADLINE, connect)?;
    let address = answer["local"][0].as_str().context("connect answers no local address")?;
    Ok(address.parse::<std::net::SocketAddr>()?.port())
}

/// Calls; the seed may reach cork a moment after it was published on ams.
fn called(cork: &Pln, command: &[&str]) -> Result<String> {
    let call = || cork.ok(command).map_err(|error| format!("{error:#}"));
    Ok(tests::patience::eventually("cork knows the seed", cluster::TOGETHER_DEADLINE, call)?.0)
}

/// The seed that is shown; without a compiler for it the demo goes without.
fn greeter(flags: needs::Install) -> Result<Option<PathBuf>> {
    match seeds::example("hello", flags) {
        Ok(module) => Ok(Some(module)),
        Err(error) => {
            ensure!(std::env::var_os("PLN_REQUIRE").is_none(), "PLN_REQUIRE is set: {error:#}");
            println!("No seed in this demo: {error:#}");
            Ok(None)
        }
    }
}

/// What to type before a command for one of the nodes.
fn prefix(pln: &Path, node: &Pln) -> String {
    let dir = node.dir();
    let pln = format!("{} --dir {}", pln.display(), dir.display());
    match node.host.namespace() {
        Some(namespace) => format!("ip netns exec {} {pln}", namespace.name()),
        None => pln,
    }
}

/// Whether the machines can be namespaces; says so if not.
fn namespaces(flags: needs::Install) -> Result<bool> {
    if !shell::is_root() {
        println!("No root, so no network namespaces: the three nodes run on loopback ports of this machine.");
        return Ok(false);
    }
    needs::meet(&[needs::IP], flags)?;
    match lab::available() {
        Ok(()) => Ok(true),
        Err(reason) => {
            ensure!(std::env::var_os("PLN_REQUIRE").is_none(), "PLN_REQUIRE is set: {reason}");
            println!("No network namespaces here ({reason}): the three nodes run on loopback ports.");
            Ok(false)
        }
    }
}

fn loopback_hosts() -> Result<(PathBuf, Vec<Host>)> {
    let dir = std::env::temp_dir().join(format!("pln-demo-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    // Held until all three are known, so that no port is given twice.
    let held: Vec<UdpSocket> =
        NAMES.iter().map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))).collect::<std::io::Result<_>>()?;
    let mut hosts = Vec::new();
    for (name, socket) in NAMES.iter().zip(&held) {
        hosts.push(Host::local(name, &dir, socket.local_addr()?.port()));
    }
    Ok((dir, hosts))
}
