/**
 * The schema of the configuration file: every key with its type, range, default and description. It converts values to
 * their part of the model. The JSON Schema for editors is generated from it.
 */
import * as v from "valibot";
import { parseAddress } from "./address.ts";
import { addressHint } from "./address_hint.ts";
import { BOUNDS, type Bounds, KERNEL_TABLES, MOST_SOCKET_PATH } from "./bounds.ts";
import { parseDestination } from "./destinations.ts";
import { type AllowedSubnets, MODEL_DEFAULTS } from "./model.ts";
import { unknownKey } from "./nearest.ts";
import { type Address, DEFAULTS } from "./options.ts";
import { Problem } from "./problem.ts";
import { parsePortRange, type PortRange } from "./ranges.ts";
import { parseSubnet } from "./subnet.ts";
import { duplicates, HEADER_RULES, longestFirst } from "./trust.ts";
import { parseUpstream } from "./upstreams.ts";

const LISTEN =
  "expected an IP address with a port or a range of ports, for example 0.0.0.0:8443 or " +
  "[::]:30000-30999";
const LISTS = {
  listen: `${LISTEN}; or a list of them`,
  subnets: "expected the path of a file, or a list of addresses and subnets, for example " +
    '["198.51.100.0/24", "2001:db8::/32"]',
  destinations: 'expected a list, for example ["127.0.0.0/8:1024-65535", "10.0.0.5:22"]',
  trust: 'expected a list of rules, for example [{ from = "198.51.100.0/24", header = "require" }]',
};
const RULE = 'expected a table with from and header, for example { from = "198.51.100.0/24", ' +
  'header = "require" }';
const RULE_KEYS = ["from", "header"];
const SAME_SUBNET = "an earlier rule is for the same subnet; leave one of them";

/** The keys of a listener, and of `[defaults]`. */
export const LISTENER = {
  name: v.optional(v.pipe(
    v.string("expected a text"),
    v.regex(
      /^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/,
      "expected up to 63 letters, digits, dots, dashes and underscores, the first a letter or digit",
    ),
    v.description("The label in log and metrics; by default the first address"),
  )),
  listen: v.optional(each(LISTS.listen, LISTEN, listenRange, "Where to listen")),
  "listen-addr": v.optional(each(LISTS.listen, LISTEN, listenRange, "The same as listen")),
  protocol: choice(["tcp", "udp", "both"], DEFAULTS.protocol, "The protocol to accept"),
  "udp-header": choice(
    ["datagram", "session", "spp"],
    DEFAULTS.udpHeader,
    "datagram: every datagram has a header; session: a peer's first one; spp: Cloudflare's Simple " +
      "Proxy Protocol",
  ),
  upstream: choice(
    ["family", "destination"],
    MODEL_DEFAULTS.upstream,
    "family: ipv4 or ipv6, by the client's family; destination: the header's destination, " +
      "within allowed-destinations",
  ),
  ipv4: v.optional(upstream(4)),
  ipv6: v.optional(upstream(6)),
  "allowed-destinations": v.optional(each(
    LISTS.destinations,
    LISTS.destinations,
    parseDestination,
    'Where headers may send clients, with upstream = "destination"',
  )),
  trust: v.optional(trust()),
  "allowed-subnets": v.optional(allowedSubnets()),
  mark: whole(BOUNDS.mark, "", DEFAULTS.mark, "Mark on the packets to the upstream; 0 sets none"),
  "header-timeout": seconds(
    BOUNDS.headerTimeout,
    DEFAULTS.headerTimeout,
    "Seconds for a complete TCP header",
  ),
  "connect-timeout": seconds(
    BOUNDS.connectTimeout,
    DEFAULTS.connectTimeout,
    "Seconds for the upstream to accept",
  ),
  "close-after": seconds(
    BOUNDS.closeAfter,
    DEFAULTS.closeAfter,
    "Seconds after which an idle UDP flow ends",
  ),
  keepalive: seconds(
    BOUNDS.keepalive,
    DEFAULTS.keepalive,
    "Seconds of silence after which a TCP connection's host is asked whether it is there, on both " +
      "sides; 0: the system's setting",
  ),
  "idle-timeout": seconds(
    BOUNDS.idleTimeout,
    DEFAULTS.idleTimeout,
    "Seconds without a byte after which a TCP connection ends; 0: never",
  ),
  "optional-wait": seconds(
    BOUNDS.optionalWait,
    MODEL_DEFAULTS.optionalWait,
    'Seconds after which a silent peer whose header is "optional" is relayed without one',
  ),
  transparent: flag(
    MODEL_DEFAULTS.transparent,
    "Accept what TPROXY hands over, whatever its destination",
  ),
  "max-connections": v.optional(limit("Most TCP connections at once")),
  "max-flows": v.optional(limit("Most UDP flows at once")),
  "max-connections-per-client": v.optional(
    limit("Most relayed TCP connections of one client: an IPv4 address, or an IPv6 /64"),
  ),
};

