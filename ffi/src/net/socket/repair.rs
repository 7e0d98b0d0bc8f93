//! Where a connection is: its sequence numbers, and leaving it without a word to the other end.
//!
//! TCP_REPAIR was made to move connections between hosts (Linux 3.5); it takes CAP_NET_ADMIN. What is
//! read here changes nothing of the connection.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};

use libc::{c_int, c_void, socklen_t};
use socket2::{Domain, Socket, Type};

use super::call::check;
use super::options::{reset_on_close, set_int, set_transparent};

/// Values of TCP_REPAIR (linux/tcp.h).
const ON: c_int = 1;
const OFF: c_int = 0;
/// Off without a window probe, which would be a packet.
const OFF_SILENTLY: c_int = -1;

/// Values of TCP_REPAIR_QUEUE.
const NO_QUEUE: c_int = 0;
const RECEIVE_QUEUE: c_int = 1;
const SEND_QUEUE: c_int = 2;

/// The state in which both directions are open (netinet/tcp.h).
const ESTABLISHED: u8 = 1;
/// Bits of `tcpi_options`: timestamps, selective acknowledgements, window scaling.
const NEGOTIATED: u8 = 1 | 2 | 4;
const TIMESTAMPS: u8 = 1;
/// What the timestamps take of each segment (RFC 7323, appendix A).
const TIMESTAMPS_LENGTH: u32 = 12;
/// A path without a limit worth the name: loopback.
const LARGEST_MTU: u32 = 65_535;

/// Where a connection is, as one of its sockets sees it. Sequence numbers are in host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The number of the byte that the next read brings.
    pub read_next: u32,
    /// That of the byte that the other end sends next, and of the first one that it may not send yet.
    pub receive_next: u32,
    pub receive_end: u32,
    /// That of the byte that the next write sends, and of the first one that is not acknowledged yet.
    pub write_next: u32,
    pub unacknowledged: u32,
    /// That of the first byte that this end may not send yet.
    pub write_end: u32,
    /// The largest window that the other end has had, in bytes.
    pub largest_window: u32,
}

/// Where a connection is, and what both ends have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    pub at: Position,
    /// The socket's clock: the TSval that it would send now.
    pub clock: u32,
    /// The scale of windows that come in, and of those that go out.
    pub scale_in: u8,
    pub scale_out: u8,
    /// Which of timestamps, SACK and window scaling both ends have agreed on.
    pub options: u8,
    /// The largest segments that this end may send, and that it has asked for: data and TCP options.
    pub largest_out: u32,
    pub largest_in: u32,
}

impl Numbers {
    /// Whether its segments have timestamps (RFC 7323).
    pub fn has_timestamps(&self) -> bool {
        self.options & TIMESTAMPS != 0
    }
}

/// Where a connection is; `None` where one of its directions has ended.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN.
pub fn numbers(fd: RawFd, is_ipv4: bool) -> io::Result<Option<Numbers>> {
    let info = info(fd)?;
    if info.tcpi_state != ESTABLISHED {
        return Ok(None);
    }
    set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR, ON)?;
    let at = in_repair(fd);
    // In repair mode: what the other end has announced, not what the window allows now.
    let announced: io::Result<u32> = get(fd, libc::TCP_MAXSEG);
    end_repair(fd)?;
    let options = info.tcpi_options & NEGOTIATED;
    let own = if options & TIMESTAMPS == 0 { 0 } else { TIMESTAMPS_LENGTH };
    Ok(Some(Numbers {
        at: at?,
        clock: get(fd, libc::TCP_TIMESTAMP)?,
        scale_in: info.tcpi_snd_rcv_wscale & 15,
        scale_out: info.tcpi_snd_rcv_wscale >> 4,
        options,
        largest_out: announced?.min(largest_segment(info.tcpi_pmtu, is_ipv4)),
        largest_in: info.tcpi_advmss + own,
    }))
}

/// The largest segment of a connection whose packets may not be larger than loopback's, so that another one
/// can be asked not to bring larger ones; `None` over loopback, or where the kernel does not say.
pub fn largest_segment_of_path(fd: RawFd, is_ipv4: bool) -> Option<u32> {
    let info = info(fd).ok()?;
    let own = if info.tcpi_options & TIMESTAMPS == 0 { 0 } else { TIMESTAMPS_LENGTH };
    let most = largest_segment(info.tcpi_pmtu, is_ipv4);
    (info.tcpi_pmtu < LARGEST_MTU).then(|| most.min(info.tcpi_snd_mss + own))
}

/// Asks the other end for segments no larger than that; before connect(2) (tcp(7), TCP_MAXSEG).
pub fn ask_for_segments(fd: RawFd, largest: u32) {
    let _ = set_int(fd, libc::SOL_TCP, libc::TCP_MAXSEG, largest as c_int);
}

