//! The program's end of the control socket: a thread that accepts, reads one line from each connection, passes
//! it to the caller of `next`, and sends the answer back.
//!
//! Everything is limited: connections, bytes of a line, the time to send it and to read the answer. A connection of
//! another user is closed without being read, whatever the file's mode is.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::MOST_REQUEST;
use crate::abi::errors::{Error, Result};
use crate::net::socket::check;
use crate::proxy::handover::take::Predecessor;
use crate::system::sync::lock;

/// Connections at once; more wait to be accepted.
const MOST_CLIENTS: usize = 8;
const BACKLOG: i32 = 16;
/// How long a client may take for its line.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long the program may take for its answer, a reload with names to resolve included.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// How long the thread may take to give a connection away.
const GIVING_TIME: Duration = Duration::from_secs(5);
/// How long a client may take to read the answer.
const READING_TIME: Duration = Duration::from_secs(10);

/// A control socket that is served.
pub struct Server {
    path: String,
    /// Of the socket's file: another's is not removed.
    identity: (u64, u64),
    listener: RawFd,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread and the program's side both touch.
struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
    /// Wakes the thread.
    bell: UnixStream,
    /// Cleared while another program accepts, and so has the file.
    accepting: AtomicBool,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Request>,
    answers: Vec<(u32, Vec<u8>)>,
    /// Connections to give away, and to whom.
    takers: Vec<(u32, Sender<UnixStream>)>,
    closed: bool,
}

/// A line that waits for its answer.
pub struct Request {
    pub id: u32,
    pub line: Vec<u8>,
}

/// A connection.
struct Client {
    stream: UnixStream,
    id: u32,
    phase: Phase,
    until: Instant,
}

enum Phase {
    Reading(Vec<u8>),
    Waiting,
    Answering { answer: Vec<u8>, sent: usize },
}

