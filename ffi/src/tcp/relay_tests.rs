//! The relay between real connections over loopback, compared with a simple model.

use super::*;
use crate::worker::poll::{Events, Interest, Key, Poll, Token};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Nothing happens for so long: a stall.
const STALL: Duration = Duration::from_secs(5);
const KIB: usize = 1024;
/// As much is sent or received at once.
const MOST: usize = 1024 * KIB;

/// One far end of a relayed connection: what it sent, and what has come.
struct End {
    /// None once it was reset.
    fd: Option<OwnedFd>,
    /// Tells the two directions' bytes apart.
    salt: u64,
    sent: u64,
    finished: bool,
    /// Bytes that came, each the right one at its place.
    received: u64,
    /// How the stream that comes ended, once it has: 0 for a FIN, or an error.
    ended: Option<i32>,
    /// Where in what came the kernel showed a mark.
    marks: Vec<u64>,
}

/// Of noise that repeats after a prime number of bytes: what each place of a stream holds, for as many
/// places as are requested.
fn bytes(salt: u64, at: u64, count: usize) -> &'static [u8] {
    const PERIOD: usize = 65_537;
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    let noise = NOISE.get_or_init(|| {
        let byte =
            |at: usize| (at as u64 % PERIOD as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
        (0..PERIOD + MOST).map(|at| byte(at) as u8).collect()
    });
    let start = ((at + salt * 1021) % PERIOD as u64) as usize;
    &noise[start..start + count]
}

impl End {
    fn new(fd: OwnedFd, salt: u64) -> End {
        End {
            fd: Some(fd),
            salt,
            sent: 0,
            finished: false,
            received: 0,
            ended: None,
            marks: Vec::new(),
        }
    }

    /// Sends up to `count` bytes, as many as there is room for; the last one urgent or not. How many.
    fn send(&mut self, count: usize, urgent: bool) -> usize {
        let Some(fd) = &self.fd else { return 0 };
        let bytes = bytes(self.salt, self.sent, count);
        let send = if urgent { socket::send_urgent } else { socket::send };
        match send(fd.as_raw_fd(), bytes) {
            Ok(sent) => {
                self.sent += sent as u64;
                return sent;
            }
            Err(error) if is_blocked(&error) => {}
            // The kernel reports an error once.
            Err(error) => self.ended = self.ended.or(Some(code(&error))),
        }
        0
    }

    fn finish(&mut self) {
        let Some(fd) = &self.fd else { return };
        self.finished |= socket::finish_sending(fd.as_raw_fd()).is_ok();
    }

    fn reset(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        socket::reset_on_close(fd.as_raw_fd());
    }

    /// Whether nothing more is to come.
    fn is_over(&self) -> bool {
        self.fd.is_none() || self.ended.is_some()
    }

    /// Takes up to `most` bytes of what has come; whether that changed anything.
    fn receive(&mut self, from: &End, most: usize) -> bool {
        let Some(fd) = self.fd.as_ref().filter(|_| self.ended.is_none()) else { return false };
        let mut room = vec![0; most];
        if socket::is_at_mark(fd.as_raw_fd()) && self.marks.last() != Some(&self.received) {
            self.marks.push(self.received);
        }
        match socket::receive(fd.as_raw_fd(), &mut room) {
            Ok(0) => self.ended = Some(0),
            Ok(count) => {
                let right = &room[..count] == bytes(from.salt, self.received, count);
                assert!(right, "wrong bytes from {} of {}", self.received, from.sent);
                self.received += count as u64;
            }
            Err(error) if is_blocked(&error) => return false,
            Err(error) => self.ended = Some(code(&error)),
        }
        true
    }
}

/// A relayed connection: a far end, the relay's two sides, the other far end.
struct Pair {
    client: End,
    /// Neither, once the relay has ended.
    relayed: Option<(Side, Relay, Side)>,
    server: End,
    ready: bool,
    ended: Option<Option<i32>>,
    /// Bytes that the relay says it delivered.
    up: u64,
    down: u64,
}

struct Bench {
    tools: Tools,
    poll: Poll,
    events: Events,
    pairs: Vec<Pair>,
}