/// What a packet of so many bytes has room for, without the headers of IP and TCP.
fn largest_segment(packet: u32, is_ipv4: bool) -> u32 {
    packet.saturating_sub(if is_ipv4 { 40 } else { 60 })
}

/// Where a connection is; in whatever state it is.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN.
pub fn position(fd: RawFd) -> io::Result<Position> {
    set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR, ON)?;
    let at = in_repair(fd);
    end_repair(fd)?;
    at
}

/// `struct tcp_repair_window` (linux/tcp.h; Linux 4.8).
#[repr(C)]
#[derive(Default)]
struct Windows {
    last_update: u32,
    out: u32,
    largest_out: u32,
    incoming: u32,
    incoming_from: u32,
}

/// The position of a socket that is in repair mode.
fn in_repair(fd: RawFd) -> io::Result<Position> {
    set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR_QUEUE, RECEIVE_QUEUE)?;
    // What has come in is read in two calls, between which more may come.
    let (receive_next, waits) = loop {
        let before: u32 = get(fd, libc::TCP_QUEUE_SEQ)?;
        let waits = waiting(fd, libc::FIONREAD)?;
        if before == get(fd, libc::TCP_QUEUE_SEQ)? {
            break (before, waits);
        }
    };
    set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR_QUEUE, SEND_QUEUE)?;
    let write_next: io::Result<u32> = get(fd, libc::TCP_QUEUE_SEQ);
    set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR_QUEUE, NO_QUEUE)?;
    let write_next = write_next?;
    // Before the window, so that its end is never taken to be further than it is.
    let unacknowledged = write_next.wrapping_sub(unacknowledged(fd)?);
    let mut windows = Windows::default();
    read_option(fd, libc::TCP_REPAIR_WINDOW, &mut windows)?;
    Ok(Position {
        read_next: receive_next.wrapping_sub(waits),
        receive_next,
        receive_end: windows.incoming_from.wrapping_add(windows.incoming),
        write_next,
        unacknowledged,
        write_end: unacknowledged.wrapping_add(windows.out),
        largest_window: windows.largest_out,
    })
}

/// Ends repair mode as if it had not been. It takes SO_REUSEADDR away, without which the port could not be bound
/// again as long as the connection, or its TIME_WAIT, has it.
fn end_repair(fd: RawFd) -> io::Result<()> {
    set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR, OFF_SILENTLY)?;
    set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
}

/// A socket's clock in milliseconds: the TSval that it would send now (tcp(7), TCP_TIMESTAMP).
///
/// # Errors
/// Those of getsockopt(2).
pub fn clock(fd: RawFd) -> io::Result<u32> {
    get(fd, libc::TCP_TIMESTAMP)
}

/// The number of the next byte to write.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN.
pub fn write_next(fd: RawFd) -> io::Result<u32> {
    Ok(position(fd)?.write_next)
}

/// Bytes that were written and that the other end has not acknowledged (tcp(7), SIOCOUTQ).
pub fn unacknowledged(fd: RawFd) -> io::Result<u32> {
    waiting(fd, libc::TIOCOUTQ)
}

/// Bytes that were written and not sent yet (linux/sockios.h, SIOCOUTQNSD).
pub fn unsent(fd: RawFd) -> io::Result<u32> {
    /// libc has no name for it.
    const SIOCOUTQNSD: libc::Ioctl = 0x894b;
    waiting(fd, SIOCOUTQNSD)
}

/// Bytes that have come and were not read (tcp(7), SIOCINQ).
pub fn unread(fd: RawFd) -> io::Result<u32> {
    waiting(fd, libc::FIONREAD)
}

/// Sends what it owes of acknowledgements now (tcp(7), TCP_QUICKACK).
pub fn acknowledge(fd: RawFd) {
    // An acknowledgement that waits is late, and no more.
    let _ = set_int(fd, libc::SOL_TCP, libc::TCP_QUICKACK, 1);
}

/// From here on the socket sends nothing, and closing it is not seen by the other end.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN.
pub fn leave(fd: RawFd) -> io::Result<()> {
    keep_silent(fd);
    set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR, ON)
}

/// Where one end of a connection is that no socket of this host has any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub mark: u32,
    /// The next number that `to` waits for, and the one that it sends next.
    pub sequence: u32,
    pub acknowledgement: u32,
    /// A TSval that is not newer than what `to` has had; `None` without timestamps.
    pub timestamp: Option<u32>,
}

