//! Relayed connections that the kernel takes over: a BPF program at tc ingress translates the packets of both
//! connections into each other, so that peer and service are one connection from then on
//! (docs/decisions/0085-offload.md).
//!
//! `record.rs` is what the program shares with this one, `translation.rs` the arithmetic, `entries.rs` the
//! shared memory, `grace.rs` the wait for packets on their way. `pins.rs` keeps all of it beyond the process, and
//! `adopted.rs` has what earlier ones left. `tcp/offloading.rs` decides when.

mod adopted;
mod entries;
mod grace;
pub mod links;
pub mod pins;
pub mod record;
pub mod translation;

use std::collections::VecDeque;
use std::error::Error;
use std::ffi::CStr;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use aya::maps::{HashMap, Map, MapData};
use aya::programs::links::FdLink;
use aya::programs::tc::SchedClassifierLinkId;
use aya::programs::{tc, SchedClassifier, TcAttachType};
use aya::Ebpf;

use crate::abi::layout::AdoptionRecord;
use crate::net::socket::{self, End};
use crate::system::sync::lock;
use adopted::Adopted;
use entries::Entries;
use grace::Grace;
pub use grace::Ticket;
use links::Link;
use pins::Directory;
use record::{out, saw, state, Direction, Entry, Reference, Tuple, FROM_SOCKET};
use translation::{Pair, Sent};

/// The program, compiled from `ffi/bpf/offload.bpf.c` by `deno task bpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/offload.bpf.o");

/// How many connections there may be; further ones are relayed as before.
const ENTRIES: u32 = 16_384;

/// The program on this host's interfaces, and the connections that it has.
pub struct Offload {
    tuples: Mutex<HashMap<MapData, Tuple, Reference>>,
    entries: Entries,
    free: Mutex<Free>,
    /// How many entries there are.
    count: AtomicUsize,
    grace: Arc<Grace>,
    /// The number of lo.
    loopback: u32,
    /// Where the program and the connections outlive this process; or why they do not.
    pins: Result<Directory, String>,
    /// Entries of other programs.
    others: Arc<Adopted>,
    /// The program stops: connections that need no socket are left to the kernel.
    leaves: AtomicBool,
    /// Those that are pinned.
    links: Vec<Link>,
    /// The program is detached when this is dropped, where it is not pinned.
    _program: Ebpf,
}

/// Entries that no connection has.
struct Free {
    /// The first one that was never used.
    unused: u32,
    /// Those that were, and when no packet can have them in hand any more.
    used: VecDeque<(Ticket, u32)>,
}

/// One connection's entry. Dropped, its packets go to sockets again, or are answered with a reset where there
/// are none.
pub struct Place {
    offload: Arc<Offload>,
    index: u32,
    incoming: [Tuple; 2],
    /// The entry outlives it: the kernel goes on with the connection.
    stays: bool,
}

impl Offload {
    /// Loads the program and attaches it to every interface that has packets with Ethernet headers.
    ///
    /// # Errors
    /// The kernel's, in words: without CAP_BPF and CAP_NET_ADMIN, and before Linux 5.17.
    pub fn load() -> Result<Offload, String> {
        let mut program = load_program(ENTRIES)?;
        let missing = || "the object lacks a part: build it again".to_owned();
        let Some(Map::Array(entries)) = program.take_map("entries") else { return Err(missing()) };
        let tuples = program.take_map("tuples").ok_or_else(missing)?;
        let classifier = classifier_of(&mut program)?;
        // Nobody sees the directory before it is complete.
        let base = pins::Base::open();
        let mut pins = base.as_ref().map_err(Clone::clone).and_then(|base| {
            let directory = base.create().map_err(|error| reasons(&error))?;
            let pinned = tuples.pin(directory.tuples()).and(entries.pin(directory.entries()));
            undone(directory, pinned.map_err(|error| reasons(&error)))
        });
        let (mut loopback, mut links) = (None, Vec::new());
        for interface in interfaces().map_err(|error| reasons(&error))? {
            // Before Linux 6.6; there it says "exists" where it does, and later it is not needed.
            let _ = tc::qdisc_add_clsact(&interface.name);
            // With a TCX link where the kernel has those.
            let attach = |classifier: &mut SchedClassifier, hook| {
                let attached = classifier.attach(&interface.name, hook);
                attached.map_err(|error| format!("{}: {}", interface.name, reasons(&error)))
            };
            for hook in interface.hooks() {
                let link = attach(classifier, hook)?;
                pins = match pins {
                    Ok(directory) => {
                        let path = directory.link(interface.index, hook);
                        match pin(classifier, link, &path) {
                            Ok(link) => {
                                links.push(link);
                                Ok(directory)
                            }
                            Err(reason) => {
                                // It was detached.
                                attach(classifier, hook)?;
                                undone(directory, Err(format!("{}: {reason}", interface.name)))
                            }
                        }
                    }
                    without => without,
                };
            }
            if interface.is_loopback {
                loopback = Some(interface.index);
            }
        }
        let entries =
            Entries::map(&entries.fd(), ENTRIES as usize).map_err(|error| reasons(&error))?;
        let tuples = HashMap::try_from(tuples).map_err(|error| reasons(&error))?;
        Ok(Offload {
            tuples: Mutex::new(tuples),
            entries,
            free: Mutex::new(Free { unused: 0, used: VecDeque::new() }),
            count: AtomicUsize::new(0),
            grace: Grace::start().map_err(|error| reasons(&error))?,
            loopback: loopback.ok_or("there is no loopback interface")?,
            pins,
            others: Arc::default(),
            leaves: AtomicBool::new(false),
            links,
            _program: program,
        })
    }

