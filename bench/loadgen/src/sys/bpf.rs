//! A BPF program on the way out of loopback: assembled here, loaded and attached with bpf(2).
//!
//! The program is the cheapest service there is: it turns TCP segments that leave for a server into
//! that server's replies, so that everything comes back as it was sent and nobody wakes up for it.
//! Connections are opened by a real socket: segments with SYN, FIN or RST pass as they are. Swapped
//! fields leave every checksum as it was. Timestamps are not swapped, so they must be off
//! (`net.ipv4.tcp_timestamps=0`), or the sender takes the reply for an old one.

use std::ffi::c_long;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::check;

/// An instruction as the kernel takes it: operation, registers, offset, constant. See RFC 9669.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    operation: u8,
    /// The source in the upper half, the destination in the lower.
    registers: u8,
    offset: i16,
    constant: i32,
}

/// A register: `R0` is what is returned, `R1` the context at the start.
type Register = u8;
const R0: Register = 0;
const R1: Register = 1;
const PACKET: Register = 2;
const END: Register = 3;
const A: Register = 4;
const B: Register = 5;

/// How wide a load or store is, as the operation's bits say it.
#[derive(Clone, Copy)]
enum Width {
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
}

const fn instruction(
    operation: u8,
    destination: Register,
    source: Register,
    offset: i16,
    constant: i32,
) -> Instruction {
    Instruction { operation, registers: source << 4 | destination, offset, constant }
}

/// `to = *(from + offset)`.
const fn load(width: Width, to: Register, from: Register, offset: i16) -> Instruction {
    instruction(0x61 | width as u8, to, from, offset, 0)
}

/// `*(to + offset) = from`.
const fn store(width: Width, to: Register, offset: i16, from: Register) -> Instruction {
    instruction(0x63 | width as u8, to, from, offset, 0)
}

/// `to = from`, all 64 bits.
const fn copy(to: Register, from: Register) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

/// `to = constant`.
const fn set(to: Register, constant: i32) -> Instruction {
    instruction(0xb7, to, 0, 0, constant)
}

/// `to += constant`.
const fn add(to: Register, constant: i32) -> Instruction {
    instruction(0x07, to, 0, 0, constant)
}

/// `to &= constant`.
const fn and(to: Register, constant: i32) -> Instruction {
    instruction(0x57, to, 0, 0, constant)
}

/// `if register != constant` (lower 32 bits), to the end.
const fn pass_unless_equal(register: Register, constant: i32) -> Instruction {
    instruction(0x56, register, 0, TO_THE_END, constant)
}

/// `if a > b`, to the end.
const fn pass_if_above(a: Register, b: Register) -> Instruction {
    instruction(0x2d, a, b, TO_THE_END, 0)
}

const EXIT: Instruction = instruction(0x95, 0, 0, 0, 0);

/// A jump whose offset `assemble` fills in.
const TO_THE_END: i16 = -1;

/// Offsets in `struct __sk_buff` of linux/bpf.h.
const SKB_DATA: i16 = 76;
const SKB_DATA_END: i16 = 80;

/// Offsets in a frame: Ethernet of 14 bytes (loopback has it, too), IPv4 of 20, TCP.
const ETHER_TYPE: i16 = 12;
const IP_VERSION_LENGTH: i16 = 14;
const IP_PROTOCOL: i16 = 23;
const IP_SOURCE: i16 = 26;
const IP_DESTINATION: i16 = 30;
const TCP_SOURCE: i16 = 34;
const TCP_DESTINATION: i16 = 36;
const TCP_SEQUENCE: i16 = 38;
const TCP_ACKNOWLEDGMENT: i16 = 42;
const TCP_FLAGS: i16 = 47;
const HEADERS_END: i32 = 54;

const FIN_SYN_RST: i32 = 0b111;

