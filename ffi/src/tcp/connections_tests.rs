//! Connections from acceptance to end, with a decoder that accepts every header and a clock that the test advances.

use super::*;
use crate::abi::layout::{action, AccessRecord};
use crate::observe::stats::STATS_LENGTH;
use crate::proxy::port::Wanted;
use crate::proxy::settings::{Budgets, ProxySettings, Settings};
use crate::proxy::Proxy;
use crate::trust::host::Host;
use crate::worker::{Turns, Worker};
use std::io::{Read, Write};
use std::mem::{offset_of, size_of};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const HEADER: &[u8] = b"PROXY UNKNOWN\r\n";
const STALL: Duration = Duration::from_secs(5);

extern "C" fn takes_all(_length: u32, _carrier: u32) -> u32 {
    action::OWN
}

/// A proxy with one worker and one listener, and its upstream.
struct World {
    worker: Arc<Worker>,
    upstream: TcpListener,
    address: SocketAddr,
}

/// One turn of the worker after the other.
struct Loop<'a> {
    turns: Turns<'a>,
}

impl World {
    fn new(change: impl FnOnce(&mut Settings)) -> World {
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut settings = Settings::for_tests();
        change(&mut settings);
        let proxy = Proxy::new(ProxySettings::for_tests(), Host::watch().unwrap());
        let worker = proxy.open_worker().unwrap();
        let port = Wanted::for_tests(upstream.local_addr().unwrap());
        proxy.add_listener(settings, vec![port]).unwrap();
        let address = proxy.table.snapshot().listeners[0].ports[0].listen;
        World { worker, upstream, address }
    }

    fn limit_connections(&self, connections: usize) {
        let budgets = Budgets { connections, ..Budgets::FOR_TESTS };
        self.worker.proxy.set_budgets(budgets).unwrap();
    }

    fn start(&self) -> Loop<'_> {
        Loop { turns: Turns::start(&self.worker, takes_all).unwrap() }
    }

    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// A connection that is relayed: the client's end and the upstream's.
    fn relayed(&self, run: &mut Loop) -> (TcpStream, TcpStream) {
        let before = self.count(Counter::Connected);
        let mut client = self.connect();
        client.write_all(HEADER).unwrap();
        run.until(|| self.count(Counter::Connected) > before);
        let (upstream, _) = self.upstream.accept().unwrap();
        upstream.set_nonblocking(true).unwrap();
        (client, upstream)
    }

    fn count(&self, counter: Counter) -> u64 {
        let mut sums = [0; STATS_LENGTH];
        self.worker.proxy.stats(0, &mut sums).unwrap();
        sums[counter as usize]
    }

    /// How the connections since the last call have ended.
    fn endings(&self) -> Vec<u8> {
        let mut entries = vec![0; 64 * 1024];
        let written = self.worker.proxy.next_access(&mut entries).unwrap() as usize;
        let (mut rest, mut endings) = (&entries[..written], Vec::new());
        while rest.len() >= size_of::<AccessRecord>() {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            endings.push(rest[offset_of!(AccessRecord, ending)]);
            rest = &rest[length..];
        }
        endings
    }
}

impl Loop<'_> {
    fn turn(&mut self) {
        let timeout = if self.turns.tcp.has_work() { 0 } else { 5 };
        self.turns.cx.poll.wait(&mut self.turns.events, timeout).unwrap();
        self.turns.turn().unwrap();
    }

    fn tcp(&self) -> &Connections {
        &self.turns.tcp
    }

    fn until(&mut self, mut done: impl FnMut() -> bool) {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < STALL, "stalled");
            self.turn();
        }
    }

    /// Reads what `stream` gets, this many bytes.
    fn reads(&mut self, stream: &mut TcpStream, count: usize) -> Vec<u8> {
        let (mut all, mut room) = (Vec::new(), vec![0; 64 * 1024]);
        self.until(|| {
            if let Ok(read @ 1..) = stream.read(&mut room) {
                all.extend_from_slice(&room[..read]);
            }
            all.len() >= count
        });
        all
    }

    /// How `stream` ends: 0 for a FIN, or an error. What comes before is dropped.
    fn ends(&mut self, stream: &mut TcpStream) -> i32 {
        let (mut end, mut room) = (None, vec![0; 64 * 1024]);
        self.until(|| {
            end = match stream.read(&mut room) {
                Ok(0) => Some(0),
                Ok(_) => None,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                Err(error) => error.raw_os_error(),
            };
            end.is_some()
        });
        end.unwrap()
    }

    /// Lets time pass as it does for the listener: with a turn whenever it requested one.
    fn pass(&mut self, ms: u64) {
        let end = self.turns.cx.now + ms;
        while let Some(at) = self.tcp().next_deadline().filter(|at| *at <= end) {
            self.turns.cx.now = at.max(self.turns.cx.now);
            self.turn();
        }
        self.turns.cx.now = end;
        self.turn();
    }

    /// The upstream's sockets, as the listener has them.
    fn upstreams(&self) -> Vec<RawFd> {
        let connections = &self.tcp().connections;
        let keys = connections.keys();
        let phases = keys.iter().map(|key| &connections.get(*key).unwrap().phase);
        phases
            .filter_map(|phase| match phase {
                Phase::Relaying(upstream) => Some(upstream.side.fd.as_raw_fd()),
                _ => None,
            })
            .collect()
    }
}

