/** Facts about this host, gathered once and judged afterwards. Gathering changes nothing. */
import { formatAddress } from "../config/address.ts";
import { type Endpoint, upstreamEndpoints } from "../config/endpoints.ts";
import { type ListenerConfig, markOf, type ProxyConfig } from "../config/model.ts";
import {
  type Address,
  encodeEndpoint,
  PROTOCOLS,
  type Transport,
  transportsOf,
} from "../config/options.ts";
import { listenPorts, portAddress } from "../config/ports.ts";
import type { PortRange } from "../config/ranges.ts";
import { encodeAnyEndpoint, encodePorts } from "../config/records.ts";
import { KernelRouting, type Routing } from "../routing/kernel.ts";
import { type Library, NativeError, problemOf } from "../native/library.ts";
import { probe, PROBE_CLIENTS, type ProbeRequest, type ProbeResult } from "../native/probe.ts";
import type { Need } from "../routing/needs.ts";
import { type Reach, RoutingError } from "../routing/plan.ts";
import { type Survey, survey } from "../routing/command.ts";
import { isSubnetsProblem, readSubnets } from "../proxy/subnet_file.ts";
import { decodeResult, encodeRequest, type SandboxResult } from "../proxy/sandbox.ts";
import type { SubnetsError } from "../config/subnets.ts";
import { TRUST } from "../native/layout.ts";
import {
  type Confinement,
  type ListeningSocket,
  parseConfinement,
  parseCounter,
  parseInterfaces,
  parseSelf,
  parseSockets,
  type Self,
} from "./proc.ts";

/** Everything that the checks look at. */
export interface Facts {
  readonly config: ProxyConfig;
  readonly self: Self;
  /** Why clients' addresses and the mark cannot be used. */
  readonly incapable?: NativeError;
  /** The result of trying the sandbox here. */
  readonly sandbox: SandboxResult | NativeError;
  /** Why connections cannot be handed over to the kernel. */
  readonly offload?: NativeError;
  /** Why connections that were handed over would end with mmproxy, if they would. */
  readonly pins?: NativeError;
  /** The limit of open files. */
  readonly fileLimit: number;
  readonly isLoopbackUp: boolean;
  /**
   * Whether nftables has a rule with tproxy, or why that cannot be known. None where no listener is
   * transparent, or iptables-legacy may have the rule.
   */
  readonly tproxy?: boolean | NativeError;
  /** In the order of the configuration. */
  readonly listeners: readonly ListenerFacts[];
  readonly routing: Survey | RoutingError;
  /** Interfaces on which rp_filter is strict, and the packets that it dropped during the probes. */
  readonly filter: { readonly strict: readonly string[]; readonly dropped: number };
  /** None if the kernel tracks no connections. */
  readonly conntrack?: { readonly count: number; readonly max: number };
}

/** What is about one listener. */
export interface ListenerFacts {
  readonly listener: ListenerConfig;
  /** How many subnets its file names, or what is wrong with it; none without a file. */
  readonly subnets?: number | SubnetsError | NativeError;
  /** Ranges of which a port cannot be listened on. */
  readonly taken: readonly Taken[];
  /** Whether this host's own packets reach the listening address, as far as that can be tested. */
  readonly reached: readonly OwnReach[];
  /** An upstream is the program's own listener. */
  readonly loop?: NativeError;
  readonly services: readonly ServiceFacts[];
}

/** A port that cannot be listened on: the first of its range. */
export interface Taken {
  /** Where it is; its port is the one that is not available. */
  readonly address: Address;
  readonly problem: NativeError;
  readonly holder?: Holder;
  /** The socket on the port belongs to an upstream of the configuration. */
  readonly upstream?: {
    /** Where its socket listens. */
    readonly text: string;
    readonly isWildcard: boolean;
    /** Its address in the configuration. */
    readonly named: Address;
  };
}

/** One try to get to where the program listens. */
export interface OwnReach {
  /** The first port of a range. */
  readonly address: Address;
  readonly transport: Transport;
  /** 0 where it got through. */
  readonly errno: number;
}

/** A process that listens where this program wants to. */
export interface Holder {
  readonly process: number;
  readonly name: string;
  /** It is this program. */
  readonly ours: boolean;
  /** What confines it; none if this process may not see it. */
  readonly confinement?: Confinement;
}

/** A service, by one of its protocols. */
export interface ServiceFacts {
  /** Of a range the first port is tried. */
  readonly address: Endpoint;
  readonly transport: Transport;
  readonly plain: ProbeResult;
  /** As a client; none if that cannot be tried. */
  readonly spoofed?: ProbeResult;
  readonly reach?: Reach;
  /** Other addresses of its family on which something listens on its port. */
  readonly elsewhere: readonly Pick<ListeningSocket, "bytes">[];
}