/// Resets one end of such a connection.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN, and those of bind(2): another socket may have the address by now.
pub fn reset(end: End) -> io::Result<()> {
    let socket = stand_in(end)?;
    let fd = socket.as_raw_fd();
    set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR, OFF)?;
    reset_on_close(fd);
    Ok(())
}

/// Asks one end of such a connection whether it is there, with an acknowledgment of old bytes (RFC 9293 3.8.4). The
/// answer reaches no socket.
///
/// # Errors
/// As of `reset`.
pub fn ask(end: End) -> io::Result<()> {
    let socket = stand_in(end)?;
    let fd = socket.as_raw_fd();
    // The end of repair mode sends it; in that mode again, closing the socket sends nothing.
    set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR, OFF)?;
    set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR, ON)
}

/// As `ask`, of a connection that still has its socket: whatever answers also comes there.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN.
pub fn ask_by(fd: RawFd) -> io::Result<()> {
    set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR, ON)?;
    set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR, OFF)?;
    set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
}

/// From here on the kernel does not ask the other end by itself (socket(7), SO_KEEPALIVE).
pub fn keep_silent(fd: RawFd) {
    // It asks once too often, and no more.
    let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 0);
}

/// Limits the window that the other end is offered next; what it was offered stays (tcp(7), TCP_WINDOW_CLAMP).
pub fn limit_window(fd: RawFd, bytes: u32) {
    // Without it, a connection may not be handed over, and no more.
    let _ = set_int(fd, libc::SOL_TCP, libc::TCP_WINDOW_CLAMP, bytes.min(i32::MAX as u32) as c_int);
}

/// A socket in repair mode that is where the one was that is gone.
fn stand_in(end: End) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(end.to), Type::STREAM, None)?;
    let fd = socket.as_raw_fd();
    socket.set_reuse_address(true)?;
    if end.mark != 0 {
        socket.set_mark(end.mark)?;
    }
    set_transparent(fd, end.from.is_ipv4())?;
    set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR, ON)?;
    for (queue, number) in [(SEND_QUEUE, end.sequence), (RECEIVE_QUEUE, end.acknowledgement)] {
        set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR_QUEUE, queue)?;
        set_int(fd, libc::SOL_TCP, libc::TCP_QUEUE_SEQ, number as c_int)?;
    }
    set_int(fd, libc::SOL_TCP, libc::TCP_REPAIR_QUEUE, NO_QUEUE)?;
    socket.bind(&end.from.into())?;
    // In repair mode it is connected at once, without a packet.
    socket.connect(&end.to.into())?;
    if let Some(clock) = end.timestamp {
        // A packet without timestamps would be dropped without an answer (RFC 7323 3.2).
        set_option(fd, libc::TCP_REPAIR_OPTIONS, &Negotiated { code: 8, value: 0 })?;
        // Bit 0 would ask for microseconds (Linux 6.7).
        set_int(fd, libc::SOL_TCP, libc::TCP_TIMESTAMP, (clock & !1) as c_int)?;
    }
    Ok(socket)
}

/// `struct tcp_repair_opt` (linux/tcp.h): an option that both ends have agreed on, by its number.
#[repr(C)]
struct Negotiated {
    code: u32,
    value: u32,
}

fn set_option<T>(fd: RawFd, name: c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as socklen_t;
    let value: *const c_void = std::ptr::from_ref(value).cast();
    // SAFETY: `value` has `length` bytes, which outlive the call.
    check(unsafe { libc::setsockopt(fd, libc::SOL_TCP, name, value, length) })?;
    Ok(())
}

fn info(fd: RawFd) -> io::Result<libc::tcp_info> {
    // SAFETY: zeroes are a valid `tcp_info`.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    read_option(fd, libc::TCP_INFO, &mut info)?;
    Ok(info)
}

fn get(fd: RawFd, name: c_int) -> io::Result<u32> {
    let mut value = 0u32;
    read_option(fd, name, &mut value)?;
    Ok(value)
}

fn read_option<T>(fd: RawFd, name: c_int, value: &mut T) -> io::Result<()> {
    let mut length = size_of::<T>() as socklen_t;
    let value: *mut c_void = std::ptr::from_mut(value).cast();
    // SAFETY: `value` has `length` bytes, which outlive the call; the types that are read are of
    // integers alone, so that any bytes are valid.
    check(unsafe { libc::getsockopt(fd, libc::SOL_TCP, name, value, &mut length) })?;
    Ok(())
}

fn waiting(fd: RawFd, what: libc::Ioctl) -> io::Result<u32> {
    let mut bytes: c_int = 0;
    // SAFETY: both requests write one `int`.
    check(unsafe { libc::ioctl(fd, what, &raw mut bytes) })?;
    Ok(bytes as u32)
}
