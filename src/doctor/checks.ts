/** What has to be the case, in the order in which an operator would mend it: facts in, findings out. */
import { formatAddress } from "../config/address.ts";
import { endpointText, isRange } from "../config/endpoints.ts";
import { limits, listeningSockets, protocolsOf } from "../config/limits.ts";
import type { ListenerConfig, ProxyConfig } from "../config/model.ts";
import {
  type Address,
  hasDefaultServices,
  refusedFamilies,
  refusedSentence,
} from "../config/options.ts";
import type { PortRange } from "../config/ranges.ts";
import type { Upstream } from "../config/upstreams.ts";
import { workerCount } from "../config/workers.ts";
import { errorText } from "../log/events.ts";
import { commandLine, quote } from "../cli/command_line.ts";
import { Status } from "../native/layout.ts";
import { NativeError } from "../native/library.ts";
import { RoutingError, type Step } from "../routing/plan.ts";
import { describeStep } from "../routing/text.ts";
import { capabilityNames, whatHolds, whatIsMissing } from "../proxy/sandbox.ts";
import { SubnetsError } from "../config/subnets.ts";
import type { Facts, Holder, ListenerFacts, ServiceFacts, Taken } from "./facts.ts";

/**
 * `ok`, `failed`; `unknown`: nobody can tell from here; `skipped`: its ground is missing.
 * Only `failed` speaks against a start.
 */
export type State = "ok" | "failed" | "unknown" | "skipped";