/** Longer than two retransmissions of a lost SYN. */
const MOST_TCP_WAIT_MS = 3_500;
const UDP_WAIT_MS = 1_000;
/** Longer than one retransmission of a lost SYN. */
const OWN_WAIT_MS = 1_500;
/** Each holds a thread of the runtime while it waits. */
const PROBES_AT_ONCE = 32;
/** Of a listener this many addresses are tried: what a firewall does to one it mostly does to all. */
const MOST_OWN = 8;

/** Looks and tries. Each service sees a connection or a datagram for each way to try. */
export async function gather(config: ProxyConfig, library: Library): Promise<Facts> {
  const routing = new KernelRouting(library);
  const incapable = problemOf(() => library.checkCapabilities(markOf(config)));
  const offload = config.offload === "off" ? undefined : problemOf(() => library.checkOffload());
  const pins = config.offload === "off" ? undefined : problemOf(() => library.checkPins());
  const targets = config.listeners.flatMap(targetsOf);
  // A mark that this process may not set would hide whether the service is there.
  const plain = await probeAll(library, targets, false, !incapable);
  const before = droppedByFilter(library);
  const spoofed = incapable ? [] : await probeAll(library, targets, true, true);
  const dropped = droppedByFilter(library) - before;
  const conntrack = readConntrack(library);
  const tproxy = readTproxy(config, library);
  const sockets = readSockets(library);
  const services = targets.map((target, index) => {
    const { address, transport } = target;
    const result = spoofed[index];
    const reach = reachOf(routing, address);
    return {
      listener: target.listener,
      address,
      transport,
      plain: plain[index] ?? { outcome: "failed" as const, errno: 0 },
      ...(result && { spoofed: result }),
      ...(reach && { reach }),
      elsewhere: listenersOn(sockets[transport], address),
    };
  });
  const fileLimit = library.raiseFileLimit();
  const isLoopbackUp = library.isLinkUp("lo");
  const taken = config.listeners.map((listener) =>
    lookAtListener(listener, library, sockets, services)
  );
  // Without lo all of it is lost.
  const reached = await Promise.all(
    config.listeners.map((listener, index) =>
      isLoopbackUp ? reachListener(listener, taken[index] ?? [], library) : []
    ),
  );
  return {
    config,
    self: parseSelf(readText(library, "/proc/self/status") ?? ""),
    ...(incapable && { incapable }),
    ...(offload && { offload }),
    ...(pins && { pins }),
    sandbox: rehearse(config, library),
    fileLimit,
    isLoopbackUp,
    ...(tproxy !== undefined && { tproxy }),
    listeners: config.listeners.map((listener, index) => {
      const subnets = readSubnetFile(listener, library);
      const loop = loopProblem(config, listener, library);
      return {
        listener,
        ...(subnets !== undefined && { subnets }),
        taken: taken[index] ?? [],
        reached: reached[index] ?? [],
        ...(loop && { loop }),
        services: services.filter((service) => service.listener === listener)
          .map(({ listener: _, ...service }) => service),
      };
    }),
    routing: surveyed(config, routing, sockets.udp),
    filter: { strict: strictInterfaces(library), dropped },
    ...(conntrack && { conntrack }),
  };
}

interface Target {
  readonly listener: ListenerConfig;
  readonly address: Endpoint;
  readonly transport: Transport;
}

function targetsOf(listener: ListenerConfig): Target[] {
  return upstreamEndpoints(listener).flatMap((address) =>
    transportsOf(listener.protocol).map((transport) => ({ listener, address, transport }))
  );
}

/** Probes every target, some at once. */
async function probeAll(
  library: Library,
  targets: readonly Target[],
  spoofed: boolean,
  marked: boolean,
): Promise<ProbeResult[]> {
  const results: ProbeResult[] = [];
  for (let at = 0; at < targets.length; at += PROBES_AT_ONCE) {
    const some = targets.slice(at, at + PROBES_AT_ONCE);
    results.push(
      ...await Promise.all(
        some.map((target) => probe(library, request(target, spoofed, marked))),
      ),
    );
  }
  return results;
}

function request(
  { listener: { connectTimeout, mark }, address, transport }: Target,
  spoofed: boolean,
  marked: boolean,
): ProbeRequest {
  const timeout = transport === "udp"
    ? UDP_WAIT_MS
    : Math.min(connectTimeout * 1000, MOST_TCP_WAIT_MS);
  return { protocol: transport, service: address, spoofed, mark: marked ? mark : 0, timeout };
}