/// A connection over loopback, as the listener accepts it and as it is opened towards the upstream:
/// both with their options. The end at which it was accepted comes second.
fn connection(buffers: Option<i32>) -> (OwnedFd, OwnedFd) {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listener = socket::tcp_listener(any, socket::Listen::default()).unwrap();
    if let Some(bytes) = buffers {
        for name in [libc::SO_RCVBUF, libc::SO_SNDBUF] {
            socket::set_int(listener.as_raw_fd(), libc::SOL_SOCKET, name, bytes).unwrap();
        }
    }
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let options = socket::TcpOptions::default();
    let opened = socket::connect_tcp(socket::Source::Own, address, options).unwrap().socket;
    let accepted = loop {
        match socket::accept(listener.as_raw_fd()) {
            Ok((accepted, _)) => break accepted,
            Err(error) => assert!(is_blocked(&error), "{error}"),
        }
    };
    (opened, accepted)
}

impl Bench {
    fn new(pipes: usize) -> Bench {
        Bench {
            tools: Tools::new(pipes),
            poll: Poll::new().unwrap(),
            events: Events::new(),
            pairs: Vec::new(),
        }
    }

    /// One more relayed connection, whose upstream is owed `early` bytes; its index. `buffers`: their
    /// size on the client's side and on the server's, where it is not the system's.
    fn add(&mut self, buffers: [Option<i32>; 2], early: usize) -> usize {
        let index = self.pairs.len();
        let key = Key { index: index as u32, generation: 0 };
        let (client, accepted) = connection(buffers[0]);
        let (opened, server) = connection(buffers[1]);
        let mut client = End::new(client, 2 * index as u64 + 1);
        let payload = bytes(client.salt, 0, early).into();
        client.sent = early as u64;
        self.poll.add(accepted.as_raw_fd(), Token::Peer(key), Interest::Changes).unwrap();
        self.poll.add(opened.as_raw_fd(), Token::Upstream(key), Interest::Changes).unwrap();
        self.pairs.push(Pair {
            client,
            relayed: Some((Side::new(accepted), Relay::owing(payload), Side::new(opened))),
            server: End::new(server, 2 * index as u64 + 2),
            ready: true,
            ended: None,
            up: 0,
            down: 0,
        });
        index
    }

    /// What the listener's loop does in one turn; whether anything happened.
    fn turn(&mut self, timeout_ms: i32) -> bool {
        let ready = self.pairs.iter().any(|pair| pair.ready);
        self.poll.wait(&mut self.events, if ready { 0 } else { timeout_ms }).unwrap();
        for index in 0..self.events.len() {
            let (token, bits) = self.events.get(index);
            let (Token::Peer(key) | Token::Upstream(key)) = token else { panic!("{token:?}") };
            let pair = &mut self.pairs[key.index as usize];
            let Some((client, _, upstream)) = &mut pair.relayed else { continue };
            if let Token::Peer(_) = token {
                client.note(bits);
            } else {
                upstream.note(bits);
            }
            pair.ready = true;
        }
        let mut acted = false;
        for pair in &mut self.pairs {
            if std::mem::take(&mut pair.ready) {
                acted = true;
                pair.turn(&mut self.tools);
            }
        }
        acted
    }

    /// Moves, and lets far ends receive, until `done` holds.
    fn until(&mut self, what: &str, receiving: bool, done: impl Fn(&[Pair]) -> bool) {
        let mut acted_at = Instant::now();
        let mut acted = true;
        while !done(&self.pairs) {
            acted = self.turn(if acted { 0 } else { 10 });
            for Pair { client, server, .. } in self.pairs.iter_mut().filter(|_| receiving) {
                acted |= server.receive(client, 64 * KIB) | client.receive(server, 64 * KIB);
            }
            if acted {
                acted_at = Instant::now();
            }
            assert!(acted_at.elapsed() < STALL, "stalled: {what}");
        }
    }

    /// Moves until nothing happens any more; nobody receives.
    fn settle(&mut self) {
        while self.turn(20) {}
    }

