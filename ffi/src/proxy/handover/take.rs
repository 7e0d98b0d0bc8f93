//! The new program's side of a hand-over: what it receives from its predecessor.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::wire::{Channel, Kind, Reader, Writer, VERSION};
use crate::abi::errors::{Error, Result};
use crate::net::socket::{self, Listen};
use crate::proxy::pool::{Place, Pool};
use crate::proxy::port::Transport;
use crate::proxy::Proxy;
use crate::system::sync::lock;
use crate::udp::{Arriving, MovedFlow, MovedSession};

/// How long the predecessor may take for an answer.
const ANSWERING: Duration = Duration::from_secs(10);
/// How long it may take for the end: nothing waits for that but the service manager's next message.
const FINISHING: Duration = Duration::from_secs(2);
/// How long the workers may take to begin.
const BEGINNING: Duration = Duration::from_secs(2);

/// A program that is about to hand over, and what it has handed over.
pub struct Predecessor {
    path: String,
    channel: Channel,
    /// The predecessor's clock, in milliseconds, and when that was: the new one continues from there.
    clock: (u64, Instant),
    pub workers: u32,
    words: Vec<u8>,
    /// Its listening sockets by worker, until somebody takes them.
    pool: Mutex<Pool>,
    control: Mutex<Option<(UnixListener, (u64, u64))>>,
    gate: Mutex<Gate>,
    opened: Condvar,
}

#[derive(Default)]
struct Gate {
    /// Whether the workers may read, once that is decided.
    open: Option<bool>,
    /// By worker: what arrived for it.
    arriving: HashMap<u32, Arriving>,
    /// Workers that have what arrived for them.
    begun: usize,
}