/** The keys of the proxy, which precede the first table. */
export const PROXY = {
  workers: v.optional(workers("Threads that serve the listeners"), Number(DEFAULTS.listeners)),
  listeners: v.optional(
    workers("The same as workers", "; the table of a listener is [[listener]]"),
  ),
  "metrics-addr": v.optional(v.pipe(
    v.string(address()),
    v.description("Where the status page, /metrics, /healthz and /readyz are served over HTTP"),
    v.examples(["127.0.0.1:9100"]),
    read(
      (text): Address | Problem =>
        parseAddress(text) ?? new Problem(address() + addressHint(text, "metrics")),
      "",
    ),
  )),
  "log-level": choice(
    ["error", "warn", "info", "access", "debug"],
    DEFAULTS.logLevel,
    "The least important lines of the log",
  ),
  "log-format": choice(["text", "json"], DEFAULTS.logFormat, "The form of the log's lines"),
  color: choice(
    ["auto", "always", "never"],
    DEFAULTS.color,
    "Colours of text; auto: on a terminal, unless NO_COLOR is set",
  ),
  "auto-routes": flag(
    false,
    "Set the routes that replies need at the start, remove them at the end",
  ),
  table: v.optional(
    v.pipe(
      numberFrom(BOUNDS.table, ""),
      v.notValues(KERNEL_TABLES, "expected a table of its own: 252 to 255 are the kernel's"),
      v.description("The routing table for these routes"),
    ),
    Number(DEFAULTS.table),
  ),
  sandbox: choice(
    ["auto", "on", "off"],
    DEFAULTS.sandbox,
    "What the program gives up before it serves. auto: as much as the system allows; on: all of it, " +
      "or do not start; off: none",
  ),
  offload: choice(
    ["auto", "off"],
    DEFAULTS.offload,
    "Whether established TCP connections are handed over to the kernel. auto: where the host allows it; " +
      "off: they are relayed",
  ),
  "drain-timeout": seconds(
    BOUNDS.drainTimeout,
    DEFAULTS.drainTimeout,
    "Seconds that connections may go on after SIGTERM or SIGINT",
  ),
  "shutdown-delay": seconds(
    BOUNDS.shutdownDelay,
    DEFAULTS.shutdownDelay,
    "Seconds that new connections are still accepted before that, while /readyz says no",
  ),
  control: v.optional(v.pipe(
    v.string(controlPath()),
    v.minLength(1, controlPath()),
    v.maxBytes(MOST_SOCKET_PATH, controlPath()),
    v.description("The path of the control socket; none by default"),
  )),
  "upgrade-drain": seconds(
    BOUNDS.upgradeDrain,
    DEFAULTS.upgradeDrain,
    "Seconds that connections may go on after another program has taken over",
  ),
  "take-over": v.optional(v.pipe(
    v.string(controlPath()),
    v.minLength(1, controlPath()),
    v.maxBytes(MOST_SOCKET_PATH, controlPath()),
    v.description(
      "The control socket of a running program to take over from, if one answers there",
    ),
  )),
  "resolve-interval": seconds(
    BOUNDS.resolveInterval,
    MODEL_DEFAULTS.resolveInterval,
    "Seconds after which the host names of upstreams are resolved again; 0: only at a reload",
  ),
  watch: flag(false, "Reload when this file, or a subnet file that it names, changes"),
};