    /// Lets an end send, and moves whenever there is no more room.
    fn send(&mut self, index: usize, up: bool, count: usize, urgent: bool) {
        let mut left = count;
        while left > 0 {
            left -= self.pairs[index].end(up).send(left, urgent && left == 1);
            if left > 0 {
                self.turn(10);
                self.receive(index, up);
            }
        }
    }

    fn receive(&mut self, index: usize, up: bool) {
        let Pair { client, server, .. } = &mut self.pairs[index];
        if up {
            server.receive(client, 64 * KIB);
        } else {
            client.receive(server, 64 * KIB);
        }
    }
}

impl Pair {
    /// As a worker does: one turn, the counters, and the requested shutdown.
    fn turn(&mut self, tools: &mut Tools) {
        let Some((client, relay, upstream)) = &mut self.relayed else { return };
        let turn = relay.turn(client, upstream, tools);
        self.up += relay.up.take_bytes();
        self.down += relay.down.take_bytes();
        assert_eq!((relay.up.taken(), relay.down.taken()), (self.up, self.down));
        match turn {
            Turn::Waiting => {}
            Turn::Ready => self.ready = true,
            Turn::Ended(error) => {
                if error.is_some() {
                    socket::reset_on_close(client.fd.as_raw_fd());
                    socket::reset_on_close(upstream.fd.as_raw_fd());
                }
                self.ended = Some(error);
                self.relayed = None;
            }
        }
    }

    /// The end that sends in a direction.
    fn end(&mut self, up: bool) -> &mut End {
        if up {
            &mut self.client
        } else {
            &mut self.server
        }
    }

    /// Whether all is over, for everyone.
    fn is_over(&self) -> bool {
        self.relayed.is_none() && self.client.is_over() && self.server.is_over()
    }

    /// Nothing that was sent is missing, and the ends are as they were sent.
    fn check_complete(&self) {
        let Pair { client, server, .. } = self;
        assert_eq!((server.received, client.received), (client.sent, server.sent));
        assert_eq!((server.ended, client.ended), (Some(0), Some(0)));
        assert_eq!(self.ended, Some(None));
        assert_eq!((self.up, self.down), (client.sent, server.sent));
    }
}

/// In one direction: bytes, an urgent one, bytes, the end. Nothing may stall or get lost, and the mark
/// stays where it is.
fn passes_urgent(before: usize, behind: usize, up: bool, pipes: usize, ahead: bool) {
    let what = format!("{before} and {behind} bytes around it, up {up}, {pipes} pipes, {ahead}");
    let mut bench = Bench::new(pipes);
    let index = bench.add([None; 2], 0);
    if before > 0 {
        bench.send(index, up, before, false);
    }
    if !ahead {
        bench.settle();
    }
    bench.send(index, up, 1, true);
    if behind > 0 {
        bench.send(index, up, behind, false);
    }
    if !ahead {
        // Without the end, too: it would fetch what has stalled.
        let sent = (before + behind + 1) as u64;
        bench.until(&what, true, |pairs| {
            pairs[0].server.received.max(pairs[0].client.received) == sent
        });
    }
    bench.pairs[index].end(up).finish();
    bench.pairs[index].end(!up).finish();
    bench.until(&what, true, |pairs| pairs[0].is_over());
    let pair = &mut bench.pairs[index];
    pair.check_complete();
    assert_eq!(pair.end(!up).marks, [before as u64], "{what}");
    assert_eq!(bench.tools.pipes.lent(), 0);
}

#[test]
fn urgent_bytes_arrive_in_their_place_and_marked() {
    for up in [true, false] {
        for pipes in [0, 1, 4] {
            for ahead in [true, false] {
                for (before, behind) in
                    [(0, 0), (0, 1), (1, 0), (5, 7), (0, 300 * KIB), (300 * KIB, 0), (64 * KIB, 9)]
                {
                    passes_urgent(before, behind, up, pipes, ahead);
                }
                passes_urgent(700 * KIB, 700 * KIB, up, pipes, ahead);
            }
        }
    }
}

