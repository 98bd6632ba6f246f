//! Servers and clients that the scenarios put behind and before `pln`: sockets opened on a host, used from here.
//! Knows nothing of Pollen. Invariant: every read has a time-out, and every server ends with its handle.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::lab::Host;

/// A socket of a test that hears nothing for so long fails its test.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How often a server looks whether it is to end.
const END_CHECK: Duration = Duration::from_millis(20);

/// Connections that may wait to be taken: as many as Linux allows by default.
const BACKLOG: libc::c_int = 4096;

/// A server on a host, ended when dropped.
pub struct Server {
    pub port: u16,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves TCP on the host's loopback, each connection on a thread of its own.
    ///
    /// # Errors
    /// If the port is taken. Port 0 takes any.
    pub fn tcp(host: &Host, port: u16, each: impl Fn(TcpStream) + Send + Sync + 'static) -> Result<Self> {
        Self::tcp_at(host, (Ipv4Addr::LOCALHOST, port).into(), each)
    }

    fn tcp_at(host: &Host, at: SocketAddr, each: impl Fn(TcpStream) + Send + Sync + 'static) -> Result<Self> {
        let listener = host.enter(|| TcpListener::bind(at))??;
        lengthen_backlog(&listener)?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let each = Arc::new(each);
        Ok(Self::start(port, move |end| {
            while !end.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let each = Arc::clone(&each);
                        std::thread::spawn(move || {
                            if configure(&stream).is_ok() {
                                each(stream);
                            }
                        });
                    }
                    Err(_) => std::thread::sleep(END_CHECK),
                }
            }
        }))
    }

    /// Sends everything back until the client has closed its writing half, then closes.
    ///
    /// # Errors
    /// As [`Server::tcp`].
    pub fn tcp_echo(host: &Host, port: u16) -> Result<Self> {
        Self::tcp(host, port, |mut stream| {
            let mut reader = &stream;
            // A client that is gone is not this server's trouble.
            let _gone = io::copy(&mut reader, &mut &stream);
            let _gone = stream.flush();
        })
    }

    /// Answers every HTTP request with `body`.
    ///
    /// # Errors
    /// As [`Server::tcp`].
    pub fn http(host: &Host, port: u16, body: Vec<u8>) -> Result<Self> {
        Self::http_at(host, (Ipv4Addr::LOCALHOST, port).into(), body)
    }

    /// The same, there: for those who come without `pln`, too.
    ///
    /// # Errors
    /// As [`Server::tcp`].
    pub fn http_at(host: &Host, at: SocketAddr, body: Vec<u8>) -> Result<Self> {
        Self::tcp_at(host, at, move |mut stream| {
            let mut request = [0; 4096];
            let mut len = 0;
            while len < request.len() && !request[..len].ends_with(b"\r\n\r\n") {
                match stream.read(&mut request[len..]) {
                    Ok(n) if n > 0 => len += n,
                    _ => return,
                }
            }
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _gone = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        })
    }

    /// Sends every datagram back to whom it came from.
    ///
    /// # Errors
    /// If the port is taken. Port 0 takes any.
    pub fn udp_echo(host: &Host, port: u16) -> Result<Self> {
        let socket = host.enter(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, port)))??;
        socket.set_read_timeout(Some(END_CHECK))?;
        let port = socket.local_addr()?.port();
        Ok(Self::start(port, move |end| {
            let mut buffer = vec![0; 65_536];
            while !end.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    let _gone = socket.send_to(&buffer[..len], from);
                }
            }
        }))
    }

    fn start(port: u16, serve: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        Self { port, end, thread: Some(std::thread::spawn(move || serve(&ended))) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the server on port {} had panicked", self.port);
        }
    }
}

/// Where a server's connections wait until a scenario lets them go.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<Door>, Condvar)>);

#[derive(Default)]
struct Door {
    waiting: usize,
    open: bool,
}

impl Gate {
    /// Waits until the gate is open.
    pub fn pass(&self) {
        let mut door = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        door.waiting += 1;
        while !door.open {
            door = self.0.1.wait(door).unwrap_or_else(PoisonError::into_inner);
        }
        door.waiting -= 1;
    }

