/** What has to be the case, in the order in which an operator would mend it: facts in, findings out. */
import { formatAddress } from "../config/address.ts";
import {
  type Address,
  hasDefaultServices,
  limits,
  type Options,
  refusedFamilies,
  refusedSentence,
  servicesOf,
} from "../config/options.ts";
import { errorText } from "../log/events.ts";
import { commandLine, quote } from "../cli/command_line.ts";
import { Status } from "../native/layout.ts";
import { NativeError } from "../native/library.ts";
import { RoutingError, type Step } from "../routing/plan.ts";
import { describeStep } from "../routing/text.ts";
import { capabilityNames, whatHolds, whatIsMissing } from "../proxy/sandbox.ts";
import { SubnetsError } from "../config/subnets.ts";
import type { Facts, Holder, ServiceFacts } from "./facts.ts";

/**
 * `ok`, `failed`; `unknown`: nobody can tell from here; `skipped`: its ground is missing.
 * Only `failed` speaks against a start.
 */
export type State = "ok" | "failed" | "unknown" | "skipped";

/** What a check says. */
export interface Finding {
  readonly state: State;
  /** Which service it is about, where it is about one. */
  readonly protocol?: "tcp" | "udp";
  readonly address?: string;
  /** One line. */
  readonly detail: string;
  /** Commands for a shell, to run in this order. */
  readonly mend: readonly string[];
}

export interface Check {
  /** For machines; it does not change. */
  readonly name: string;
  run(facts: Facts): Finding[];
}

/** Fewer connections or flows at once are no service. */
const FEWEST = 100;
/** A hard limit of so many is common; with it there is room for some 2,000 connections. */
const ENOUGH_FILES = 4096;
/** For each further listener. */
const FILES_A_LISTENER = 16;
/** The share of the connection table that may be in use. */
const CONNTRACK_SHARE = 0.9;

export const CHECKS: readonly Check[] = [
  { name: "capabilities", run: (facts) => [capabilities(facts)] },
  { name: "subnets", run: (facts) => [subnets(facts)] },
  { name: "listen", run: (facts) => [listen(facts)] },
  { name: "upstreams", run: (facts) => [upstreams(facts)] },
  { name: "sandbox", run: sandbox },
  { name: "nofile", run: (facts) => [openFiles(facts)] },
  { name: "service", run: (facts) => facts.services.map((service) => plain(facts, service)) },
  { name: "routes", run: (facts) => [routes(facts)] },
  { name: "rp_filter", run: (facts) => reversePath(facts) },
  { name: "clients", run: (facts) => facts.services.map((service) => asClient(facts, service)) },
  { name: "conntrack", run: (facts) => [conntrack(facts)] },
];

function capabilities({ options, self, incapable }: Facts): Finding {
  const mark = options.mark !== 0;
  if (!incapable) {
    const owned = [...self.capabilities].filter((name) => name !== "net_bind_service");
    const names = owned.map((name) => `CAP_${name.toUpperCase()}`).join(" and ");
    return ok(`${names} ${mark ? "for clients' addresses and --mark" : "for clients' addresses"}`);
  }
  // Until Linux 5.17 SO_MARK asked for CAP_NET_ADMIN (socket(7)).
  const needed = mark && self.capabilities.has("net_raw")
    ? "this kernel wants CAP_NET_ADMIN for --mark"
    : "CAP_NET_RAW is needed";
  const name = /CAP_\w+/.exec(needed)?.[0].replace("CAP_", "") ?? "";
  const detail = `${incapable.message}: ${needed}`;
  return self.user === 0
    ? failed(
      `${detail}; in a container --cap-add=${name}, with systemd AmbientCapabilities=CAP_${name}`,
    )
    : failed(detail, [`sudo ${commandLine("doctor", options)}`]);
}

function subnets({ options, self, subnets }: Facts): Finding {
  const path = options.allowedSubnets;
  if (path === undefined || subnets === undefined) {
    return ok("Every peer may send headers: name your load balancers with --allowed-subnets");
  }
  if (typeof subnets === "number") {
    return ok(`${path} names ${subnets === 1 ? "1 subnet" : `${subnets} subnets`}`);
  }
  const line = subnets instanceof SubnetsError ? subnets.line : undefined;
  if (line === undefined) return failed(`${subnets.message}; write one subnet a line to it`);
  return failed(`${subnets.message}; correct it, or leave it out`, [
    as(self, `sed -i '${line}s/^/# /' ${quote(path)}`),
  ]);
}