    /// Whether connections outlive this program.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn outlives(&self) -> Result<(), &str> {
        self.pins.as_ref().map(|_| ()).map_err(String::as_str)
    }

    /// Takes over the connections that earlier programs have left, and those of other programs once they end.
    ///
    /// # Errors
    /// Why nothing can be known of them, in words.
    pub fn adopt(&self) -> Result<AdoptionRecord, String> {
        let own = self.pins.as_ref().map(|directory| directory.path()).ok();
        self.others.take_over(own)
    }

    /// From here on connections that need no socket are left to the kernel, where that outlives this program.
    pub fn leave(&self) {
        self.leaves.store(self.pins.is_ok(), Ordering::Relaxed);
    }

    pub fn leaves(&self) -> bool {
        self.leaves.load(Ordering::Relaxed)
    }

    /// Nobody has a place any more. How many connections go on in the kernel; without any, the program is detached.
    pub fn end(&self) -> usize {
        let adopted = self.others.count();
        let goes_on = |index: &u32| adopted::is_adoptable(&self.entries, *index);
        let own = (0..lock(&self.free).unused).filter(goes_on).count();
        if own == 0 {
            // The sandbox lets nobody remove files: the next start does.
            self.links.iter().for_each(|link| drop(link.detach()));
        }
        own + adopted
    }

    /// Begins to watch a relayed connection. Everything that was read from one socket was written to the
    /// other. `None` where it cannot be offloaded, or there is no entry left.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN, and those of the map.
    pub fn watch(
        self: &Arc<Offload>,
        pair: Pair,
        peer: RawFd,
        upstream: RawFd,
    ) -> io::Result<Option<Place>> {
        let Some(incoming) = pair.incoming() else { return Ok(None) };
        let is_ipv4 = pair.peer.is_ipv4();
        let (Some(of_peer), Some(of_upstream)) =
            (socket::numbers(peer, is_ipv4)?, socket::numbers(upstream, is_ipv4)?)
        else {
            return Ok(None);
        };
        let Some(mut entry) = translation::entry(&pair, &of_peer, &of_upstream) else {
            return Ok(None);
        };
        entry.mark = socket::mark(upstream);
        let Some(index) = self.take_entry() else { return Ok(None) };
        self.entries.write(index, &entry);
        self.entries.state(index).store(state::WATCHED, Ordering::Release);
        self.count.fetch_add(1, Ordering::Relaxed);
        // From here on dropping it undoes everything.
        let place = Place { offload: self.clone(), index, incoming, stays: false };
        Ok(place.insert(&incoming, 0).is_ok().then_some(place))
    }

    /// Whether an offloaded connection to an upstream comes from a client's address and port, and goes on.
    /// One of an earlier program, or of another one beside this, counts as well.
    pub fn holds(&self, client: SocketAddr, upstream: SocketAddr) -> bool {
        let is_empty = self.count.load(Ordering::Relaxed) == 0;
        if is_empty && self.others.is_empty() {
            return false;
        }
        let Some(tuple) = Tuple::new(upstream, client) else { return false };
        let own = || goes_on(&lock(&self.tuples), &self.entries, &tuple);
        !is_empty && own() || self.others.hold(&tuple)
    }

    /// Whether a new connection has the addresses and ports of an entry, so that the program translates nothing for it.
    fn is_over(&self, entry: u32) -> bool {
        self.entries.state(entry).load(Ordering::Acquire) == state::OVER
    }

    /// An entry that no connection has, and no packet in hand.
    fn take_entry(&self) -> Option<u32> {
        let mut free = lock(&self.free);
        if let Some((ticket, index)) = free.used.front().copied() {
            if self.grace.has_passed(ticket) {
                free.used.pop_front();
                return Some(index);
            }
        }
        let index = free.unused;
        ((index as usize) < self.entries.count()).then(|| {
            free.unused += 1;
            index
        })
    }
}