    /// How many wait before it.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).waiting
    }

    /// Lets all pass, from now on.
    pub fn open(&self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).open = true;
        self.0.1.notify_all();
    }
}

/// Room for a crowd that connects at once. Behind a full backlog Linux answers with SYN cookies, and then takes the end of
/// a connection that overtakes its few bytes for the whole of it: the server would read nothing, and no error.
fn lengthen_backlog(listener: &TcpListener) -> Result<()> {
    // SAFETY: the call takes two integers; the descriptor is open for as long as the listener lives.
    let answer = unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) };
    ensure!(answer == 0, io::Error::last_os_error());
    Ok(())
}

/// Connects on a host to its loopback.
///
/// # Errors
/// If nobody listens, or for its namespace.
pub fn dial(host: &Host, port: u16) -> Result<TcpStream> {
    dial_at(host, (Ipv4Addr::LOCALHOST, port).into())
}

/// Connects from a host.
///
/// # Errors
/// If nobody answers, or for its namespace.
pub fn dial_at(host: &Host, to: SocketAddr) -> Result<TcpStream> {
    let stream = host.enter(|| TcpStream::connect_timeout(&to, SILENCE_MAX))?.with_context(|| to.to_string())?;
    configure(&stream)?;
    Ok(stream)
}

/// A UDP socket on a host, connected to a port of its loopback.
///
/// # Errors
/// If the host has no free port, or for its namespace.
pub fn dial_udp(host: &Host, port: u16) -> Result<UdpSocket> {
    let socket = host.enter(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)))??;
    socket.connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_read_timeout(Some(SILENCE_MAX))?;
    Ok(socket)
}

/// Sends `request`, closes the writing half, and reads the answer to its end.
///
/// # Errors
/// If the connection breaks.
pub fn exchange(stream: &mut TcpStream, request: &[u8]) -> Result<Vec<u8>> {
    stream.write_all(request)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Fetches `path` by HTTP from a port of the host's loopback.
///
/// # Errors
/// If the answer is not a 200 with a whole body.
pub fn http_get(host: &Host, port: u16, path: &str) -> Result<Vec<u8>> {
    let mut stream = dial(host, port)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("no end of the HTTP head")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    ensure!(head.starts_with("HTTP/1.1 200 ") || head.starts_with("HTTP/1.0 200 "), "{head}");
    let body = answer.split_off(end + 4);
    let announced =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    ensure!(announced == Some(body.len()), "{} bytes of body, {announced:?} announced", body.len());
    Ok(body)
}

/// Makes the next drop of the stream a reset (RST) in place of an orderly close.
///
/// # Errors
/// If the socket refuses the option.
pub fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let len = libc::socklen_t::try_from(size_of::<libc::linger>()).expect("eight bytes");
    // SAFETY: the descriptor is open, and the option's value is a `linger` that lives through the call.
    let set = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), len)
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets this process, and what it starts from then on, have `count` descriptors open.
///
/// # Errors
/// If the hard limit is lower.
pub fn allow_descriptors(count: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the `rlimit` that we own.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_cur.max(count);
    // SAFETY: the kernel reads the `rlimit` that we own.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Bytes that look random and are the same for the same seed: to be told apart and compared.
#[must_use]
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut numbers = Xorshift::new(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(numbers.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Marsaglia's xorshift64*: numbers for tests, from a seed that a failure can print.
#[derive(Clone, Debug)]
pub struct Xorshift(u64);

impl Xorshift {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // The state must not be zero; an odd multiplier keeps different seeds different.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    #[allow(clippy::should_implement_trait, reason = "endless: an iterator would make every use unwrap")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which must not be zero; the bias is below one in a thousand for bounds below 2^54.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The address of a host on its first switch, of one family.
///
/// # Errors
/// If it has none.
pub fn address(host: &Host, v6: bool) -> Result<IpAddr> {
    host.addresses().into_iter().find(|address| address.is_ipv6() == v6).context("no address of that family")
}

fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))
}
