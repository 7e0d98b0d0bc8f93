/** A listener as single ports: the listening addresses, and the upstreams of each port. */
import type { ListenerConfig, ProxyConfig } from "./model.ts";
import { type Address, type ProtocolName, transportsOf } from "./options.ts";
import { distinctPorts, type PortRange } from "./ranges.ts";
import { endpointText } from "./endpoints.ts";
import { type Upstream, upstreamPort } from "./upstreams.ts";

/** One port of a listener, and where each family's clients go. */
export interface ListenPort {
  readonly listen: Address;
  readonly ipv4?: Address;
  readonly ipv6?: Address;
  /** Clients go to their header's destination; `ipv4` and `ipv6` are for headers without a client. */
  readonly byDestination?: boolean;
  readonly protocol: ProtocolName;
  /** `[::]` leaves IPv4 to another port. */
  readonly onlyV6?: boolean;
  /**
   * TPROXY hands over what was addressed elsewhere. Upstreams with port 0 have the port that it was
   * addressed to.
   */
  readonly transparent?: boolean;
}

/**
 * The ports of a listener, in the order of its addresses. Upstreams that are names are left out.
 *
 * @param all every listener of the proxy: another one may have `0.0.0.0` beside this one's `[::]`
 */
export function listenPorts(
  listener: ListenerConfig,
  { listeners }: Pick<ProxyConfig, "listeners">,
): ListenPort[] {
  const { listen, protocol, upstream, ipv4, ipv6, transparent } = listener;
  const places = new Map(distinctPorts(listen).map((port, index) => [port, index]));
  return listen.flatMap((range) =>
    portsOf(range).map((port): ListenPort => {
      const place = places.get(port) ?? 0;
      const same = transparent ? ADDRESSED : port;
      const four = upstreamAddress(ipv4, same, place);
      const six = upstreamAddress(ipv6, same, place);
      return {
        listen: portAddress(range, port),
        protocol,
        ...(four && { ipv4: four }),
        ...(six && { ipv6: six }),
        ...(upstream === "destination" && { byDestination: true }),
        ...(isAnyV6(range) && hasIpv4(listeners, port, protocol) && { onlyV6: true }),
        ...(transparent && { transparent }),
      };
    })
  );
}

/** Stands for the port that traffic was addressed to. */
const ADDRESSED = 0;

function portsOf({ port, lastPort }: PortRange): number[] {
  return Array.from({ length: lastPort - port + 1 }, (_, index) => port + index);
}

/** One port of a range, as it would be written. */
export function portAddress(range: PortRange, port: number): Address {
  const { family, bytes, scope, lastPort } = range;
  const text = range.port === lastPort
    ? range.text
    : endpointText({ family, bytes, scope }, { first: port, last: port });
  return { family, bytes, scope, port, text };
}

function upstreamAddress(
  upstream: Upstream | undefined,
  listened: number,
  place: number,
): Address | undefined {
  if (upstream?.kind !== "address") return undefined;
  const port = upstreamPort(upstream.ports, listened, place);
  const { address } = upstream;
  return { ...address, port, text: endpointText(address, { first: port, last: port }) };
}

function isAnyV6({ family, bytes }: PortRange): boolean {
  return family === 6 && bytes.every((byte) => byte === 0);
}

/** Whether IPv4 has that port by itself, over a transport of this protocol. */
function hasIpv4(
  listeners: readonly ListenerConfig[],
  port: number,
  protocol: ProtocolName,
): boolean {
  const transports = transportsOf(protocol);
  return listeners.some((other) =>
    transportsOf(other.protocol).some((transport) => transports.includes(transport)) &&
    other.listen.some((range) => range.family === 4 && range.port <= port && port <= range.lastPort)
  );
}
