//! A datagram's way: route, or header and verdict once; then its flow, in batches both ways.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::allowed::Allowed;
use super::intake::Intake;
use super::poll::{Interest, Key, Token};
use super::slab::Slab;
use super::tcp::tell_fallback;
use super::{Context, Decision};
use crate::access::{Account, Ending};
use crate::events::EventKind;
use crate::frame::{self, Frame};
use crate::layout::{carrier, level, protocol, udp_header, Event};
use crate::refusal::Refusal;
use crate::relay::flows::FlowTable;
use crate::relay::routes::{Leading, Route, RouteId, RouteTable};
use crate::relay::udp::{
    Flow, Found, Inbox, Outgoing, Owner, Path, Replies, Sent, WayBack, BATCH, INTAKE,
};
use crate::service::lock;
use crate::socket::{self, Source};
use crate::stats::Counter;

/// How long replies are still relayed after the stop.
const STOP_MS: u64 = 1_000;
/// Refused datagrams are told at most this often, for each reason.
const TELL_EVERY_MS: u64 = 1_000;
const TELL_FULL_EVERY_MS: u64 = 60_000;
const FIRST_SWEEP: usize = 1024;
/// Enough for a burst; more only moves the queue out of the caches.
const LISTENER_BUFFER: i32 = 512 << 10;
const FLOW_BUFFER: i32 = 4 << 20;

/// The listening socket, its routes and its flows.
pub struct Listening {
    socket: Option<RawFd>,
    receivable: bool,
    mode: u32,
    routes: RouteTable<Path, Target>,
    /// Which group of which batch a route has, by its index.
    marks: Vec<Mark>,
    batch: u64,
    intake: Intake,
    groups: Vec<Group>,
    /// Chains the datagrams of a batch that belong to one group.
    next: [u16; INTAKE],
    offsets: [u32; INTAKE],
    /// Datagrams of this batch whose route left before they were sent.
    dropped: u64,
    last_route: Option<RouteId>,
    route_serial: u64,
    /// So many routes are worth a look for those whose flow is gone.
    sweep_at: usize,
    flows: FlowTable<Owner, Served>,
    tenants: Slab<Tenant>,
    /// Flows with replies to fetch.
    replying: Vec<Key>,
    inbox: Inbox,
    outgoing: Outgoing,
    replies: Replies,
    refused: [Refused; Refusal::ALL.len()],
    told_full: Option<u64>,
    allowed: Allowed,
    stopping: Option<u64>,
}

/// What a route leads to.
struct Target {
    flow: Weak<Flow>,
    /// The flow's place, when this listener serves it.
    key: Option<Key>,
    /// Unique among all routes of all listeners.
    serial: u64,
}

/// A flow of this listener: in the table for its time, among the tenants for its events.
struct Served {
    flow: Arc<Flow>,
    key: Key,
}

struct Tenant {
    flow: Arc<Flow>,
    owner: Owner,
    leading: Leading,
    /// The way back of the route with this serial.
    route: u64,
    way_back: Option<WayBack>,
    /// Its entry in the access log, where there is one, and when it began.
    account: Option<(Box<Account>, u64)>,
}

#[derive(Clone, Copy, Default)]
struct Mark {
    batch: u64,
    group: u16,
}

/// The datagrams of one route in a batch, in order.
#[derive(Clone, Copy)]
struct Group {
    route: RouteId,
    first: u16,
    last: u16,
}

#[derive(Clone, Copy, Default)]
struct Refused {
    untold: u32,
    tell_at: u64,
}

const END: u16 = u16::MAX;

impl crate::relay::flows::Flow for Served {
    fn last_used(&self) -> u64 {
        self.flow.last_used()
    }
}

