/** Checks across the keys of a listener, and across listeners. */
import type { Mistakes } from "./mistakes.ts";
import { MODEL_DEFAULTS } from "./model.ts";
import { DEFAULTS, type Transport, transportsOf } from "./options.ts";
import type { Path } from "./positions.ts";
import { type Claim, claimOf, distinctPorts, overlaps } from "./ranges.ts";
import type { LISTENER, PROXY } from "./schema.ts";
import type { Table } from "./tables.ts";
import { NONE } from "./upstreams.ts";
import { count } from "./count.ts";

type Listener = Table<typeof LISTENER>;
type Proxy = Table<typeof PROXY>;

/** The name of a listener: its own, or its first address. */
export function nameOf({ values }: Listener): string {
  return values.name ?? values.listen?.[0]?.text ?? "";
}

/** Records mistakes across the listeners of a file; keys that are already invalid are skipped. */
export function checkListeners(
  listeners: readonly Listener[],
  proxy: Proxy,
  mistakes: Mistakes,
): void {
  for (const listener of listeners) {
    checkListen(listener, mistakes);
    checkUpstreams(listener, mistakes);
    checkDestinations(listener, mistakes);
    checkOptional(listener, mistakes);
    checkRange("ipv4", listener, mistakes);
    checkRange("ipv6", listener, mistakes);
  }
  checkNames(listeners, mistakes);
  const claims = claimsOf(listeners, proxy);
  checkOverlaps(claims, mistakes);
  for (const listener of listeners) {
    checkLoops("ipv4", listener, claims, mistakes);
    checkLoops("ipv6", listener, claims, mistakes);
  }
}

function checkListen(listener: Listener, mistakes: Mistakes): void {
  if (listener.has("listen")) return;
  mistakes.addMissing(
    listener.header,
    'the listener has no address: add a line such as listen = "0.0.0.0:8443"',
  );
}

/** An upstream has no default: it could be a server that nobody wants to expose. */
function checkUpstreams(listener: Listener, mistakes: Mistakes): void {
  if (upstreamOf(listener) !== "family") return;
  const { ipv4, ipv6 } = listener.values;
  if (listener.isWrong("ipv4") || listener.isWrong("ipv6")) return;
  if ((ipv4 ?? NONE) !== NONE || (ipv6 ?? NONE) !== NONE) return;
  mistakes.addMissing(
    listener.header,
    'the listener has no upstream: add a line such as ipv4 = "127.0.0.1:443"',
  );
}

function checkDestinations(listener: Listener, mistakes: Mistakes): void {
  const policy = upstreamOf(listener);
  if (policy === "destination" && !listener.has("allowed-destinations")) {
    mistakes.add(
      listener.place("upstream"),
      'needs a list where headers may send clients, for example allowed-destinations = ["127.0.0.0/8:1024-65535"]',
    );
  }
  const place = listener.place("allowed-destinations");
  // Under [defaults] they may be meant for other listeners.
  if (policy === "family" && listener.has("allowed-destinations") && isOwn(listener, place)) {
    mistakes.add(place, 'has no effect without upstream = "destination"');
  }
}

/** If a header is optional, payload without one must be distinguishable from a header. */
function checkOptional(listener: Listener, mistakes: Mistakes): void {
  const { trust, protocol, "udp-header": udpHeader } = listener.values;
  const index = trust?.findIndex(({ header }) => header === "optional") ?? -1;
  if (index < 0) return;
  if (transports(listener).includes("udp") && udpHeader === "session") {
    mistakes.add(
      listener.place("trust"),
      'header = "optional" leaves it open whose bare datagrams are, with udp-header = "session": say "require" or "skip"',
    );
  }
  if (protocol === "udp") return;
  const wait = listener.values["optional-wait"] ?? MODEL_DEFAULTS.optionalWait;
  const timeout = listener.values["header-timeout"] ?? Number(DEFAULTS.headerTimeout);
  if (wait <= timeout) return;
  mistakes.add(
    listener.place(listener.has("optional-wait") ? "optional-wait" : "header-timeout"),
    `optional-wait (${wait} s) is longer than header-timeout (${timeout} s): a header could not come in time`,
  );
}