impl Drop for Offload {
    fn drop(&mut self) {
        self.grace.stop();
    }
}

impl Place {
    /// Whether packets of both directions were seen, and by interfaces between which they can be translated.
    pub fn is_seen(&self) -> bool {
        let [from_peer, from_upstream] = self.interfaces();
        from_peer != 0 && from_upstream == self.offload.loopback
    }

    /// Raises the counts of a watched connection to what its sockets, the peer's and the upstream's, know. Where they do
    /// not say, nothing changes.
    pub fn note_arrived(&self, [peer, upstream]: [RawFd; 2]) {
        let entries = &self.offload.entries;
        for (direction, from, to) in [(0, peer, upstream), (1, upstream, peer)] {
            let Ok(sent) = self.sent(direction, from, to) else { return };
            entries::raise(entries.acknowledged(self.index, direction), sent.since as u32);
            entries::raise(entries.sent(self.index, direction), sent.upto as u32);
            entries.reach(self.index, direction).fetch_max(sent.reach, Ordering::Relaxed);
        }
    }

    /// What the sockets that a direction comes from, and goes to, know of it now.
    fn sent(&self, direction: usize, from: RawFd, to: RawFd) -> io::Result<Sent> {
        let (from, to) = (socket::position(from)?, socket::position(to)?);
        Ok(Sent::new(self.direction(direction).add_sequence, &from, &to))
    }

    fn interfaces(&self) -> [u32; 2] {
        [0, 1].map(|direction| self.direction(direction).in_interface)
    }

