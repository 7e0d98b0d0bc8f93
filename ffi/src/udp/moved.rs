//! The format of flows and sessions in a hand-over.

use std::net::SocketAddr;

use super::flow::{Owner, ReplyRoute};
use super::path::{Local, Path};
use crate::abi::layout::Endpoint;
use crate::header::frame::SPP_LENGTH;
use crate::net::socket::{RawAddr, Source};
use crate::proxy::handover::wire::{Reader, Writer};
use crate::worker::decision::Decision;

/// A flow, without its socket. Times are in milliseconds of the proxy's clock, which continues.
#[derive(Clone)]
pub struct MovedFlow {
    /// Where its port listens.
    pub listen: SocketAddr,
    pub owner: Owner,
    pub decision: Decision,
    pub route: Option<ReplyRoute>,
    pub opened_at: u64,
    pub last_used: u64,
    /// Datagrams and bytes up, then down.
    pub traffic: [u64; 4],
    pub segmenting: bool,
    pub account: Option<MovedAccount>,
}

/// A flow's entry in the access log, as far as the flow does not say it.
#[derive(Clone)]
pub struct MovedAccount {
    pub began: u64,
    /// As in `AccessRecord`.
    pub version: u8,
    pub peer: Endpoint,
    pub destination: Endpoint,
    pub header: Vec<u8>,
}

/// What a peer announced (`--udp-header session`).
#[derive(Clone)]
pub struct MovedSession {
    /// Where its port listens.
    pub listen: SocketAddr,
    pub path: Path,
    pub header: Vec<u8>,
    pub last_used: u64,
    pub close_after: u64,
}

/// Kinds of owners.
const CLIENT: u8 = 1;
const CLIENT_TO: u8 = 2;
const PEER: u8 = 3;
const PEER_TO: u8 = 4;

impl MovedFlow {
    pub fn write(&self, writer: &mut Writer) {
        writer.address(Some(self.listen));
        let (kind, of, to) = match self.owner {
            Owner::Client(client) => (CLIENT, client, None),
            Owner::ClientTo(client, to) => (CLIENT_TO, client, Some(to)),
            Owner::Peer(peer) => (PEER, peer, None),
            Owner::PeerTo(peer, to) => (PEER_TO, peer, Some(to)),
        };
        writer.u8(kind);
        writer.address(Some(of));
        writer.address(to);
        writer.address(match self.decision.source {
            Source::Own => None,
            Source::Client(client) => Some(client),
        });
        writer.address(Some(self.decision.upstream));
        writer.u8(u8::from(self.route.is_some()));
        if let Some(ReplyRoute { path, header }) = &self.route {
            write_path(writer, path);
            writer.bytes(header.as_ref().map_or(&[], |header| &header[..]));
        }
        writer.u64(self.opened_at);
        writer.u64(self.last_used);
        self.traffic.into_iter().for_each(|count| writer.u64(count));
        writer.u8(u8::from(self.segmenting));
        writer.u8(u8::from(self.account.is_some()));
        if let Some(MovedAccount { began, version, peer, destination, header }) = &self.account {
            writer.u64(*began);
            writer.u8(*version);
            writer.address(peer.socket_addr());
            writer.address(destination.socket_addr());
            writer.bytes(header);
        }
    }

    /// `None` for what makes no sense.
    pub fn read(reader: &mut Reader) -> Option<MovedFlow> {
        let listen = reader.address()??;
        let (kind, of, to) = (reader.u8()?, reader.address()??, reader.address()?);
        let owner = match (kind, to) {
            (CLIENT, None) => Owner::Client(of),
            (CLIENT_TO, Some(to)) => Owner::ClientTo(of, to),
            (PEER, None) => Owner::Peer(of),
            (PEER_TO, Some(to)) => Owner::PeerTo(of, to),
            _ => return None,
        };
        let source = reader.address()?.map_or(Source::Own, Source::Client);
        let upstream = reader.address()??;
        let route = match reader.u8()? {
            0 => None,
            _ => Some(ReplyRoute { path: read_path(reader)?, header: spp(reader.bytes()?)? }),
        };
        let (opened_at, last_used) = (reader.u64()?, reader.u64()?);
        let traffic = [reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?];
        let segmenting = reader.u8()? != 0;
        let account = match reader.u8()? {
            0 => None,
            _ => Some(MovedAccount {
                began: reader.u64()?,
                version: reader.u8()?,
                peer: endpoint(reader.address()?),
                destination: endpoint(reader.address()?),
                header: reader.bytes()?.into(),
            }),
        };
        let decision = Decision { source, upstream };
        Some(MovedFlow {
            listen,
            owner,
            decision,
            route,
            opened_at,
            last_used,
            traffic,
            segmenting,
            account,
        })
    }
}