impl Listening {
    /// Starts with the listener's socket; without one there is nothing to do.
    pub fn start(cx: &Context) -> io::Result<Listening> {
        let settings = &cx.listener.service.settings;
        let socket = lock(&cx.listener.udp).as_ref().map(AsRawFd::as_raw_fd);
        if let Some(socket) = socket {
            socket::set_receive_buffer(socket, LISTENER_BUFFER);
            cx.poll.add(socket, Token::UdpListener, Interest::Readable)?;
        }
        let mode = settings.udp_header;
        let close_after = settings.close_after.as_millis() as u64;
        Ok(Listening {
            socket,
            receivable: false,
            mode,
            routes: RouteTable::new(mode == udp_header::SESSION),
            marks: Vec::new(),
            batch: 0,
            intake: Intake::default(),
            groups: Vec::with_capacity(INTAKE),
            next: [END; INTAKE],
            offsets: [0; INTAKE],
            dropped: 0,
            last_route: None,
            sweep_at: FIRST_SWEEP,
            // Never 0, which says "no route yet".
            route_serial: (u64::from(cx.listener.index) + 1) << 40,
            flows: FlowTable::new(cx.listener.service.flows_a_listener(), close_after),
            tenants: Slab::default(),
            replying: Vec::new(),
            inbox: Inbox::new(),
            outgoing: Outgoing::new(),
            replies: Replies::new(),
            refused: [Refused::default(); Refusal::ALL.len()],
            told_full: None,
            allowed: Allowed::default(),
            stopping: None,
        })
    }

    /// The listening socket has datagrams.
    pub fn set_receivable(&mut self) {
        self.receivable = true;
    }

    /// A flow has replies, or an ICMP error.
    pub fn on_reply(&mut self, cx: &mut Context, key: Key) {
        self.replying.push(key);
        if self.replying.len() == BATCH {
            self.relay_replies(cx);
        }
    }

    /// When `turn` must be called at the latest.
    pub fn next_deadline(&self) -> Option<u64> {
        [self.flows.next_check(), self.stopping].into_iter().flatten().min()
    }

    /// Everything that is due: replies first, then idle flows, then new datagrams.
    pub fn turn(&mut self, cx: &mut Context) {
        self.relay_replies(cx);
        while let Some((owner, served)) = self.flows.expire(cx.now) {
            self.end_flow(cx, owner, &served, Ending::Idle);
        }
        if std::mem::take(&mut self.receivable) && self.stopping.is_none() {
            self.look_at_subnets(cx);
            self.take_in(cx);
        }
    }

    /// Ends every flow.
    pub fn end_all(&mut self, cx: &Context) {
        while let Some((owner, served)) = self.flows.evict() {
            self.end_flow(cx, owner, &served, Ending::Stopped);
        }
    }

    /// Takes in no more; whether the last replies have had their time.
    pub fn stop(&mut self, cx: &Context) -> bool {
        let Some(socket) = self.socket else { return true };
        let until = *self.stopping.get_or_insert_with(|| {
            cx.poll.remove(socket);
            cx.now + STOP_MS
        });
        if self.flows.len() > 0 && cx.now < until {
            return false;
        }
        self.socket = None;
        self.stopping = None;
        *lock(&cx.listener.udp) = None;
        true
    }

    fn take_in(&mut self, cx: &mut Context) {
        let Some(socket) = self.socket else { return };
        // An error here is an ICMP message for an earlier reply, or nothing to read: the level-
        // triggered epoll comes back while there is something.
        let Ok(count) = self.inbox.receive(socket, self.intake.limit()) else { return };
        self.batch += 1;
        for slot in 0..count {
            self.sort_in(cx, slot);
        }
        self.intake.learn(count, self.groups.len());
        let mut sent = Sent { lost: std::mem::take(&mut self.dropped), ..Sent::default() };
        for at in 0..self.groups.len() {
            self.forward(cx, self.groups[at], &mut sent);
        }
        // A route that leaves from here on has no datagrams to take along.
        self.groups.clear();
        count_sent(cx, Counter::DatagramsUp, Counter::DatagramBytesUp, sent);
    }

    /// Puts a datagram into the group of its route, or drops it.
    fn sort_in(&mut self, cx: &mut Context, slot: usize) {
        let found = match self.mode {
            udp_header::SESSION => self.find_session(cx, slot),
            udp_header::SPP => self.find_route(cx, slot, frame::spp, carrier::SPP),
            _ => self.find_route(cx, slot, frame::datagram, carrier::DATAGRAM),
        };
        let (route, offset) = match found {
            Ok(found) => found,
            Err(refusal) => return self.refuse(cx, slot, refusal),
        };
        self.last_route = Some(route);
        let Some(offset) = offset else { return };
        self.offsets[slot] = offset as u32;
        self.next[slot] = END;
        let mark = &mut self.marks[route as usize];
        if mark.batch == self.batch {
            let group = &mut self.groups[usize::from(mark.group)];
            self.next[usize::from(group.last)] = slot as u16;
            group.last = slot as u16;
        } else {
            *mark = Mark { batch: self.batch, group: self.groups.len() as u16 };
            self.groups.push(Group { route, first: slot as u16, last: slot as u16 });
        }
    }

