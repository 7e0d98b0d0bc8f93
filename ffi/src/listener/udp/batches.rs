//! Datagrams in batches: sorted by route and sent on; replies gathered and sent back.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use super::{Group, Listening, Mark, END};
use crate::frame;
use crate::layout::{carrier, udp_header};
use crate::listener::Context;
use crate::relay::udp::{Sent, WayBack, BATCH};
use crate::socket;
use crate::stats::Counter;

impl Listening {
    pub(super) fn take_in(&mut self, cx: &mut Context) {
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
    pub(super) fn chain(&self, first: u16) -> impl Iterator<Item = u16> + '_ {
        let slot = |at: u16| (at != END).then_some(at);
        std::iter::successors(slot(first), move |at| slot(self.next[usize::from(*at)]))
    }

    pub(super) fn relay_replies(&mut self, cx: &Context) {
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