/** What a check says. */
export interface Finding {
  readonly state: State;
  /** The name of the listener that it is about, where it is about one. */
  readonly listener?: string;
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
/** For each further worker. */
const FILES_A_WORKER = 16;
/** The share of the connection table that may be in use. */
const CONNTRACK_SHARE = 0.9;

/** So many addresses are named in a line. */
const MOST_LISTED = 8;

/** Those about one listener are made for each, in the order of the configuration. */
export const CHECKS: readonly Check[] = [
  { name: "capabilities", run: (facts) => [capabilities(facts)] },
  { name: "subnets", run: each((facts, given) => [subnets(facts, given)]) },
  { name: "listen", run: each(listen) },
  { name: "upstreams", run: each((facts, given) => [upstreams(facts, given)]) },
  { name: "sandbox", run: sandbox },
  { name: "nofile", run: (facts) => [openFiles(facts)] },
  { name: "service", run: each(services(plain)) },
  { name: "routes", run: (facts) => [routes(facts)] },
  { name: "rp_filter", run: (facts) => reversePath(facts) },
  { name: "clients", run: each(services(asClient)) },
  { name: "conntrack", run: (facts) => [conntrack(facts)] },
];

/** A check of each listener; its findings name it. */
function each(run: (facts: Facts, given: ListenerFacts) => Finding[]): Check["run"] {
  return (facts) =>
    facts.listeners.flatMap((given) =>
      run(facts, given).map((finding) => ({ ...finding, listener: given.listener.name }))
    );
}

/** A check of each service of a listener; its findings name it. */
function services(
  run: (facts: Facts, given: ListenerFacts, service: ServiceFacts) => Finding,
): Parameters<typeof each>[0] {
  return (facts, given) =>
    given.services.length === 0
      ? [skipped(
        given.listener.upstream === "destination"
          ? "each header says where its client goes"
          : "its address is not known",
      )]
      : given.services.map((service) => about(service, run(facts, given, service)));
}

/** What an operator changes: `--listen-addr`, or a key of a listener in the file. */
function optionName({ file }: ProxyConfig, { name }: ListenerConfig, flag: string): string {
  return file === undefined
    ? `--${flag}`
    : `${flag.replace("listen-addr", "listen")} of listener ${name}`;
}

/**
 * The command that checks again with a change; with a file the operator has to write the change, and is
 * told it.
 */
function withChange(
  { config }: Facts,
  { listener }: ListenerFacts,
  change: Partial<ListenerConfig>,
): string[] {
  if (config.file !== undefined) return [];
  return [commandLine("doctor", { ...config, listeners: [{ ...listener, ...change }] })];
}

function capabilities({ config, self, incapable }: Facts): Finding {
  const mark = config.listeners.some(({ mark }) => mark !== 0);
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
    : failed(detail, [`sudo ${commandLine("doctor", config)}`]);
}

function subnets({ config, self }: Facts, { listener, subnets }: ListenerFacts): Finding {
  const { allowedSubnets, trust } = listener;
  if (trust.length > 0) return ok(`trust has ${countOf(trust.length, "rule")}`);
  if (allowedSubnets === undefined) {
    const option = optionName(config, listener, "allowed-subnets");
    return ok(`Every peer may send PROXY headers: list your load balancers in ${option}`);
  }
  if (allowedSubnets.kind === "inline") {
    return ok(`${countOf(allowedSubnets.subnets.length, "subnet")} may send headers`);
  }
  const { path } = allowedSubnets;
  if (typeof subnets === "number") return ok(`${path} names ${countOf(subnets, "subnet")}`);
  if (subnets === undefined) return unknown(`${path} was not read`);
  const line = subnets instanceof SubnetsError ? subnets.line : undefined;
  if (line === undefined) return failed(`${subnets.message}; write one subnet a line to it`);
  return failed(`${subnets.message}; correct it, or leave it out`, [
    as(self, `sed -i '${line}s/^/# /' ${quote(path)}`),
  ]);
}

function listen(facts: Facts, { listener, taken }: ListenerFacts): Finding[] {
  if (taken.length > 0) return taken.map((one) => notFree(facts, listener, one));
  const texts = listener.listen.map(({ text }) => text);
  return [ok(`${listOf(texts)} ${texts.length === 1 ? "is" : "are"} free`)];
}

function notFree(facts: Facts, listener: ListenerConfig, taken: Taken): Finding {
  const { self, config } = facts;
  const { address, problem, holder } = taken;
  const { text, port } = address;
  const option = optionName(config, listener, "listen-addr");
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
        `${text} is taken by ${holder.name} (process ${holder.process}): stop it, or choose another port with ${option}`,
        // systemd holds the sockets of services that it starts on demand; elsewhere 1 is the container.
        [as(
          self,
          holder.process === 1 ? `ss -lntup 'sport = :${port}'` : `kill ${holder.process}`,
        )],
      );
    case Status.address_not_available: {
      const elsewhere = listener.listen.map((range) =>
        range.bytes.join() === address.bytes.join() ? anyAddress(range) : range
      );
      const given = { listener, taken: [], services: [] };
      return failed(
        `${problem.message}: ${text} is not an address of this host`,
        withChange(facts, given, { listen: elsewhere }),
      );
    }
    default:
      return failed(problem.message);
  }
}

function sandbox({ config, sandbox, listeners }: Facts): Finding[] {
  const holder = ourHolder(listeners);
  const running = holder ? [sandboxOf(holder)] : [];
  if (config.sandbox === "off") return [skipped("--sandbox off asks for none"), ...running];
  if (sandbox instanceof NativeError) return [unknown(sandbox.message), ...running];
  const missing = whatIsMissing(sandbox);
  const has = `a start here has ${whatHolds(sandbox)}`;
  if (!missing) return [ok(capitalise(has)), ...running];
  const incomplete = `${missing}; see docs/sandbox.md; ${has}`;
  return [config.sandbox === "on" ? failed(incomplete) : ok(incomplete), ...running];
}

