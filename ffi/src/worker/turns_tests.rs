//! Workers over real sockets, with several listeners that are added, changed and removed; a decoder that accepts every
//! header, and a clock that the test advances.

use super::*;
use crate::abi::layout::{
    action, header_rule, phase, protocol, ConnectionRecord, SelectionRecord, SurveyRecord,
    TrustRecord,
};
use crate::net::socket::Listen;
use crate::observe::stats::{Counter, STATS_LENGTH};
use crate::proxy::port::{Upstreams, Wanted};
use crate::proxy::settings::{Budgets, ProxySettings, Settings};
use crate::proxy::survey::Selection;
use crate::proxy::{Plan, Proxy};
use crate::trust::host::Host;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

const HEADER: &[u8] = b"PROXY UNKNOWN\r\n";
const STALL: Duration = Duration::from_secs(5);

extern "C" fn takes_all(_length: u32, _carrier: u32) -> u32 {
    action::OWN
}

fn proxy(workers: usize) -> Arc<Proxy> {
    Proxy::new(ProxySettings { workers, ..ProxySettings::for_tests() }, Host::watch().unwrap())
}

fn udp(upstream: SocketAddr) -> Wanted {
    Wanted { tcp: false, udp: true, ..Wanted::for_tests(upstream) }
}

fn start(worker: &Worker) -> Turns<'_> {
    Turns::start(worker, takes_all).unwrap()
}

/// Where a listener's ports listen.
fn listens(proxy: &Proxy, id: i32) -> Vec<SocketAddr> {
    let snapshot = proxy.table.snapshot();
    snapshot.find(id as u32).unwrap().ports.iter().map(|port| port.listen).collect()
}

fn open(proxy: &Proxy, ports: &[Wanted]) -> (i32, Vec<SocketAddr>) {
    let id = proxy.add_listener(Settings::for_tests(), ports.to_vec()).unwrap();
    (id, listens(proxy, id))
}

fn count(proxy: &Proxy, id: i32, counter: Counter) -> u64 {
    let mut sums = [0; STATS_LENGTH];
    proxy.stats(id as u32, &mut sums).unwrap();
    sums[counter as usize]
}

/// An upstream over TCP, and its address.
fn tcp_upstream() -> (TcpListener, SocketAddr) {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    upstream.set_nonblocking(true).unwrap();
    let address = upstream.local_addr().unwrap();
    (upstream, address)
}

fn udp_socket() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

fn connect(to: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(to).unwrap();
    client.set_nonblocking(true).unwrap();
    client.write_all(HEADER).unwrap();
    client
}