function rehearse(config: ProxyConfig, library: Library): SandboxResult | NativeError {
  const { autoRoutes } = config;
  const offload = config.offload !== "off";
  try {
    return decodeResult(
      library.rehearseSandbox(encodeRequest({ mark: markOf(config), autoRoutes, offload })),
    );
  } catch (error) {
    if (error instanceof NativeError) return error;
    throw error;
  }
}

function readText(library: Library, path: string): string | undefined {
  try {
    return new TextDecoder().decode(library.readFile(path));
  } catch (error) {
    if (error instanceof NativeError) return undefined;
    throw error;
  }
}

function readSubnetFile(
  { allowedSubnets }: ListenerConfig,
  library: Library,
): number | SubnetsError | NativeError | undefined {
  if (allowedSubnets?.kind !== "file") return undefined;
  try {
    return readSubnets(allowedSubnets.path, library).length / TRUST.size;
  } catch (error) {
    if (isSubnetsProblem(error)) return error;
    throw error;
  }
}

function lookAtListener(
  { listen, protocol }: ListenerConfig,
  library: Library,
  sockets: Sockets,
  services: readonly Pick<ServiceFacts, "address" | "transport" | "reach">[],
): Taken[] {
  return listen.flatMap((range) => {
    const taken = firstTaken(range, PROTOCOLS[protocol], library);
    if (!taken) return [];
    const { address } = taken;
    const inTheWay = transportsOf(protocol).flatMap((transport) =>
      sockets[transport].map((socket) => ({ ...socket, transport }))
    ).filter(({ bytes, port }) => port === address.port && overlaps(bytes, address.bytes));
    const holder = inTheWay.map(({ inode }) => holderOf(library, inode)).find((found) => found);
    const upstream = holder?.ours ? undefined : upstreamAmong(inTheWay, services);
    return [{ ...taken, ...(holder && { holder }), ...(upstream && { upstream }) }];
  });
}

/** The socket on the port from which an upstream on this host answers, if there is one. */
function upstreamAmong(
  inTheWay: readonly (ListeningSocket & { transport: Transport })[],
  services: readonly Pick<ServiceFacts, "address" | "transport" | "reach">[],
): Taken["upstream"] {
  for (const { address, transport, reach } of services) {
    if (reach?.kind !== "local") continue;
    const socket = inTheWay.find(({ bytes, port, transport: its }) =>
      its === transport && port >= address.port && port <= address.lastPort &&
      overlaps(bytes, address.bytes)
    );
    if (!socket) continue;
    const family = socket.bytes.length === 4 ? 4 : 6;
    const text = formatAddress(family, Uint8Array.from(socket.bytes), socket.port);
    return { text, isWildcard: isAny(socket.bytes), named: address };
  }
  return undefined;
}

/**
 * Tries to get to where a listener listens. Beside the running program only a connection can be seen to
 * arrive; where another program has the port, it is not ours to try.
 */
async function reachListener(
  { listen, protocol }: ListenerConfig,
  taken: readonly Taken[],
  library: Library,
): Promise<OwnReach[]> {
  const tries = listen.slice(0, MOST_OWN).flatMap((range) => {
    const its = taken.find(({ address }) =>
      address.bytes.join() === range.bytes.join() &&
      address.port >= range.port && address.port <= range.lastPort
    );
    if (its && !its.holder?.ours) return [];
    return transportsOf(protocol).filter((transport) => !its || transport === "tcp")
      .map((transport) => ({ address: portAddress(range, range.port), transport }));
  });
  return await Promise.all(tries.map(async (one) => ({
    ...one,
    errno: await library.reachOwn(encodeEndpoint(one.address), one.transport, OWN_WAIT_MS),
  })));
}

/** The first port of a range that cannot be listened on, and why. */
function firstTaken(
  range: PortRange,
  protocols: number,
  library: Library,
): Omit<Taken, "holder"> | undefined {
  for (let port = range.port; port <= range.lastPort; port++) {
    const address = portAddress(range, port);
    const problem = problemOf(() => library.checkListen(encodeEndpoint(address), protocols));
    if (problem) return { address, problem };
  }
  return undefined;
}

function holderOf(library: Library, inode: number): Holder | undefined {
  const process = library.socketOwner(inode);
  if (process === 0) return undefined;
  const name = readText(library, `/proc/${process}/comm`)?.trim() ?? "a process";
  // Whatever the program is called, it has the native core loaded.
  const maps = readText(library, `/proc/${process}/maps`) ?? "";
  const confinement = parseConfinement(readText(library, `/proc/${process}/status`) ?? "");
  return {
    process,
    name,
    ours: /\/libmmproxy[^/\n]*\.so/.test(maps),
    ...(confinement && { confinement }),
  };
}