#[test]
fn a_mark_that_splice_meets_before_epoll_tells_of_it_is_no_end() {
    let mut bench = Bench::new(4);
    let index = bench.add([None; 2], 0);
    bench.send(index, true, 300 * KIB, false);
    bench.until("bulk", true, |pairs| pairs[0].server.received == 300 * KIB as u64);
    assert!(bench.pairs[index].is_splicing(true));
    bench.send(index, true, 1, true);
    bench.send(index, true, 1000, false);
    bench.pairs[index].client.finish();
    bench.pairs[index].server.finish();
    // It was readable, and nobody has asked epoll since.
    bench.pairs[index].relayed.as_mut().unwrap().0.readable = true;
    bench.pairs[index].turn(&mut bench.tools);
    bench.until("mark and end", true, |pairs| pairs[0].is_over());
    bench.pairs[index].check_complete();
}

#[test]
fn an_urgent_byte_waits_for_a_reader_that_is_full() {
    let mut bench = Bench::new(4);
    let index = bench.add([Some(16 * KIB as i32); 2], 0);
    bench.settle();
    // Filled behind the relay's back, so that the urgent byte is the first that finds no room.
    let Pair { relayed: Some((_, _, upstream)), server, .. } = &mut bench.pairs[index] else {
        panic!("the relay goes on")
    };
    let mut filled = 0;
    while let Ok(sent) = socket::send(upstream.fd.as_raw_fd(), &[0; 4 * KIB]) {
        filled += sent;
    }
    let server = server.fd.as_ref().unwrap().as_raw_fd();
    bench.send(index, true, 1, true);
    bench.send(index, true, 1000, false);
    bench.settle();
    let (_, relay, _) = bench.pairs[index].relayed.as_ref().unwrap();
    assert!(matches!(relay.up.held, Held::UrgentByte(_)));
    while filled > 0 {
        let mut room = vec![0; filled];
        filled -= socket::receive(server, &mut room).unwrap_or(0);
        bench.turn(10);
    }
    bench.pairs[index].client.finish();
    bench.pairs[index].server.finish();
    bench.until("urgent behind a full buffer", true, |pairs| pairs[0].is_over());
    bench.pairs[index].check_complete();
    assert_eq!(bench.pairs[index].server.marks, [0]);
}

#[test]
fn stalled_readers_leave_a_pipe_for_the_others() {
    let mut bench = Bench::new(3);
    for _ in 0..8 {
        let index = bench.add([Some(64 * KIB as i32); 2], 0);
        for _ in 0..40 {
            bench.pairs[index].server.send(256 * KIB, false);
            bench.settle();
        }
    }
    assert_eq!(bench.tools.pipes.lent(), 2, "the last one stays at hand");
    let index = bench.add([None; 2], 0);
    let mut spliced = 0;
    for _ in 0..40 {
        bench.send(index, false, 256 * KIB, false);
        bench.settle();
        spliced += usize::from(bench.pairs[index].is_splicing(false));
        let sent = bench.pairs[index].server.sent;
        while bench.pairs[index].client.received < sent {
            bench.receive(index, false);
            bench.turn(0);
        }
    }
    assert!(spliced > 30, "{spliced}");
    for index in 0..bench.pairs.len() {
        bench.pairs[index].server.finish();
        bench.pairs[index].client.finish();
    }
    bench.until("end of the stalled", true, |pairs| pairs.iter().all(Pair::is_over));
    bench.pairs.iter().for_each(Pair::check_complete);
    assert_eq!(bench.tools.pipes.lent(), 0);
}

/// What the random stories below have been through, so that they do not pass for want of events.
#[derive(Debug, Default)]
struct Seen {
    splicing: usize,
    back_to_copying: usize,
    held_bytes: usize,
    held_in_pipes: usize,
    marks: usize,
    complete: usize,
    cut: usize,
}

