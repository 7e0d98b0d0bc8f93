//! The listening sockets in the service manager's store: those of an earlier run, and those that belong there now.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Mutex;

use socket2::Socket;

use super::handover::give::listening_of;
use super::pool::{Place, Pool};
use super::port::Transport;
use super::Proxy;
use crate::abi::errors::Result;
use crate::net::socket::{self, Listen};
use crate::system::fdstore::{self, Passed};
use crate::system::sync::lock;

/// What an earlier run has left, and the names in the store.
#[derive(Default)]
pub struct Stored {
    pool: Mutex<Pool>,
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    /// In the store, with the socket that they stand for.
    held: BTreeSet<String>,
    /// In the store, perhaps, and to be removed.
    stale: BTreeSet<String>,
    /// Sockets of an earlier run, until it is known what becomes of them.
    uncounted: u32,
}

/// What became of the sockets of an earlier run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Came {
    /// They listen again.
    pub kept: u32,
    /// No listener has them, or they are something else.
    pub closed: u32,
}

impl Stored {
    /// What the service manager has passed. What does not fit its name is closed.
    pub fn new(passed: Vec<Passed>) -> Stored {
        let mut pool = Pool::default();
        let mut names = Names { uncounted: passed.len() as u32, ..Names::default() };
        for Passed { name, socket } in passed {
            let fits = socket.is_some_and(|socket| {
                let Some((place, worker)) = place_of(&name) else { return false };
                is_of(&socket, place) && pool.add(place, worker as usize, socket)
            });
            if fits {
                names.held.insert(name);
            } else {
                names.held.remove(&name);
                names.stale.insert(name);
            }
        }
        Stored { pool: Mutex::new(pool), names: Mutex::new(names) }
    }

    /// The sockets of a place by worker, once.
    pub fn sockets(&self, place: Place) -> Option<Vec<Option<Socket>>> {
        lock(&self.pool).take(place)
    }

    /// Whether one that nobody has taken listens on an address, or on one that includes it.
    pub fn listens(&self, listen: SocketAddr, transport: Transport) -> bool {
        lock(&self.pool).listens(listen, transport)
    }

    /// Has a predecessor's socket, which this program does not continue with, removed by the next `update`.
    pub fn give_up(&self, place: Place, worker: u32) {
        lock(&self.names).stale.insert(name_of(place, worker));
    }

    /// Makes the store hold what listens now, and nothing else. A socket that stays there takes no message.
    /// Once the proxy stops nothing changes: the next run has what is there. The first call has what became of
    /// the sockets of the run before; it closes those that nobody has taken.
    ///
    /// # Errors
    /// Where the service manager does not read; the next call continues from there.
    pub fn update(proxy: &Proxy) -> Result<Came> {
        // No socket is closed as long as this is held.
        let Ok(_changing) = proxy.change() else { return Ok(Came::default()) };
        let mut names = lock(&proxy.stored.names);
        for (place, workers) in lock(&proxy.stored.pool).close() {
            for name in workers.iter().map(|worker| name_of(place, *worker)) {
                names.held.remove(&name);
                names.stale.insert(name);
            }
        }
        let listening = listening_of(proxy).into_iter().map(|it| {
            let place = (it.listen, it.transport, it.sockets.how);
            (name_of(place, it.worker), it.descriptor)
        });
        let listening: BTreeMap<_, _> = listening.collect();
        let gone = |name: &&String| !listening.contains_key(*name);
        let removed: BTreeSet<String> =
            names.held.iter().filter(gone).chain(&names.stale).cloned().collect();
        let came = match std::mem::take(&mut names.uncounted) {
            0 => Came::default(),
            passed => {
                let kept = names.held.iter().filter(|name| !gone(name)).count() as u32;
                Came { kept, closed: passed.saturating_sub(kept) }
            }
        };
        for name in removed {
            if !name.is_empty() {
                fdstore::remove(&name)?;
            }
            names.held.remove(&name);
            names.stale.remove(&name);
        }
        for (name, descriptor) in listening {
            if !names.held.contains(&name) {
                fdstore::add(&name, &descriptor)?;
                names.held.insert(name);
            }
        }
        Ok(came)
    }
}