/// Fills a stream until nothing more fits anywhere on the way.
fn fill(run: &mut Loop, stream: &mut TcpStream) {
    let chunk = vec![7; 256 * 1024];
    let mut full = 0;
    while full < 5 {
        full = if stream.write(&chunk).is_ok() { 0 } else { full + 1 };
        run.turn();
    }
}

#[test]
fn a_header_in_pieces_and_around_an_urgent_mark_opens_a_connection() {
    let world = World::new(|_| {});
    let mut run = world.start();
    let mut client = world.connect();
    for piece in HEADER.chunks(4) {
        socket::send_urgent(client.as_raw_fd(), piece).unwrap();
        run.turn();
    }
    client.write_all(b"hello").unwrap();
    run.until(|| world.count(Counter::Connected) == 1);
    let (mut upstream, _) = world.upstream.accept().unwrap();
    upstream.set_nonblocking(true).unwrap();
    assert_eq!(run.reads(&mut upstream, 5), b"hello");
    upstream.write_all(b"and back").unwrap();
    assert_eq!(run.reads(&mut client, 8), b"and back");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(run.ends(&mut upstream), 0);
    drop(upstream);
    assert_eq!(run.ends(&mut client), 0);
    run.until(|| world.count(Counter::ConnectionsActive) == 0);
    assert_eq!((world.count(Counter::BytesUp), world.count(Counter::BytesDown)), (5, 8));
    assert_eq!(world.endings(), [Ending::PeerClosed as u8]);
    assert_eq!(run.tcp().next_deadline(), None);
}

#[test]
fn a_smaller_budget_ends_no_connection_and_a_larger_one_takes_who_waits() {
    let world = World::new(|_| ());
    let mut run = world.start();
    let _pairs: Vec<_> = (0..2).map(|_| world.relayed(&mut run)).collect();
    let _half = world.connect();
    run.until(|| world.count(Counter::Accepted) == 3);
    world.limit_connections(1);
    let mut waits = world.connect();
    waits.write_all(HEADER).unwrap();
    run.pass(100);
    assert_eq!(world.count(Counter::Accepted), 3, "there is no place");
    assert_eq!(world.count(Counter::ConnectionsActive), 3, "those that there are stay");

    world.limit_connections(4);
    run.pass(1_000);
    run.until(|| world.count(Counter::Connected) == 3);
}

#[test]
fn the_last_place_is_its_connections_until_another_one_waits() {
    let world = World::new(|_| ());
    world.limit_connections(2);
    let mut run = world.start();
    let (_client, _upstream) = world.relayed(&mut run);
    let mut last = world.connect();
    run.until(|| world.count(Counter::ConnectionsActive) == 2);
    run.pass(100);
    assert_eq!(world.count(Counter::ConnectionsActive), 2, "nobody else wants its place");

    let mut newer = world.connect();
    run.until(|| world.count(Counter::Accepted) == 3);
    assert_eq!(run.ends(&mut last), libc::ECONNRESET);
    newer.write_all(HEADER).unwrap();
    run.until(|| world.count(Counter::Connected) == 2);
    run.pass(100);
    assert_eq!(world.count(Counter::AcceptPauses), 0, "nobody waits");

    let _waiting = world.connect();
    run.until(|| world.count(Counter::AcceptPauses) == 1);
    assert_eq!(world.count(Counter::ConnectionsActive), 2);
}

