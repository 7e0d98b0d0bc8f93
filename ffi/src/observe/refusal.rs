//! Reasons for refusing a header, a peer or a datagram: one name and one code for each.
//!
//! Rust's framing and TypeScript's decoder both refuse. The names reach TypeScript through the generated
//! `src/native/layout.ts`, so that a reason is spelled the same in logs, counters and tests.

use crate::abi::named::named;

named! {
    /// A named reason to refuse. The discriminant is the code on the wire between the languages.
    Refusal: u8 {
        /// Nothing was refused.
        None = 0, "none";
        /// The bytes are the start of no PROXY header (T7, B1).
        NotProxy = 1, "not_proxy";
        /// Version 1: no CRLF within 107 bytes (T4).
        V1TooLong = 2, "v1_too_long";
        /// Version 1: a CR without LF, or a LF without CR (T5).
        V1LoneLineEnd = 3, "v1_lone_line_end";
        /// Version 1: the word after `PROXY ` is none of TCP4, TCP6, UNKNOWN (T1).
        V1Protocol = 4, "v1_protocol";
        /// Version 1: missing, doubled or trailing fields or spaces (T1).
        V1Syntax = 5, "v1_syntax";
        /// Version 1: an address that is not of the line's family in its strict form (T2).
        V1Address = 6, "v1_address";
        /// Version 1: a port that is not a plain decimal from 0 to 65535 (T3).
        V1Port = 7, "v1_port";
        /// Version 2: the version nibble is not 2 (B1).
        V2Version = 8, "v2_version";
        /// Version 2: the command is neither LOCAL nor PROXY (B3).
        V2Command = 9, "v2_command";
        /// Version 2: an address family above 3 (B4).
        V2Family = 10, "v2_family";
        /// Version 2: a transport above 2 (B4).
        V2Transport = 11, "v2_transport";
        /// Version 2: the length is shorter than the family's address block (B6).
        V2ShortAddress = 12, "v2_short_address";
        /// Version 2: a TLV runs past the end of the header (B7).
        V2Tlv = 13, "v2_tlv";
        /// Version 2: the CRC32c TLV does not match the header, or is not four bytes long (B8).
        V2Checksum = 14, "v2_checksum";
        /// The client is the unspecified address, 0.0.0.0 or `::`.
        ClientUnspecified = 15, "client_unspecified";
        /// Simple Proxy Protocol: fewer than 38 bytes.
        SppShort = 16, "spp_short";
        /// Simple Proxy Protocol: the magic number is not 0x56EC.
        SppMagic = 17, "spp_magic";
        /// The connection ended inside the header, or the datagram did.
        Incomplete = 18, "incomplete";
        /// No complete header within the header timeout (G2).
        Timeout = 19, "timeout";
        /// The peer is outside the allowed subnets (G6).
        PeerNotAllowed = 20, "peer_not_allowed";
        /// A bare datagram of a peer that has no session (`--udp-header session`).
        NoSession = 21, "no_session";
        /// A datagram that did not fit the largest UDP datagram's buffer.
        DatagramTooLong = 22, "datagram_too_long";
        /// The decoder failed: a defect of ours, refused rather than guessed at.
        Decoder = 23, "decoder";
        /// Version 1: two well-formed addresses that are not both of the line's family.
        V1MixedFamilies = 24, "v1_mixed_families";
        /// The client is in 0.0.0.0/8, "this network" (RFC 1122, 3.2.1.3).
        ClientThisNetwork = 25, "client_this_network";
        /// The client is a multicast address: 224.0.0.0/4 or ff00::/8.
        ClientMulticast = 26, "client_multicast";
        /// The client is the limited broadcast address, 255.255.255.255.
        ClientBroadcast = 27, "client_broadcast";
        /// The client is in 240.0.0.0/4, which is reserved (RFC 1112, 4).
        ClientReserved = 28, "client_reserved";
        /// The client is in fe80::/10, and no header says on which link.
        ClientLinkLocal = 29, "client_link_local";
        /// The client is a loopback address, and the peer is not on this host.
        ClientLoopback = 30, "client_loopback";
        /// The client is one of this host's own addresses, and the peer is not on this host.
        ClientOwnAddress = 31, "client_own_address";
        /// The client is the broadcast address of one of this host's subnets.
        ClientSubnetBroadcast = 32, "client_subnet_broadcast";
        /// The client is an anycast address of this host.
        ClientAnycast = 33, "client_anycast";
        /// The client has the address and port on which the proxy listens, or its upstream.
        ClientIsListener = 34, "client_is_listener";
        /// No upstream is named for the client's address family.
        ClientFamily = 35, "client_family";
        /// The kernel would use another address than the client's towards the upstream.
        SourceMismatch = 36, "source_mismatch";
        /// The upstream's address has become one on which the proxy itself listens.
        ForwardingLoop = 37, "forwarding_loop";
        /// A connection without a complete header made room for others.
        Evicted = 38, "evicted";
        /// The header's destination is none that the listener may forward to.
        DestinationNotAllowed = 39, "destination_not_allowed";
        /// A header without a client, where clients go to the header's destination.
        NoDestination = 40, "no_destination";
        /// The client has as many connections as it may (`max-connections-per-client`).
        TooManyOfClient = 41, "too_many_of_client";
        /// The listener has as many connections as it may (`max-connections`).
        TooManyConnections = 42, "too_many_connections";
        /// The listener has as many UDP flows as it may (`max-flows`), and the worker has none of them to
        /// make room.
        TooManyFlows = 43, "too_many_flows";
    }
}

impl Refusal {
    /// The reason with this code, or `None` for a code that is not assigned; `ALL[i] as usize == i`.
    pub fn from_code(code: u8) -> Option<Refusal> {
        Refusal::ALL.get(usize::from(code)).copied()
    }

    /// Whether it is about whom a well-formed header names, and not about the header's form.
    pub fn is_of_client(self) -> bool {
        matches!(
            self,
            Refusal::ClientUnspecified
                | Refusal::ClientThisNetwork
                | Refusal::ClientMulticast
                | Refusal::ClientBroadcast
                | Refusal::ClientReserved
                | Refusal::ClientLinkLocal
                | Refusal::ClientLoopback
                | Refusal::ClientOwnAddress
                | Refusal::ClientSubnetBroadcast
                | Refusal::ClientAnycast
                | Refusal::ClientIsListener
                | Refusal::ClientFamily
                | Refusal::SourceMismatch
                | Refusal::DestinationNotAllowed
                | Refusal::NoDestination
                | Refusal::TooManyOfClient
                | Refusal::TooManyFlows
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_positions() {
        for (position, refusal) in Refusal::ALL.iter().enumerate() {
            assert_eq!(*refusal as usize, position);
            assert_eq!(Refusal::from_code(position as u8), Some(*refusal));
        }
        assert_eq!(Refusal::from_code(Refusal::ALL.len() as u8), None);
    }
}