impl Turns<'_> {
    fn step(&mut self) {
        self.cx.poll.wait(&mut self.events, if self.tcp.has_work() { 0 } else { 5 }).unwrap();
        self.turn().unwrap();
    }

    /// Has turns until there is something.
    fn until<T>(&mut self, mut found: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = found() {
                return found;
            }
            assert!(began.elapsed() < STALL, "stalled");
            self.step();
        }
    }

    fn accept(&mut self, upstream: &TcpListener) -> TcpStream {
        let (stream, _) = self.until(|| upstream.accept().ok());
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// What a stream gets next; nothing at its end.
    fn read(&mut self, stream: &mut TcpStream) -> Vec<u8> {
        let mut room = [0; 64];
        self.until(|| match stream.read(&mut room) {
            Ok(length) => Some(room[..length].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        })
    }

    fn datagram(&mut self, socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut room = [0; 64];
        let (length, from) = self.until(|| socket.recv_from(&mut room).ok());
        (room[..length].to_vec(), from)
    }

    /// Lets time pass, with a turn at its end.
    fn pass(&mut self, ms: u64) {
        self.cx.now += ms;
        self.step();
    }
}

#[test]
fn a_worker_serves_every_listener_and_counts_each() {
    let proxy = proxy(1);
    let worker = proxy.open_worker().unwrap();
    let ((one, at_one), (two, at_two)) = (tcp_upstream(), tcp_upstream());
    let mut turns = start(&worker);
    let (first, listen_first) = open(&proxy, &[Wanted::for_tests(at_one)]);
    // One that is opened while the worker runs, with two ports.
    let ports = [Wanted::for_tests(at_two), Wanted::for_tests(at_one)];
    let (second, listen_second) = open(&proxy, &ports);
    assert_eq!((first, second), (1, 2));
    let clients = [listen_first[0], listen_second[0], listen_second[1]].map(connect);
    let _upstreams = [turns.accept(&one), turns.accept(&two), turns.accept(&one)];
    let connected = |id| count(&proxy, id, Counter::Connected);
    turns.until(|| (connected(0) == 3).then_some(()));
    assert_eq!((connected(first), connected(second)), (1, 2));
    assert!(proxy.stats(3, &mut [0; STATS_LENGTH]).is_err(), "there is no third");
    drop(clients);
}

#[test]
fn a_listener_that_is_closed_drains_and_the_others_go_on() {
    let proxy = proxy(1);
    let worker = proxy.open_worker().unwrap();
    let ((one, at_one), (two, at_two)) = (tcp_upstream(), tcp_upstream());
    let (first, listen_first) = open(&proxy, &[Wanted::for_tests(at_one)]);
    let (_, listen_second) = open(&proxy, &[Wanted::for_tests(at_two)]);
    let mut turns = start(&worker);
    let (mut going, mut staying) = (connect(listen_first[0]), connect(listen_second[0]));
    let (mut behind_going, mut behind_staying) = (turns.accept(&one), turns.accept(&two));
    // Whoever has connected already was promised a connection.
    let _waiting = connect(listen_first[0]);
    proxy.close_listener(first as u32, Duration::from_secs(60)).unwrap();
    let _behind_waiting = turns.accept(&one);
    turns.step();
    let refused = TcpStream::connect(listen_first[0]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    going.write_all(b"still here").unwrap();
    assert_eq!(turns.read(&mut behind_going), b"still here");
    assert_eq!(count(&proxy, first, Counter::ConnectionsActive), 2);
    turns.pass(61_000);
    assert_eq!(turns.read(&mut going), b"");
    staying.write_all(b"and here").unwrap();
    assert_eq!(turns.read(&mut behind_staying), b"and here");

    assert_eq!(count(&proxy, 0, Counter::Connected), 3, "no counter is lost");
    assert_eq!(count(&proxy, 0, Counter::ConnectionsActive), 1);
    assert!(proxy.close_listener(first as u32, Duration::ZERO).is_err(), "it is closed");
}

#[test]
fn what_closed_listeners_have_counted_is_kept_and_they_are_not() {
    let proxy = proxy(1);
    let worker = proxy.open_worker().unwrap();
    let (upstream, at) = tcp_upstream();
    let mut turns = start(&worker);
    for round in 1..=20 {
        let (id, listen) = open(&proxy, &[Wanted::for_tests(at)]);
        assert_eq!(id, round, "no number comes again");
        let client = connect(listen[0]);
        drop((turns.accept(&upstream), client));
        turns.until(|| (count(&proxy, id, Counter::ConnectionsActive) == 0).then_some(()));
        proxy.close_listener(id as u32, Duration::ZERO).unwrap();
        turns.step();
        turns.step();
        assert!(proxy.stats(id as u32, &mut [0; STATS_LENGTH]).is_err());
        assert_eq!(count(&proxy, 0, Counter::Connected), round as u64);
    }
}

#[test]
fn a_listener_that_changes_keeps_its_sockets_and_connections() {
    let proxy = proxy(1);
    let worker = proxy.open_worker().unwrap();
    let ((one, at_one), (two, at_two)) = (tcp_upstream(), tcp_upstream());
    let (id, listen) = open(&proxy, &[Wanted::for_tests(at_one)]);
    let fd = |port: usize| {
        let snapshot = proxy.table.snapshot();
        snapshot.listeners[0].ports[port].tcp.as_ref().unwrap().fd(0).unwrap()
    };
    let before = fd(0);
    let mut turns = start(&worker);
    let mut client = connect(listen[0]);
    let mut behind = turns.accept(&one);

    let kept = Wanted { listen: listen[0], ..Wanted::for_tests(at_two) };
    let settings = Settings { header_timeout: 1_000, ..Settings::for_tests() };
    proxy.change_listener(id as u32, settings, vec![Wanted::for_tests(at_one), kept]).unwrap();
    assert_eq!(fd(1), before);
    let added = listens(&proxy, id)[0];
    let _clients = (connect(listen[0]), connect(added));
    let _upstreams = (turns.accept(&two), turns.accept(&one));
    client.write_all(b"as before").unwrap();
    assert_eq!(turns.read(&mut behind), b"as before");

    let silent = TcpStream::connect(listen[0]).unwrap();
    turns.until(|| (count(&proxy, id, Counter::Accepted) == 4).then_some(()));
    turns.pass(1_001);
    assert_eq!(count(&proxy, id, Counter::ConnectionsActive), 3, "the new header timeout");
    drop(silent);

    // A port that goes takes nothing new; its connections stay as long as the listener does.
    proxy.change_listener(id as u32, Settings::for_tests(), vec![kept]).unwrap();
    turns.step();
    assert!(TcpStream::connect(added).is_err());
    assert_eq!(count(&proxy, id, Counter::ConnectionsActive), 3);
}

#[test]
fn a_replaced_listener_is_in_use_until_its_last_connection_ends() {
    let proxy = proxy(1);
    let worker = proxy.open_worker().unwrap();
    let ((one, at_one), (two, at_two)) = (tcp_upstream(), tcp_upstream());
    let (id, listen) = open(&proxy, &[Wanted::for_tests(at_one)]);
    let mut turns = start(&worker);
    let client = connect(listen[0]);
    let behind = turns.accept(&one);
    let moved = Wanted { listen: listen[0], ..Wanted::for_tests(at_two) };
    proxy.change_listener(id as u32, Settings::for_tests(), vec![moved]).unwrap();
    let _client = connect(listen[0]);
    let _behind = turns.accept(&two);
    assert!(proxy.is_in_use(id as u32, 1, 1), "it has a connection");
    proxy.close_listener(id as u32, Duration::from_secs(60)).unwrap();
    turns.step();
    drop((client, behind));
    turns.until(|| (!proxy.is_in_use(id as u32, 1, 1)).then_some(()));
    assert!(proxy.is_in_use(id as u32, 2, 2), "the other connection goes on");
    turns.pass(61_000);
    assert!(!proxy.is_in_use(id as u32, 1, 2));
}

#[test]
fn a_smaller_budget_of_flows_is_reached_step_by_step() {
    let proxy = proxy(1);
    let worker = proxy.open_worker().unwrap();
    let (upstream, at) = udp_socket();
    let (id, listen) = open(&proxy, &[udp(at)]);
    let mut turns = start(&worker);
    let active = || count(&proxy, id, Counter::FlowsActive);
    // Without a client in its header a flow is its peer's.
    let send = |turns: &mut Turns| {
        let (peer, _) = udp_socket();
        peer.send_to(&[HEADER, b"x"].concat(), listen[0]).unwrap();
        turns.datagram(&upstream);
        turns.pass(1);
    };
    (0..6).for_each(|_| send(&mut turns));
    assert_eq!(active(), 6);
    proxy.set_budgets(Budgets { flows: 3, ..Budgets::FOR_TESTS }).unwrap();
    turns.step();
    assert_eq!(active(), 6, "none is cut");
    for expected in [5, 4, 3, 3] {
        send(&mut turns);
        assert_eq!(active(), expected);
    }
    proxy.set_budgets(Budgets::FOR_TESTS).unwrap();
    turns.step();
    send(&mut turns);
    assert_eq!(active(), 4);
}

#[test]
fn a_worker_that_starts_again_loses_nothing_in_its_queues() {
    let proxy = proxy(1);
    let worker = proxy.open_worker().unwrap();
    let ((tcp, at_tcp), (behind_udp, at_udp)) = (tcp_upstream(), udp_socket());
    let (_, listen) = open(&proxy, &[Wanted::for_tests(at_tcp), udp(at_udp)]);
    let mut turns = start(&worker);
    let client = connect(listen[0]);
    let _upstream = turns.accept(&tcp);
    drop(turns);
    let _waiting = connect(listen[0]);
    let (peer, _) = udp_socket();
    peer.send_to(&[HEADER, b"waits"].concat(), listen[1]).unwrap();
    proxy.clear_gauges(0);
    let mut turns = start(&worker);
    let _upstream = turns.accept(&tcp);
    assert_eq!(turns.datagram(&behind_udp).0, b"waits");
    assert_eq!(count(&proxy, 0, Counter::ConnectionsActive), 1);
    drop(client);
}

#[test]
fn every_worker_has_its_own_socket_and_closes_it_alone() {
    let proxy = proxy(2);
    let workers = [proxy.open_worker().unwrap(), proxy.open_worker().unwrap()];
    assert!(proxy.open_worker().is_err(), "the configuration says two");
    let (_upstream, at) = tcp_upstream();
    let (id, listen) = open(&proxy, &[Wanted::for_tests(at)]);
    let mut turns = workers.each_ref().map(|worker| start(worker));
    proxy.close_listener(id as u32, Duration::ZERO).unwrap();
    turns[0].step();
    let queued = TcpStream::connect(listen[0]);
    assert!(queued.is_ok(), "the other worker's socket listens");
    turns[1].step();
    assert!(TcpStream::connect(listen[0]).is_err());
}

#[test]
fn a_datagram_and_its_reply_stay_at_their_port() {
    let proxy = proxy(1);
    let worker = proxy.open_worker().unwrap();
    let upstreams: Vec<_> = (0..3).map(|_| udp_socket()).collect();
    let to: Vec<Wanted> = upstreams.iter().map(|(_, at)| udp(*at)).collect();
    // Two ports of one listener, and one of another.
    let (first, mut listen) = open(&proxy, &to[..2]);
    let (second, more) = open(&proxy, &to[2..]);
    listen.extend(more);
    let mut turns = start(&worker);
    let (peer, _) = udp_socket();
    for round in 0..3u8 {
        for (port, at) in listen.iter().enumerate() {
            peer.send_to(&[HEADER, &[port as u8, round]].concat(), at).unwrap();
        }
        let mut froms = Vec::new();
        for (port, (socket, _)) in upstreams.iter().enumerate() {
            let (payload, from) = turns.datagram(socket);
            assert_eq!(payload, [port as u8, round]);
            socket.send_to(&[100 + port as u8], from).unwrap();
            froms.push(from);
        }
        for _ in 0..3 {
            let (reply, from) = turns.datagram(&peer);
            assert_eq!(from, listen[usize::from(reply[0]) - 100]);
        }
    }
    let counted = |id, counter| count(&proxy, id, counter);
    assert_eq!(counted(first, Counter::FlowsOpened), 2);
    assert_eq!(counted(second, Counter::FlowsOpened), 1);
    assert_eq!(counted(first, Counter::DatagramsUp), 6);
    assert_eq!(counted(second, Counter::DatagramsDown), 3);

    // The last replies still come; then the port is free.
    proxy.close_listener(first as u32, Duration::from_secs(60)).unwrap();
    turns.step();
    assert_eq!(counted(0, Counter::FlowsActive), 3);
    peer.send_to(&[HEADER, b"late"].concat(), listen[0]).unwrap();
    peer.send_to(&[HEADER, b"stays"].concat(), listen[2]).unwrap();
    let (_, from) = turns.datagram(&upstreams[2].0);
    upstreams[2].0.send_to(b"!", from).unwrap();
    assert_eq!(turns.datagram(&peer).0, b"!");
    turns.pass(1_001);
    assert_eq!(counted(0, Counter::FlowsActive), 1);
    assert!(UdpSocket::bind(listen[0]).is_ok());
    assert!(upstreams[0].0.recv_from(&mut [0; 8]).is_err(), "nothing new was taken in");
}

#[test]
fn flows_follow_a_port_to_another_upstream() {
    let proxy = proxy(1);
    let worker = proxy.open_worker().unwrap();
    let ((before, at_before), (after, at_after)) = (udp_socket(), udp_socket());
    let (id, listen) = open(&proxy, &[udp(at_before)]);
    let mut turns = start(&worker);
    let (peer, _) = udp_socket();
    let datagram = [HEADER, b"x"].concat();
    peer.send_to(&datagram, listen[0]).unwrap();
    turns.datagram(&before);
    let elsewhere = Wanted { listen: listen[0], ..udp(at_after) };
    proxy.change_listener(id as u32, Settings::for_tests(), vec![elsewhere]).unwrap();
    peer.send_to(&datagram, listen[0]).unwrap();
    turns.datagram(&after);
    assert_eq!(count(&proxy, id, Counter::FlowsActive), 1);
    // What changes nothing of the port leaves its flows alone.
    let settings = Settings { close_after: 1_000, ..Settings::for_tests() };
    proxy.change_listener(id as u32, settings, vec![elsewhere]).unwrap();
    peer.send_to(&datagram, listen[0]).unwrap();
    turns.datagram(&after);
    assert_eq!(count(&proxy, id, Counter::FlowsOpened), 2);
}

fn rule(address: [u8; 16], prefix: u32, header: u32) -> TrustRecord {
    TrustRecord { address, prefix, header }
}

#[test]
fn a_restricted_listener_lets_nobody_in_before_it_has_its_trust_table() {
    let proxy = proxy(1);
    let worker = proxy.open_worker().unwrap();
    let (upstream, at) = tcp_upstream();
    let settings = Settings { restricted: true, ..Settings::for_tests() };
    let id = proxy.add_listener(settings, vec![Wanted::for_tests(at)]).unwrap();
    let (_, other) = open(&proxy, &[Wanted::for_tests(at)]);
    let listen = listens(&proxy, id);
    let mut turns = start(&worker);
    let mut refused = TcpStream::connect(listen[0]).unwrap();
    refused.set_nonblocking(true).unwrap();
    assert_eq!(turns.read(&mut refused), b"");
    let loopback = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 0];
    let subnet = rule(loopback, 104, header_rule::REQUIRE);
    assert!(proxy.set_trust(id as u32, &[]).is_err());
    proxy.set_trust(id as u32, &[subnet]).unwrap();
    let _client = connect(listen[0]);
    let _upstream = turns.accept(&upstream);
    let elsewhere = rule([0x20; 16], 128, header_rule::REQUIRE);
    proxy.set_trust(id as u32, &[elsewhere]).unwrap();
    let mut refused = TcpStream::connect(listen[0]).unwrap();
    refused.set_nonblocking(true).unwrap();
    assert_eq!(turns.read(&mut refused), b"");
    let _client = connect(other[0]);
    let _upstream = turns.accept(&upstream);
}

#[test]
fn a_listener_opens_completely_or_not_at_all_and_says_where() {
    let proxy = proxy(1);
    let (taken, at_taken) = tcp_upstream();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let at = |listen| Wanted { listen, ..Wanted::for_tests(([127, 0, 0, 1], 9).into()) };
    let refused = proxy.add_listener(Settings::for_tests(), vec![at(free), at(at_taken)]);
    let text = refused.unwrap_err().text().to_owned();
    assert!(text.starts_with(&format!("Cannot listen on {at_taken} (TCP): ")), "{text}");
    assert!(TcpListener::bind(free).is_ok());
    assert_eq!(proxy.table.version(), 0);
    drop(taken);
    let (id, _) = open(&proxy, &[at(free), at(at_taken)]);
    assert_eq!((id, proxy.table.version()), (1, 1));
    let refused = proxy.add_listener(Settings::for_tests(), vec![at(free)]);
    assert!(refused.is_err(), "another listener has it");
}

#[test]
fn no_listener_may_forward_to_another_and_none_may_come_where_one_forwards_to() {
    let proxy = proxy(1);
    let (_, listen) = open(&proxy, &[Wanted::for_tests(([127, 0, 0, 1], 9).into())]);
    let loops = proxy.add_listener(Settings::for_tests(), vec![Wanted::for_tests(listen[0])]);
    let text = loops.unwrap_err().text().to_owned();
    let expected =
        format!("Cannot forward to {0}: mmproxy itself listens there, on {0}", listen[0]);
    assert_eq!(text, expected);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    open(&proxy, &[Wanted::for_tests(free)]);
    let there = Wanted { listen: free, ..Wanted::for_tests(([127, 0, 0, 1], 9).into()) };
    assert!(proxy.add_listener(Settings::for_tests(), vec![there]).is_err());
    // Over the other transport nothing arrives there.
    let other =
        Wanted { upstreams: Upstreams::new(Some(listen[0]), None, 0).unwrap(), ..udp(free) };
    assert!(proxy.add_listener(Settings::for_tests(), vec![other]).is_ok());
}

#[test]
fn both_families_have_a_wildcard_of_their_own() {
    let proxy = proxy(1);
    let upstream = ([127, 0, 0, 1], 9).into();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = |text: String| Wanted { listen: text.parse().unwrap(), ..Wanted::for_tests(upstream) };
    let v4 = at(format!("0.0.0.0:{free}"));
    let v6 =
        Wanted { how: Listen { only_v6: true, transparent: false }, ..at(format!("[::]:{free}")) };
    open(&proxy, &[v4, v6]);
}

fn plan(id: i32, ports: &[Wanted]) -> Plan {
    let ports = ports.to_vec();
    Plan {
        id: id as u32,
        settings: Settings::for_tests(),
        trust: None,
        destinations: Arc::default(),
        ports,
    }
}

/// A port as it listens now.
fn here(listen: SocketAddr, port: Wanted) -> Wanted {
    Wanted { listen, ..port }
}

#[test]
fn a_whole_configuration_moves_a_port_to_another_listener_without_touching_its_sockets() {
    let proxy = proxy(1);
    let worker = proxy.open_worker().unwrap();
    let ((tcp, at_tcp), (behind_udp, at_udp)) = (tcp_upstream(), udp_socket());
    let (first, listen) = open(&proxy, &[Wanted::for_tests(at_tcp), udp(at_udp)]);
    let (second, other) = open(&proxy, &[Wanted::for_tests(at_tcp)]);
    let mut turns = start(&worker);
    let (peer, _) = udp_socket();
    let mut client = connect(listen[0]);
    let mut behind = turns.accept(&tcp);
    let _staying = connect(other[0]);
    let _behind_staying = turns.accept(&tcp);
    peer.send_to(&[HEADER, b"x"].concat(), listen[1]).unwrap();
    let (_, from) = turns.datagram(&behind_udp);

    let moved = [
        here(listen[0], Wanted::for_tests(at_tcp)),
        here(listen[1], udp(at_udp)),
        Wanted::for_tests(at_tcp),
    ];
    let stays = here(other[0], Wanted::for_tests(at_tcp));
    let plans = vec![plan(second, &[stays]), plan(0, &moved)];
    let ids = proxy.reconfigure(plans, Budgets::FOR_TESTS, Duration::from_secs(60)).unwrap();
    assert_eq!(ids, [second as u32, 3]);
    // A connection that comes before the worker looks is not lost, nor a datagram or a reply.
    let _new = connect(listen[0]);
    behind_udp.send_to(b"reply", from).unwrap();
    peer.send_to(&[HEADER, b"y"].concat(), listen[1]).unwrap();
    let _behind_new = turns.accept(&tcp);
    assert_eq!(turns.datagram(&behind_udp), (b"y".to_vec(), from), "the flow goes on");
    assert_eq!(turns.datagram(&peer), (b"reply".to_vec(), listen[1]));
    assert_eq!(count(&proxy, 3, Counter::Accepted), 1);
    assert_eq!(count(&proxy, 3, Counter::DatagramsUp), 1);
    let added = listens(&proxy, 3)[2];
    let _at_added = connect(added);
    turns.accept(&tcp);
    // What the closed listener had accepted ends after its grace, and no other.
    client.write_all(b"still").unwrap();
    assert_eq!(turns.read(&mut behind), b"still");
    assert_eq!(count(&proxy, first, Counter::ConnectionsActive), 1);
    turns.pass(61_000);
    assert_eq!(turns.read(&mut client), b"");
    assert_eq!(count(&proxy, second, Counter::ConnectionsActive), 1);
}

#[test]
fn a_configuration_that_cannot_be_had_changes_nothing() {
    let proxy = proxy(1);
    let (taken, at_taken) = tcp_upstream();
    let nine = ([127, 0, 0, 1], 9).into();
    let (id, listen) = open(&proxy, &[Wanted::for_tests(nine)]);
    let before = proxy.table.version();
    let kept = here(listen[0], Wanted::for_tests(nine));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let new = here(free, Wanted::for_tests(nine));
    let in_the_way = here(at_taken, Wanted::for_tests(nine));
    let looping = Wanted::for_tests(listen[0]);
    for (plans, says) in [
        (vec![plan(id, &[kept, new]), plan(0, &[in_the_way])], "Cannot listen on"),
        (vec![plan(id, &[kept]), plan(0, &[new, looping])], "Cannot forward to"),
        (vec![plan(id, &[kept]), plan(0, &[kept])], "Cannot listen on"),
        (vec![plan(7, &[kept])], "there is no listener 7"),
        (vec![plan(id, &[kept]), plan(id, &[new])], "listener 1 is named twice"),
    ] {
        let error = proxy.reconfigure(plans, Budgets::FOR_TESTS, Duration::ZERO).unwrap_err();
        assert!(error.text().starts_with(says), "{}", error.text());
        assert_eq!(proxy.table.version(), before);
        assert!(TcpListener::bind(free).is_ok(), "what was opened is closed");
    }
    assert!(TcpStream::connect(listen[0]).is_ok());
    drop(taken);
    // TCP and UDP of one address may be two listeners'.
    let other = here(listen[0], udp(nine));
    let plans = vec![plan(id, &[kept]), plan(0, &[other])];
    assert!(proxy.reconfigure(plans, Budgets::FOR_TESTS, Duration::ZERO).is_ok());
}

#[test]
fn an_address_gives_way_to_its_wildcard_and_back_in_one_step() {
    let proxy = proxy(1);
    let worker = proxy.open_worker().unwrap();
    let (upstream, at) = tcp_upstream();
    let (id, listen) = open(&proxy, &[Wanted::for_tests(at)]);
    let mut turns = start(&worker);
    let port = listen[0].port();
    let one = Wanted { listen: listen[0], ..Wanted::for_tests(at) };
    let any = Wanted { listen: ([0, 0, 0, 0], port).into(), ..one };
    // `[::]` alone has IPv4 as well, and beside 0.0.0.0 it has not.
    let both = Wanted { listen: format!("[::]:{port}").parse().unwrap(), ..one };
    let only_v6 = Wanted { how: Listen { only_v6: true, transparent: false }, ..both };
    for ports in [vec![any], vec![both], vec![any, only_v6], vec![both], vec![one]] {
        let _waiting = connect(listen[0]);
        proxy.change_listener(id as u32, Settings::for_tests(), ports).unwrap();
        let _behind_waiting = turns.accept(&upstream);
        turns.step();
        let _client = connect(listen[0]);
        let _behind = turns.accept(&upstream);
    }
}

/// The result of a survey, with its records, while the worker has its turns.
fn survey(
    turns: &mut Turns,
    proxy: &Arc<Proxy>,
    listener: i32,
    closes: u32,
) -> (SurveyRecord, Vec<ConnectionRecord>) {
    let selection =
        SelectionRecord { address: [0; 16], prefix: 0, listener: listener as u32, closes };
    let proxy = proxy.clone();
    let asking = std::thread::spawn(move || {
        let mut records = vec![ConnectionRecord::default(); 8];
        let selection = Selection::new(&selection).unwrap();
        let survey = proxy.survey(selection, &mut records, STALL);
        records.truncate(survey.listed as usize);
        (survey, records)
    });
    turns.until(|| asking.is_finished().then_some(()));
    asking.join().unwrap()
}

#[test]
fn a_survey_lists_and_closes_connections_and_flows_of_a_listener() {
    let proxy = proxy(1);
    let worker = proxy.open_worker().unwrap();
    let (tcp_upstream, tcp_address) = tcp_upstream();
    let (udp_upstream, udp_address) = udp_socket();
    let (streams, stream_ports) = open(&proxy, &[Wanted::for_tests(tcp_address)]);
    let (datagrams, datagram_ports) = open(&proxy, &[udp(udp_address)]);
    let mut turns = start(&worker);
    let mut client = connect(stream_ports[0]);
    client.write_all(b"hello").unwrap();
    let mut served = turns.accept(&tcp_upstream);
    assert_eq!(turns.read(&mut served), b"hello");
    served.write_all(b"hi").unwrap();
    assert_eq!(turns.read(&mut client), b"hi");
    let (sender, _) = udp_socket();
    sender.send_to(&[HEADER, b"ping"].concat(), datagram_ports[0]).unwrap();
    let (_, flow) = turns.datagram(&udp_upstream);
    udp_upstream.send_to(b"longer pong", flow).unwrap();
    turns.datagram(&sender);
    let silent = TcpStream::connect(stream_ports[0]).unwrap();
    turns.until(|| (count(&proxy, streams, Counter::Accepted) == 2).then_some(()));

    let (found, records) = survey(&mut turns, &proxy, 0, 0);
    assert_eq!(found, SurveyRecord { found: 3, listed: 3, silent: 0 });
    let by = |protocol: u32, phase: u8| {
        let is_it = |it: &&ConnectionRecord| it.protocol == protocol as u8 && it.phase == phase;
        *records.iter().find(is_it).unwrap()
    };
    let relayed = by(protocol::TCP, phase::RELAYED);
    assert_eq!((relayed.bytes_up, relayed.bytes_down), (5, 2));
    assert_eq!(relayed.peer.socket_addr(), client.local_addr().ok());
    assert_eq!(relayed.upstream.socket_addr(), Some(tcp_address));
    assert_eq!(relayed.listener, streams as u32);
    let flow = by(protocol::UDP, phase::RELAYED);
    assert_eq!((flow.bytes_up, flow.bytes_down), (4, 11));
    assert_eq!(flow.peer.socket_addr(), sender.local_addr().ok());
    assert_eq!(by(protocol::TCP, phase::HEADER).peer.socket_addr(), silent.local_addr().ok());

    let (closed, _) = survey(&mut turns, &proxy, streams, 1);
    assert_eq!(closed.found, 2);
    assert_eq!(turns.read(&mut client), b"");
    assert_eq!(turns.read(&mut served), b"");
    assert_eq!(count(&proxy, streams, Counter::ConnectionsActive), 0);
    assert_eq!(count(&proxy, datagrams, Counter::FlowsActive), 1);
    assert_eq!(survey(&mut turns, &proxy, datagrams, 1).0.found, 1);
    assert_eq!(survey(&mut turns, &proxy, 0, 0).0.found, 0);
    // The client's next datagram opens a new one.
    sender.send_to(&[HEADER, b"again"].concat(), datagram_ports[0]).unwrap();
    assert_eq!(turns.datagram(&udp_upstream).0, b"again");
}

#[test]
fn a_survey_does_not_wait_for_a_worker_that_nobody_serves() {
    let proxy = proxy(1);
    let _worker = proxy.open_worker().unwrap();
    let selection = SelectionRecord { address: [0; 16], prefix: 0, listener: 0, closes: 0 };
    let selection = Selection::new(&selection).unwrap();
    let survey = proxy.survey(selection, &mut [], Duration::from_millis(10));
    assert_eq!(survey, SurveyRecord { found: 0, listed: 0, silent: 1 });
}
