//! The BPF program itself, run by the kernel on packets of this test's making (BPF_PROG_TEST_RUN), against a
//! model that writes each packet anew: other numbers, other addresses, checksums from scratch.
//!
//! It takes CAP_BPF and CAP_NET_ADMIN, so it has a feature of its own, with which tests/all.ts builds for root.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use aya::maps::{Array, HashMap, Map};
use aya::programs::SchedClassifier;
use aya::Ebpf;

use super::record::{state, Direction, Entry, Reference, Tuple};
use super::translation::{self, Pair};
use super::OBJECT;
use crate::net::socket::Numbers;

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

/// What is known of a direction: the model's own state.
#[derive(Clone, Copy, Default)]
struct Clock {
    add: Option<u32>,
}

/// Both connections, as the model sees them.
struct Model {
    pair: Pair,
    peer: Numbers,
    upstream: Numbers,
    clocks: [Clock; 2],
}

impl Model {
    /// The packet of the other connection that says the same.
    fn translate(&mut self, packet: &Packet, direction: usize) -> Packet {
        let (from, to) = match direction {
            0 => (&self.peer, &self.upstream),
            _ => (&self.upstream, &self.peer),
        };
        // How far behind the next byte it is, counted from the other connection's.
        let forward = |number: u32| to.write_next.wrapping_add(number.wrapping_sub(from.read_next));
        let back = |number: u32| to.read_next.wrapping_add(number.wrapping_sub(from.write_next));
        let window = (u64::from(packet.window) << from.scale_in) >> to.scale_out;
        let (own, other) = (direction, 1 - direction);
        let mut options = Vec::new();
        for option in &packet.options {
            options.push(match option {
                Opt::Timestamps(value, echo) => {
                    let base = to.clock;
                    let add = *self.clocks[own].add.get_or_insert(base.wrapping_sub(*value));
                    let echo = self.clocks[other].add.map_or(0, |add| echo.wrapping_sub(add));
                    Opt::Timestamps(value.wrapping_add(add), echo)
                }
                Opt::Sack(blocks) => Opt::Sack(
                    blocks.iter().map(|(left, right)| (back(*left), back(*right))).collect(),
                ),
                same => same.clone(),
            });
        }
        let Pair { peer, listen, client, upstream } = self.pair;
        let (source, destination) =
            if direction == 0 { (client, upstream) } else { (listen, peer) };
        Packet {
            source,
            destination,
            sequence: forward(packet.sequence),
            acknowledgement: if packet.flags & ACK == 0 {
                packet.acknowledgement
            } else {
                back(packet.acknowledgement)
            },
            window: window.min(0xffff) as u16,
            options,
            ..packet.clone()
        }
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

    fn clear(&mut self, pair: &Pair) {
        for tuple in pair.incoming().unwrap() {
            self.tuples.remove(&tuple).unwrap();
        }
    }

    fn direction(&self, direction: usize) -> Direction {
        self.entries.get(&0, 0).unwrap().directions[direction]
    }

    /// What the program answers, and the frame afterwards.
    fn run(&self, frame: &[u8]) -> (u32, Vec<u8>) {
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
        }
        const BPF_PROG_TEST_RUN: libc::c_long = 10;
        let mut out = vec![0u8; frame.len() + 256];
        let mut run = TestRun {
            program: self.fd as u32,
            size_in: frame.len() as u32,
            size_out: out.len() as u32,
            data_in: frame.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
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
    Numbers {
        read_next: random.number(),
        write_next: random.number(),
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
    for seed in 1..=400u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let ipv6 = random.below(2) == 0;
        let pair = addresses(&mut random, ipv6);
        let negotiated = 7;
        let (peer, upstream) = (numbers(&mut random, negotiated), numbers(&mut random, negotiated));
        let entry = translation::entry(&pair, &peer, &upstream).unwrap();
        program.set(&pair, &Entry { state: state::OFFLOADED, ..entry });
        let mut model = Model { pair, peer, upstream, clocks: [Clock::default(); 2] };
        for step in 0..40 {
            let direction = random.below(2) as usize;
            let (source, destination) = match direction {
                0 => (pair.peer, pair.listen),
                _ => (pair.upstream, pair.client),
            };
            let length = random.below(1400) * random.below(2);
            let flags = match random.below(8) {
                0 => ACK | FIN,
                1 => RST,
                _ => ACK,
            };
            let packet = Packet {
                source,
                destination,
                sequence: random.number(),
                acknowledgement: random.number(),
                flags,
                window: random.next() as u16,
                options: options(&mut random),
                payload: (0..length).map(|_| random.next() as u8).collect(),
            };
            let (answer, frame) = program.run(&packet.frame());
            let expected = model.translate(&packet, direction).frame();
            assert_eq!(answer, NEXT, "seed {seed}, step {step}: {packet:?}");
            assert!(
                same(&frame, &expected, ipv6),
                "seed {seed}, step {step}: {packet:?}\n{frame:02x?}\n{expected:02x?}"
            );
        }
        program.clear(&pair);
    }
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
    // A new connection with the same addresses and ports has them.
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
    let upstream = Numbers { write_next: u32::MAX - 10, ..numbers(&mut random, 7) };
    let mut entry = translation::entry(&pair, &peer, &upstream).unwrap();
    (entry.state, entry.draining) = (state::OFFLOADED, 1);
    entry.directions[0].boundary = upstream.write_next.wrapping_add(100);
    program.set(&pair, &entry);
    let acknowledges = |ahead: u32, payload: usize| Packet {
        source: pair.upstream,
        destination: pair.client,
        sequence: upstream.read_next,
        acknowledgement: upstream.write_next.wrapping_add(ahead),
        flags: ACK,
        window: 1,
        options: vec![],
        payload: vec![0; payload],
    };
    let run = |packet: &Packet| program.run(&packet.frame()).1 == packet.frame();
    assert!(run(&acknowledges(99, 0)), "the socket's");
    assert!(!run(&acknowledges(99, 1)), "it has data for the peer");
    assert!(!run(&acknowledges(100, 0)), "it is of what the peer has sent itself");
    let counted = program.direction(0).acknowledged - entry.directions[0].acknowledged;
    assert_eq!(counted, 100);
    // An old one takes nothing back.
    run(&acknowledges(5, 0));
    assert_eq!(program.direction(0).acknowledged - entry.directions[0].acknowledged, 100);
}