/** The complete file: for editors. Tables are read key by key, so that no mistake hides another. */
export const FILE = v.strictObject({
  ...PROXY,
  defaults: v.optional(v.pipe(
    v.strictObject(LISTENER),
    v.description("Defaults for all listeners"),
  )),
  listener: v.pipe(v.array(v.strictObject(LISTENER)), v.minLength(1)),
});

function whole(bounds: Bounds, unit: string, value: string | number, about: string) {
  return v.optional(v.pipe(numberFrom(bounds, unit), v.description(about)), Number(value));
}

function seconds(bounds: Bounds, value: string | number, about: string) {
  return whole(bounds, " (seconds)", value, about);
}

function limit(about: string) {
  return v.pipe(numberFrom(BOUNDS.limit, ""), v.description(about));
}

function numberFrom([least, most]: Bounds, unit: string, otherwise = "") {
  const expected = `expected a whole number from ${least} to ${most}${unit}${otherwise}`;
  return v.pipe(
    v.number(expected),
    v.integer(expected),
    v.minValue(least, expected),
    v.maxValue(most, expected),
  );
}

function workers(about: string, hint = "") {
  const auto = `, or "auto"${hint}`;
  return v.pipe(
    v.union(
      [numberFrom(BOUNDS.workers, "", auto), v.literal("auto")],
      `expected a whole number from ${BOUNDS.workers.join(" to ")}${auto}`,
    ),
    v.description(`${about}; "auto": one for each processor that the process may use`),
  );
}

function flag(value: boolean, about: string) {
  return v.optional(v.pipe(v.boolean("expected true or false"), v.description(about)), value);
}

function choice<const Choice extends string>(
  choices: readonly Choice[],
  value: NoInfer<Choice>,
  about: string,
) {
  const names = choices.map((name) => `"${name}"`).join(", ").replace(/, ([^,]*)$/, " or $1");
  return v.optional(
    v.pipe(v.picklist(choices, `expected ${names}`), v.description(about)),
    value,
  );
}

function address(): string {
  return "expected an IP address and port, for example 127.0.0.1:9100";
}

function listenRange(text: string): PortRange | Problem {
  return parsePortRange(text) ?? new Problem(LISTEN + addressHint(text, "listen"));
}

function controlPath(): string {
  return `expected a path of 1 to ${MOST_SOCKET_PATH} bytes`;
}

function upstream(family: 4 | 6) {
  const example = family === 4 ? "127.0.0.1" : "[::1]";
  return v.pipe(
    v.string(`expected a text, for example "${example}:443"`),
    v.description(
      `Upstream for IPv${family} clients; without a port: the port on which they arrived; none: ` +
        "they are refused",
    ),
    v.examples([example, `${example}:443`, `${example}:30000-30999`, "mail.internal:25", "none"]),
    read((text) => parseUpstream(text, family), ""),
  );
}

/** Turns a text into what it means; `expected` is said where `parse` gives no reason. */
function read<Output>(parse: (text: string) => Output | Problem | undefined, expected: string) {
  return v.rawTransform<string, Output>(({ dataset, addIssue, NEVER }) => {
    const output = parse(dataset.value);
    if (output !== undefined && !(output instanceof Problem)) return output;
    addIssue({ message: output instanceof Problem ? output.text : expected });
    return NEVER;
  });
}

