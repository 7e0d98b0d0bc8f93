//! A datagram's way: route, or header and verdict once; then its flow, in batches both ways.
//!
//! `routes.rs` finds where a datagram belongs, `flows.rs` opens and ends flows, `batches.rs` carries.

mod batches;
mod flows;
mod routes;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Weak};

use super::allowed::Allowed;
use super::intake::Intake;
use super::poll::{Interest, Key, Token};
use super::slab::Slab;
use super::Context;
use crate::access::{Account, Ending};
use crate::events::EventKind;
use crate::layout::{level, udp_header, Event};
use crate::refusal::Refusal;
use crate::relay::flows::FlowTable;
use crate::relay::routes::{Leading, RouteId, RouteTable};
use crate::relay::udp::{Flow, Inbox, Outgoing, Owner, Path, Replies, WayBack, BATCH, INTAKE};
use crate::service::lock;
use crate::socket;

/// How long replies are still relayed after the stop.
const STOP_MS: u64 = 1_000;
/// Refused datagrams are told at most this often, for each reason.
const TELL_EVERY_MS: u64 = 1_000;
const FIRST_SWEEP: usize = 1024;
/// Enough for a burst; more only moves the queue out of the caches.
const LISTENER_BUFFER: i32 = 512 << 10;

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
            inbox: Inbox::new(if socket.is_some() { INTAKE } else { 0 }),
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
                left_out: untold - 1,
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