    /// The route of a datagram that carries its header, and where its payload starts.
    fn find_route(
        &mut self,
        cx: &mut Context,
        slot: usize,
        frame: fn(&[u8]) -> Frame,
        carrier: u32,
    ) -> Result<(RouteId, Option<usize>), Refusal> {
        let received = self.inbox.get(slot);
        if received.truncated {
            return Err(Refusal::DatagramTooLong);
        }
        // A header's own bytes say where it ends: who starts with the same bytes has the same one.
        if let Some(id) = self.last_route {
            if let Some(route) = self.routes.get(id) {
                if received.data.starts_with(&route.header)
                    && route.path == received.path
                    && route.target.is_alive()
                {
                    return Ok((id, Some(route.header.len())));
                }
            }
        }
        let length = match frame(received.data) {
            Frame::Header(length) => length,
            Frame::Refused(refusal) => return Err(refusal),
            Frame::Partial => return Err(Refusal::Incomplete),
        };
        let header = &received.data[..length];
        if let Some(id) = self.routes.find(&received.path, header) {
            if self.routes.get(id).is_some_and(|route| route.target.is_alive()) {
                return Ok((id, Some(length)));
            }
            let (header, path) = (header.into(), received.path);
            self.remove_route(id);
            return Ok((self.open_route(cx, path, header, carrier)?, Some(length)));
        }
        let (header, path): (Box<[u8]>, Path) = (header.into(), received.path);
        Ok((self.open_route(cx, path, header, carrier)?, Some(length)))
    }

    /// The route of a datagram in a session. A header alone opens it and carries nothing.
    fn find_session(
        &mut self,
        cx: &mut Context,
        slot: usize,
    ) -> Result<(RouteId, Option<usize>), Refusal> {
        let received = self.inbox.get(slot);
        if received.truncated {
            return Err(Refusal::DatagramTooLong);
        }
        let known = self.routes.find(&received.path, &[]).and_then(|id| {
            let route = self.routes.get(id)?;
            Some((id, route.target.is_alive(), &*route.header))
        });
        if !frame::announces_header(received.data) {
            return match known {
                Some((id, true, _)) => Ok((id, Some(0))),
                _ if !self.allowed.allows(received.path.peer.socket_addr()) => {
                    Err(Refusal::PeerNotAllowed)
                }
                _ => Err(Refusal::NoSession),
            };
        }
        let length = match frame::datagram(received.data) {
            Frame::Header(length) => length,
            Frame::Refused(refusal) => return Err(refusal),
            Frame::Partial => return Err(Refusal::Incomplete),
        };
        let offset = (received.data.len() > length).then_some(length);
        let header = &received.data[..length];
        if let Some((id, true, known_header)) = known {
            if known_header == header {
                return Ok((id, offset));
            }
        }
        let (old, header, path) = (known.map(|(id, ..)| id), header.into(), received.path);
        // The old session stands until the new header has proved good.
        let route = self.open_session(cx, old, path, header)?;
        Ok((route, offset))
    }

    fn open_session(
        &mut self,
        cx: &mut Context,
        old: Option<RouteId>,
        path: Path,
        header: Box<[u8]>,
    ) -> Result<RouteId, Refusal> {
        let target = self.resolve(cx, &path, &header, carrier::DATAGRAM)?;
        // Opening a flow may have ended the one that the old session led to.
        if let Some(old) = old.filter(|old| self.routes.get(*old).is_some()) {
            self.remove_route(old);
        }
        Ok(self.add_route(path, header, target))
    }

    fn open_route(
        &mut self,
        cx: &mut Context,
        path: Path,
        header: Box<[u8]>,
        carrier: u32,
    ) -> Result<RouteId, Refusal> {
        let target = self.resolve(cx, &path, &header, carrier)?;
        Ok(self.add_route(path, header, target))
    }

    fn add_route(&mut self, path: Path, header: Box<[u8]>, target: Target) -> RouteId {
        let key = target.key;
        let id = self.routes.insert(Route { path, header, target });
        if self.marks.len() <= id as usize {
            self.marks.resize(id as usize + 1, Mark::default());
        }
        self.marks[id as usize] = Mark::default();
        if let Some(tenant) = key.and_then(|key| self.tenants.get_mut(key)) {
            if let Some(replaced) = tenant.leading.add(id) {
                self.routes.remove(replaced);
                self.drop_group(replaced);
            }
        }
        id
    }

