//! The old program's side of a hand-over.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::stages::Stage;
use super::wire::{Channel, Kind, Reader, Writer, VERSION};
use crate::abi::errors::{Error, Result};
use crate::control::server::Server;
use crate::net::descriptors;
use crate::proxy::port::{Sockets, Transport};
use crate::proxy::Proxy;
use crate::system::sync::lock;
use crate::udp::Leaving;

/// How long the new program may take from its first words to its start.
const STARTING: Duration = Duration::from_secs(30);
/// How long it may take for each answer while nobody reads.
const ANSWERING: Duration = Duration::from_secs(5);
/// Bytes of a frame of flows or sessions from which on the next one begins.
const FULL: usize = 256 << 10;

/// What a hand-over came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given {
    /// The new program's.
    pub process: u32,
    /// Listening sockets.
    pub sockets: u32,
    /// UDP flows.
    pub flows: u32,
    /// How long neither program read.
    pub paused_ms: u32,
}

/// A listening socket of this program.
pub struct Listening {
    pub listen: SocketAddr,
    pub transport: Transport,
    pub sockets: Arc<Sockets>,
    pub worker: u32,
    pub descriptor: RawFd,
}

/// Hands over to whoever asked with this request of the control socket, up to where it reads. After an error
/// this program continues with all that it had. The listeners must not be changed meanwhile.
///
/// `words`: the program's own, for the new one.
///
/// # Errors
/// With why, for the operator.
pub fn give(proxy: &Proxy, control: &Server, request: u32, words: &[u8]) -> Result<Given> {
    let stream = control.take(request)?;
    let channel = Channel::new(stream, ANSWERING).map_err(|error| broken(&error))?;
    let given = give_over(proxy, control, &channel, words);
    match &given {
        Ok(_) => *lock(&proxy.successor) = Some(channel),
        Err(error) => {
            let _ = channel.send(Kind::Refused, error.text().as_bytes(), &[]);
        }
    }
    given
}

/// Tells the new program that all is done here, too.
pub fn finish(proxy: &Proxy) {
    if let Some(channel) = lock(&proxy.successor).take() {
        let _ = channel.send(Kind::Done, &[], &[]);
    }
}

fn give_over(proxy: &Proxy, control: &Server, channel: &Channel, words: &[u8]) -> Result<Given> {
    let listening = listening_of(proxy);
    show(proxy, control, channel, &listening, words).map_err(|error| broken(&error))?;
    let ready = channel.expect(Kind::Ready, STARTING).map_err(|error| broken(&error))?;
    let left = left_by(&ready.payload).ok_or_else(nonsense)?;
    let going = listening.iter().filter(|it| !left.contains(&(it.listen, it.transport)));
    let ids: HashSet<u32> = going.map(|it| it.sockets.id).collect();
    let sockets = listening.iter().filter(|it| ids.contains(&it.sockets.id)).count() as u32;
    let going = Arc::new(ids);
    control.set_accepting(false);
    let paused = Instant::now();
    match move_flows(proxy, channel, &going) {
        Ok(flows) => {
            let paused_ms = paused.elapsed().as_millis() as u32;
            // They have no way back: one that does not follow closes at the end, with its program.
            let _ = proxy.bring_to(Stage::Released, &going);
            Ok(Given { process: channel.peer_process(), sockets, flows, paused_ms })
        }
        Err(error) => {
            let _ = proxy.bring_to(Stage::Serving, &going);
            control.set_accepting(true);
            Err(error)
        }
    }
}

/// Every listening socket that is open.
pub fn listening_of(proxy: &Proxy) -> Vec<Listening> {
    let snapshot = proxy.table.snapshot();
    let mut listening = Vec::new();
    for port in snapshot.listeners.iter().flat_map(|listener| &listener.ports) {
        for transport in Transport::BOTH {
            let Some(sockets) = port.sockets(transport) else { continue };
            for worker in 0..proxy.settings.workers as u32 {
                let Some(descriptor) = sockets.fd(worker) else { continue };
                let (listen, sockets) = (port.listen, sockets.clone());
                listening.push(Listening { listen, transport, sockets, worker, descriptor });
            }
        }
    }
    listening
}