/// Whether a socket listens there, and as this program's sockets do.
fn is_of(socket: &Socket, (listen, transport, how): Place) -> bool {
    socket::check_listening(socket, listen, transport == Transport::Tcp, how).is_ok()
}

/// The name of a worker's socket: one for each, without a colon, and of at most 80 characters.
fn name_of((listen, transport, how): Place, worker: u32) -> String {
    let scope = match listen {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("%{}", v6.scope_id()),
        _ => String::new(),
    };
    let address = listen.ip().to_string().replace(':', "_");
    let (transport, how, port) = (transport.number(), how.number(), listen.port());
    format!("mmproxy-{transport}-{how}-{worker}-{port}-{address}{scope}")
}

/// What a name stands for, where this program has given it.
fn place_of(name: &str) -> Option<(Place, u32)> {
    let mut parts = name.strip_prefix("mmproxy-")?.splitn(5, '-');
    let transport = Transport::of_number(parts.next()?.parse().ok()?)?;
    let how = Listen::of_number(parts.next()?.parse().ok()?)?;
    let worker = parts.next()?.parse().ok()?;
    let port = parts.next()?.parse().ok()?;
    let address = parts.next()?.replace('_', ":");
    let (address, scope) = address.split_once('%').unwrap_or((&address, "0"));
    let listen = match address.parse().ok()? {
        IpAddr::V4(v4) => SocketAddr::from((v4, port)),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, scope.parse().ok()?).into(),
    };
    let place = (listen, transport, how);
    (name_of(place, worker) == name).then_some((place, worker))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::socket::tcp_listener;

    fn place(text: &str, transport: Transport, how: Listen) -> Place {
        (text.parse().unwrap(), transport, how)
    }

    #[test]
    fn a_name_stands_for_one_socket() {
        let how = Listen { only_v6: true, transparent: false };
        let places = [
            place("192.0.2.1:443", Transport::Tcp, Listen::default()),
            place("192.0.2.1:443", Transport::Udp, Listen::default()),
            place("[::]:53", Transport::Udp, how),
            place("[2001:db8::1]:53", Transport::Udp, Listen::default()),
            place("[fe80::1%7]:53", Transport::Tcp, how),
        ];
        for (at, place) in places.into_iter().enumerate() {
            let name = name_of(place, at as u32);
            assert!(!name.contains(':') && name.len() <= 80, "{name}");
            assert_eq!(place_of(&name), Some((place, at as u32)), "{name}");
        }
        let other = ["", "mmproxy.socket", "mmproxy-1-0-0-443", "mmproxy-1-0-00-443-192.0.2.1"];
        for name in other.into_iter().chain(["mmproxy-3-0-0-443-192.0.2.1"]) {
            assert_eq!(place_of(name), None, "{name}");
        }
    }

    #[test]
    fn a_socket_that_does_not_fit_its_name_is_closed() {
        let any = || tcp_listener("127.0.0.1:0".parse().unwrap(), Listen::default()).unwrap();
        let (right, wrong, twice) = (any(), any(), any());
        let listen = right.local_addr().unwrap().as_socket().unwrap();
        let gone = wrong.local_addr().unwrap().as_socket().unwrap();
        let at = (listen, Transport::Tcp, Listen::default());
        let other = (listen, Transport::Udp, Listen::default());
        let passed = |name: String, socket| Passed { name, socket: Some(socket) };
        let stored = Stored::new(vec![
            passed(name_of(at, 1), right),
            passed(name_of(other, 0), wrong),
            passed("mmproxy.socket".into(), twice),
        ]);
        assert!(stored.listens(listen, Transport::Tcp) && !stored.listens(listen, Transport::Udp));
        let sockets = stored.sockets(at).unwrap();
        assert!(sockets[0].is_none() && sockets[1].is_some());
        assert!(std::net::TcpStream::connect(gone).is_err(), "it is closed");
        let names = lock(&stored.names);
        assert_eq!(names.held, BTreeSet::from([name_of(at, 1)]));
        assert_eq!(names.stale, BTreeSet::from([name_of(other, 0), "mmproxy.socket".into()]));
    }
}