    fn remove_route(&mut self, id: RouteId) {
        let Some(route) = self.routes.remove(id) else { return };
        if let Some(tenant) = route.target.key.and_then(|key| self.tenants.get_mut(key)) {
            tenant.leading.forget(id);
        }
        self.drop_group(id);
    }

    /// A route that leaves in mid-batch takes its datagrams along: its index may be given anew.
    fn drop_group(&mut self, id: RouteId) {
        if let Some(at) = self.groups.iter().position(|group| group.route == id) {
            let group = self.groups[at];
            self.dropped += self.chain(group.first).count() as u64;
            self.groups[at].first = END;
        }
    }

    /// Decodes a header that is new, and finds or opens the flow that it means.
    fn resolve(
        &mut self,
        cx: &mut Context,
        path: &Path,
        header: &[u8],
        carrier: u32,
    ) -> Result<Target, Refusal> {
        let peer = path.peer.socket_addr().ok_or(Refusal::Incomplete)?;
        if !self.allowed.allows(Some(peer)) {
            return Err(Refusal::PeerNotAllowed);
        }
        let owner = match cx.decode(header, carrier, peer) {
            Decision::Refuse(refusal) => return Err(refusal),
            Decision::Client(client) => Owner::Client(client),
            Decision::Own => Owner::Peer(peer),
        };
        self.route_serial += 1;
        let serial = self.route_serial;
        if let Some(served) = self.flows.get(&owner) {
            let flow = Arc::downgrade(&served.flow);
            return Ok(Target { flow, key: Some(served.key), serial });
        }
        self.sweep_routes();
        self.make_room(cx);
        let service = cx.listener.service.clone();
        let mut found = service.flows.find_or_open(owner, || self.open_flow(cx, owner, peer));
        if found.as_ref().is_err_and(is_out_of_descriptors) && self.evict(cx) {
            found = service.flows.find_or_open(owner, || self.open_flow(cx, owner, peer));
        }
        match found {
            Ok(Found::Elsewhere(flow)) => {
                Ok(Target { flow: Arc::downgrade(&flow), key: None, serial })
            }
            Ok(Found::Opened(flow)) => {
                let key = self.admit_flow(cx, owner, peer, &flow, header);
                Ok(Target { flow: Arc::downgrade(&flow), key: Some(key), serial })
            }
            // Counted and told already; the datagram is lost, not refused.
            Err(_) => Ok(Target { flow: Weak::new(), key: None, serial }),
        }
    }

    fn make_room(&mut self, cx: &Context) {
        if let Some((owner, served)) = self.flows.make_room() {
            self.displace(cx, owner, &served);
        }
    }

    /// Ends the flow that has been idle longest; whether there was one.
    fn evict(&mut self, cx: &Context) -> bool {
        let evicted = self.flows.evict();
        if let Some((owner, served)) = &evicted {
            self.displace(cx, *owner, served);
        }
        evicted.is_some()
    }

    fn displace(&mut self, cx: &Context, owner: Owner, served: &Served) {
        cx.listener.stats.add(Counter::FlowsEvicted, 1);
        self.end_flow(cx, owner, served, Ending::Displaced);
        if self.told_full.is_none_or(|at| cx.now >= at + TELL_FULL_EVERY_MS) {
            self.told_full = Some(cx.now);
            let event = Event::new(EventKind::FlowsFull, level::WARN);
            cx.listener.tell(Event { value: self.flows.len() as u32 + 1, ..event });
        }
    }

    fn open_flow(&self, cx: &Context, owner: Owner, peer: SocketAddr) -> io::Result<Arc<Flow>> {
        let settings = &cx.listener.service.settings;
        let (source, of) = match owner {
            Owner::Client(client) => (Source::Client(client), client),
            Owner::Peer(peer) => (Source::Own, peer),
        };
        let service = settings.upstream(of.ip());
        let opened = socket::connect_udp(source, service, settings.mark);
        match opened {
            Ok(opened) => {
                if opened.port_fallback {
                    tell_fallback(cx, peer, source, service);
                }
                socket::set_receive_buffer(opened.socket.as_raw_fd(), FLOW_BUFFER);
                Ok(Arc::new(Flow::new(opened.socket, cx.now)))
            }
            Err(error) => {
                cx.listener.stats.add(Counter::FlowErrors, 1);
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                cx.tell_failure(EventKind::FlowFailed, errno, Some(peer), source, service);
                Err(error)
            }
        }
    }