#[test]
fn a_header_that_does_not_come_ends_the_connection_at_its_deadline() {
    let world = World::new(|_| {});
    let mut run = world.start();
    let mut client = world.connect();
    client.write_all(b"PROXY ").unwrap();
    run.until(|| world.count(Counter::Accepted) == 1);
    run.turn();
    run.pass(9_000);
    assert_eq!(world.count(Counter::ConnectionsActive), 1);
    run.pass(1_001);
    assert_eq!(run.ends(&mut client), 0);
    assert_eq!(world.count(Counter::ConnectionsActive), 0);
}

#[test]
fn a_connection_that_carries_nothing_ends_after_the_idle_timeout() {
    let world = World::new(|settings| settings.idle_timeout = Some(60_000));
    let mut run = world.start();
    let (mut idle, mut behind_idle) = world.relayed(&mut run);
    let (mut busy, mut behind_busy) = world.relayed(&mut run);
    let (mut stalled, mut behind_stalled) = world.relayed(&mut run);
    for _ in 0..3 {
        run.pass(19_000);
        busy.write_all(b"x").unwrap();
        run.reads(&mut behind_busy, 1);
    }
    fill(&mut run, &mut behind_stalled);
    assert_eq!(world.count(Counter::IdleTimeouts), 0);
    run.pass(10_000);
    assert_eq!((run.ends(&mut idle), run.ends(&mut behind_idle)), (0, 0));
    assert_eq!(world.endings(), [Ending::Idle as u8]);
    run.pass(60_000);
    assert_eq!((run.ends(&mut busy), run.ends(&mut behind_busy)), (0, 0));
    // What the reader has not taken is lost, and must not look complete.
    assert_eq!(run.ends(&mut stalled), libc::ECONNRESET);
    assert_eq!(run.ends(&mut behind_stalled), libc::ECONNRESET);
    assert_eq!((world.count(Counter::IdleTimeouts), run.tcp().connections.len()), (3, 0));
    assert_eq!(run.tcp().tools.pipes.lent(), 0);
}

#[test]
fn without_an_idle_timeout_a_connection_lasts() {
    let world = World::new(|_| {});
    let mut run = world.start();
    let (mut client, mut upstream) = world.relayed(&mut run);
    run.pass(2_000_000);
    client.write_all(b"still here").unwrap();
    assert_eq!(run.reads(&mut upstream, 10), b"still here");
}

#[test]
fn the_upstream_is_asked_from_when_the_first_question_could_be_due() {
    let world = World::new(|_| {});
    let mut run = world.start();
    let _ends = world.relayed(&mut run);
    let [socket] = run.upstreams()[..] else { panic!("one is relayed") };
    let get = |level, name| socket::get_int(socket, level, name).unwrap();
    assert_eq!(get(libc::SOL_SOCKET, libc::SO_KEEPALIVE), 0, "a short connection pays nothing");
    run.pass(17_000);
    assert_eq!(get(libc::SOL_SOCKET, libc::SO_KEEPALIVE), 1);
    assert_eq!(get(libc::SOL_TCP, libc::TCP_KEEPIDLE), 15);
}

#[test]
fn at_the_end_a_stream_that_is_cut_short_is_reset_and_no_other() {
    let world = World::new(|_| {});
    let mut run = world.start();
    let (mut quiet, mut behind_quiet) = world.relayed(&mut run);
    let (mut stalled, mut behind_stalled) = world.relayed(&mut run);
    fill(&mut run, &mut behind_stalled);
    run.turns.tcp.end_all(&run.turns.cx);
    assert_eq!((run.ends(&mut quiet), run.ends(&mut behind_quiet)), (0, 0));
    assert_eq!(run.ends(&mut stalled), libc::ECONNRESET);
    assert_eq!(run.ends(&mut behind_stalled), libc::ECONNRESET);
    assert_eq!(world.endings(), [Ending::Stopped as u8; 2]);
    assert_eq!((world.count(Counter::ConnectionsActive), run.tcp().tools.pipes.lent()), (0, 0));
}