impl Server {
    /// Listens at a path and starts the thread. The file has mode 0600 from its first moment. Where the
    /// predecessor listens there its socket is taken, and nothing accepted before `set_accepting`.
    ///
    /// # Errors
    /// Where something is there that is not a stale socket, or the socket cannot be made.
    pub fn open(path: &str, predecessor: Option<&Predecessor>) -> Result<Server> {
        let cannot = |error: &io::Error| {
            Error::system(format!("Cannot open the control socket {path}"), error)
        };
        let inherited = predecessor.and_then(|predecessor| {
            let file = fs::symlink_metadata(path).ok()?;
            predecessor.control((file.dev(), file.ino()))
        });
        let accepting = AtomicBool::new(inherited.is_none());
        let listener = match inherited.map_or_else(|| listen(path), Ok) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                remove_stale(path)?;
                listen(path)
            }
            result => result,
        };
        let listener = listener.map_err(|error| cannot(&error))?;
        let file = fs::symlink_metadata(path).map_err(|error| cannot(&error))?;
        let (bell, rung) = UnixStream::pair().map_err(|error| cannot(&error))?;
        bell.set_nonblocking(true)
            .and_then(|()| rung.set_nonblocking(true))
            .map_err(|error| cannot(&error))?;
        let shared =
            Arc::new(Shared { queue: Mutex::default(), arrived: Condvar::new(), bell, accepting });
        let descriptor = listener.as_raw_fd();
        let thread =
            Thread { listener, rung, shared: shared.clone(), clients: Vec::new(), next_id: 1 };
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || thread.run())
            .map_err(|error| {
                Error::system("Cannot start a thread for the control socket", &error)
            })?;
        let identity = (file.dev(), file.ino());
        Ok(Server {
            path: path.into(),
            identity,
            listener: descriptor,
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The listening socket, open until `close`, and its file's device and inode.
    pub fn listener(&self) -> (RawFd, (u64, u64)) {
        (self.listener, self.identity)
    }

    /// Whether new connections are accepted.
    pub fn set_accepting(&self, accepting: bool) {
        self.shared.accepting.store(accepting, Ordering::Relaxed);
        self.shared.ring();
    }

    /// The connection of a request, instead of an answer.
    ///
    /// # Errors
    /// Where its client is gone.
    pub fn take(&self, id: u32) -> Result<UnixStream> {
        let (sender, receiver) = channel();
        lock(&self.shared.queue).takers.push((id, sender));
        self.shared.ring();
        let gone = |_| Error::invalid("whoever asked is gone");
        receiver.recv_timeout(GIVING_TIME).map_err(gone)
    }

    /// The next request; `None` when there is none in time, or the socket is closed.
    pub fn next(&self, timeout: Duration) -> Option<Request> {
        let queue = lock(&self.shared.queue);
        let waits = |queue: &mut Queue| queue.requests.is_empty() && !queue.closed;
        let waited = self.shared.arrived.wait_timeout_while(queue, timeout, waits);
        waited.unwrap_or_else(PoisonError::into_inner).0.requests.pop_front()
    }

    /// Answers a request with a line, without its end. One whose client is gone is forgotten.
    pub fn answer(&self, id: u32, line: &[u8]) {
        let answer = [line, b"\n"].concat();
        lock(&self.shared.queue).answers.push((id, answer));
        self.shared.ring();
    }

    /// Ends the thread, once the answers that are there are written as far as they go at once, and removes
    /// the file, where that is allowed: within the sandbox it stays, and is stale.
    pub fn close(&self) {
        lock(&self.shared.queue).closed = true;
        self.shared.arrived.notify_all();
        self.shared.ring();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
        let is_ours = self.shared.accepting.load(Ordering::Relaxed)
            && fs::symlink_metadata(&self.path)
                .is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if is_ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Shared {
    fn ring(&self) {
        // A full buffer has rung already.
        let _ = (&self.bell).write(&[0]);
    }
}

fn listen(path: &str) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None)?;
    // unix(7): the file is made with the socket's own mode, less the umask. Set afterwards, there would be
    // a moment for others.
    // SAFETY: no pointers are passed.
    check(unsafe { libc::fchmod(socket.as_raw_fd(), 0o600) })?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(UnixListener::from(std::os::fd::OwnedFd::from(socket)))
}

/// Removes a socket at which nobody listens any more.
fn remove_stale(path: &str) -> Result<()> {
    let cannot = |error: &io::Error| {
        Error::system(format!("Cannot replace the control socket {path}"), error)
    };
    let file = fs::symlink_metadata(path).map_err(|error| cannot(&error))?;
    if !file.file_type().is_socket() {
        return Err(Error::invalid(format!(
            "Cannot open the control socket {path}: there is a file that is not a socket; remove it, or choose another path"
        )));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| cannot(&error))
        }
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(cannot(&error)),
        // It was taken, or its queue is full.
        _ => Err(Error::invalid(format!(
            "Cannot open the control socket {path}: another program answers there; stop that, or choose another path"
        ))),
    }
}

/// What the thread has.
struct Thread {
    listener: UnixListener,
    rung: UnixStream,
    shared: Arc<Shared>,
    clients: Vec<Client>,
    next_id: u32,
}

impl Thread {
    fn run(mut self) {
        loop {
            if self.wait().is_err() {
                return;
            }
            while matches!((&self.rung).read(&mut [0; 64]), Ok(64)) {}
            let closed = self.take_answers();
            self.accept();
            let now = Instant::now();
            let shared = &self.shared;
            self.clients.retain_mut(|client| now < client.until && client.advance(shared));
            if closed {
                return;
            }
        }
    }

