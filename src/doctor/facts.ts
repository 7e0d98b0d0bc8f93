/** What is the case on this host, gathered once and judged afterwards. Nothing here is changed. */
import {
  type Address,
  encodeEndpoint,
  type Options,
  PROTOCOLS,
  servicesOf,
  type Transport,
  transportsOf,
} from "../config/options.ts";
import { encodeAnyEndpoint, encodePorts, portOf } from "../config/records.ts";
import { KernelRouting, type Routing } from "../routing/kernel.ts";
import { type Library, NativeError } from "../native/library.ts";
import { probe, type ProbeRequest, type ProbeResult } from "../native/probe.ts";
import { type Reach, RoutingError } from "../routing/plan.ts";
import { type Survey, survey } from "../routing/command.ts";
import { isSubnetsProblem, readSubnets } from "../proxy/reload.ts";
import { decodeResult, encodeRequest, type SandboxResult } from "../proxy/sandbox.ts";
import type { SubnetsError } from "../config/subnets.ts";
import { SUBNET } from "../native/layout.ts";
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
  readonly options: Options;
  readonly self: Self;
  /** Why clients' addresses and the mark cannot be used. */
  readonly incapable?: NativeError;
  /** How many subnets the file names, or what is wrong with it; none without a file. */
  readonly subnets?: number | SubnetsError | NativeError;
  readonly listen: { readonly problem?: NativeError; readonly holder?: Holder };
  /** What the sandbox would come to here. */
  readonly sandbox: SandboxResult | NativeError;
  /** An upstream is the program's own listener. */
  readonly loop?: NativeError;
  /** The limit of open files. */
  readonly fileLimit: number;
  readonly services: readonly ServiceFacts[];
  readonly routing: Survey | RoutingError;
  /** Interfaces on which rp_filter is strict, and the packets that it dropped during the probes. */
  readonly filter: { readonly strict: readonly string[]; readonly dropped: number };
  /** None where the kernel tracks no connections. */
  readonly conntrack?: { readonly count: number; readonly max: number };
}

/** A process that listens where this program wants to. */
export interface Holder {
  readonly process: number;
  readonly name: string;
  /** It is this program. */
  readonly ours: boolean;
  /** What confines it; none where this process may not see it. */
  readonly confinement?: Confinement;
}

/** A service, by one of its protocols. */
export interface ServiceFacts {
  readonly address: Address;
  readonly transport: Transport;
  readonly plain: ProbeResult;
  /** As a client; none where that cannot be tried. */
  readonly spoofed?: ProbeResult;
  readonly reach?: Reach;
  /** Other addresses of its family on which something listens on its port. */
  readonly elsewhere: readonly Pick<ListeningSocket, "bytes">[];
}

/** Longer than two retransmissions of a lost SYN. */
const MOST_TCP_WAIT_MS = 3_500;
const UDP_WAIT_MS = 1_000;

/** Looks and tries. The service sees a connection or a datagram for each way to try. */
export async function gather(options: Options, library: Library): Promise<Facts> {
  const routing = new KernelRouting(library);
  const incapable = problemOf(() => library.checkCapabilities(options.mark));
  const targets = targetsOf(options);
  const plain = await Promise.all(
    // A mark that this process may not set would hide whether the service is there.
    targets.map((target) =>
      probe(library, request(options, target, false, incapable ? 0 : options.mark))
    ),
  );
  const before = droppedByFilter(library);
  const spoofed = incapable ? [] : await Promise.all(
    targets.map((target) => probe(library, request(options, target, true, options.mark))),
  );
  const dropped = droppedByFilter(library) - before;
  const conntrack = readConntrack(library);
  const subnets = readSubnetFile(options, library);
  const fileLimit = library.raiseFileLimit();
  const loop = problemOf(() =>
    library.checkForwarding(
      encodeAnyEndpoint(options.metricsAddr),
      encodePorts([portOf(options)]),
    )
  );
  const sockets = readSockets(library);
  return {
    options,
    self: parseSelf(readText(library, "/proc/self/status") ?? ""),
    ...(incapable && { incapable }),
    ...(subnets !== undefined && { subnets }),
    listen: lookAtListener(options, library, sockets),
    ...(loop && { loop }),
    sandbox: rehearse(options, library),
    fileLimit,
    services: targets.map(({ address, transport }, index): ServiceFacts => {
      const result = spoofed[index];
      const reach = reachOf(routing, address);
      return {
        address,
        transport,
        plain: plain[index] ?? { outcome: "failed", errno: 0 },
        ...(result && { spoofed: result }),
        ...(reach && { reach }),
        elsewhere: listenersOn(sockets[transport], address),
      };
    }),
    routing: surveyed(options, routing, sockets.udp),
    filter: { strict: strictInterfaces(library), dropped },
    ...(conntrack && { conntrack }),
  };
}

