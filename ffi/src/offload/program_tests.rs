//! The BPF program itself, run by the kernel on packets of this test's making (BPF_PROG_TEST_RUN), against a
//! model that writes each packet anew: other numbers, other addresses, checksums from scratch.
//!
//! It takes CAP_BPF and CAP_NET_ADMIN, so it has a feature of its own, with which tests/all.ts builds for root.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use aya::maps::{Array, HashMap, Map};
use aya::programs::SchedClassifier;
use aya::Ebpf;

use super::record::{saw, state, Direction, Entry, Reference, Tuple, FROM_SOCKET};
use super::translation::{self, Pair};
use super::{monotonic_ns, OBJECT};
use crate::net::socket::{Numbers, Position};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// TCX_NEXT, which the kernel hands out as an unsigned number.
const NEXT: u32 = u32::MAX;

// SAFETY: integers alone, and no padding between them.
unsafe impl aya::Pod for Entry {}

/// A seeded generator (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Any number, and often one at the edge.
    fn number(&mut self) -> u32 {
        match self.below(4) {
            0 => u32::MAX - self.below(4) as u32,
            1 => self.below(4) as u32,
            _ => self.next() as u32,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Opt {
    Nop,
    Timestamps(u32, u32),
    Sack(Vec<(u32, u32)>),
    Other(u8, Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Packet {
    source: SocketAddr,
    destination: SocketAddr,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    window: u16,
    options: Vec<Opt>,
    payload: Vec<u8>,
}

impl Packet {
    fn options(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for option in &self.options {
            match option {
                Opt::Nop => bytes.push(1),
                Opt::Timestamps(value, echo) => {
                    bytes.extend([8, 10]);
                    bytes.extend(value.to_be_bytes());
                    bytes.extend(echo.to_be_bytes());
                }
                Opt::Sack(blocks) => {
                    bytes.extend([5, 2 + 8 * blocks.len() as u8]);
                    for (left, right) in blocks {
                        bytes.extend(left.to_be_bytes());
                        bytes.extend(right.to_be_bytes());
                    }
                }
                Opt::Other(kind, data) => {
                    bytes.extend([*kind, 2 + data.len() as u8]);
                    bytes.extend(data);
                }
            }
        }
        // The end of the list, and its padding.
        while bytes.len() % 4 != 0 {
            bytes.push(0);
        }
        bytes
    }

    /// The frame, with every checksum.
    fn frame(&self) -> Vec<u8> {
        let options = self.options();
        let mut tcp = Vec::new();
        tcp.extend(self.source.port().to_be_bytes());
        tcp.extend(self.destination.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgement.to_be_bytes());
        tcp.extend([(((20 + options.len()) / 4) << 4) as u8, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(options);
        tcp.extend(&self.payload);
        let length = tcp.len();
        let (addresses, mut ip, kind) = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let addresses = [from.octets(), to.octets()].concat();
                let mut ip = vec![0x45, 0];
                ip.extend((20 + length as u16).to_be_bytes());
                ip.extend([0, 7, 0x40, 0, 64, 6, 0, 0]);
                ip.extend(&addresses);
                let sum = checksum(&[&ip]).to_be_bytes();
                ip[10..12].copy_from_slice(&sum);
                (addresses, ip, [8, 0])
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let addresses = [from.octets(), to.octets()].concat();
                let mut ip = vec![0x60, 0, 0, 0];
                ip.extend((length as u16).to_be_bytes());
                ip.extend([6, 64]);
                ip.extend(&addresses);
                (addresses, ip, [0x86, 0xdd])
            }
            _ => unreachable!("one family"),
        };
        let pseudo = [&addresses[..], &[0, 6], &(length as u16).to_be_bytes()].concat();
        let sum = checksum(&[&pseudo, &tcp]).to_be_bytes();
        tcp[16..18].copy_from_slice(&sum);
        let mut frame = vec![0; 12];
        frame.extend(kind);
        frame.append(&mut ip);
        frame.append(&mut tcp);
        frame
    }
}

/// RFC 1071, over parts of even length but for the last.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What the model knows of a direction. Positions are numbers as they leave, which do not wrap: their low 32 bits
/// are what packets have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    acknowledged: i64,
    sent: i64,
    reach: i64,
    /// What its clock is changed by.
    clock: Option<u32>,
    fin: Option<i64>,
    fin_was_first: bool,
    was_reset: bool,
}

impl Known {
    fn new(direction: &Direction) -> Known {
        Known {
            acknowledged: direction.acknowledged as i64,
            sent: direction.sent as i64,
            reach: i64::from(direction.reach),
            clock: (direction.timestamp_known != 0).then_some(direction.timestamp_add),
            fin: (direction.seen & saw::FIN != 0).then_some(
                // The one of the numbers that is near.
                direction.acknowledged as i64
                    + i64::from(direction.fin.wrapping_sub(direction.acknowledged as u32) as i32),
            ),
            fin_was_first: direction.seen & saw::FIRST_FIN != 0,
            was_reset: direction.seen & saw::RST != 0,
        }
    }

    fn has_ended(&self) -> bool {
        self.fin.is_some_and(|fin| self.acknowledged >= fin)
    }
}

/// Both connections, as the model sees them.
struct Model {
    pair: Pair,
    peer: Numbers,
    upstream: Numbers,
    known: [Known; 2],
}

/// A packet of the model's making, with the positions that its numbers stand for.
struct Made {
    packet: Packet,
    direction: usize,
    from: i64,
    acknowledges: i64,
}

impl Model {
    fn sides(&self, direction: usize) -> (&Numbers, &Numbers) {
        match direction {
            0 => (&self.peer, &self.upstream),
            _ => (&self.upstream, &self.peer),
        }
    }

    /// A packet whose numbers are often right, often just wrong, and often anywhere.
    fn make(&self, random: &mut Random) -> Made {
        let direction = random.below(2) as usize;
        let (own, other) = (self.known[direction], self.known[1 - direction]);
        let length = random.below(1400) * random.below(2);
        let flags = match random.below(24) {
            0 => ACK | FIN,
            1 => RST,
            2 => RST | ACK,
            3 | 4 => SYN,
            5 | 6 => 0,
            _ => ACK,
        };
        let payload: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        let anywhere = |random: &mut Random| i64::from(random.next() as i32);
        let by_one = |random: &mut Random| random.below(3) as i64 - 1;
        let more = length as i64 + i64::from(flags & FIN);
        let from = match random.below(8) {
            0 => own.acknowledged - own.reach - more + by_one(random),
            1 => own.acknowledged + 2 * own.reach - more + by_one(random),
            2 => own.acknowledged + by_one(random),
            3 => own.acknowledged + anywhere(random),
            _ => own.sent + by_one(random) * random.below(2) as i64,
        };
        let acknowledges = match random.below(8) {
            0 => other.acknowledged - other.reach + by_one(random),
            1 => other.sent + by_one(random),
            2 => other.sent + anywhere(random),
            _ => other.acknowledged + (other.sent - other.acknowledged) / 2,
        };
        let Pair { peer, listen, client, upstream } = self.pair;
        let (source, destination) =
            if direction == 0 { (peer, listen) } else { (upstream, client) };
        let (here, there) = self.sides(direction);
        let comes = |number: i64| {
            here.at.read_next.wrapping_add((number as u32).wrapping_sub(there.at.write_next))
        };
        let packet = Packet {
            source,
            destination,
            sequence: comes(from),
            acknowledgement: acknowledges as u32,
            flags,
            window: random.next() as u16,
            options: options(random),
            payload,
        };
        Made { packet, direction, from, acknowledges }
    }

    /// Whether an end would believe it: its numbers are what the two may have.
    fn believes(&self, made: &Made) -> bool {
        let (own, other) = (self.known[made.direction], self.known[1 - made.direction]);
        let flags = made.packet.flags;
        if flags & SYN != 0 {
            return false;
        }
        if flags & RST != 0 {
            return made.from == own.acknowledged || made.from == own.sent;
        }
        let upto = made.upto();
        flags & ACK != 0
            && (own.acknowledged - own.reach..=own.acknowledged + 2 * own.reach).contains(&upto)
            && (other.acknowledged - other.reach..=other.sent).contains(&made.acknowledges)
    }

    /// What the ends have now told each other.
    fn learn(&mut self, made: &Made) {
        let scale = self.sides(made.direction).0.scale_in;
        let (own, other) = (made.direction, 1 - made.direction);
        if made.packet.flags & RST != 0 {
            self.known[own].was_reset = true;
            return;
        }
        self.known[own].sent = self.known[own].sent.max(made.upto());
        self.known[other].acknowledged = self.known[other].acknowledged.max(made.acknowledges);
        let window = (i64::from(made.packet.window) << scale).min(1 << 29);
        self.known[other].reach = self.known[other].reach.max(window);
        let is_new = made.upto() > self.known[own].acknowledged;
        let is_last = made.upto() == self.known[own].sent;
        if self.known[own].fin.is_some_and(|fin| made.upto() > fin) {
            (self.known[own].fin, self.known[own].fin_was_first) = (None, false);
        }
        if made.packet.flags & FIN != 0 && self.known[own].fin.is_none() && is_new && is_last {
            self.known[own].fin = Some(made.upto());
            self.known[own].fin_was_first = self.known[other].fin.is_none();
        }
    }

    fn is_over(&self) -> bool {
        self.known.iter().any(|known| known.was_reset) || self.known.iter().all(Known::has_ended)
    }

    /// The packet of the other connection that says the same; a question in place of a SYN.
    fn translate(&mut self, made: &Made, is_believed: bool) -> Packet {
        let (own, other) = (made.direction, 1 - made.direction);
        let (from, to) = self.sides(own);
        let (add, scale_in, scale_out) = (from.at.write_next, from.scale_in, to.scale_out);
        let (base, read_next) = (to.clock, to.at.read_next);
        let back = |number: u32| read_next.wrapping_add(number.wrapping_sub(add));
        let packet = &made.packet;
        let window = in_scale(packet.window, scale_in, scale_out);
        let mut options = Vec::new();
        for option in &packet.options {
            options.push(match option {
                Opt::Timestamps(value, echo) => {
                    let add = self.known[own].clock.unwrap_or(base.wrapping_sub(*value));
                    if is_believed {
                        self.known[own].clock = Some(add);
                    }
                    let echo = self.known[other].clock.map_or(0, |add| echo.wrapping_sub(add));
                    Opt::Timestamps(value.wrapping_add(add), echo)
                }
                Opt::Sack(blocks) => Opt::Sack(
                    blocks.iter().map(|(left, right)| (back(*left), back(*right))).collect(),
                ),
                same => same.clone(),
            });
        }
        let Pair { peer, listen, client, upstream } = self.pair;
        let (source, destination) = if own == 0 { (client, upstream) } else { (listen, peer) };
        let is_question = packet.flags & SYN != 0;
        let acknowledgement = match packet.flags {
            _ if is_question => back(self.known[other].acknowledged as u32),
            flags if flags & ACK == 0 => packet.acknowledgement,
            _ => back(packet.acknowledgement),
        };
        let sequence = if is_question {
            // Its receiver has had everything before.
            self.known[own].acknowledged - packet.payload.len() as i64 - 1
        } else {
            made.from
        };
        Packet {
            source,
            destination,
            sequence: sequence as u32,
            acknowledgement,
            flags: if is_question { ACK } else { packet.flags },
            window,
            options,
            ..packet.clone()
        }
    }
}

/// A window of one scale in another, as far as it can be said there.
fn in_scale(window: u16, from: u8, to: u8) -> u16 {
    ((u64::from(window) << from) >> to).min(0xffff) as u16
}

impl Made {
    /// The position behind it.
    fn upto(&self) -> i64 {
        self.from + self.packet.payload.len() as i64 + i64::from(self.packet.flags & FIN)
    }
}

/// The loaded program and its maps.
struct Program {
    _ebpf: Ebpf,
    fd: i32,
    entries: Array<aya::maps::MapData, Entry>,
    tuples: HashMap<aya::maps::MapData, Tuple, Reference>,
}

impl Program {
    fn load() -> Program {
        let mut ebpf = Ebpf::load(OBJECT).expect("CAP_BPF, and Linux 5.17");
        let tuples = HashMap::try_from(ebpf.take_map("tuples").unwrap()).unwrap();
        let entries: Map = ebpf.take_map("entries").unwrap();
        let entries = Array::try_from(entries).unwrap();
        let program: &mut SchedClassifier =
            ebpf.program_mut("offload").unwrap().try_into().unwrap();
        program.load().unwrap();
        let fd = program.fd().unwrap().as_fd().as_raw_fd();
        Program { _ebpf: ebpf, fd, entries, tuples }
    }

    fn set(&mut self, pair: &Pair, entry: &Entry) {
        self.entries.set(0, entry, 0).unwrap();
        for (direction, tuple) in pair.incoming().unwrap().iter().enumerate() {
            let reference = Reference { entry: 0, direction: direction as u32 };
            self.tuples.insert(tuple, reference, 0).unwrap();
        }
    }

    /// What the proxy's sockets send is found, too.
    fn add_outgoing(&mut self, pair: &Pair) {
        let outgoing = [(pair.client, pair.upstream), (pair.listen, pair.peer)];
        for (direction, (from, to)) in outgoing.into_iter().enumerate() {
            let reference = Reference { entry: 0, direction: direction as u32 | FROM_SOCKET };
            self.tuples.insert(Tuple::new(from, to).unwrap(), reference, 0).unwrap();
        }
    }

    fn clear(&mut self, pair: &Pair) {
        for tuple in pair.incoming().unwrap() {
            self.tuples.remove(&tuple).unwrap();
        }
    }

    fn entry(&self) -> Entry {
        self.entries.get(&0, 0).unwrap()
    }

    fn direction(&self, direction: usize) -> Direction {
        self.entry().directions[direction]
    }

    /// What the program answers, and the frame afterwards.
    fn run(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        self.run_from(frame, 0)
    }

    /// As `run`, of a packet that has come by an interface of this number.
    fn run_from(&self, frame: &[u8], interface: u32) -> (u32, Vec<u8>) {
        // The start of `struct __sk_buff`, up to `ingress_ifindex` and `ifindex`.
        let mut context = [0u32; 11];
        context[9..].fill(interface);
        /// `union bpf_attr` of BPF_PROG_TEST_RUN (linux/bpf.h), as far as it is used.
        #[repr(C)]
        #[derive(Default)]
        struct TestRun {
            program: u32,
            answer: u32,
            size_in: u32,
            size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            context_in: u32,
            context_out: u32,
            context: u64,
        }
        const BPF_PROG_TEST_RUN: libc::c_long = 10;
        let mut out = vec![0u8; frame.len() + 256];
        let mut run = TestRun {
            program: self.fd as u32,
            size_in: frame.len() as u32,
            size_out: out.len() as u32,
            data_in: frame.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
            context_in: size_of_val(&context) as u32,
            context: context.as_ptr() as u64,
            ..TestRun::default()
        };
        // SAFETY: the record and both buffers outlive the call, with the lengths that it names.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut run, size_of::<TestRun>())
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        out.truncate(run.size_out as usize);
        (run.answer, out)
    }
}

fn addresses(random: &mut Random, ipv6: bool) -> Pair {
    let mut address = |kind: u64| {
        let (host, port) = (random.below(200) + 1, 1 + random.below(65_535) as u16);
        let text = match (ipv6, kind) {
            (false, 0) => format!("203.0.113.{host}"),
            (false, 1) => format!("198.51.100.{host}"),
            (false, 2) => format!("192.0.2.{host}"),
            (false, _) => "127.0.0.1".to_owned(),
            (true, 3) => "::1".to_owned(),
            (true, kind) => format!("2001:db8:{kind:x}::{host:x}"),
        };
        SocketAddr::new(text.parse().unwrap(), port)
    };
    Pair { peer: address(0), listen: address(1), client: address(2), upstream: address(3) }
}

fn numbers(random: &mut Random, options: u8) -> Numbers {
    let (read_next, write_next) = (random.number(), random.number());
    let receive_next = read_next.wrapping_add(random.below(100_000) as u32);
    let largest = 1 + random.below(31);
    Numbers {
        at: Position {
            read_next,
            receive_next,
            receive_end: receive_next.wrapping_add(random.below(1 << 22) as u32),
            write_next,
            unacknowledged: write_next.wrapping_sub(random.below(100_000) as u32),
            write_end: write_next.wrapping_add(random.below(1 << 22) as u32),
            largest_window: random.next() as u32 >> largest,
        },
        clock: random.number(),
        scale_in: random.below(15) as u8,
        scale_out: random.below(15) as u8,
        options,
        largest_out: 1460,
        largest_in: 1460,
    }
}

fn options(random: &mut Random) -> Vec<Opt> {
    let timestamps = |random: &mut Random| Opt::Timestamps(random.number(), random.number());
    let sack = |random: &mut Random, most: u64| {
        let blocks = 1 + random.below(most);
        Opt::Sack((0..blocks).map(|_| (random.number(), random.number())).collect())
    };
    match random.below(7) {
        0 => vec![],
        // As Linux sends them.
        1 | 2 => vec![Opt::Nop, Opt::Nop, timestamps(random)],
        3 => vec![Opt::Nop, Opt::Nop, timestamps(random), Opt::Nop, Opt::Nop, sack(random, 3)],
        4 => vec![Opt::Nop, Opt::Nop, sack(random, 4)],
        // As nobody has to lay them out: at odd places, with strangers among them.
        5 => {
            let data = (0..random.below(6)).map(|_| random.next() as u8).collect();
            vec![Opt::Nop, Opt::Other(254, data), timestamps(random), sack(random, 2)]
        }
        _ => {
            let nops = (0..random.below(29)).map(|_| Opt::Nop);
            nops.chain([timestamps(random)]).collect()
        }
    }
}

#[test]
fn every_packet_is_translated_as_the_model_does() {
    let mut program = Program::load();
    let (mut believed, mut over) = (0, 0);
    for seed in 1..=800u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let ipv6 = random.below(2) == 0;
        let pair = addresses(&mut random, ipv6);
        let negotiated = 7;
        let (peer, upstream) = (numbers(&mut random, negotiated), numbers(&mut random, negotiated));
        let entry = translation::entry(&pair, &peer, &upstream).unwrap();
        program.set(&pair, &Entry { state: state::OFFLOADED, ..entry });
        let known = [0, 1].map(|direction| Known::new(&entry.directions[direction]));
        let mut model = Model { pair, peer, upstream, known };
        for step in 0..60 {
            let made = model.make(&mut random);
            let about = || format!("seed {seed}, step {step}: {:?}", made.packet);
            let sent = made.packet.frame();
            let (answer, frame) = program.run(&sent);
            assert_eq!(answer, NEXT, "{}", about());
            if made.packet.flags & SYN != 0 && model.is_over() {
                assert!(frame == sent, "a new connection's: {}", about());
                assert_eq!(program.entry().state, state::OVER, "{}", about());
                over += 1;
                break;
            }
            let is_believed = model.believes(&made);
            believed += u32::from(is_believed);
            if is_believed {
                model.learn(&made);
            }
            let expected = model.translate(&made, is_believed).frame();
            assert!(same(&frame, &expected, ipv6), "{}\n{frame:02x?}\n{expected:02x?}", about());
            let found = program.entry().directions.map(|direction| Known::new(&direction));
            assert_eq!(found, model.known, "{}", about());
        }
        program.clear(&pair);
    }
    // Both kinds are many, or nothing was tried.
    assert!((5_000..15_000).contains(&believed), "{believed} were believed");
    assert!(over > 50, "{over} connections were over");
}

/// Whether two frames are the same but for a checksum of zero, which ones' complement has two forms of.
fn same(frame: &[u8], expected: &[u8], ipv6: bool) -> bool {
    let (ip, tcp) = (24, if ipv6 { 14 + 40 + 16 } else { 14 + 20 + 16 });
    let (mut frame, mut expected) = (frame.to_vec(), expected.to_vec());
    for bytes in [&mut frame, &mut expected] {
        for at in if ipv6 { vec![tcp] } else { vec![ip, tcp] } {
            if bytes[at..at + 2] == [0xff, 0xff] {
                bytes[at..at + 2].fill(0);
            }
        }
    }
    frame == expected
}

#[test]
fn what_belongs_to_nobody_is_left_alone() {
    let mut program = Program::load();
    let mut random = Random(7);
    let pair = addresses(&mut random, false);
    let (peer, upstream) = (numbers(&mut random, 7), numbers(&mut random, 7));
    let entry = translation::entry(&pair, &peer, &upstream).unwrap();
    let packet = Packet {
        source: pair.peer,
        destination: pair.listen,
        sequence: 1,
        acknowledgement: 2,
        flags: ACK,
        window: 3,
        options: vec![Opt::Nop, Opt::Nop, Opt::Timestamps(4, 5)],
        payload: vec![1, 2, 3],
    };
    let untouched = |program: &Program, packet: &Packet| {
        let frame = packet.frame();
        assert_eq!(program.run(&frame), (NEXT, frame));
    };
    // Nobody's, one that is watched, one that is free again, another port.
    untouched(&program, &packet);
    for state in [state::WATCHED, state::FREE, state::OVER] {
        program.set(&pair, &Entry { state, ..entry });
        untouched(&program, &packet);
    }
    program.set(&pair, &Entry { state: state::OFFLOADED, ..entry });
    let mut other = packet.clone();
    other.source.set_port(pair.peer.port() ^ 1);
    untouched(&program, &other);
    // A packet that is cut short, and one that is no TCP.
    let mut cut = packet.frame();
    cut.truncate(14 + 20 + 12);
    assert_eq!(program.run(&cut), (NEXT, cut.clone()));
    let mut udp = packet.frame();
    udp[23] = 17;
    assert_eq!(program.run(&udp), (NEXT, udp.clone()));
    // A new connection with the same addresses and ports has them, once both ends have closed.
    let mut ended = Entry { state: state::OFFLOADED, ..entry };
    for direction in &mut ended.directions {
        (direction.seen, direction.fin) = (saw::FIN, direction.acknowledged as u32);
    }
    program.set(&pair, &ended);
    untouched(&program, &Packet { flags: SYN, ..packet.clone() });
    untouched(&program, &packet);
}

#[test]
fn acknowledgements_of_what_the_sockets_sent_are_theirs_while_they_drain() {
    let mut program = Program::load();
    let mut random = Random(11);
    let pair = addresses(&mut random, false);
    let peer = numbers(&mut random, 7);
    // The numbers wrap within what is counted.
    let write_next = u32::MAX - 10;
    let mut upstream = numbers(&mut random, 7);
    (upstream.at.write_next, upstream.at.unacknowledged) = (write_next, write_next);
    let mut entry = translation::entry(&pair, &peer, &upstream).unwrap();
    (entry.state, entry.draining) = (state::OFFLOADED, 1);
    entry.directions[0].boundary = write_next.wrapping_add(100);
    entry.directions[0].sent = entry.directions[0].acknowledged + 200;
    entry.directions[1].boundary =
        upstream.at.read_next.wrapping_add(entry.directions[1].add_sequence);
    program.set(&pair, &entry);
    let acknowledges = |ahead: u32, payload: usize| Packet {
        source: pair.upstream,
        destination: pair.client,
        sequence: upstream.at.read_next,
        acknowledgement: write_next.wrapping_add(ahead),
        flags: ACK,
        window: 1,
        options: vec![],
        payload: vec![0; payload],
    };
    let run = |packet: &Packet| program.run(&packet.frame()).1 == packet.frame();
    assert!(run(&acknowledges(99, 0)), "the socket's");
    // The socket has not had what was translated since, and its window does not reach there.
    let waits_for = upstream.at.read_next;
    for ahead in [0u32, 1, 1 << 30, 0u32.wrapping_sub(3)] {
        let packet = Packet { sequence: waits_for.wrapping_add(ahead), ..acknowledges(99, 0) };
        let at_socket = if (ahead as i32) > 0 { waits_for } else { packet.sequence };
        let (answer, frame) = program.run(&packet.frame());
        assert_eq!(answer, NEXT);
        assert_eq!(frame, Packet { sequence: at_socket, ..packet }.frame(), "{ahead} ahead");
    }
    assert!(!run(&acknowledges(99, 1)), "it has data for the peer");
    assert!(!run(&acknowledges(100, 0)), "it is of what the peer has sent itself");
    let counted = program.direction(0).acknowledged - entry.directions[0].acknowledged;
    assert_eq!(counted, 100);
    // An old one takes nothing back.
    run(&acknowledges(5, 0));
    assert_eq!(program.direction(0).acknowledged - entry.directions[0].acknowledged, 100);
}

#[test]
fn what_a_draining_socket_sends_acknowledges_what_the_other_end_has() {
    let mut random = Random(12);
    for round in 0..40 {
        let mut program = Program::load();
        let pair = addresses(&mut random, round % 2 == 1);
        let (peer, upstream) = (numbers(&mut random, 7), numbers(&mut random, 7));
        let mut entry = translation::entry(&pair, &peer, &upstream).unwrap();
        (entry.state, entry.draining) = (state::OFFLOADED, 1);
        // The service has acknowledged what its peer has sent since, and told its window with that.
        entry.directions[0].sent += 5_000_000;
        program.set(&pair, &entry);
        program.add_outgoing(&pair);
        let own = Packet {
            source: pair.listen,
            destination: pair.peer,
            sequence: peer.at.unacknowledged,
            acknowledgement: peer.at.receive_next,
            flags: ACK,
            window: 4_000,
            options: vec![Opt::Nop, Opt::Nop, Opt::Timestamps(random.number(), random.number())],
            payload: vec![7; random.below(3) as usize * 700],
        };
        let kept = |packet: &Packet| program.run(&packet.frame()) == (NEXT, packet.frame());
        assert!(kept(&own), "nothing was acknowledged since");
        let since = random.below(2_000_000) as u32 + 250_000;
        let from_service = Packet {
            source: pair.upstream,
            destination: pair.client,
            sequence: upstream.at.receive_next,
            acknowledgement: upstream.at.unacknowledged.wrapping_add(since),
            window: 600,
            payload: vec![],
            options: vec![],
            ..own.clone()
        };
        program.run(&from_service.frame());
        let add_sequence = entry.directions[0].add_sequence;
        let translated = Packet {
            acknowledgement: from_service.acknowledgement.wrapping_sub(add_sequence),
            window: in_scale(600, upstream.scale_in, peer.scale_out),
            ..own.clone()
        };
        assert_eq!(program.run(&own.frame()), (NEXT, translated.frame()));
        // It may have acknowledged more itself; a SYN or a reset is none of these.
        let newer = translated.acknowledgement.wrapping_add(1);
        assert!(kept(&Packet { acknowledgement: newer, ..own.clone() }));
        assert!(kept(&Packet { flags: RST | ACK, ..own.clone() }));
        // Over lo, by which the service's packets come; and the same packet by another interface.
        const LO: u32 = 1;
        for (services, expected) in [(LO, &translated), (LO + 1, &own)] {
            entry = program.entry();
            entry.directions[1].in_interface = services;
            program.set(&pair, &entry);
            assert_eq!(program.run_from(&own.frame(), LO), (NEXT, expected.frame()), "{services}");
        }
        // Once nothing drains, there is nobody whose packets these are.
        entry.draining = 0;
        program.set(&pair, &entry);
        let kept = program.run(&own.frame()) == (NEXT, own.frame());
        assert!(kept, "it drains no more");
    }
}

#[test]
fn the_clock_goes_on_and_is_never_ahead_of_the_socket_s() {
    let mut program = Program::load();
    let mut random = Random(13);
    let pair = addresses(&mut random, false);
    let (peer, upstream) = (numbers(&mut random, 7), numbers(&mut random, 7));
    let mut entry = translation::entry(&pair, &peer, &upstream).unwrap();
    entry.state = state::OFFLOADED;
    let packet = Packet {
        source: pair.peer,
        destination: pair.listen,
        sequence: peer.at.receive_next,
        acknowledgement: peer.at.unacknowledged,
        flags: ACK,
        window: 3,
        options: vec![Opt::Nop, Opt::Nop, Opt::Timestamps(77, 5)],
        payload: vec![],
    };
    for late_us in [0, 400, 999, 1_000, 5_500, 2_000_000] {
        let direction = &mut entry.directions[0];
        direction.clock_at = monotonic_ns() - late_us * 1_000;
        let clock_at = direction.clock_at;
        program.set(&pair, &entry);
        program.run(&packet.frame());
        let found = program.direction(0);
        assert_eq!(found.timestamp_known, 1);
        let shown = 77u32.wrapping_add(found.timestamp_add).wrapping_sub(upstream.clock);
        // What the socket shows at least, whenever in between its millisecond began.
        let most = ((monotonic_ns() - clock_at) / 1_000_000) as u32;
        assert!((late_us as u32 / 1_000..=most).contains(&shown), "{shown} after {late_us} us");
    }
}