function listen({ options, self, listen: { problem, holder } }: Facts): Finding {
  const { text, port } = options.listenAddr;
  if (!problem) return ok(`${text} is free`);
  switch (problem.status) {
    case Status.permission:
      return failed(
        `${problem.message}: CAP_NET_BIND_SERVICE is needed, or the port freed for all`,
        [
          as(self, `sysctl -w net.ipv4.ip_unprivileged_port_start=${port}`),
        ],
      );
    case Status.address_in_use:
      if (holder?.ours) return ok(`mmproxy runs there already (process ${holder.process})`);
      if (!holder) {
        return failed(`${problem.message}; another user's program has it, or choose another port`, [
          `sudo ss -lntup 'sport = :${port}'`,
        ]);
      }
      return failed(
        `${text} is taken by ${holder.name} (process ${holder.process}): stop it, or choose another port with --listen-addr`,
        // systemd holds the sockets of services that it starts on demand; elsewhere 1 is the container.
        [as(
          self,
          holder.process === 1 ? `ss -lntup 'sport = :${port}'` : `kill ${holder.process}`,
        )],
      );
    case Status.address_not_available: {
      const listenAddr = anyAddress(options.listenAddr);
      return failed(`${problem.message}: ${text} is not an address of this host`, [
        commandLine("doctor", { ...options, listenAddr }),
      ]);
    }
    default:
      return failed(problem.message);
  }
}

function sandbox({ options, sandbox, listen: { holder } }: Facts): Finding[] {
  const running = holder?.ours ? [sandboxOf(holder)] : [];
  if (options.sandbox === "off") return [skipped("--sandbox off asks for none"), ...running];
  if (sandbox instanceof NativeError) return [unknown(sandbox.message), ...running];
  const missing = whatIsMissing(sandbox);
  const has = `a start here has ${whatHolds(sandbox)}`;
  if (!missing) return [ok(capitalise(has)), ...running];
  const incomplete = `${missing}; see docs/sandbox.md; ${has}`;
  return [options.sandbox === "on" ? failed(incomplete) : ok(incomplete), ...running];
}

/** What holds of a proxy that runs. */
function sandboxOf({ process, confinement }: Holder): Finding {
  if (!confinement) return unknown(`what process ${process} has cannot be seen from here`);
  const { noNewPrivileges, filtered, capabilities } = confinement;
  const names = capabilityNames(capabilities).join(", ") || "no capability";
  return ok(
    `mmproxy as it runs (process ${process}): ${
      noNewPrivileges ? "no new privileges" : "new privileges are possible"
    }, system calls ${filtered ? "filtered" : "not filtered"}, ${names}`,
  );
}

function upstreams({ options, loop }: Facts): Finding {
  if (loop) {
    return failed(
      `${loop.message}: choose another port with --listen-addr, or name the server behind it`,
      [`ss -lntup 'sport = :${options.listenAddr.port}'`],
    );
  }
  const named = servicesOf(options).map(({ family, text }) => `IPv${family} clients to ${text}`);
  return ok([...named, ...refusedFamilies(options).map(refusedSentence)].join("; "));
}

function openFiles({ options, fileLimit }: Facts): Finding {
  const { flows, connections } = limits(options, fileLimit);
  const parts = [
    ...(options.protocol === "udp" ? [] : [`${connections} connections`]),
    ...(options.protocol === "tcp" ? [] : [`${flows} UDP flows`]),
  ];
  const room = `A limit of ${fileLimit} open files has room for ${parts.join(" and ")}`;
  const least = Math.min(
    ...(options.protocol === "udp" ? [] : [connections]),
    ...(options.protocol === "tcp" ? [] : [flows]),
  );
  if (least >= FEWEST) return ok(room);
  return failed(`${room}: raise it where the program is started (with systemd LimitNOFILE=)`, [
    `ulimit -n ${ENOUGH_FILES + FILES_A_LISTENER * (options.listeners - 1)}`,
  ]);
}