interface Target {
  readonly address: Address;
  readonly transport: Transport;
}

function targetsOf(options: Options): Target[] {
  return servicesOf(options).flatMap((address) =>
    transportsOf(options.protocol).map((transport) => ({ address, transport }))
  );
}

function request(
  { connectTimeout }: Options,
  { address, transport }: Target,
  spoofed: boolean,
  mark: number,
): ProbeRequest {
  const timeout = transport === "udp"
    ? UDP_WAIT_MS
    : Math.min(connectTimeout * 1000, MOST_TCP_WAIT_MS);
  return { protocol: transport, service: address, spoofed, mark, timeout };
}

function problemOf(call: () => void): NativeError | undefined {
  try {
    call();
    return undefined;
  } catch (error) {
    if (error instanceof NativeError) return error;
    throw error;
  }
}

function rehearse(options: Options, library: Library): SandboxResult | NativeError {
  try {
    return decodeResult(library.rehearseSandbox(encodeRequest(options)));
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
  { allowedSubnets: path }: Options,
  library: Library,
): number | SubnetsError | NativeError | undefined {
  if (path === undefined) return undefined;
  try {
    return readSubnets(path, library).length / SUBNET.size;
  } catch (error) {
    if (isSubnetsProblem(error)) return error;
    throw error;
  }
}

function lookAtListener(options: Options, library: Library, sockets: Sockets): Facts["listen"] {
  const { listenAddr, protocol } = options;
  const problem = problemOf(() =>
    library.checkListen(encodeEndpoint(listenAddr), PROTOCOLS[protocol])
  );
  if (!problem) return {};
  const inTheWay = transportsOf(protocol).flatMap((transport) => sockets[transport])
    .filter(({ bytes, port }) => port === listenAddr.port && overlaps(bytes, listenAddr.bytes));
  const holder = inTheWay.map(({ inode }) => holderOf(library, inode)).find((found) => found);
  return { problem, ...(holder && { holder }) };
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

/** Whether two sockets on these addresses stand in each other's way. */
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
  options: Options,
  routing: Routing,
  sockets: readonly ListeningSocket[],
): Survey | RoutingError {
  const { ipv4, ipv6, protocol } = options;
  const isAsked = (address: Address | undefined) =>
    protocol === "tcp" || address !== undefined && hasWildcard(sockets, address);
  try {
    return survey(options, routing, { 4: isAsked(ipv4), 6: isAsked(ipv6) });
  } catch (error) {
    if (error instanceof RoutingError) return error;
    throw error;
  }
}

function hasWildcard(sockets: readonly ListeningSocket[], { port, bytes }: Address): boolean {
  return sockets.some((socket) =>
    socket.port === port && isAny(socket.bytes) && socket.bytes.length >= bytes.length
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

function readConntrack(library: Library): Facts["conntrack"] {
  const [count, max] = ["count", "max"].map((name) =>
    Number(readText(library, `/proc/sys/net/netfilter/nf_conntrack_${name}`)?.trim() ?? NaN)
  );
  if (count === undefined || max === undefined || isNaN(count) || isNaN(max)) return undefined;
  return { count, max };
}
