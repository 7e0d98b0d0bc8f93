//! This listener's flows: their beginning, their room, their end.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::{Listening, Served, Tenant};
use crate::access::{Account, Ending};
use crate::events::EventKind;
use crate::layout::{level, protocol, Event};
use crate::listener::poll::{Interest, Key, Token};
use crate::listener::tcp::tell_fallback;
use crate::listener::{client_of, Context};
use crate::relay::routes::Leading;
use crate::relay::udp::{Flow, Owner};
use crate::socket;
use crate::stats::Counter;

const TELL_FULL_EVERY_MS: u64 = 60_000;
const FLOW_BUFFER: i32 = 4 << 20;

impl Listening {
    pub(super) fn make_room(&mut self, cx: &Context) {
        if let Some((owner, served)) = self.flows.make_room() {
            self.displace(cx, owner, &served);
        }
    }

    /// Ends the flow that has been idle longest; whether there was one.
    pub(super) fn evict(&mut self, cx: &Context) -> bool {
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

    pub(super) fn open_flow(
        &self,
        cx: &Context,
        owner: Owner,
        peer: SocketAddr,
    ) -> io::Result<Arc<Flow>> {
        let settings = &cx.listener.service.settings;
        let source = owner.source();
        let service = settings.upstream(owner.address().ip());
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

    pub(super) fn admit_flow(
        &mut self,
        cx: &Context,
        owner: Owner,
        peer: SocketAddr,
        flow: &Arc<Flow>,
        header: &[u8],
    ) -> Key {
        let account = cx.account(protocol::UDP, header, peer, owner.source());
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

    pub(super) fn end_flow(&mut self, cx: &Context, owner: Owner, served: &Served, ending: Ending) {
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
    let event = Event::new(kind, level::DEBUG);
    cx.listener.tell(Event {
        peer: peer.map(Into::into).unwrap_or_default(),
        client: client_of(owner.source()),
        upstream: cx.listener.service.settings.upstream(owner.address().ip()).into(),
        ..event
    });
}
