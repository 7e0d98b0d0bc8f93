//! The interface of the UDP side to the outside: the kernel and the decoder in the program (`kernel.rs`), a model of both
//! in the simulation. Everything else under `udp/` is logic.

use std::io;
use std::net::SocketAddr;

use super::flow::{Flow, ReplyRoute};
use super::path::Path;
use crate::observe::access::Ending;
use crate::observe::refusal::Refusal;
use crate::observe::stats::Counter;
use crate::trust::table::HeaderRule;
use crate::worker::decision::Decision;
use crate::worker::poll::Key;

/// One datagram of a batch.
pub struct Received<'a> {
    pub data: &'a [u8],
    pub path: Path,
    /// In the upper six bits.
    pub dscp: u8,
    /// Longer than any UDP datagram can be.
    pub truncated: bool,
}

/// Datagrams that came together.
pub trait Batch {
    /// How many there are.
    fn len(&self) -> usize;
    /// One of them, with where it came from.
    fn get(&self, slot: usize) -> Received<'_>;
    /// The bytes of one of them.
    fn data(&self, slot: usize) -> &[u8];
}

/// What of a datagram goes to the upstream.
#[derive(Clone, Copy)]
pub struct Payload<'a> {
    pub data: &'a [u8],
    /// In the upper six bits.
    pub dscp: u8,
}

/// What became of datagrams that were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    pub sent: u64,
    pub lost: u64,
    /// Bytes of the datagrams sent.
    pub bytes: u64,
    /// ICMP errors met on the way.
    pub unreachable: u64,
}

/// Datagrams and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    pub datagrams: u64,
    pub bytes: u64,
}

/// The error of a flow that is not opened because its listener has as many as it may (`max-flows`).
pub fn over_limit() -> io::Error {
    io::ErrorKind::QuotaExceeded.into()
}

/// Whether that is why a flow was not opened. No call on a socket has EDQUOT, the errno of this kind.
pub fn is_over_limit(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::QuotaExceeded
}

/// What belongs to a flow at the edge.
pub trait Kinds {
    /// An upstream socket; dropping it closes it.
    type Socket;
    /// A flow's entry in the access log.
    type Account;
    /// What the outside needs of a port.
    type Port;
}

/// The outside of one worker's UDP side.
pub trait Edge<K: Kinds> {
    /// Milliseconds since the proxy was opened. Does not change within a turn.
    fn now(&self) -> u64;

    /// What a peer must send to a port; nothing if it may send nothing.
    fn rule(&self, port: &K::Port, peer: SocketAddr) -> Option<HeaderRule>;

    /// Where the datagrams with this header go that came by a path, and from where the upstream is to see
    /// them come.
    fn decide(
        &mut self,
        port: &K::Port,
        header: &[u8],
        carrier: u32,
        path: &Path,
        peer: SocketAddr,
    ) -> Result<Decision, Refusal>;

    /// As `decide`, of datagrams without a header.
    fn decide_bare(
        &mut self,
        port: &K::Port,
        path: &Path,
        peer: SocketAddr,
    ) -> Result<Decision, Refusal>;

    /// Counts what was decided last, as accepted.
    fn count_accepted(&mut self, port: &K::Port, decision: &Decision);

    /// Opens an upstream socket.
    ///
    /// # Errors
    /// Those of the operating system, and `over_limit`.
    fn open(
        &mut self,
        port: &K::Port,
        decision: &Decision,
        peer: SocketAddr,
    ) -> io::Result<K::Socket>;

    /// From now on events of the socket carry this key.
    fn watch(&mut self, socket: &K::Socket, key: Key);

    /// Begins a flow's entry in the access log, if one is kept, with the header that was decoded
    /// last.
    fn account(
        &mut self,
        port: &K::Port,
        header: &[u8],
        peer: SocketAddr,
        decision: &Decision,
    ) -> Option<K::Account>;

    /// Writes a flow's entry in the access log.
    fn close_account(&mut self, account: K::Account, flow: &Flow<K::Socket>, ending: Ending);

    /// Whether flows count their traffic.
    fn counts_traffic(&self) -> bool;

    /// Sends payloads to the upstream, in order. Clears `segmenting` when the device cannot segment.
    fn send<'a>(
        &mut self,
        socket: &K::Socket,
        payloads: impl Iterator<Item = Payload<'a>>,
        segmenting: &mut bool,
    ) -> Sent;

    /// Receives what the upstream sent, as far as there is room, to be sent from a port along a route.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing, or nothing that can be sent from where the peer spoke to; otherwise an ICMP error, which is cleared by that.
    fn receive_replies(
        &mut self,
        port: &K::Port,
        socket: &K::Socket,
        route: &ReplyRoute,
    ) -> io::Result<Volume>;

    /// Whether there is no more room for replies.
    fn is_full_of_replies(&self) -> bool;

    /// Sends the replies that were received to their peers.
    fn send_replies(&mut self);

    /// Takes an error off a socket that has no route for replies yet.
    fn clear_error(&mut self, socket: &K::Socket);

    /// Adds to a counter.
    fn count(&mut self, port: &K::Port, counter: Counter, by: u64);

    /// Takes one off a gauge.
    fn lower(&mut self, port: &K::Port, gauge: Counter);

    /// Counts a datagram that is refused, and logs it now and then.
    fn refuse(&mut self, port: &K::Port, refusal: Refusal, received: &Received);

    /// Logs, now and then, that datagrams are dropped because a flow cannot be opened.
    fn flow_failed(&mut self, port: &K::Port, decision: &Decision, peer: SocketAddr, errno: i32);

    /// Logs that a flow was opened.
    fn flow_opened(&mut self, port: &K::Port, decision: &Decision, peer: SocketAddr);

    /// Logs that a flow was closed.
    fn flow_closed(&mut self, port: &K::Port, decision: &Decision);

    /// Logs, now and then, that a listener has as many flows as it may, and one of them made room for
    /// another.
    fn limit_reached(&mut self, port: &K::Port);

    /// Logs, at a limited rate, that one of this many flows was evicted for another.
    fn flows_full(&mut self, port: &K::Port, flows: usize);
}