/** This program, where it runs already. */
function ourHolder(listeners: Facts["listeners"]): Holder | undefined {
  return listeners.flatMap(({ taken }) => taken).find(({ holder }) => holder?.ours)?.holder;
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

function upstreams({ config }: Facts, { listener, loop }: ListenerFacts): Finding {
  if (loop) {
    const option = optionName(config, listener, "listen-addr");
    return failed(
      `${loop.message}: choose another port with ${option}, or set the upstream to the server itself`,
      [`ss -lntup 'sport = :${listener.listen[0]?.port}'`],
    );
  }
  if (listener.upstream === "destination") {
    const texts = listener.allowedDestinations.map(({ text }) => text);
    return ok(`Clients to the destination of their header, of ${listOf(texts)}`);
  }
  const named = ([4, 6] as const).flatMap((family) => {
    const upstream = listener[`ipv${family}`];
    return upstream ? [`IPv${family} clients to ${upstream.text}`] : [];
  });
  return ok([...named, ...refusedFamilies(listener).map(refusedSentence)].join("; "));
}

function openFiles({ config, fileLimit }: Facts): Finding {
  const workers = workerCount(config.workers);
  const { flows, connections } = limits({ ...config, workers }, fileLimit);
  const protocols = protocolsOf(config);
  const parts = [
    ...(protocols.has("tcp") ? [`${connections} connections`] : []),
    ...(protocols.has("udp") ? [`${flows} UDP flows`] : []),
  ];
  const room = `A limit of ${fileLimit} open files has room for ${parts.join(" and ")}`;
  const least = Math.min(
    ...(protocols.has("tcp") ? [connections] : []),
    ...(protocols.has("udp") ? [flows] : []),
  );
  if (least >= FEWEST) return ok(room);
  const sockets = workers * Math.max(0, listeningSockets(config) - protocols.size);
  return failed(`${room}: raise it where the program is started (with systemd LimitNOFILE=)`, [
    `ulimit -n ${ENOUGH_FILES + FILES_A_WORKER * (workers - 1) + sockets}`,
  ]);
}

function plain(facts: Facts, given: ListenerFacts, service: ServiceFacts): Finding {
  const { address, transport, plain: { outcome, errno } } = service;
  const { text, family, port } = address;
  switch (outcome) {
    case "ok":
      return ok(transport === "tcp" ? "accepts a connection" : "answers");
    case "silent":
      return transport === "udp"
        ? unknown("says nothing to a datagram that it may not understand, which is no fault")
        : failed("does not answer: is the host up, and does a firewall let this host in?");
    case "refused":
      return isRange(address)
        ? unknown(`nobody listens on port ${port} now, which is no fault of a range`)
        : refused(facts, given, service);
    case "failed":
      if (isSpare(given, address) && NO_FAMILY.has(errno)) {
        return skipped(`this host has no IPv${family}`);
      }
      return failed(`cannot be reached, ${errorText(errno)}: is ${text} right?`, [
        `ip -${family} route get ${ipText(address)}`,
      ]);
  }
}

/** Without flags both families are meant as far as there are: errors that say that one is not. */
const NO_FAMILY = new Set([97, 99, 101]);

function isSpare({ listener }: ListenerFacts, { family }: Address): boolean {
  return family === 6 && hasDefaultServices(listener);
}

function refused(
  facts: Facts,
  given: ListenerFacts,
  { address, transport, elsewhere }: ServiceFacts,
): Finding {
  const { family, port } = address;
  const [other] = elsewhere;
  if (!other) {
    const letter = transport === "tcp" ? "t" : "u";
    const otherwise = isSpare(given, address)
      ? "give -4 alone if no IPv6 client comes"
      : "correct the address";
    return failed(`nobody listens there: start the service, or ${otherwise}`, [
      `ss -ln${letter}p 'sport = :${port}'`,
    ]);
  }
  const text = endText(family, other.bytes, port);
  const there: Upstream = {
    kind: "address",
    address: { family, bytes: other.bytes, scope: 0 },
    ports: { first: port, last: port },
    text,
  };
  return failed(
    `nobody listens there, but on ${text}`,
    withChange(facts, given, { [family === 4 ? "ipv4" : "ipv6"]: there }),
  );
}

function allServices({ listeners }: Facts): ServiceFacts[] {
  return listeners.flatMap(({ services }) => services);
}

/** Whether clients' connections were seen to work, or to be refused as they should be. */
function isProven(facts: Facts, family: number): boolean {
  const its = allServices(facts).filter(({ address }) => address.family === family);
  return its.length > 0 && its.every(isAnswered);
}

/** A refusal is an answer, too: it came back. */
function isAnswered({ address, plain, spoofed }: ServiceFacts): boolean {
  return spoofed?.outcome === "ok" ||
    isRange(address) && plain.outcome === "refused" && spoofed?.outcome === "refused";
}

/** Steps that are missing, for the families whose connections were not seen to work. */
function missingSteps(facts: Facts): Step[] {
  const { routing } = facts;
  if (routing instanceof RoutingError) return [];
  const open = new Set(
    familiesOf(facts).filter((family) => !isProven(facts, family)),
  );
  return routing.missing.filter((step) =>
    step.kind === "sysctl" ? open.size > 0 : open.has(step.family)
  );
}

/** The families that something is set for. */
function familiesOf({ routing, ...facts }: Facts): number[] {
  const steps = routing instanceof RoutingError ? [] : routing.steps;
  return [
    ...allServices({ routing, ...facts }).map(({ address }) => address.family),
    ...steps.flatMap((step) => step.kind === "sysctl" ? [] : [step.family]),
  ];
}

/** They are there once the program runs. */
function setAtStart({ config, self, listeners }: Facts): boolean {
  return config.autoRoutes && !ourHolder(listeners) && self.capabilities.has("net_admin");
}

function routes(facts: Facts): Finding {
  const { config, self, routing } = facts;
  if (routing instanceof RoutingError) return failed(routing.message);
  const missing = missingSteps(facts);
  if (missing.length === 0) {
    const own = routing.missing.length > 0 &&
      familiesOf(facts).every((family) => isProven(facts, family));
    return ok(
      own
        ? "Replies to clients come back, by rules of your own"
        : `Rules and routes of table ${config.table} are there`,
    );
  }
  const what = `${missing.map(describeStep).join(", ")}: missing`;
  if (setAtStart(facts)) return ok("--auto-routes sets the rules and routes at the start");
  if (routing.foreign.length > 0) {
    const table = config.table + 1;
    return failed(
      `${what}, and table ${config.table} has routes of others: take another with --table`,
      [as(self, commandLine("routes up", config, { table }))],
    );
  }
  return failed(what, [as(self, commandLine("routes up", config))]);
}

function reversePath(facts: Facts): Finding[] {
  const { filter, self } = facts;
  const four = allServices(facts).filter(({ address }) => address.family === 4);
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

function asClient(facts: Facts, _given: ListenerFacts, service: ServiceFacts): Finding {
  const { plain, spoofed, address, transport } = service;
  if (!spoofed) return skipped("the capability is missing");
  if (spoofed.outcome === "ok") {
    return ok(transport === "tcp" ? "accepts a client's connection" : "answers a client");
  }
  if (isAnswered(service)) return ok("refuses a client as it refuses this program");
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

function anyAddress(range: PortRange): PortRange {
  const { family, port, lastPort } = range;
  const bytes = range.bytes.map(() => 0);
  const text = endpointText({ family, bytes, scope: 0 }, { first: port, last: lastPort });
  return { ...range, bytes, scope: 0, text };
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

function countOf(count: number, thing: string): string {
  return `${count} ${thing}${count === 1 ? "" : "s"}`;
}

/** `a, b and c`; of many the first, and how many more. */
function listOf(texts: readonly string[]): string {
  const shown = texts.length > MOST_LISTED
    ? [...texts.slice(0, MOST_LISTED), `${texts.length - MOST_LISTED} more`]
    : texts;
  return shown.join(", ").replace(/, ([^,]*)$/, " and $1");
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