/** The policy in effect; undefined if it is not known. */
function upstreamOf(listener: Listener): "family" | "destination" | undefined {
  return listener.isWrong("upstream") ? undefined : listener.values.upstream ?? "family";
}

function isOwn(listener: Listener, place: Path): boolean {
  return listener.header.every((key, index) => place[index] === key);
}

function checkRange(key: "ipv4" | "ipv6", listener: Listener, mistakes: Mistakes): void {
  const { listen, [key]: upstream } = listener.values;
  if (!listen || !upstream || upstream === NONE || upstream.ports === "same") return;
  const { first, last } = upstream.ports;
  const many = last - first + 1;
  const listened = distinctPorts(listen).length;
  if (many === 1 || many === listened) return;
  mistakes.add(
    listener.place(key),
    `a range of ${many} ports for ${count(listened, "port")} of listener ${nameOf(listener)}: ` +
      "give the same number, or a single port for all",
  );
}

function checkNames(listeners: readonly Listener[], mistakes: Mistakes): void {
  const first = new Map<string, Listener>();
  for (const listener of listeners) {
    const name = nameOf(listener);
    const earlier = first.get(name);
    // A listener whose name or addresses are wrong has none yet.
    if (name === "" || listener.isWrong("name")) continue;
    if (!earlier) first.set(name, listener);
    else {
      mistakes.add(
        listener.place(listener.has("name") ? "name" : "listen"),
        `the listener on line ${
          mistakes.line(earlier.header)
        } has this name: give each one of its own`,
      );
    }
  }
}

function checkOverlaps(claims: readonly Claim<Path>[], mistakes: Mistakes): void {
  for (const { claim, earlier } of overlaps(claims)) {
    mistakes.add(
      claim.owner,
      `overlaps ${earlier.range.text} on line ${mistakes.line(earlier.owner)}`,
    );
  }
}

/** An upstream that is a listener would connect to itself without end. The start looks at all addresses. */
function checkLoops(
  key: "ipv4" | "ipv6",
  listener: Listener,
  claims: readonly Claim<Path>[],
  mistakes: Mistakes,
): void {
  const upstream = listener.values[key];
  if (!upstream || upstream === NONE || upstream.kind !== "address") return;
  // A redirected connection has its own destination port.
  if (listener.values.transparent && upstream.ports === "same") return;
  const ports = upstream.ports === "same"
    ? (listener.values.listen ?? []).map(({ port, lastPort }) => ({ first: port, last: lastPort }))
    : [upstream.ports];
  const [loop] = ports.flatMap((ports) =>
    claimOf(upstream.address, ports, transports(listener), claims) ?? []
  );
  if (!loop) return;
  mistakes.add(
    listener.place(key),
    `mmproxy itself listens there, on ${loop.range.text} (line ${mistakes.line(loop.owner)}): ` +
      "listen on the address that peers use, for example 192.0.2.1:25, or name another port",
  );
}

/** Every listening address, as far as known. */
function claimsOf(listeners: readonly Listener[], proxy: Proxy): Claim<Path>[] {
  const claims = listeners.flatMap((listener) =>
    (listener.values.listen ?? []).map((range, index): Claim<Path> => ({
      range,
      transports: transports(listener),
      owner: [...listener.place("listen"), index],
    }))
  );
  const metrics = proxy.values["metrics-addr"];
  if (!metrics) return claims;
  const owner = proxy.place("metrics-addr");
  const range = { ...metrics, lastPort: metrics.port };
  return [...claims, { range, transports: ["tcp"], owner }];
}

/** The transports of a listener; none if they are not known. */
function transports(listener: Listener): Transport[] {
  return listener.isWrong("protocol") ? [] : transportsOf(listener.values.protocol ?? "tcp");
}
