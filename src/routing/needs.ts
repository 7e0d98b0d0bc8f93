/** The upstreams for which the listeners of a configuration need routes, as data. */
import { endpointText, networkOf, upstreamEndpoints } from "../config/endpoints.ts";
import type { ListenerConfig, ProxyConfig } from "../config/model.ts";
import { hasDefaultServices, type Transport, transportsOf } from "../config/options.ts";
import type { Ports } from "../config/ranges.ts";
import type { Family } from "./plan.ts";

/** Servers whose replies have to come back: an address or a subnet, contiguous ports. */
export interface Need {
  readonly family: Family;
  /** 4 or 16, network byte order; of a subnet the first address. */
  readonly bytes: readonly number[];
  /** The bits of the address that count: all of them for one server. */
  readonly prefix: number;
  /** The interface's number of a link-local address, or 0. */
  readonly scope: number;
  readonly ports: Ports;
  readonly transports: readonly Transport[];
  /** Of the proxy's packets; 0 for none. */
  readonly mark: number;
  /** `127.0.0.1:443`. */
  readonly text: string;
  /** What the operator wrote it into: `-4`, `ipv4 of listener mail`. */
  readonly writtenIn: string;
  /** The default of a family that the host may lack. */
  readonly isSpare: boolean;
}

/** What every listener of these needs; upstreams that are names not yet resolved need nothing. */
export function routingNeeds({ listeners }: Pick<ProxyConfig, "listeners">): Need[] {
  return listeners.flatMap((listener) => {
    const whose = listeners.length > 1 ? ` of listener ${listener.name}` : undefined;
    return [...upstreamNeeds(listener, whose), ...destinationNeeds(listener, whose)];
  });
}

/** The IPv6 ports on which datagrams are taken. */
export function datagramPorts({ listeners }: Pick<ProxyConfig, "listeners">): Ports[] {
  return listeners.filter(({ protocol }) => protocol !== "tcp")
    .flatMap(({ listen }) => listen)
    .filter(({ family }) => family === 6)
    .map(({ port, lastPort }) => ({ first: port, last: lastPort }));
}

function upstreamNeeds(listener: ListenerConfig, whose: string | undefined): Need[] {
  return upstreamEndpoints(listener).map((endpoint) => ({
    family: endpoint.family,
    bytes: endpoint.bytes,
    prefix: 8 * endpoint.bytes.length,
    scope: endpoint.scope,
    ports: { first: endpoint.port, last: endpoint.lastPort },
    transports: transportsOf(listener.protocol),
    mark: listener.mark,
    text: endpoint.text,
    writtenIn: whose === undefined ? `-${endpoint.family}` : `ipv${endpoint.family}${whose}`,
    isSpare: hasDefaultServices(listener),
  }));
}

function destinationNeeds(listener: ListenerConfig, whose = ""): Need[] {
  if (listener.upstream !== "destination") return [];
  return listener.allowedDestinations.map((destination) => {
    const { family, bytes, prefix } = networkOf(destination);
    const isOne = prefix === 8 * bytes.length;
    return {
      family,
      bytes,
      prefix,
      scope: 0,
      ports: destination.ports,
      transports: transportsOf(listener.protocol),
      mark: listener.mark,
      text: isOne ? endpointText({ family, bytes, scope: 0 }, destination.ports) : destination.text,
      writtenIn: `allowed-destinations${whose}`,
      isSpare: false,
    };
  });
}