    /// From here on the program finds packets with these tuples, of the two directions. An entry that is over keeps
    /// its tuples until someone looks at it, up to two seconds later; whoever has them by now need not wait for that.
    ///
    /// # Errors
    /// EEXIST where they are another connection's, and those of the map.
    fn insert(&self, tuples: &[Tuple; 2], flag: u32) -> io::Result<()> {
        let mut known = lock(&self.offload.tuples);
        for (direction, tuple) in tuples.iter().enumerate() {
            if known.get(tuple, 0).is_ok_and(|found| !self.offload.is_over(found.entry)) {
                return Err(io::Error::from_raw_os_error(libc::EEXIST));
            }
            let reference = Reference { entry: self.index, direction: direction as u32 | flag };
            known.insert(tuple, reference, 0).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// The program does not find packets with these tuples any more.
    fn remove(&self, tuples: &[Tuple; 2]) {
        remove(&mut lock(&self.offload.tuples), self.index, tuples);
    }

    /// Whether the sockets are still needed, and what they send is found by its tuples.
    fn is_draining(&self) -> bool {
        self.offload.entries.draining(self.index).load(Ordering::Relaxed) != 0
    }

    /// The tuples of what the sockets send.
    fn outgoing(&self) -> [Tuple; 2] {
        [0, 1].map(|direction| self.direction(direction).to)
    }

    /// From here on packets are translated. What has passed the program before still arrives at the sockets,
    /// until the ticket has passed.
    ///
    /// # Errors
    /// Those of asking the sockets for their positions and clocks, and of the map: nothing has changed then.
    pub fn offload(&self, [peer, upstream]: [RawFd; 2]) -> io::Result<Ticket> {
        let (offload, [from_peer, _]) = (&self.offload, self.interfaces());
        let entries = &offload.entries;
        // While the entry is watched, that changes nothing: no end has more than the sockets have had.
        entries.draining(self.index).store(1, Ordering::Relaxed);
        self.insert(&self.outgoing(), FROM_SOCKET)?;
        if from_peer != offload.loopback {
            entries.leave_by(self.index, 0, out::TO_LOOPBACK, offload.loopback);
            entries.leave_by(self.index, 1, out::TO_NEIGHBOUR, from_peer);
        }
        for (direction, from, to) in [(0, peer, upstream), (1, upstream, peer)] {
            // In this order: the program's clock is never ahead of the socket's.
            let clock = socket::clock(to)?;
            entries.set_clock(self.index, direction, clock, monotonic_ns());
            // What the program has seen while the relay buffered more than a window is not credible to it.
            let sent = self.sent(direction, from, to)?;
            entries.acknowledged(self.index, direction).store(sent.since, Ordering::Relaxed);
            entries.sent(self.index, direction).store(sent.upto, Ordering::Relaxed);
            entries.reach(self.index, direction).fetch_max(sent.reach, Ordering::Relaxed);
        }
        entries.state(self.index).store(state::OFFLOADED, Ordering::Release);
        Ok(offload.grace.ask())
    }

    /// Notes where what a socket has written ends: acknowledgements before it are the socket's.
    pub fn set_boundary(&self, direction: usize, number: u32) {
        let entries = &self.offload.entries;
        // What was written was sent before, whether the program has seen it or not.
        entries::raise(entries.sent(self.index, direction), number);
        entries.boundary(self.index, direction).store(number, Ordering::Relaxed);
    }

    /// Nothing is owed to the sockets any more.
    pub fn end_draining(&self) {
        self.remove(&self.outgoing());
        self.offload.entries.draining(self.index).store(0, Ordering::Relaxed);
    }

    /// Whether every packet that the sockets are to have has arrived there.
    pub fn has_passed(&self, ticket: Ticket) -> bool {
        self.offload.grace.has_passed(ticket)
    }

    /// What the receiver of a direction has acknowledged: its low half is a sequence number.
    pub fn acknowledged(&self, direction: usize) -> u64 {
        self.offload.entries.acknowledged(self.index, direction).load(Ordering::Relaxed)
    }

    /// Notes that the receiver of a direction has acknowledged everything before a number, which the program may not
    /// have seen. What is acknowledged then, in 64 bits.
    pub fn note_acknowledged(&self, direction: usize, number: u32) -> u64 {
        entries::raise(self.offload.entries.acknowledged(self.index, direction), number)
    }

    /// Notes that the relay has passed on the end of a direction, which the program may not have seen; the number is
    /// that behind the FIN.
    pub fn note_end(&self, direction: usize, number: u32) {
        let entries = &self.offload.entries;
        let seen = entries.seen(self.index, direction);
        if seen.load(Ordering::Relaxed) & saw::FIN != 0 {
            return;
        }
        entries.fin(self.index, direction).store(number, Ordering::Relaxed);
        let other = entries.seen(self.index, 1 - direction).load(Ordering::Relaxed);
        let first = if other & saw::FIN == 0 { saw::FIRST_FIN } else { 0 };
        seen.fetch_or(saw::FIN | first, Ordering::Release);
    }

    /// A direction as it is.
    pub fn direction(&self, direction: usize) -> Direction {
        self.offload.entries.direction(self.index, direction)
    }

    /// Where the peer is, and the upstream, as the sockets would be that are gone.
    pub fn ends(&self, mark: u32) -> [End; 2] {
        translation::ends(&Entry { mark, ..self.offload.entries.entry(self.index) })
    }

    /// Whether the connection outlives this program.
    pub fn is_lasting(&self) -> bool {
        self.offload.pins.is_ok()
    }

    /// Leaves the connection to the kernel, and to a program to come.
    pub fn leave(mut self) {
        self.stays = true;
    }

    /// Whether someone else has the addresses and ports by now.
    pub fn is_over(&self) -> bool {
        self.offload.is_over(self.index)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        let offload = &self.offload;
        offload.count.fetch_sub(1, Ordering::Relaxed);
        self.remove(&self.incoming);
        if self.is_draining() {
            self.remove(&self.outgoing());
        }
        offload.entries.state(self.index).store(state::FREE, Ordering::Release);
        let ticket = offload.grace.ask();
        lock(&offload.free).used.push_back((ticket, self.index));
    }
}

/// CLOCK_MONOTONIC, which the BPF program reads.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for writing; the clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Whether this process may load the program, and this kernel takes it. Attaches it to nothing.
///
/// # Errors
/// As `Offload::load`.
pub fn check() -> Result<(), String> {
    classifier_of(&mut load_program(1)?).map(|_| ())
}

/// The object's maps, with room for so many connections.
fn load_program(entries: u32) -> Result<Ebpf, String> {
    aya::EbpfLoader::new()
        .map_max_entries("tuples", 4 * entries)
        .map_max_entries("entries", entries)
        .load(OBJECT)
        .map_err(|error| reasons(&error))
}

/// The program, in the kernel.
fn classifier_of(program: &mut Ebpf) -> Result<&mut SchedClassifier, String> {
    let classifier: &mut SchedClassifier = program
        .program_mut("offload")
        .ok_or("the object lacks the program: build it again")?
        .try_into()
        .map_err(|error: aya::programs::ProgramError| reasons(&error))?;
    classifier.load().map_err(|error| reasons(&error))?;
    Ok(classifier)
}

/// Gives a link a file. Without one, it is gone.
fn pin(
    classifier: &mut SchedClassifier,
    link: SchedClassifierLinkId,
    path: &Path,
) -> Result<Link, String> {
    let link = classifier.take_link(link).map_err(|error| reasons(&error))?;
    let link = FdLink::try_from(link).map_err(|error| reasons(&error))?;
    let _pinned = link.pin(path).map_err(|error| reasons(&error))?;
    Link::open(path).map_err(|error| reasons(&error))
}

/// The directory, or without it the reason.
fn undone(directory: Directory, done: Result<(), String>) -> Result<Directory, String> {
    if done.is_err() {
        // A later start removes what is left.
        let _ = directory.remove();
    }
    done.map(|()| directory)
}

/// Packets with these tuples are an entry's no more. One that was not inserted belongs to another entry.
fn remove(known: &mut HashMap<MapData, Tuple, Reference>, entry: u32, tuples: &[Tuple]) {
    for tuple in tuples {
        if known.get(tuple, 0).is_ok_and(|found| found.entry == entry) {
            let _ = known.remove(tuple);
        }
    }
}

/// Whether a connection with packets of such a tuple is one that goes on.
fn goes_on(tuples: &HashMap<MapData, Tuple, Reference>, entries: &Entries, tuple: &Tuple) -> bool {
    let Ok(Reference { entry, .. }) = tuples.get(tuple, 0) else { return false };
    let directions = [0, 1].map(|direction| entries.direction(entry, direction));
    entries.state(entry).load(Ordering::Relaxed) == state::OFFLOADED
        && !translation::is_over(&directions)
}

struct Interface {
    name: String,
    index: u32,
    is_loopback: bool,
}

impl Interface {
    /// Where the program runs: what leaves by lo arrives by it.
    fn hooks(&self) -> impl Iterator<Item = TcAttachType> {
        let egress = (!self.is_loopback).then_some(TcAttachType::Egress);
        [TcAttachType::Ingress].into_iter().chain(egress)
    }
}

/// The interfaces whose packets have Ethernet headers: lo has them, too.
fn interfaces() -> io::Result<Vec<Interface>> {
    // SAFETY: the list is freed below; an entry of index 0 ends it.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut at = list;
    loop {
        // SAFETY: the list has an end, which is met before it is passed.
        let entry = unsafe { *at };
        if entry.if_index == 0 || entry.if_name.is_null() {
            break;
        }
        // SAFETY: a string that the list owns, until it is freed.
        let name = unsafe { CStr::from_ptr(entry.if_name) }.to_string_lossy().into_owned();
        match hardware_type(&name) {
            Some(libc::ARPHRD_LOOPBACK) => {
                found.push(Interface { name, index: entry.if_index, is_loopback: true });
            }
            Some(libc::ARPHRD_ETHER) => {
                found.push(Interface { name, index: entry.if_index, is_loopback: false });
            }
            _ => {}
        }
        // SAFETY: this was not the last entry.
        at = unsafe { at.add(1) };
    }
    // SAFETY: the list is the one that was given out, and no reference into it is left.
    unsafe { libc::if_freenameindex(list) };
    Ok(found)
}

/// What an interface's packets look like (netdevice(7), SIOCGIFHWADDR).
fn hardware_type(name: &str) -> Option<libc::c_ushort> {
    /// libc's own has another type than `ioctl` takes with musl.
    const SIOCGIFHWADDR: libc::Ioctl = 0x8927;
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None).ok()?;
    // SAFETY: zeroes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(room)) {
        *to = from as libc::c_char;
    }
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: the request is a valid `ifreq`, which the kernel writes to.
    socket::check(unsafe { libc::ioctl(fd, SIOCGIFHWADDR, &raw mut request) }).ok()?;
    // SAFETY: the call has filled in the hardware address.
    Some(unsafe { request.ifr_ifru.ifru_hwaddr.sa_family })
}

/// An error with what has caused it, in one line.
fn reasons(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line.lines().next().unwrap_or_default().to_owned()
}

#[cfg(all(test, feature = "bpf-tests"))]
mod program_tests;