    /// Sleeps until something is to be done.
    fn wait(&self) -> io::Result<()> {
        let entry = |fd: RawFd, events| libc::pollfd { fd, events, revents: 0 };
        // poll(2) passes over what is below zero.
        let accepts = self.clients.len() < MOST_CLIENTS && self.is_accepting();
        let listener = if accepts { self.listener.as_raw_fd() } else { -1 };
        let mut entries =
            vec![entry(self.rung.as_raw_fd(), libc::POLLIN), entry(listener, libc::POLLIN)];
        entries.extend(self.clients.iter().map(|client| match client.phase {
            Phase::Reading(_) => entry(client.stream.as_raw_fd(), libc::POLLIN),
            // A client that is gone is noticed with its answer.
            Phase::Waiting => entry(-1, 0),
            Phase::Answering { .. } => entry(client.stream.as_raw_fd(), libc::POLLOUT),
        }));
        let now = Instant::now();
        let next =
            self.clients.iter().map(|client| client.until.saturating_duration_since(now)).min();
        let timeout = next.map_or(-1, |next| next.as_millis() as i32 + 1);
        // SAFETY: the entries are valid for the length of the call.
        let polled = check(unsafe {
            libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout)
        });
        match polled {
            Err(error) if error.kind() != ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Hands the answers to their clients; whether the socket is to be closed.
    fn take_answers(&mut self) -> bool {
        let (answers, takers, closed) = {
            let mut queue = lock(&self.shared.queue);
            (std::mem::take(&mut queue.answers), std::mem::take(&mut queue.takers), queue.closed)
        };
        for (id, taker) in takers {
            if let Some(at) = self.clients.iter().position(|client| client.id == id) {
                // The caller waits for it.
                let _ = taker.send(self.clients.swap_remove(at).stream);
            }
        }
        for (id, answer) in answers {
            if let Some(client) = self.clients.iter_mut().find(|client| client.id == id) {
                client.phase = Phase::Answering { answer, sent: 0 };
                client.until = Instant::now() + READING_TIME;
            }
        }
        closed
    }

    fn is_accepting(&self) -> bool {
        self.shared.accepting.load(Ordering::Relaxed)
    }

    fn accept(&mut self) {
        while self.clients.len() < MOST_CLIENTS && self.is_accepting() {
            // An error concerns the one connection that is gone; or there are no descriptors, and then
            // the relays need them more.
            let Ok((stream, _)) = self.listener.accept() else { return };
            if !is_own_user(&stream) || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let id = self.next_id;
            self.next_id = self.next_id.wrapping_add(1).max(1);
            let until = Instant::now() + REQUEST_TIME;
            self.clients.push(Client { stream, id, phase: Phase::Reading(Vec::new()), until });
        }
    }
}

impl Client {
    /// Goes as far as it can without waiting; whether the connection stays.
    fn advance(&mut self, shared: &Shared) -> bool {
        match &mut self.phase {
            Phase::Waiting => true,
            Phase::Reading(line) => {
                let mut room = [0; MOST_REQUEST];
                let received = match (&self.stream).read(&mut room) {
                    Ok(0) => return false,
                    Ok(received) => received,
                    Err(error) => return is_for_later(&error),
                };
                line.extend_from_slice(&room[..received]);
                let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
                    return line.len() < MOST_REQUEST;
                };
                line.truncate(end);
                let request = Request { id: self.id, line: std::mem::take(line) };
                self.phase = Phase::Waiting;
                self.until = Instant::now() + ANSWER_TIME;
                lock(&shared.queue).requests.push_back(request);
                shared.arrived.notify_one();
                true
            }
            Phase::Answering { answer, sent } => loop {
                match (&self.stream).write(&answer[*sent..]) {
                    Ok(count) if count > 0 && *sent + count < answer.len() => *sent += count,
                    Ok(_) => return false,
                    Err(error) => return is_for_later(&error),
                }
            },
        }
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Who is at the other end (unix(7), SO_PEERCRED).
///
/// # Errors
/// Those of getsockopt(2).
pub fn peer_of(stream: &UnixStream) -> io::Result<libc::ucred> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the record and its length are valid for the length of the call.
    check(unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    })?;
    Ok(credentials)
}

