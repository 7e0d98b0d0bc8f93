/** What an operator can do about each refusal and failure. */
import type { NativeEvent } from "../log/events.ts";

type Reason = NativeEvent["refusal"];

const BROKEN_HEADER =
  "The sender violates the PROXY protocol. Check which program sends to this port, and its version; docs/proxy-protocol.md lists the rules.";
const IMPOSSIBLE_CLIENT =
  "No client can have this address. Check who may send headers (allowed-subnets, trust), and which addresses the load balancer puts into headers; see docs/trust.md.";
const LOCAL_CLIENT =
  "Clients on this host are accepted from peers on this host only. If these are the load balancer's own health checks, let it send LOCAL headers; see docs/trust.md.";

/** By reason. */
const REFUSED: Readonly<Record<Reason, string>> = {
  none: "",
  not_proxy:
    "Configure the load balancer to send a PROXY header to this port. If it does, another program or a port scan connects here: list the load balancers in allowed-subnets.",
  timeout:
    "The header did not arrive in time. Check that the load balancer sends it immediately, and the network path; header-timeout sets how long mmproxy waits.",
  incomplete:
    "The peer closed the connection before its header was complete. Health checks and port scans do this: let the load balancer send a PROXY header with its health checks.",
  evicted:
    "Too many connections without a header are open. If they come from the load balancer, raise the limit on open files (LimitNOFILE=, ulimit -n); if not, set allowed-subnets.",
  peer_not_allowed:
    "After a change of the list, reload (systemctl reload mmproxy, or kill -HUP). If the peer is not a load balancer, no action is needed.",
  v1_too_long: BROKEN_HEADER,
  v1_lone_line_end: BROKEN_HEADER,
  v1_protocol: BROKEN_HEADER,
  v1_syntax: BROKEN_HEADER,
  v1_address: BROKEN_HEADER,
  v1_port: BROKEN_HEADER,
  v1_mixed_families:
    "An nginx behind another balancer writes such headers. Send version 2 headers, or one family only; see docs/trust.md.",
  v2_version: BROKEN_HEADER,
  v2_command: BROKEN_HEADER,
  v2_family: BROKEN_HEADER,
  v2_transport: BROKEN_HEADER,
  v2_short_address: BROKEN_HEADER,
  v2_tlv: BROKEN_HEADER,
  v2_checksum: BROKEN_HEADER,
  client_unspecified: IMPOSSIBLE_CLIENT,
  client_this_network: IMPOSSIBLE_CLIENT,
  client_multicast: IMPOSSIBLE_CLIENT,
  client_broadcast: IMPOSSIBLE_CLIENT,
  client_reserved: IMPOSSIBLE_CLIENT,
  client_link_local: IMPOSSIBLE_CLIENT,
  client_subnet_broadcast: IMPOSSIBLE_CLIENT,
  client_anycast: IMPOSSIBLE_CLIENT,
  client_loopback: LOCAL_CLIENT,
  client_own_address: LOCAL_CLIENT,
  client_is_listener: LOCAL_CLIENT,
  client_family:
    "Set an upstream for this address family (ipv4, ipv6), or let the load balancer listen on the other family only.",
  source_mismatch:
    "The kernel would use another source address. Check routes and rules with: mmproxy doctor.",
  forwarding_loop:
    "The upstream is mmproxy itself. Choose another port for the listener, or set the upstream to the server.",
  destination_not_allowed:
    "Add the destination to allowed-destinations if it is meant to be reachable; see docs/trust.md.",
  no_destination:
    "The header has no destination. Set an upstream for such connections with ipv4 or ipv6.",
  too_many_of_client:
    "One client address holds as many connections as max-connections-per-client allows. Raise the limit if clients share an address.",
  too_many_connections:
    "The listener has as many open connections as max-connections allows. Raise the limit if they are legitimate; mmproxy connections lists them.",
  too_many_flows:
    "The listener has as many UDP flows as max-flows allows. Raise the limit, or lower close-after.",
  spp_short: "Check that Simple Proxy Protocol is enabled at the sender; see udp-header.",
  spp_magic: "Check that Simple Proxy Protocol is enabled at the sender; see udp-header.",
  no_session:
    "The first datagram of a peer must have a header. If every datagram has one, set udp-header to datagram; after a restart, senders need a new session.",
  datagram_too_long: "The datagram is longer than UDP allows after its header. Check the sender.",
  decoder: "This is a bug in mmproxy. Please report it with the log line.",
};

const ROUTING =
  "Check that the upstream runs, and that its replies to clients come back to this host, with: mmproxy doctor.";

/** By event, if there is no reason. */
const FAILED: Readonly<Partial<Record<NativeEvent["kind"], string>>> = {
  connect_failed: ROUTING,
  flow_failed: ROUTING,
  ports_exhausted:
    "Widen net.ipv4.ip_local_port_range, or set net.ipv4.tcp_tw_reuse=1; see docs/connections.md.",
  accept_paused: "Raise the limit on open files (LimitNOFILE=, ulimit -n).",
  flows_full: "Raise the limit on open files (LimitNOFILE=, ulimit -n), or lower close-after.",
  mostly_silent:
    "If the upstream sends first, configure the load balancer to send its header immediately; see docs/recipes/aws-nlb.md.",
  family_unavailable: "Enable the address family on this host, or remove its upstream.",
};

/**
 * What to do about an event of the log.
 *
 * @returns nothing if the line says it already
 */
export function adviceFor(event: string, refusal: string | undefined): string {
  const refused = refusal === undefined ? undefined : REFUSED[refusal as Reason];
  return refused ?? FAILED[event as NativeEvent["kind"]] ?? "";
}
