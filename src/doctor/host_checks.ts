/** Checks of the process and this host, independent of the listeners. */
import { limits, listeningSockets, protocolsOf } from "../config/limits.ts";
import { workerCount } from "../config/workers.ts";
import { NativeError } from "../native/library.ts";
import { capabilityNames, whatHolds, whatIsMissing } from "../proxy/sandbox.ts";
import type { Facts, Holder } from "./facts.ts";
import {
  asRoot,
  capitalise,
  failed,
  type Finding,
  ok,
  skipped,
  unknown,
  warning,
  wrongSysctl,
} from "./finding.ts";

/** Room for fewer connections or flows at once is little. */
const FEW = 1000;
/** A hard limit of this many is common; with it there is room for some 2,000 connections. */
const ENOUGH_FILES = 4096;
/** For each further worker. */
const FILES_A_WORKER = 16;
/** The share of the connection table that may be in use. */
const CONNTRACK_SHARE = 0.9;

export function capabilities({ config, self, incapable }: Facts): Finding[] {
  const mark = config.listeners.some(({ mark }) => mark !== 0);
  if (!incapable) {
    const owned = [...self.capabilities].filter((name) => name !== "net_bind_service");
    const names = owned.map((name) => `CAP_${name.toUpperCase()}`).join(" and ");
    return [
      ok(`${names} ${mark ? "for clients' addresses and --mark" : "for clients' addresses"}`),
    ];
  }
  // Before Linux 5.17, SO_MARK required CAP_NET_ADMIN (socket(7)).
  const [name, why] = mark && self.capabilities.has("net_raw")
    ? ["NET_ADMIN", "this kernel requires CAP_NET_ADMIN for --mark"]
    : ["NET_RAW", "CAP_NET_RAW is needed"];
  const root = self.user === 0 ? "" : "run as root, ";
  return [failed(
    `${incapable.message}: ${why}; ${root}in a container --cap-add=${name}, with systemd ` +
      `AmbientCapabilities=CAP_${name}`,
  )];
}

/** What the host sends to itself goes through `lo`, and so do replies to clients. */
export function loopback({ self, isLoopbackUp }: Facts): Finding[] {
  if (isLoopbackUp) return [ok("lo is up")];
  const lost = "lo is down: this host's connections to itself and the replies to clients are lost";
  return [failed(lost, [asRoot(self, "ip link set lo up")])];
}

export function sandbox({ config, sandbox, listeners }: Facts): Finding[] {
  const holder = ourHolder(listeners);
  const running = holder ? [sandboxOf(holder)] : [];
  if (config.sandbox === "off") return [skipped("disabled by --sandbox off"), ...running];
  if (sandbox instanceof NativeError) return [unknown(sandbox.message), ...running];
  const missing = whatIsMissing(sandbox);
  const has = `available here: ${whatHolds(sandbox)}`;
  if (!missing) return [ok(capitalise(has)), ...running];
  const incomplete = `${missing}; see docs/sandbox.md; ${has}`;
  return [config.sandbox === "on" ? failed(incomplete) : warning(incomplete), ...running];
}

/** Only where it is wanted: nothing of it is needed otherwise. */
export function offload({ config, offload, pins }: Facts): Finding[] {
  if (config.offload === "off") return [];
  const can = "established TCP connections can be handed over to the kernel";
  if (!offload && pins) {
    return [warning(`${can}; they end with mmproxy: ${pins.message} (docs/offload.md)`)];
  }
  if (!offload) return [ok(capitalise(`${can} and outlive mmproxy`))];
  return [warning(
    `connections cannot be handed over and are relayed: ${offload.message}; it needs CAP_BPF, ` +
      "CAP_NET_ADMIN and Linux 5.17 (docs/offload.md)",
  )];
}

/** The running mmproxy, if it owns the port. */
export function ourHolder(listeners: Facts["listeners"]): Holder | undefined {
  return listeners.flatMap(({ taken }) => taken).find(({ holder }) => holder?.ours)?.holder;
}

/** What holds of a proxy that runs. */
function sandboxOf({ process, confinement }: Holder): Finding {
  if (!confinement) return unknown(`cannot read the state of process ${process}`);
  const { noNewPrivileges, filtered, capabilities } = confinement;
  const names = capabilityNames(capabilities).join(", ") || "no capability";
  return ok(
    `running mmproxy (process ${process}): ${
      noNewPrivileges ? "no new privileges" : "new privileges are possible"
    }, system calls ${filtered ? "filtered" : "not filtered"}, ${names}`,
  );
}

export function openFiles({ config, fileLimit }: Facts): Finding[] {
  const workers = workerCount(config.workers);
  const { flows, connections } = limits({ ...config, workers }, fileLimit);
  const protocols = protocolsOf(config);
  const parts = [
    ...(protocols.has("tcp") ? [`${connections} connections`] : []),
    ...(protocols.has("udp") ? [`${flows} UDP flows`] : []),
  ];
  const room = `A limit of ${fileLimit} open files allows ${parts.join(" and ")}`;
  const least = Math.min(
    ...(protocols.has("tcp") ? [connections] : []),
    ...(protocols.has("udp") ? [flows] : []),
  );
  if (least >= FEW) return [ok(room)];
  const sockets = workers * Math.max(0, listeningSockets(config) - protocols.size);
  return [warning(`${room}: raise it before the start (systemd: LimitNOFILE=)`, [
    `ulimit -n ${ENOUGH_FILES + FILES_A_WORKER * (workers - 1) + sockets}`,
  ])];
}

export function conntrack({ conntrack, self }: Facts): Finding[] {
  if (!conntrack) return [ok("Connection tracking is not in use")];
  const { count, max } = conntrack;
  const use = `${count} of ${max} tracked connections`;
  if (count < CONNTRACK_SHARE * max) return [ok(use)];
  const full = `${use}: a full table drops new connections`;
  return [wrongSysctl(full, self, "net/netfilter/nf_conntrack_max", 2 * max)];
}
