//! Flows in a hand-over: written and released in one program, adopted in the other.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::directory::Claim;
use super::edge::{Edge, Kinds};
use super::engine::Engine;
use super::flow::{Flow, ReplyRoute};
use super::flow_table::{Entry, New, Place};
use super::kernel::{Kernel, Upstream};
use super::moved::{MovedFlow, MovedSession};
use super::port::Port;
use super::{Receiving, Udp};
use crate::observe::stats::Counter;
use crate::worker::poll::{Interest, Key, Token};
use crate::worker::Context;

/// What a worker has that leaves.
#[derive(Default)]
pub struct Leaving {
    /// Each with its socket, which is open as long as this is there.
    pub flows: Vec<(MovedFlow, Shown)>,
    pub sessions: Vec<MovedSession>,
}

/// The upstream socket of a flow that leaves.
pub struct Shown(Arc<Flow<Upstream>>);

/// What arrives for a worker.
#[derive(Default)]
pub struct Arriving {
    pub flows: Vec<(MovedFlow, OwnedFd)>,
    pub sessions: Vec<MovedSession>,
}

impl Shown {
    /// The socket.
    pub fn descriptor(&self) -> std::os::fd::RawFd {
        self.0.socket.descriptor()
    }
}

impl<K: Kinds> Engine<K> {
    /// Shows the flows of this worker at some ports, each with its reply route. They stay.
    pub fn show_flows(
        &mut self,
        is_one: impl Fn(u32) -> bool,
        mut show: impl FnMut(&Entry<K>, &Arc<Flow<K::Socket>>, Option<ReplyRoute>),
    ) {
        for at in self.flows.of_ports(is_one) {
            let Some(entry) = self.flows.get_mut(at) else { continue };
            let Place::Here { flow, .. } = &entry.place else { continue };
            let flow = flow.clone();
            let route = flow.route(&mut entry.known);
            show(entry, &flow, route);
        }
    }

    /// Forgets everything of some ports: another program has the flows. Nothing is logged of them, for they go
    /// on.
    pub fn forget_ports(&mut self, edge: &mut impl Edge<K>, is_one: impl Fn(u32) -> bool) {
        for at in self.flows.of_ports(&is_one) {
            let Some(entry) = self.flows.remove(at) else { continue };
            let Place::Here { flow, .. } = entry.place else { continue };
            entry.port.directory.give_up(&entry.owner, flow);
            edge.lower(&entry.port.outside, Counter::FlowsActive);
        }
        self.sessions.retain(|(port, _)| !is_one(*port));
    }

    /// Adopts a flow of another program. If there is no room for it, it ends.
    ///
    /// `entry`: of the access log.
    pub fn adopt(
        &mut self,
        edge: &mut impl Edge<K>,
        port: &Rc<Port<K>>,
        moved: &MovedFlow,
        socket: K::Socket,
        entry: Option<K::Account>,
    ) {
        let now = edge.now();
        let flow = Flow::moved(socket, moved, now);
        if self.flows.is_full() || self.flows.find(port.id, &moved.owner).is_some() {
            return edge.count(&port.outside, Counter::FlowsEvicted, 1);
        }
        let Ok(Claim::Mine(flow)) = port.directory.claim(moved.owner, || Ok(flow)) else { return };
        let new = New { port, owner: moved.owner, decision: moved.decision };
        let at = self.flows.insert_here(new, flow, entry);
        if let Some(entry) = self.flows.get_mut(at) {
            entry.segmenting = moved.segmenting;
            if let Place::Here { flow, .. } = &entry.place {
                edge.watch(&flow.socket, at.key());
            }
        }
        edge.count(&port.outside, Counter::FlowsActive, 1);
    }
}

impl Udp {
    /// Reads nothing more from these sockets, by their numbers, nor from the upstream sockets of their flows.
    pub fn pause(&mut self, cx: &Context, going: &Arc<HashSet<u32>>) {
        self.for_each_going(going, |_, receiving| cx.poll.remove(receiving.port.outside.socket));
        self.engine.show_flows(
            |port| going.contains(&port),
            |_, flow, _| cx.poll.remove(flow.socket.descriptor()),
        );
        self.receivable.clear();
        self.going = Some(going.clone());
    }

