//! Another program takes over: its engines are new, and have only what the old ones have written down.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use super::outside::{Simulated, SimulatedEdge, Socket};
use super::world::World;
use crate::proxy::handover::wire::{Reader, Writer};
use crate::udp::engine::Engine;
use crate::udp::flow::{Flow, Owner, ReplyRoute};
use crate::udp::flow_table::Entry;
use crate::udp::moved::{MovedFlow, MovedSession};

/// What one worker has.
#[derive(Default)]
struct Left {
    /// Each with the number of its socket.
    flows: Vec<(MovedFlow, u64)>,
    sessions: Vec<MovedSession>,
}

impl World<'_> {
    /// A program takes over, with as many workers.
    pub fn upgrade(&self) {
        if self.workers.iter().any(|engine| engine.try_borrow_mut().is_err()) {
            return;
        }
        let left: Vec<Left> = (0..self.workers.len()).map(|worker| self.leave(worker)).collect();
        for (worker, left) in left.iter().enumerate() {
            self.arrive(worker, left);
        }
        // Another program does not know what could not be opened.
        self.failed.borrow_mut().clear();
        self.summarise(|summary| {
            summary.moved += left.iter().map(|it| it.flows.len() as u64).sum::<u64>()
        });
    }

    fn leave(&self, worker: usize) -> Left {
        let mut engine = self.workers[worker].borrow_mut();
        let mut left = Left::default();
        engine.show_flows(
            |_| true,
            |entry, flow, route| {
                left.flows.push((written(self.moved(entry, flow, route)), flow.socket.number));
            },
        );
        for ((port, path), session) in engine.sessions.all() {
            let mut writer = Writer::default();
            session.moved(listen(*port as usize - 1), *path).write(&mut writer);
            left.sessions.extend(MovedSession::read(&mut Reader(&writer.0)));
        }
        // The descriptors that go keep the sockets open, and what waits in them.
        let waiting: Vec<_> = {
            let mut sockets = self.sockets.borrow_mut();
            left.flows.iter().filter_map(|(_, at)| sockets.live.remove_entry(at)).collect()
        };
        engine.forget_ports(&mut SimulatedEdge { world: self, worker, replies: 0 }, |_| true);
        self.sockets.borrow_mut().live.extend(waiting);
        let here = engine.flows();
        self.check(here == 0, || format!("{here} flows were not given up"));
        let defects = engine.defects;
        *engine = Engine::new(self.limits);
        engine.defects = defects;
        left
    }

    fn arrive(&self, worker: usize, left: &Left) {
        let mut engine = self.workers[worker].borrow_mut();
        let mut edge = SimulatedEdge { world: self, worker, replies: 0 };
        for (flow, number) in &left.flows {
            let port = flow.listen.port() as usize;
            let open = self.sockets.clone();
            let socket = Socket { port, owner: flow.owner, number: *number, open };
            let account = Some((port, flow.owner));
            engine.adopt(&mut edge, &self.ports[port], flow, socket, account);
        }
        for session in &left.sessions {
            let id = self.ports[session.listen.port() as usize].id;
            let MovedSession { path, header, last_used, close_after, .. } = session;
            engine.sessions.adopt(&(id, *path), header, *last_used, *close_after);
        }
    }

    fn moved(
        &self,
        entry: &Entry<Simulated>,
        flow: &Flow<Socket>,
        route: Option<ReplyRoute>,
    ) -> MovedFlow {
        MovedFlow {
            listen: listen(entry.port.outside),
            owner: entry.owner,
            decision: entry.decision,
            route,
            opened_at: flow.opened_at(),
            last_used: flow.last_used(),
            traffic: [flow.traffic.datagrams_up.load(Ordering::Relaxed), 0, 0, 0],
            segmenting: entry.segmenting,
            account: None,
        }
    }
}

/// Stands for a port's address.
fn listen(port: usize) -> SocketAddr {
    ([192, 0, 2, 0], port as u16).into()
}

/// As it is read at the other end.
fn written(flow: MovedFlow) -> MovedFlow {
    let mut writer = Writer::default();
    flow.write(&mut writer);
    MovedFlow::read(&mut Reader(&writer.0)).unwrap_or(MovedFlow {
        // Whose nothing is: the model finds it.
        owner: Owner::Peer(([192, 0, 2, 0], 0).into()),
        ..flow
    })
}