impl Predecessor {
    /// Asks the program at a control socket to hand over; `None` if nobody answers there. It continues until
    /// `finish`.
    ///
    /// `request`: the line that asks, without its end.
    ///
    /// # Errors
    /// Where it refuses, or sends what makes no sense.
    pub fn ask(path: &str, request: &[u8]) -> Result<Option<Predecessor>> {
        let failed = |error: &io::Error| failed(path, error);
        let stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(failed(&error)),
        };
        (&stream).write_all(&[request, b"\n"].concat()).map_err(|error| failed(&error))?;
        let channel = Channel::new(stream, ANSWERING).map_err(|error| failed(&error))?;
        let hello = channel.expect(Kind::Hello, ANSWERING).map_err(|error| failed(&error))?;
        let mut reader = Reader(&hello.payload);
        let hello = (|| Some((reader.u32()?, reader.u64()?, reader.u32()?, reader.bytes()?)))();
        let Some((VERSION, clock, workers, words)) = hello else {
            return Err(Error::invalid(format!(
                "Cannot take over from the program at {path}: its hand-over has another form; restart it"
            )));
        };
        let predecessor = Predecessor {
            path: path.into(),
            channel,
            clock: (clock, Instant::now()),
            workers,
            words: words.into(),
            pool: Mutex::default(),
            control: Mutex::default(),
            gate: Mutex::default(),
            opened: Condvar::new(),
        };
        predecessor.take_listening().map_err(|error| failed(&error))?;
        Ok(Some(predecessor))
    }

    /// The predecessor program's own words.
    pub fn words(&self) -> &[u8] {
        &self.words
    }

    /// When its clock was at 0.
    pub fn opened(&self) -> Option<Instant> {
        self.clock.1.checked_sub(Duration::from_millis(self.clock.0))
    }

    fn take_listening(&self) -> io::Result<()> {
        let mut pool = lock(&self.pool);
        loop {
            let frame = self.channel.receive(ANSWERING)?;
            let mut reader = Reader(&frame.payload);
            match frame.kind {
                Kind::Listed => return Ok(()),
                Kind::Listening => {
                    for descriptor in frame.descriptors {
                        let (place, worker) = place_of(&mut reader).ok_or_else(nonsense)?;
                        let socket = listening(descriptor, &place)?;
                        if worker >= self.workers as usize || !pool.add(place, worker, socket) {
                            return Err(nonsense());
                        }
                    }
                    if !reader.is_over() {
                        return Err(io::Error::other("fewer sockets came than were announced"));
                    }
                }
                Kind::Control => {
                    let identity = (|| Some((reader.u64()?, reader.u64()?)))();
                    let identity = identity.ok_or_else(nonsense)?;
                    let descriptor = frame.descriptors.into_iter().next().ok_or_else(nonsense)?;
                    *lock(&self.control) = Some((UnixListener::from(descriptor), identity));
                }
                Kind::Refused => {
                    let text = String::from_utf8_lossy(&frame.payload).into_owned();
                    return Err(io::Error::other(text));
                }
                _ => return Err(nonsense()),
            }
        }
    }

    /// Its sockets of a place by worker, once.
    pub fn sockets(&self, place: Place) -> Option<Vec<Option<Socket>>> {
        lock(&self.pool).take(place)
    }

    /// Whether it listens on an address, or on one that includes it.
    pub fn listens(&self, listen: SocketAddr, transport: Transport) -> bool {
        lock(&self.pool).listens(listen, transport)
    }

    /// Its control socket, where that is the file of this device and inode.
    pub fn control(&self, file: (u64, u64)) -> Option<UnixListener> {
        lock(&self.control).take_if(|(_, own)| *own == file).map(|(listener, _)| listener)
    }

    /// Has the predecessor hand over, and the workers read; how many flows came.
    ///
    /// # Errors
    /// If it does not; then no worker reads, ever, and this program has to end.
    pub fn finish(&self, proxy: &Proxy) -> Result<u32> {
        let flows = self.take_flows(proxy);
        let flows = flows.map_err(|error| {
            self.decide(false);
            failed(&self.path, &error)
        })?;
        self.wait_for_workers(proxy.settings.workers);
        // Where it has ended meanwhile, it has handed over anyway.
        let _ = self.channel.send(Kind::Started, &[], &[]);
        let _ = self.channel.expect(Kind::Done, FINISHING);
        Ok(flows)
    }

    fn take_flows(&self, proxy: &Proxy) -> io::Result<u32> {
        let mut left = Writer::default();
        // Dropped here: the predecessor has them, too.
        for (place, workers) in lock(&self.pool).close() {
            left.u8(place.1.number());
            left.address(Some(place.0));
            workers.iter().for_each(|worker| proxy.stored.give_up(place, *worker));
        }
        self.channel.send(Kind::Ready, &left.0, &[])?;
        let (mut flows, mut sessions) = (0, 0);
        let mut arriving: HashMap<u32, Arriving> = HashMap::new();
        loop {
            let frame = self.channel.receive(ANSWERING)?;
            let mut reader = Reader(&frame.payload);
            match frame.kind {
                Kind::Flows => {
                    for descriptor in frame.descriptors {
                        let worker = reader.u32().ok_or_else(nonsense)?;
                        let flow = MovedFlow::read(&mut reader).ok_or_else(nonsense)?;
                        socket::check_upstream(&descriptor, flow.decision.upstream)?;
                        let worker = worker % proxy.settings.workers as u32;
                        arriving.entry(worker).or_default().flows.push((flow, descriptor));
                        flows += 1;
                    }
                    if !reader.is_over() {
                        return Err(io::Error::other("fewer flows came than were announced"));
                    }
                }
                Kind::Sessions => {
                    while !reader.is_over() {
                        let worker = reader.u32().ok_or_else(nonsense)?;
                        let session = MovedSession::read(&mut reader).ok_or_else(nonsense)?;
                        let worker = worker % proxy.settings.workers as u32;
                        arriving.entry(worker).or_default().sessions.push(session);
                        sessions += 1;
                    }
                }
                Kind::Moved => {
                    if (|| Some((reader.u32()?, reader.u32()?)))() != Some((flows, sessions)) {
                        return Err(io::Error::other("fewer flows came than were announced"));
                    }
                    break;
                }
                Kind::Refused => {
                    let text = String::from_utf8_lossy(&frame.payload).into_owned();
                    return Err(io::Error::other(text));
                }
                _ => return Err(nonsense()),
            }
        }
        lock(&self.gate).arriving = arriving;
        self.channel.send(Kind::Got, &[], &[])?;
        self.channel.expect(Kind::Go, ANSWERING)?;
        if !self.decide(true) {
            return Err(io::Error::other("this program was told to stop"));
        }
        Ok(flows)
    }

    /// Whether the workers read is decided once; what it came to.
    fn decide(&self, open: bool) -> bool {
        let mut gate = lock(&self.gate);
        let open = *gate.open.get_or_insert(open);
        self.opened.notify_all();
        open
    }

    /// No worker reads any more, unless they have begun.
    pub fn abandon(&self) {
        self.decide(false);
    }

    /// Waits until it is decided whether the workers read; what a worker gets then.
    pub fn wait(&self, worker: u32) -> Option<Arriving> {
        let gate = lock(&self.gate);
        let waited = self.opened.wait_while(gate, |gate| gate.open.is_none());
        let mut gate = waited.unwrap_or_else(PoisonError::into_inner);
        (gate.open == Some(true)).then(|| gate.arriving.remove(&worker).unwrap_or_default())
    }

    /// A worker has what arrived for it. Waits until all have: a client's datagram may come to any worker, and
    /// one that did not find its flow would open another.
    pub fn begin(&self, workers: usize) {
        lock(&self.gate).begun += 1;
        self.opened.notify_all();
        self.wait_for_workers(workers);
    }

    /// One that failed to begin keeps the others waiting for so long, and no longer.
    fn wait_for_workers(&self, workers: usize) {
        let gate = lock(&self.gate);
        let few = |gate: &mut Gate| gate.begun < workers;
        drop(self.opened.wait_timeout_while(gate, BEGINNING, few));
    }
}

fn place_of(reader: &mut Reader) -> Option<(Place, usize)> {
    let transport = Transport::of_number(reader.u8()?)?;
    let how = Listen::of_number(reader.u8()?)?;
    let worker = reader.u32()? as usize;
    Some(((reader.address()??, transport, how), worker))
}

/// A socket that is what it was announced as.
fn listening(descriptor: OwnedFd, (listen, transport, how): &Place) -> io::Result<Socket> {
    let socket = Socket::from(descriptor);
    socket::check_listening(&socket, *listen, *transport == Transport::Tcp, *how)?;
    Ok(socket)
}

fn failed(path: &str, error: &io::Error) -> Error {
    let why = match error.kind() {
        ErrorKind::UnexpectedEof => "it closed the connection".into(),
        ErrorKind::WouldBlock => "it did not answer in time".into(),
        _ => error.to_string(),
    };
    Error::invalid(format!("Cannot take over from the program at {path}: {why}"))
}

fn nonsense() -> io::Error {
    io::Error::other("it sent what makes no sense")
}