    fn admit_flow(
        &mut self,
        cx: &Context,
        owner: Owner,
        peer: SocketAddr,
        flow: &Arc<Flow>,
        header: &[u8],
    ) -> Key {
        let client = match owner {
            Owner::Client(client) => Some(client),
            Owner::Peer(_) => None,
        };
        let account = cx.account(protocol::UDP, header, peer, client);
        let key = self.tenants.insert(Tenant {
            flow: flow.clone(),
            owner,
            leading: Leading::default(),
            route: 0,
            way_back: None,
            account: account.map(|account| (account, cx.now)),
        });
        // Without a watch on it the flow still carries what clients send.
        let _ = cx.poll.add(flow.socket.as_raw_fd(), Token::Flow(key), Interest::Readable);
        self.flows.insert(owner, Served { flow: flow.clone(), key });
        cx.listener.stats.add(Counter::FlowsOpened, 1);
        cx.listener.stats.add(Counter::FlowsActive, 1);
        tell_flow(cx, EventKind::FlowOpened, owner, Some(peer));
        key
    }

    fn end_flow(&mut self, cx: &Context, owner: Owner, served: &Served, ending: Ending) {
        cx.listener.service.flows.remove(&owner, &served.flow);
        if let Some(mut tenant) = self.tenants.remove(served.key) {
            debug_assert!(tenant.owner == owner);
            if let Some((account, began)) = tenant.account.take() {
                tell_account(cx, account, &served.flow, began, ending);
            }
            for id in tenant.leading.ids() {
                self.routes.remove(*id);
                self.drop_group(*id);
            }
        }
        cx.listener.stats.lower(Counter::FlowsActive);
        tell_flow(cx, EventKind::FlowClosed, owner, None);
    }

    /// Routes to flows of other listeners are not told when those end: look once there are many.
    fn sweep_routes(&mut self) {
        if self.routes.len() < self.sweep_at {
            return;
        }
        for id in self.routes.ids(|route| !route.target.is_alive()) {
            self.remove_route(id);
        }
        self.sweep_at = 2 * self.routes.len() + FIRST_SWEEP;
    }

    /// Sends one group's payloads to its flow.
    fn forward(&mut self, cx: &Context, group: Group, sent: &mut Sent) {
        if group.first == END {
            return;
        }
        let flow = self.routes.get(group.route).and_then(|route| route.target.flow.upgrade());
        let (Some(route), Some(flow)) = (self.routes.get(group.route), flow) else {
            // Its flow could not be opened, or has just ended on another listener.
            sent.lost += self.chain(group.first).count() as u64;
            return;
        };
        flow.touch(cx.now);
        flow.come_by(route.target.serial, || {
            let wrap = (self.mode == udp_header::SPP).then_some(&*route.header);
            WayBack::new(route.path, wrap)
        });
        let before = *sent;
        let mut slot = group.first;
        while slot != END {
            let at = usize::from(slot);
            let payload = &self.inbox.get(at).data[self.offsets[at] as usize..];
            self.outgoing.add(&flow, payload, sent);
            slot = self.next[at];
        }
        self.outgoing.flush(&flow, sent);
        if cx.listener.keeps_accounts() {
            let traffic = &flow.traffic;
            traffic.datagrams_up.fetch_add(sent.sent - before.sent, Ordering::Relaxed);
            traffic.bytes_up.fetch_add(sent.bytes - before.bytes, Ordering::Relaxed);
        }
    }

