//! Decides whether the address in a well-formed header may be a client.
//!
//! The decoder has judged what depends on the address alone; this module judges what depends on this host's addresses
//! and its configuration (docs/trust.md).

use std::net::{IpAddr, SocketAddr};

use super::addresses::Nature;
use crate::observe::refusal::Refusal;

/// Judges a client by what its address is to this host.
///
/// `nature`: what an address is; `peer`: who sent the header.
pub fn judge(
    client: SocketAddr,
    peer: SocketAddr,
    nature: impl Fn(IpAddr) -> Nature,
) -> Result<(), Refusal> {
    let peer_is_here = || peer.ip().is_loopback() || nature(peer.ip()) == Nature::Own;
    match nature(client.ip()) {
        // bind(2) takes it, and connect(2) then picks another source, 127.0.0.1 towards loopback.
        Nature::Broadcast => Err(Refusal::ClientSubnetBroadcast),
        Nature::Anycast => Err(Refusal::ClientAnycast),
        // An upstream that trusts its own host must not take a client from elsewhere for that.
        _ if client.ip().is_loopback() && !peer_is_here() => Err(Refusal::ClientLoopback),
        Nature::Own if !peer_is_here() => Err(Refusal::ClientOwnAddress),
        _ => Ok(()),
    }
}

/// Whether what is sent to an address and port arrives at a listener of this program.
///
/// `listen`: where that listens; `is_own`: whether an address is one of this host's.
pub fn arrives_at(to: SocketAddr, listen: SocketAddr, is_own: impl Fn(IpAddr) -> bool) -> bool {
    let (ip, listen_ip) = (to.ip().to_canonical(), listen.ip().to_canonical());
    if to.port() != listen.port() {
        return false;
    }
    if !listen_ip.is_unspecified() {
        return ip == listen_ip;
    }
    // `[::]` serves IPv4 as well.
    (listen_ip.is_ipv6() || ip.is_ipv4()) && (ip.is_loopback() || is_own(ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::addresses::tests::host;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn judged(client: &str, peer: &str) -> Result<(), Refusal> {
        judge(address(client), address(peer), |ip| host().nature_of(ip))
    }

    #[test]
    fn only_a_peer_on_this_host_may_have_clients_on_this_host() {
        for (client, refusal) in [
            ("127.1.2.3:1", Refusal::ClientLoopback),
            ("[::1]:1", Refusal::ClientLoopback),
            ("198.51.100.10:1", Refusal::ClientOwnAddress),
            ("[2001:db8:5::10]:1", Refusal::ClientOwnAddress),
        ] {
            for elsewhere in ["198.51.100.1:9", "[2001:db8::1]:9", "198.51.100.255:9"] {
                assert_eq!(judged(client, elsewhere), Err(refusal), "{client} by {elsewhere}");
            }
            for here in ["127.0.0.1:9", "[::1]:9", "198.51.100.10:9", "[2001:db8:5::10]:9"] {
                assert_eq!(judged(client, here), Ok(()), "{client} by {here}");
            }
        }
    }

    #[test]
    fn nobody_may_have_a_broadcast_or_anycast_address_for_a_client() {
        for peer in ["127.0.0.1:9", "198.51.100.10:9", "203.0.113.1:9"] {
            for broadcast in ["198.51.100.255:1", "127.255.255.255:1"] {
                assert_eq!(judged(broadcast, peer), Err(Refusal::ClientSubnetBroadcast));
            }
            assert_eq!(judged("[2001:db8:5::]:1", peer), Err(Refusal::ClientAnycast));
        }
    }

    #[test]
    fn any_other_address_may_be_a_clients() {
        for client in ["203.0.113.7:5000", "198.51.100.11:1", "[2001:db8:5::11]:1"] {
            assert_eq!(judged(client, "198.51.100.1:9"), Ok(()));
        }
    }

    #[test]
    fn an_upstream_is_the_listener_where_its_packets_arrive_there() {
        let is_own = |ip: IpAddr| host().nature_of(ip) == Nature::Own;
        for (to, listen, arrives) in [
            ("127.0.0.1:443", "127.0.0.1:443", true),
            ("127.0.0.1:443", "127.0.0.1:8443", false),
            ("127.0.0.2:443", "127.0.0.1:443", false),
            ("127.0.0.1:443", "0.0.0.0:443", true),
            ("127.9.9.9:443", "0.0.0.0:443", true),
            ("198.51.100.10:443", "0.0.0.0:443", true),
            ("198.51.100.11:443", "0.0.0.0:443", false),
            ("[::1]:443", "0.0.0.0:443", false),
            ("[::1]:443", "[::]:443", true),
            ("[2001:db8:5::10]:443", "[::]:443", true),
            ("127.0.0.1:443", "[::]:443", true),
            ("198.51.100.10:443", "[::]:443", true),
            ("127.0.0.1:443", "[::ffff:127.0.0.1]:443", true),
            ("127.0.0.1:443", "[::1]:443", false),
        ] {
            assert_eq!(
                arrives_at(address(to), address(listen), is_own),
                arrives,
                "{to} at {listen}"
            );
        }
    }
}