/** What listens on this host. */
type Sockets = Readonly<Record<Transport, readonly ListeningSocket[]>>;

function readSockets(library: Library): Sockets {
  const read = (transport: Transport) =>
    ["", "6"].flatMap((family) =>
      parseSockets(readText(library, `/proc/net/${transport}${family}`) ?? "")
    );
  return { tcp: read("tcp"), udp: read("udp") };
}

function isAny(bytes: readonly number[]): boolean {
  return bytes.every((byte) => byte === 0);
}

/** Where the other listeners lead while one is looked at: to a client that no host is. */
const NOWHERE: Address = { ...PROBE_CLIENTS[4], port: 9 };

/** Why an upstream of a listener would lead back to one, whichever that is. */
function loopProblem(
  config: ProxyConfig,
  listener: ListenerConfig,
  library: Library,
): NativeError | undefined {
  const own = listenPorts(listener, config).filter(({ ipv4, ipv6 }) => ipv4 ?? ipv6);
  if (own.length === 0) return undefined;
  const others = config.listeners.filter((other) => other !== listener)
    .flatMap((other) => listenPorts(other, config))
    .map(({ listen, protocol }) => ({ listen, protocol, ipv4: NOWHERE }));
  return problemOf(() =>
    library.checkForwarding(
      encodeAnyEndpoint(config.metricsAddr),
      encodePorts([...own, ...others]),
    )
  );
}

/** Whether two sockets on these addresses conflict. */
function overlaps(one: readonly number[], other: readonly number[]): boolean {
  // `[::]` serves IPv4 as well.
  if (isAny(one) && one.length === 16 || isAny(other) && other.length === 16) return true;
  return one.length === other.length && (isAny(one) || isAny(other) || one.join() === other.join());
}

function listenersOn(sockets: readonly ListeningSocket[], { bytes, port }: Address) {
  return sockets.filter((socket) => socket.port === port && socket.bytes.length === bytes.length);
}

function reachOf(routing: Routing, address: Address): Reach | undefined {
  try {
    return routing.reach(address);
  } catch (error) {
    if (error instanceof RoutingError) return undefined;
    throw error;
  }
}

/**
 * The routing for UDP on a wildcard address is only needed where a socket has one; a service that says
 * nothing could otherwise never be found in order.
 */
function surveyed(
  config: ProxyConfig,
  routing: Routing,
  sockets: readonly ListeningSocket[],
): Survey | RoutingError {
  try {
    return survey(config, routing, (need) => hasWildcard(sockets, need));
  } catch (error) {
    if (error instanceof RoutingError) return error;
    throw error;
  }
}

function hasWildcard(sockets: readonly ListeningSocket[], { ports, bytes }: Need): boolean {
  return sockets.some((socket) =>
    socket.port >= ports.first && socket.port <= ports.last && isAny(socket.bytes) &&
    socket.bytes.length >= bytes.length
  );
}

function droppedByFilter(library: Library): number {
  return parseCounter(
    readText(library, "/proc/net/netstat") ?? "",
    "TcpExt",
    "IPReversePathFilter",
  );
}

/** The larger of an interface's value and that of `all` counts; 1 is strict (ip-sysctl, rp_filter). */
function strictInterfaces(library: Library): string[] {
  const valueOf = (name: string) =>
    Number(readText(library, `/proc/sys/net/ipv4/conf/${name}/rp_filter`)?.trim() ?? 0);
  const all = valueOf("all");
  return parseInterfaces(readText(library, "/proc/net/dev") ?? "")
    .filter((name) => name !== "lo" && Math.max(all, valueOf(name)) === 1);
}

function readTproxy({ listeners }: ProxyConfig, library: Library): Facts["tproxy"] {
  if (!listeners.some(({ transparent }) => transparent)) return undefined;
  try {
    if (library.hasTproxy()) return true;
  } catch (error) {
    if (error instanceof NativeError) return error;
    throw error;
  }
  const isLegacy = ["ip", "ip6"].some((family) =>
    readText(library, `/proc/net/${family}_tables_names`)?.includes("mangle")
  );
  return isLegacy ? undefined : false;
}

function readConntrack(library: Library): Facts["conntrack"] {
  const [count, max] = ["count", "max"].map((name) =>
    Number(readText(library, `/proc/sys/net/netfilter/nf_conntrack_${name}`)?.trim() ?? NaN)
  );
  if (count === undefined || max === undefined || isNaN(count) || isNaN(max)) return undefined;
  return { count, max };
}
