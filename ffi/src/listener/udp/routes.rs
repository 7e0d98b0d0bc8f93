//! Which route a datagram takes: known by its peer and header, or opened by the decoder's verdict.

use std::io;
use std::sync::{Arc, Weak};

use super::{Listening, Mark, Target, END, FIRST_SWEEP};
use crate::frame::{self, Frame};
use crate::layout::carrier;
use crate::listener::Context;
use crate::refusal::Refusal;
use crate::relay::routes::{Route, RouteId};
use crate::relay::udp::{Found, Owner, Path};
use crate::socket::Source;

impl Listening {
    /// The route of a datagram that carries its header, and where its payload starts.
    pub(super) fn find_route(
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
    pub(super) fn find_session(
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

    pub(super) fn remove_route(&mut self, id: RouteId) {
        let Some(route) = self.routes.remove(id) else { return };
        if let Some(tenant) = route.target.key.and_then(|key| self.tenants.get_mut(key)) {
            tenant.leading.forget(id);
        }
        self.drop_group(id);
    }

    /// A route that leaves in mid-batch takes its datagrams along: its index may be given anew.
    pub(super) fn drop_group(&mut self, id: RouteId) {
        if let Some(at) = self.groups.iter().position(|group| group.route == id) {
            let group = self.groups[at];
            self.dropped += self.chain(group.first).count() as u64;
            self.groups[at].first = END;
        }
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
        let owner = match cx.decode(header, carrier, peer)? {
            Source::Client(client) => Owner::Client(client),
            Source::Own => Owner::Peer(peer),
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
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}
