/** The busiest clients: connections summed up by client address. */
import type { ClientLoad, Connection } from "./protocol.ts";

/** The `most` clients with most bytes, the busiest first; a connection without a client is its peer's. */
export function busiest(connections: Iterable<Connection>, most: number): ClientLoad[] {
  const loads = new Map<string, ClientLoad>();
  for (const { client, peer, bytesUp, bytesDown } of connections) {
    const whose = client ?? peer;
    if (whose === undefined) continue;
    const address = addressOf(whose);
    const before = loads.get(address);
    loads.set(address, {
      client: address,
      connections: (before?.connections ?? 0) + 1,
      bytesUp: (before?.bytesUp ?? 0) + bytesUp,
      bytesDown: (before?.bytesDown ?? 0) + bytesDown,
    });
  }
  const bytes = ({ bytesUp, bytesDown }: ClientLoad) => bytesUp + bytesDown;
  return [...loads.values()]
    .sort((one, other) => bytes(other) - bytes(one) || other.connections - one.connections)
    .slice(0, most);
}

/** `192.0.2.1:80` without its port, `[2001:db8::1]:80` likewise. */
function addressOf(endpoint: string): string {
  return endpoint.slice(0, endpoint.lastIndexOf(":")).replace(/^\[(.*)\]$/, "$1");
}