    /// Reads from them again.
    ///
    /// # Errors
    /// Those of epoll.
    pub fn resume(&mut self, cx: &Context, going: &HashSet<u32>) -> io::Result<()> {
        self.going = None;
        let mut added = Ok(());
        self.for_each_going(going, |key, receiving| {
            let socket = receiving.port.outside.socket;
            let now = cx.poll.add(socket, Token::UdpListener(key), Interest::Readable);
            added = std::mem::replace(&mut added, Ok(())).and(now);
        });
        let mut edge = Kernel { cx, state: &mut self.state };
        self.engine.watch_again(&mut edge, |port| going.contains(&port));
        added
    }

    /// What leaves with the sockets that nothing is read from.
    pub fn leaving(&mut self) -> Leaving {
        let Some(going) = self.going.clone() else { return Leaving::default() };
        let mut leaving = Leaving::default();
        self.engine.show_flows(
            |port| going.contains(&port),
            |entry, flow, route| {
                leaving.flows.push((moved(entry, flow, route), Shown(flow.clone())));
            },
        );
        let (by_port, receiving) = (&self.by_port, &self.receiving);
        let sessions = self.engine.sessions.all().filter_map(|((port, path), session)| {
            let receiving = receiving.get(*by_port.get(port)?)?;
            going.contains(port).then(|| session.moved(receiving.listen(), *path))
        });
        leaving.sessions = sessions.collect();
        leaving
    }

    /// Gives them up: another program reads from them, and has their flows. What waits at the others is taken
    /// in, and their flows get their last replies.
    pub fn release(&mut self, cx: &Context, going: &HashSet<u32>) {
        self.going = None;
        let mut edge = Kernel { cx, state: &mut self.state };
        self.engine.forget_ports(&mut edge, |port| going.contains(&port));
        for key in self.receiving.keys() {
            let id = self.receiving.get(key).map(|receiving| receiving.port.id);
            if id.is_some_and(|id| going.contains(&id)) {
                let Some(Receiving { port, .. }) = self.receiving.remove(key) else { continue };
                cx.poll.remove(port.outside.socket);
                port.outside.served.port.udp.iter().for_each(|it| it.close(cx.worker.index));
            } else {
                self.leave(cx, key);
            }
        }
        self.by_port.clear();
        self.receivable.clear();
    }

    /// Adopts the flows of another program.
    pub fn adopt(&mut self, cx: &Context, Arriving { flows, sessions }: Arriving) {
        let ports: hashbrown::HashMap<SocketAddr, Rc<super::Port>> = self
            .receiving
            .keys()
            .into_iter()
            .filter_map(|key| self.receiving.get(key))
            .map(|receiving| (receiving.listen(), receiving.port.clone()))
            .collect();
        let mut edge = Kernel { cx, state: &mut self.state };
        for (flow, socket) in flows {
            let Some(port) = ports.get(&flow.listen) else { continue };
            let Some(upstream) = edge.adopted(&port.outside, &flow.decision, socket) else {
                edge.count(&port.outside, Counter::FlowsEvicted, 1);
                continue;
            };
            let entry = edge.adopted_account(&port.outside, &flow);
            self.engine.adopt(&mut edge, port, &flow, upstream, entry);
        }
        for MovedSession { listen, path, header, last_used, close_after } in sessions {
            let Some(port) = ports.get(&listen) else { continue };
            let used = last_used.min(cx.now);
            self.engine.sessions.adopt(&(port.id, path), &header, used, close_after);
        }
    }

    fn for_each_going(&self, going: &HashSet<u32>, mut act: impl FnMut(Key, &Receiving)) {
        for key in self.receiving.keys() {
            let Some(receiving) = self.receiving.get(key) else { continue };
            if going.contains(&receiving.port.id) {
                act(key, receiving);
            }
        }
    }
}

impl Receiving {
    fn listen(&self) -> SocketAddr {
        self.port.outside.served.port.listen
    }
}

fn moved(
    entry: &Entry<super::Real>,
    flow: &Flow<Upstream>,
    route: Option<ReplyRoute>,
) -> MovedFlow {
    let Place::Here { account, .. } = &entry.place else { unreachable!("it is shown from here") };
    MovedFlow {
        listen: entry.port.outside.served.port.listen,
        owner: entry.owner,
        decision: entry.decision,
        route,
        opened_at: flow.opened_at(),
        last_used: flow.last_used(),
        traffic: [
            &flow.traffic.datagrams_up,
            &flow.traffic.bytes_up,
            &flow.traffic.datagrams_down,
            &flow.traffic.bytes_down,
        ]
        .map(|count| count.load(Ordering::Relaxed)),
        segmenting: entry.segmenting,
        account: account.as_ref().map(|(account, began)| account.moved(*began)),
    }
}