/** A text or a list of them, each read by itself. */
function each<Output>(
  list: string,
  expected: string,
  parse: (text: string) => Output | Problem | undefined,
  about: string,
) {
  return v.pipe(
    oneOrMany(list),
    v.description(about),
    v.rawTransform<string | string[], Output[]>(({ dataset: { value }, addIssue, NEVER }) => {
      const outputs = readItems(value, parse, (problem, path) => {
        addIssue({ message: problem?.text ?? expected, ...path });
      });
      return outputs ?? NEVER;
    }),
  );
}

function oneOrMany(expected: string) {
  return v.union([
    v.string(expected),
    v.pipe(v.array(v.string(expected), expected), v.minLength(1, expected)),
  ], expected);
}

/** Parses each text; undefined if one is invalid, after `wrong` was called for each of them. */
function readItems<Output>(
  value: string | readonly string[],
  parse: (text: string) => Output | Problem | undefined,
  wrong: (problem: Problem | undefined, path: { path?: IssuePath }) => void,
): Output[] | undefined {
  const texts = [value].flat();
  const outputs = texts.flatMap((text, index): Output[] => {
    const output = parse(text);
    if (output !== undefined && !(output instanceof Problem)) return [output];
    const problem = output instanceof Problem ? output : undefined;
    wrong(problem, typeof value === "string" ? {} : { path: issuePath(value, index) });
    return [];
  });
  return outputs.length === texts.length ? outputs : undefined;
}

type IssuePath = [v.IssuePathItem, ...v.IssuePathItem[]];

/** The path of keys from a value, in the form of an issue. */
function issuePath(input: unknown, first: string | number, ...more: string[]): IssuePath {
  const item = (key: string | number): v.IssuePathItem => ({
    type: "unknown",
    origin: "value",
    input,
    key,
    value: undefined,
  });
  return [item(first), ...more.map(item)];
}

function allowedSubnets() {
  return v.pipe(
    oneOrMany(LISTS.subnets),
    v.description(
      "The peers that may connect and must send a header: the path of a file with a subnet a line, or " +
        "a list",
    ),
    v.rawTransform<string | string[], AllowedSubnets>(({ dataset, addIssue, NEVER }) => {
      const { value } = dataset;
      if (typeof value === "string") {
        // A subnet alone would be taken for a file that is not there.
        if (value !== "" && parseSubnet(value) instanceof Problem) {
          return { kind: "file", path: value };
        }
        addIssue({ message: LISTS.subnets });
        return NEVER;
      }
      const subnets = readItems(value, parseSubnet, (problem, path) => {
        addIssue({ message: problem?.text ?? LISTS.subnets, ...path });
      });
      return subnets ? { kind: "inline", subnets } : NEVER;
    }),
  );
}

function trust() {
  const expected = "expected " + HEADER_RULES.map((rule) => `"${rule}"`).join(", ");
  const rule = v.pipe(
    v.looseObject({
      from: v.pipe(v.string(RULE), read(parseSubnet, "")),
      header: v.picklist(HEADER_RULES, expected.replace(/, ([^,]*)$/, " or $1")),
    }, RULE),
    v.metadata({ additionalProperties: false }),
    // A strict object names the first unknown key and no other.
    v.rawCheck(({ dataset, addIssue }) => {
      const { value } = dataset;
      if (typeof value !== "object" || value === null || Array.isArray(value)) return;
      for (const key of Object.keys(value).filter((key) => !RULE_KEYS.includes(key))) {
        addIssue({ message: unknownKey(key, RULE_KEYS), path: issuePath(value, key) });
      }
    }),
  );
  return v.pipe(
    v.array(rule, LISTS.trust),
    v.minLength(1, LISTS.trust),
    v.description(
      "Which peers may connect, and whether they send a header; the longest prefix counts, and who is " +
        "not named is refused",
    ),
    v.rawTransform(({ dataset: { value }, addIssue }) => {
      const rules = value.map(({ from, header }) => ({ from, header }));
      for (const index of duplicates(rules)) {
        addIssue({ message: SAME_SUBNET, path: issuePath(value, index, "from") });
      }
      return longestFirst(rules);
    }),
  );
}