/// The program that sends everything for `server` back.
fn echo(server: SocketAddrV4) -> Vec<Instruction> {
    use Width::{Byte, Half, Word};
    // Fields are compared as they lie in memory.
    let address = i32::from_ne_bytes(server.ip().octets());
    let port = i32::from(server.port().to_be());
    let ipv4 = i32::from((libc::ETH_P_IP as u16).to_be());
    let mut program = vec![
        load(Word, PACKET, R1, SKB_DATA),
        load(Word, END, R1, SKB_DATA_END),
        copy(A, PACKET),
        add(A, HEADERS_END),
        pass_if_above(A, END),
        load(Half, A, PACKET, ETHER_TYPE),
        pass_unless_equal(A, ipv4),
        load(Byte, A, PACKET, IP_VERSION_LENGTH),
        pass_unless_equal(A, 0x45),
        load(Byte, A, PACKET, IP_PROTOCOL),
        pass_unless_equal(A, libc::IPPROTO_TCP),
        load(Word, A, PACKET, IP_DESTINATION),
        pass_unless_equal(A, address),
        load(Half, A, PACKET, TCP_DESTINATION),
        pass_unless_equal(A, port),
        load(Byte, A, PACKET, TCP_FLAGS),
        and(A, FIN_SYN_RST),
        pass_unless_equal(A, 0),
    ];
    for (width, one, other) in [
        (Word, IP_SOURCE, IP_DESTINATION),
        (Half, TCP_SOURCE, TCP_DESTINATION),
        (Word, TCP_SEQUENCE, TCP_ACKNOWLEDGMENT),
    ] {
        program.extend([
            load(width, A, PACKET, one),
            load(width, B, PACKET, other),
            store(width, PACKET, one, B),
            store(width, PACKET, other, A),
        ]);
    }
    assemble(program)
}

/// Adds the end, at which the packet continues, and points the jumps there.
fn assemble(mut program: Vec<Instruction>) -> Vec<Instruction> {
    let end = program.len();
    for (index, instruction) in program.iter_mut().enumerate() {
        if instruction.offset == TO_THE_END {
            // A jump counts from the instruction behind it.
            instruction.offset = (end - index - 1) as i16;
        }
    }
    program.extend([set(R0, PASS), EXIT]);
    program
}

/// `TCX_PASS` of linux/bpf.h.
const PASS: i32 = 0;

/// Commands, types and places of linux/bpf.h.
const BPF_PROG_LOAD: c_long = 5;
const BPF_LINK_CREATE: c_long = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_EGRESS: u32 = 47;

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`; what is behind it counts as zero.
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// The same for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkAttributes {
    program: u32,
    interface: u32,
    place: u32,
    flags: u32,
}

/// Has everything that leaves through loopback for `server` come back, until the returned
/// descriptor is closed. It needs Linux 6.6 and the machine's own root.
pub fn echo_on_loopback(server: SocketAddrV4) -> io::Result<OwnedFd> {
    let program = echo(server);
    let program = bpf(
        BPF_PROG_LOAD,
        &LoadAttributes {
            program_type: BPF_PROG_TYPE_SCHED_CLS,
            instruction_count: program.len() as u32,
            instructions: program.as_ptr() as u64,
            license: c"MIT".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
        },
    )?;
    // SAFETY: the name is a string with its end.
    let loopback = unsafe { libc::if_nametoindex(c"lo".as_ptr()) };
    bpf(
        BPF_LINK_CREATE,
        &LinkAttributes {
            program: program.as_raw_fd() as u32,
            interface: loopback,
            place: BPF_TCX_EGRESS,
            flags: 0,
        },
    )
}

fn bpf<T>(command: c_long, attributes: &T) -> io::Result<OwnedFd> {
    let attributes: *const T = attributes;
    // SAFETY: the attributes are valid for reading their own size, what they point to outlives the
    // call, and the descriptor is new and ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>());
        Ok(OwnedFd::from_raw_fd(check(fd as i32)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_leads_to_the_end() {
        let program = echo("127.0.0.1:5000".parse().unwrap());
        let jumps: Vec<usize> = (0..program.len())
            .filter(|index| matches!(program[*index].operation, 0x56 | 0x2d))
            .map(|index| index + 1 + program[index].offset as usize)
            .collect();
        assert_eq!(jumps, [program.len() - 2; 7]);
        assert_eq!(program[program.len() - 2..], [set(R0, PASS), EXIT]);
    }
}