function plain(facts: Facts, service: ServiceFacts): Finding {
  const { address, transport, plain: { outcome, errno } } = service;
  const { text, family } = address;
  switch (outcome) {
    case "ok":
      return about(service, ok(transport === "tcp" ? "accepts a connection" : "answers"));
    case "silent":
      return about(
        service,
        transport === "udp"
          ? unknown("says nothing to a datagram that it may not understand, which is no fault")
          : failed("does not answer: is the host up, and does a firewall let this host in?"),
      );
    case "refused":
      return about(service, refused(facts, service));
    case "failed":
      if (isSpare(facts.options, address) && NO_FAMILY.has(errno)) {
        return about(service, skipped(`this host has no IPv${family}`));
      }
      return about(
        service,
        failed(`cannot be reached, ${errorText(errno)}: is ${text} right?`, [
          `ip -${family} route get ${ipText(address)}`,
        ]),
      );
  }
}

/** Without flags both families are meant as far as there are: errors that say that one is not. */
const NO_FAMILY = new Set([97, 99, 101]);

function isSpare(options: Options, { family }: Address): boolean {
  return family === 6 && hasDefaultServices(options);
}

function refused({ options }: Facts, { address, transport, elsewhere }: ServiceFacts): Finding {
  const { family, port } = address;
  const [other] = elsewhere;
  if (!other) {
    const letter = transport === "tcp" ? "t" : "u";
    const otherwise = isSpare(options, address)
      ? "give -4 alone if no IPv6 client comes"
      : "correct the address";
    return failed(`nobody listens there: start the service, or ${otherwise}`, [
      `ss -ln${letter}p 'sport = :${port}'`,
    ]);
  }
  const there = { ...address, bytes: other.bytes, text: endText(family, other.bytes, port) };
  return failed(`nobody listens there, but on ${there.text}`, [
    commandLine("doctor", { ...options, [family === 4 ? "ipv4" : "ipv6"]: there }),
  ]);
}

/** Whether clients' connections were seen to work. */
function isProven({ services }: Facts, family: number): boolean {
  const its = services.filter(({ address }) => address.family === family);
  return its.length > 0 && its.every(({ spoofed }) => spoofed?.outcome === "ok");
}

/** Steps that are missing, for the families whose connections were not seen to work. */
function missingSteps(facts: Facts): Step[] {
  const { routing, services } = facts;
  if (routing instanceof RoutingError) return [];
  const open = new Set(
    services.map(({ address }) => address.family).filter((family) => !isProven(facts, family)),
  );
  return routing.missing.filter((step) =>
    step.kind === "sysctl" ? open.size > 0 : open.has(step.family)
  );
}

/** They are there once the program runs. */
function setAtStart({ options, self, listen }: Facts): boolean {
  return options.autoRoutes && !listen.holder?.ours && self.capabilities.has("net_admin");
}

function routes(facts: Facts): Finding {
  const { options, self, routing, services } = facts;
  if (routing instanceof RoutingError) return failed(routing.message);
  const missing = missingSteps(facts);
  if (missing.length === 0) {
    const own = routing.missing.length > 0 &&
      services.every(({ address }) => isProven(facts, address.family));
    return ok(
      own
        ? "Replies to clients come back, by rules of your own"
        : `Rules and routes of table ${options.table} are there`,
    );
  }
  const what = `${missing.map(describeStep).join(", ")}: missing`;
  if (setAtStart(facts)) return ok("--auto-routes sets the rules and routes at the start");
  if (routing.foreign.length > 0) {
    const table = options.table + 1;
    return failed(
      `${what}, and table ${options.table} has routes of others: take another with --table`,
      [as(self, commandLine("routes up", { ...options, table }))],
    );
  }
  return failed(what, [as(self, commandLine("routes up", options))]);
}