/// Whether the other end is a process of this one's user, or root's.
fn is_own_user(stream: &UnixStream) -> bool {
    // SAFETY: no pointers are passed.
    let own = unsafe { libc::geteuid() };
    peer_of(stream).is_ok_and(|peer| peer.uid == 0 || peer.uid == own)
}

#[cfg(test)]
mod tests {
    use super::super::client::ask;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const SOON: Duration = Duration::from_secs(5);

    /// A path of a test's own.
    struct Place(String);

    impl Place {
        fn new(name: &str) -> Place {
            let path =
                format!("{}/mmproxy-{name}-{}", std::env::temp_dir().display(), std::process::id());
            let _ = fs::remove_file(&path);
            Place(path)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn asked(path: &str, request: &[u8]) -> Result<Vec<u8>> {
        let mut room = vec![0; 1 << 20];
        let length = ask(path, request, &mut room, SOON)?;
        Ok(room[..length].to_vec())
    }

    /// Answers every request with itself, `times` over.
    fn echoing<T>(server: &Server, requests: usize, times: usize, during: impl FnOnce() -> T) -> T {
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..requests {
                    let request = server.next(SOON).unwrap();
                    server.answer(request.id, &request.line.repeat(times));
                }
            });
            during()
        })
    }

    #[test]
    fn a_request_is_answered_and_the_file_is_the_owner_s_and_goes_at_the_end() {
        let place = Place::new("answer");
        let server = Server::open(&place.0, None).unwrap();
        assert_eq!(fs::metadata(&place.0).unwrap().permissions().mode() & 0o777, 0o600);
        let answer = echoing(&server, 1, 1, || asked(&place.0, b"hello").unwrap());
        assert_eq!(answer, b"hello");
        server.close();
        assert!(!fs::exists(&place.0).unwrap());
        assert!(asked(&place.0, b"hello").unwrap_err().text().contains("Nothing answers"));
    }

    #[test]
    fn a_long_answer_arrives_whole() {
        let place = Place::new("long");
        let server = Server::open(&place.0, None).unwrap();
        let answer = echoing(&server, 1, 1000, || asked(&place.0, &[b'x'; 1000]).unwrap());
        assert_eq!(answer.len(), 1_000_000);
        server.close();
    }

    #[test]
    fn silent_and_endless_clients_keep_nobody_else_from_an_answer() {
        let place = Place::new("silent");
        let server = Server::open(&place.0, None).unwrap();
        let silent: Vec<_> =
            (1..MOST_CLIENTS).map(|_| UnixStream::connect(&place.0).unwrap()).collect();
        let mut endless = UnixStream::connect(&place.0).unwrap();
        let _ = endless.write_all(&[b'x'; 3 * MOST_REQUEST]);
        assert!(matches!(endless.read(&mut [0]), Ok(0) | Err(_)), "it is closed");
        assert_eq!(echoing(&server, 1, 1, || asked(&place.0, b"hi").unwrap()), b"hi");
        drop(silent);
        server.close();
    }

    #[test]
    fn a_stale_socket_is_replaced_and_nothing_else_is() {
        let place = Place::new("stale");
        drop(UnixListener::bind(&place.0).unwrap());
        let server = Server::open(&place.0, None).unwrap();
        let second = Server::open(&place.0, None).err().unwrap();
        assert!(second.text().contains("another program answers there"), "{}", second.text());
        server.close();
        fs::write(&place.0, "precious").unwrap();
        let third = Server::open(&place.0, None).err().unwrap();
        assert!(third.text().contains("not a socket"), "{}", third.text());
        assert_eq!(fs::read(&place.0).unwrap(), b"precious");
    }

    #[test]
    fn closing_ends_whoever_waits() {
        let place = Place::new("closing");
        let server = Server::open(&place.0, None).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| server.next(Duration::from_secs(600)).is_none());
            server.close();
            assert!(waiting.join().unwrap());
        });
    }
}