/// Shows the new program what there is.
fn show(
    proxy: &Proxy,
    control: &Server,
    channel: &Channel,
    listening: &[Listening],
    words: &[u8],
) -> io::Result<()> {
    let mut hello = Writer::default();
    hello.u32(VERSION);
    hello.u64(proxy.now());
    hello.u32(proxy.settings.workers as u32);
    hello.bytes(words);
    channel.send(Kind::Hello, &hello.0, &[])?;
    for some in listening.chunks(descriptors::MOST) {
        let mut writer = Writer::default();
        for it in some {
            writer.u8(it.transport.number());
            writer.u8(it.sockets.how.number());
            writer.u32(it.worker);
            writer.address(Some(it.listen));
        }
        let fds: Vec<RawFd> = some.iter().map(|it| it.descriptor).collect();
        channel.send(Kind::Listening, &writer.0, &fds)?;
    }
    let (descriptor, (device, inode)) = control.listener();
    let mut writer = Writer::default();
    writer.u64(device);
    writer.u64(inode);
    channel.send(Kind::Control, &writer.0, &[descriptor])?;
    channel.send(Kind::Listed, &[], &[])
}

/// The places that the new program does not take.
fn left_by(payload: &[u8]) -> Option<HashSet<(SocketAddr, Transport)>> {
    let mut reader = Reader(payload);
    let mut left = HashSet::new();
    while !reader.is_over() {
        let transport = Transport::of_number(reader.u8()?)?;
        left.insert((reader.address()??, transport));
    }
    Some(left)
}

/// Stops reading, and moves the flows; how many there are. The new program reads afterwards.
fn move_flows(proxy: &Proxy, channel: &Channel, going: &Arc<HashSet<u32>>) -> Result<u32> {
    proxy.bring_to(Stage::Paused, going)?;
    let leaving = proxy.bring_to(Stage::Leaving, going)?;
    let flows = send_flows(channel, &leaving).map_err(|error| broken(&error))?;
    channel.expect(Kind::Got, ANSWERING).map_err(|error| broken(&error))?;
    channel.send(Kind::Go, &[], &[]).map_err(|error| broken(&error))?;
    match channel.expect(Kind::Started, ANSWERING) {
        Ok(_) => Ok(flows),
        // It is there, and may read: this program must not.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(flows),
        Err(error) => Err(broken(&error)),
    }
}

fn send_flows(channel: &Channel, leaving: &[(u32, Leaving)]) -> io::Result<u32> {
    let (mut flows, mut sessions) = (0, 0);
    for (worker, Leaving { flows: own, sessions: own_sessions }) in leaving {
        let (mut writer, mut fds) = (Writer::default(), Vec::new());
        for (flow, upstream) in own {
            if fds.len() == descriptors::MOST || writer.0.len() >= FULL {
                channel.send(Kind::Flows, &writer.0, &fds)?;
                writer.0.clear();
                fds.clear();
            }
            writer.u32(*worker);
            flow.write(&mut writer);
            fds.push(upstream.descriptor());
        }
        if !fds.is_empty() {
            channel.send(Kind::Flows, &writer.0, &fds)?;
        }
        writer.0.clear();
        for session in own_sessions {
            if writer.0.len() >= FULL {
                channel.send(Kind::Sessions, &writer.0, &[])?;
                writer.0.clear();
            }
            writer.u32(*worker);
            session.write(&mut writer);
        }
        if !writer.0.is_empty() {
            channel.send(Kind::Sessions, &writer.0, &[])?;
        }
        flows += own.len() as u32;
        sessions += own_sessions.len() as u32;
    }
    let mut moved = Writer::default();
    moved.u32(flows);
    moved.u32(sessions);
    channel.send(Kind::Moved, &moved.0, &[])?;
    Ok(flows)
}

fn broken(error: &io::Error) -> Error {
    Error::invalid(match error.kind() {
        io::ErrorKind::UnexpectedEof => "the new program ended".into(),
        io::ErrorKind::WouldBlock => "the new program did not answer in time".into(),
        _ => error.to_string(),
    })
}

fn nonsense() -> Error {
    Error::invalid("the new program sent what makes no sense")
}