impl MovedSession {
    pub fn write(&self, writer: &mut Writer) {
        writer.address(Some(self.listen));
        write_path(writer, &self.path);
        writer.bytes(&self.header);
        writer.u64(self.last_used);
        writer.u64(self.close_after);
    }

    /// `None` for what makes no sense.
    pub fn read(reader: &mut Reader) -> Option<MovedSession> {
        Some(MovedSession {
            listen: reader.address()??,
            path: read_path(reader)?,
            header: reader.bytes()?.into(),
            last_used: reader.u64()?,
            close_after: reader.u64()?,
        })
    }
}

/// The peer in the kernel's bytes: replies go to exactly that, an IPv4-mapped address as well.
fn write_path(writer: &mut Writer, path: &Path) {
    writer.bytes(path.peer.bytes());
    writer.u8(path.local.family);
    writer.bytes(&path.local.address);
    writer.u32(path.local.interface);
    writer.u32(u32::from(path.local.port));
}

/// An address of IPv4.
const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

fn read_path(reader: &mut Reader) -> Option<Path> {
    let bytes = reader.bytes()?;
    let peer = RawAddr::from_bytes(bytes);
    let whole =
        if peer.is_ipv6() { RawAddr::ROOM } else { RawAddr::from(ANY).bytes().len() as u32 };
    peer.socket_addr().filter(|_| bytes.len() as u32 == whole)?;
    let family = reader.u8().filter(|family| matches!(family, 0 | 4 | 6))?;
    let address = reader.bytes()?.try_into().ok()?;
    let (interface, port) = (reader.u32()?, u16::try_from(reader.u32()?).ok()?);
    Some(Path { peer, local: Local { family, address, interface, port } })
}

/// `Some(None)`: without a header.
#[allow(clippy::option_option)]
fn spp(bytes: &[u8]) -> Option<Option<[u8; SPP_LENGTH]>> {
    match bytes {
        [] => Some(None),
        bytes => bytes.try_into().ok().map(Some),
    }
}

fn endpoint(address: Option<SocketAddr>) -> Endpoint {
    address.map(Endpoint::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> MovedFlow {
        let (client, to) = ("192.0.2.1:7".parse().unwrap(), "198.51.100.9:53".parse().unwrap());
        let local = Local { family: 6, address: [9; 16], interface: 3, port: 5060 };
        let peer = RawAddr::from("[2001:db8::1]:9".parse::<SocketAddr>().unwrap());
        MovedFlow {
            listen: "[::]:53".parse().unwrap(),
            owner: Owner::ClientTo(client, to),
            decision: Decision { source: Source::Client(client), upstream: to },
            route: Some(ReplyRoute { path: Path { peer, local }, header: Some([7; SPP_LENGTH]) }),
            opened_at: 1,
            last_used: 2,
            traffic: [3, 4, 5, 6],
            segmenting: true,
            account: Some(MovedAccount {
                began: 1,
                version: 2,
                peer: client.into(),
                destination: Endpoint::default(),
                header: b"PROXY".to_vec(),
            }),
        }
    }

    fn written(flow: &MovedFlow) -> Vec<u8> {
        let mut writer = Writer::default();
        flow.write(&mut writer);
        writer.0
    }

    #[test]
    fn a_flow_is_read_as_it_was_written() {
        let bare = MovedFlow {
            owner: Owner::Peer("192.0.2.1:7".parse().unwrap()),
            decision: Decision { source: Source::Own, ..flow().decision },
            route: None,
            account: None,
            ..flow()
        };
        for flow in [flow(), bare] {
            let bytes = written(&flow);
            let mut reader = Reader(&bytes);
            let read = MovedFlow::read(&mut reader).unwrap();
            assert!(reader.is_over());
            assert_eq!(written(&read), bytes);
            assert_eq!((read.owner, read.decision), (flow.owner, flow.decision));
        }
    }

    #[test]
    fn a_session_is_read_as_it_was_written() {
        let session = MovedSession {
            listen: "0.0.0.0:53".parse().unwrap(),
            path: Path::of("198.51.100.1:1".parse().unwrap()),
            header: b"PROXY UDP4".to_vec(),
            last_used: 5,
            close_after: 60_000,
        };
        let mut writer = Writer::default();
        session.write(&mut writer);
        let read = MovedSession::read(&mut Reader(&writer.0)).unwrap();
        assert!(read.path == session.path && read.header == session.header);
        assert_eq!((read.listen, read.last_used), (session.listen, 5));
    }

    #[test]
    fn whatever_is_cut_or_changed_is_refused_or_harmless() {
        let bytes = written(&flow());
        for end in 0..bytes.len() {
            assert!(MovedFlow::read(&mut Reader(&bytes[..end])).is_none(), "{end}");
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 5, 255] {
                let mut changed = bytes.clone();
                changed[at] = value;
                let _ = MovedFlow::read(&mut Reader(&changed));
                let _ = MovedSession::read(&mut Reader(&changed));
            }
        }
    }
}