/// Random far ends around a relay: whatever they do, what arrives is a beginning of what was sent; it
/// is all of it if nobody reset; and an end that looks clean never hides that something is missing.
fn story(seed: u64, seen: &mut Seen) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    let mut bench = Bench::new([0, 1, 2, 8][random(4) as usize]);
    let resets = random(2) == 1;
    let mut smallness = [1; 3];
    for smaller in &mut smallness {
        let sizes = [None, None, Some(16 * KIB as i32), Some(64 * KIB as i32)];
        let buffers = [sizes[random(4) as usize], sizes[random(4) as usize]];
        // Small buffers wait for each other's acknowledgements.
        *smaller = if buffers.iter().all(Option::is_some) { 8 } else { 1 };
        let early = if random(3) == 0 { random(100_000) as usize } else { 0 };
        bench.add(buffers, early);
    }
    for _ in 0..400 {
        let (index, up) = (random(3) as usize, random(2) == 0);
        let size = match random(3) {
            0 => 1 + random(100),
            1 => 1 + random(64 * KIB as u64),
            _ => 1 + random(512 * KIB as u64),
        } as usize;
        let size = size.div_ceil(smallness[index]);
        let pair = &mut bench.pairs[index];
        let finished = pair.end(up).finished;
        match random(100) {
            0..30 if !finished => {
                pair.end(up).send(size, false);
            }
            30..35 if !finished => {
                pair.end(up).send(size.min(2000), true);
            }
            35..60 => {
                let Pair { client, server, .. } = pair;
                if up {
                    server.receive(client, size);
                } else {
                    client.receive(server, size);
                }
            }
            60 => pair.end(up).finish(),
            61 if resets && random(3) == 0 => pair.end(up).reset(),
            _ => {
                let splicing = bench.splicing();
                bench.turn(0);
                seen.back_to_copying += usize::from(bench.splicing() < splicing);
                seen.look(&bench);
            }
        }
    }
    for pair in &mut bench.pairs {
        pair.client.finish();
        pair.server.finish();
    }
    bench.until(&format!("seed {seed}"), true, |pairs| pairs.iter().all(Pair::is_over));
    for pair in &bench.pairs {
        let Pair { client, server, up, down, .. } = pair;
        seen.marks += client.marks.len() + server.marks.len();
        if client.fd.is_some() && server.fd.is_some() {
            seen.complete += 1;
            pair.check_complete();
            continue;
        }
        seen.cut += 1;
        assert!(server.received <= *up && *up <= client.sent, "seed {seed}");
        assert!(client.received <= *down && *down <= server.sent, "seed {seed}");
        for (to, from) in [(server, client), (client, server)] {
            let whole = from.finished && to.received == from.sent;
            assert!(
                to.ended != Some(0) || whole,
                "seed {seed}: a cut stream looks complete: {} of {} bytes, finished {}, reset {}, {:?}",
                to.received,
                from.sent,
                from.finished,
                from.fd.is_none(),
                pair.ended,
            );
        }
    }
    assert_eq!(bench.tools.pipes.lent(), 0, "seed {seed}");
}

impl Seen {
    fn look(&mut self, bench: &Bench) {
        for pair in &bench.pairs {
            let Some((_, relay, _)) = &pair.relayed else { continue };
            for direction in [&relay.up, &relay.down] {
                self.splicing += usize::from(direction.splicing);
                match direction.held {
                    Held::Nothing | Held::UrgentByte(_) => {}
                    Held::Bytes { .. } => self.held_bytes += 1,
                    Held::InPipe { .. } => self.held_in_pipes += 1,
                }
            }
        }
    }
}

impl Bench {
    fn splicing(&self) -> usize {
        let count = |pair: &Pair| {
            usize::from(pair.is_splicing(true)) + usize::from(pair.is_splicing(false))
        };
        self.pairs.iter().map(count).sum()
    }
}

impl Pair {
    fn is_splicing(&self, up: bool) -> bool {
        let Some((_, relay, _)) = &self.relayed else { return false };
        if up {
            relay.up.splicing
        } else {
            relay.down.splicing
        }
    }
}

#[test]
fn the_relay_does_what_a_simple_model_does() {
    let mut seen = Seen::default();
    for seed in 0..40 {
        story(seed, &mut seen);
    }
    let Seen { splicing, back_to_copying, held_bytes, held_in_pipes, marks, complete, cut } = seen;
    for count in [splicing, back_to_copying, held_bytes, held_in_pipes, marks, complete, cut] {
        assert!(count > 5, "{seen:?}");
    }
}