    /// The datagrams of a group, from the first on.
    fn chain(&self, first: u16) -> impl Iterator<Item = u16> + '_ {
        let slot = |at: u16| (at != END).then_some(at);
        std::iter::successors(slot(first), move |at| slot(self.next[usize::from(*at)]))
    }

    fn relay_replies(&mut self, cx: &Context) {
        if self.replying.is_empty() {
            return;
        }
        // More than a turn takes in, or a flood would outrun its replies.
        let batches = 2 * self.intake.limit() / BATCH;
        let mut sent = Sent::default();
        for at in 0..self.replying.len() {
            let Some(tenant) = self.tenants.get_mut(self.replying[at]) else { continue };
            let route = tenant.flow.route();
            if tenant.route != route {
                tenant.route = route;
                tenant.way_back = tenant.flow.way_back();
            }
            let Some(way_back) = tenant.way_back else {
                // Nothing was sent yet, so this is an error: epoll repeats it until it is read.
                socket::take_error(tenant.flow.socket.as_raw_fd());
                continue;
            };
            let flow = tenant.flow.clone();
            for _ in 0..batches {
                match self.replies.receive(&flow, way_back) {
                    Ok(count) => {
                        flow.touch(cx.now);
                        if cx.listener.keeps_accounts() {
                            let bytes = self.replies.bytes_of_last(count);
                            flow.traffic.datagrams_down.fetch_add(count as u64, Ordering::Relaxed);
                            flow.traffic.bytes_down.fetch_add(bytes, Ordering::Relaxed);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // The service's ICMP error: it ends nothing, and reading it cleared it.
                    Err(_) => cx.listener.stats.add(Counter::UpstreamUnreachable, 1),
                }
                if !self.replies.is_full() {
                    break;
                }
                self.send_replies(&mut sent);
            }
        }
        self.replying.clear();
        self.send_replies(&mut sent);
        count_sent(cx, Counter::DatagramsDown, Counter::DatagramBytesDown, sent);
    }

    fn send_replies(&mut self, sent: &mut Sent) {
        let Some(socket) = self.socket else { return };
        let result = self.replies.flush(socket);
        sent.sent += result.sent;
        sent.bytes += result.bytes;
        sent.lost += result.lost;
    }

    fn look_at_subnets(&mut self, cx: &Context) {
        if !self.allowed.refresh(&cx.listener.service) {
            return;
        }
        let allowed = &self.allowed;
        let refused = self.routes.ids(|route| !allowed.allows(route.path.peer.socket_addr()));
        refused.into_iter().for_each(|id| self.remove_route(id));
    }

    /// Counts a datagram that is dropped, and tells of it now and then.
    fn refuse(&mut self, cx: &Context, slot: usize, refusal: Refusal) {
        cx.listener.stats.refuse(refusal);
        let refused = &mut self.refused[refusal as usize];
        refused.untold = refused.untold.saturating_add(1);
        if cx.now < refused.tell_at {
            return;
        }
        let untold = std::mem::take(&mut refused.untold);
        refused.tell_at = cx.now + TELL_EVERY_MS;
        let received = self.inbox.get(slot);
        let peer = received.path.peer.socket_addr();
        let event = Event::new(EventKind::DatagramsRefused, level::WARN);
        cx.listener.tell(
            Event {
                refusal: refusal as u8,
                value: untold,
                peer: peer.map(Into::into).unwrap_or_default(),
                ..event
            }
            .with_sample(received.data),
        );
    }
}

impl Target {
    /// Whether the flow is still there. This listener's own flows take their routes along.
    #[inline]
    fn is_alive(&self) -> bool {
        self.key.is_some() || self.flow.strong_count() > 0
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

fn count_sent(cx: &Context, datagrams: Counter, bytes: Counter, sent: Sent) {
    let stats = &cx.listener.stats;
    stats.add(datagrams, sent.sent);
    stats.add(bytes, sent.bytes);
    if sent.lost > 0 {
        stats.add(Counter::DatagramsLost, sent.lost);
    }
    if sent.unreachable > 0 {
        stats.add(Counter::UpstreamUnreachable, sent.unreachable);
    }
}

/// Closes a flow's entry in the access log.
fn tell_account(cx: &Context, mut account: Box<Account>, flow: &Flow, began: u64, ending: Ending) {
    let (record, traffic) = (&mut account.record, &flow.traffic);
    record.ending = ending as u8;
    record.duration_ms = cx.now - began;
    record.datagrams_up = traffic.datagrams_up.load(Ordering::Relaxed);
    record.bytes_up = traffic.bytes_up.load(Ordering::Relaxed);
    record.datagrams_down = traffic.datagrams_down.load(Ordering::Relaxed);
    record.bytes_down = traffic.bytes_down.load(Ordering::Relaxed);
    cx.listener.tell_account(account);
}

fn tell_flow(cx: &Context, kind: EventKind, owner: Owner, peer: Option<SocketAddr>) {
    if !cx.listener.logs(level::DEBUG) {
        return;
    }
    let (client, of) = match owner {
        Owner::Client(client) => (client.into(), client),
        Owner::Peer(peer) => (Default::default(), peer),
    };
    let event = Event::new(kind, level::DEBUG);
    cx.listener.tell(Event {
        peer: peer.map(Into::into).unwrap_or_default(),
        client,
        upstream: cx.listener.service.settings.upstream(of.ip()).into(),
        ..event
    });
}