function reversePath(facts: Facts): Finding[] {
  const { services, filter, self } = facts;
  const four = services.filter(({ address }) => address.family === 4);
  if (four.length === 0) return [];
  if (four.every(({ reach }) => reach?.kind !== "remote")) {
    return [ok("Does not matter: the service's replies never leave this host")];
  }
  if (filter.strict.length === 0) return [ok("Strict on no interface")];
  const strict = `Strict on ${filter.strict.join(", ")}`;
  const silent = four.some(({ spoofed }) => spoofed?.outcome === "silent");
  if (four.every(({ spoofed }) => spoofed === undefined)) {
    return [skipped(`${strict}; no connection could be tried as a client`)];
  }
  if (filter.dropped === 0 || !silent) return [ok(`${strict}, and dropped no reply`)];
  return [
    failed(`${strict}: ${filter.dropped} replies to clients were dropped`, [
      // The larger of `all` and the interface's own counts: 2 (loose) wins over 1.
      as(self, "sysctl -w net.ipv4.conf.all.rp_filter=2"),
    ]),
  ];
}

function asClient(facts: Facts, service: ServiceFacts): Finding {
  return about(service, asClientFinding(facts, service));
}

function asClientFinding(facts: Facts, service: ServiceFacts): Finding {
  const { plain, spoofed, address, transport } = service;
  if (!spoofed) return skipped("the capability is missing");
  if (spoofed.outcome === "ok") {
    return ok(transport === "tcp" ? "accepts a client's connection" : "answers a client");
  }
  if (plain.outcome === "refused" || plain.outcome === "failed") {
    return skipped("the service cannot be reached");
  }
  if (transport === "tcp" && plain.outcome === "silent") {
    return skipped("the service does not answer");
  }
  const { routing } = facts;
  if (routing instanceof RoutingError) return skipped("the service cannot be reached");
  const missing = missingSteps(facts).some((step) =>
    step.kind === "sysctl" || step.family === address.family
  );
  if (missing && setAtStart(facts)) return skipped("the routes are set at the start");
  if (missing) return skipped("rules or routes are missing");
  switch (spoofed.outcome) {
    case "refused":
      return failed("refuses clients' addresses: is it a firewall, or a list of allowed hosts?", [
        "sudo nft list ruleset",
      ]);
    case "failed":
      return failed(`cannot be reached as a client: ${errorText(spoofed.errno)}`);
    case "silent":
      return plain.outcome === "silent"
        ? unknown("says nothing to a client either; the routing is there")
        : noReply(facts, service);
  }
}

function noReply({ routing, filter }: Facts, { address, reach }: ServiceFacts): Finding {
  if (reach?.kind !== "remote" || routing instanceof RoutingError) {
    return failed(
      "does not answer clients, though the routing is there: does a firewall drop its replies?",
      ["sudo nft list ruleset"],
    );
  }
  if (filter.dropped > 0) return skipped("rp_filter drops packets");
  const note = routing.notes.find(({ text, commands }) =>
    commands.length > 0 && text.includes(address.text)
  );
  return failed(`does not answer clients. ${note?.text ?? ""}`.trim(), note?.commands ?? []);
}

function conntrack({ conntrack, self }: Facts): Finding {
  if (!conntrack) return ok("Connections are not tracked");
  const { count, max } = conntrack;
  const use = `${count} of ${max} tracked connections`;
  if (count < CONNTRACK_SHARE * max) return ok(use);
  return failed(`${use}: a full table drops new ones`, [
    as(self, `sysctl -w net.netfilter.nf_conntrack_max=${2 * max}`),
  ]);
}

/** A command for which one has to be root. */
function as({ user }: Facts["self"], command: string): string {
  return user === 0 ? command : `sudo ${command}`;
}

function anyAddress(address: Address): Address {
  const bytes = address.bytes.map(() => 0);
  return { ...address, bytes, scope: 0, text: endText(address.family, bytes, address.port) };
}

function endText(family: number, bytes: readonly number[], port: number): string {
  return formatAddress(family, Uint8Array.from(bytes), port);
}

function ipText({ family, bytes }: Address): string {
  return formatAddress(family, Uint8Array.from(bytes));
}

function about({ transport, address }: ServiceFacts, finding: Finding): Finding {
  return { ...finding, protocol: transport, address: address.text };
}

function capitalise(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function ok(detail: string): Finding {
  return { state: "ok", detail, mend: [] };
}

function failed(detail: string, mend: readonly string[] = []): Finding {
  return { state: "failed", detail, mend };
}

function unknown(detail: string): Finding {
  return { state: "unknown", detail, mend: [] };
}

function skipped(because: string): Finding {
  return { state: "skipped", detail: `skipped because ${because}`, mend: [] };
}
