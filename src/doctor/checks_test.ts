import assert from "node:assert/strict";
import { parseArguments } from "../cli/arguments.ts";
import { upstreamEndpoints } from "../config/endpoints.ts";
import { Status } from "../native/layout.ts";
import { NativeError } from "../native/library.ts";
import type { ProbeResult } from "../native/probe.ts";
import { datagramPorts, routingNeeds } from "../routing/needs.ts";
import { type Detour, planRoutes, type Reach, RoutingError, type Step } from "../routing/plan.ts";
import type { SandboxResult } from "../proxy/sandbox.ts";
import { SubnetsError } from "../config/subnets.ts";
import { CHECKS, examine } from "./checks.ts";
import type { Facts, ListenerFacts, ServiceFacts, Taken } from "./facts.ts";
import type { Finding } from "./finding.ts";
import type { Self } from "./proc.ts";

const OK: ProbeResult = { outcome: "ok", errno: 0 };
const REFUSED: ProbeResult = { outcome: "refused", errno: 111 };
const SILENT: ProbeResult = { outcome: "silent", errno: 110 };
const ROOT: Self = { user: 0, capabilities: new Set(["net_admin", "net_raw"]) };
const SET = { outcome: "set", errno: 0 } as const;
const CONFINED: SandboxResult = {
  mechanisms: {
    no_new_privileges: { outcome: "held", errno: 0 },
    lowered: SET,
    files: SET,
    filter: SET,
  },
  capabilities: 1n << 13n,
};
const UNFILTERED: SandboxResult = {
  ...CONFINED,
  mechanisms: { ...CONFINED.mechanisms, filter: { outcome: "missing", errno: 1 } },
};
const REMOTE: Reach = { kind: "remote", device: "eth0", source: "192.0.2.1" };
const LOCAL: Reach = { kind: "local" };

type Changed = Partial<Facts> & Partial<Omit<ListenerFacts, "taken">> & {
  reach?: Reach;
  service?: Partial<ServiceFacts>;
  missing?: boolean;
  /** What is in the way of the listener's address. */
  taken?: Omit<Taken, "address">;
};

/** Facts of a host on which everything is well, with these flags and differences. */
function facts(line: string, changed: Changed = {}): Facts {
  const {
    reach = LOCAL,
    service = {},
    missing = false,
    taken,
    subnets,
    loop,
    reached = [],
    ...other
  } = changed;
  const request = parseArguments(["doctor", ...line.split(" ")], "1.2.3");
  assert(request.kind === "doctor" && request.setup.kind === "flags");
  const { config } = request.setup;
  const [listener] = config.listeners;
  assert(listener);
  const { steps, notes } = planRoutes(routingNeeds(config), {
    table: config.table,
    reach: ({ family }) => family === 4 ? reach : LOCAL,
    datagramPorts: datagramPorts(config),
  });
  const none: Step[] = [];
  const [address] = upstreamEndpoints(listener);
  const [listen] = listener.listen;
  assert(address && listen);
  return {
    config,
    self: ROOT,
    sandbox: CONFINED,
    fileLimit: 65_536,
    isLoopbackUp: true,
    listeners: [{
      listener,
      ...(subnets !== undefined && { subnets }),
      ...(loop && { loop }),
      reached,
      taken: taken ? [{ address: listen, ...taken }] : [],
      services: [{
        address,
        transport: listener.protocol === "udp" ? "udp" : "tcp",
        plain: OK,
        spoofed: OK,
        reach,
        elsewhere: [],
        ...service,
      }],
    }],
    routing: {
      steps,
      notes,
      there: missing ? none : steps,
      missing: missing ? steps : none,
      replaced: [],
      surplus: [],
      foreign: [],
      detours: [],
      replies: [],
    },
    filter: { strict: [], dropped: 0 },
    ...other,
  };
}

function findings(name: string, given: Facts): Finding[] {
  return examine(given).filter((entry) => entry.name === name);
}

/** What one check says in one string: its state, the detail, and each command behind an arrow. */
function said(name: string, given: Facts): string {
  return findings(name, given).map(({ state, detail, fix }) =>
    [`${state}: ${detail}`, ...fix].join(" → ")
  ).join("; ");
}

const SERVICE = "-4 127.0.0.1:22";
const ENDPOINT6 = {
  family: 6,
  bytes: [...Array(15).fill(0), 1],
  scope: 0,
  port: 443,
  lastPort: 443,
} as const;
const RANGE = "-l 0.0.0.0:30000-30999 -4 127.0.0.1";
const refusal = (status: number) => new NativeError(status, "Cannot do it");

const CASES: [name: string, check: string, given: Facts, expected: string][] = [
  [
    "a sandbox that can be had",
    "sandbox",
    facts(SERVICE),
    "ok: Available here: no new privileges (already), no capability except CAP_NET_RAW, " +
    "no file open for writing, system calls filtered",
  ],
  [
    "a sandbox that is incomplete",
    "sandbox",
    facts(SERVICE, { sandbox: UNFILTERED }),
    "warning: system calls cannot be filtered: operation not permitted (EPERM); see docs/sandbox.md; " +
    "available here: no new privileges (already), no capability except CAP_NET_RAW, no file open for writing",
  ],
  [
    "an incomplete sandbox that must be complete",
    "sandbox",
    facts(`${SERVICE} --sandbox on`, { sandbox: UNFILTERED }),
    "failed: system calls cannot be filtered: operation not permitted (EPERM); see docs/sandbox.md; " +
    "available here: no new privileges (already), no capability except CAP_NET_RAW, no file open for " +
    "writing",
  ],
  [
    "an offload that can be had",
    "offload",
    facts(`${SERVICE} --offload auto`),
    "ok: Established TCP connections can be handed over to the kernel and outlive mmproxy",
  ],
  [
    "an offload that ends with mmproxy",
    "offload",
    facts(`${SERVICE} --offload auto`, { pins: refusal(Status.system) }),
    "warning: established TCP connections can be handed over to the kernel; they end with mmproxy: " +
    "Cannot do it (docs/offload.md)",
  ],
  [
    "an offload that cannot be had",
    "offload",
    facts(`${SERVICE} --offload auto`, { offload: refusal(Status.system) }),
    "warning: connections cannot be handed over and are relayed: Cannot do it; it needs CAP_BPF, " +
    "CAP_NET_ADMIN and Linux 5.17 (docs/offload.md)",
  ],
  ["an offload that nobody wants", "offload", facts(SERVICE, { offload: refusal(1) }), ""],
  [
    "no sandbox, beside a proxy that has one",
    "sandbox",
    facts(`${SERVICE} --sandbox off`, {
      taken: {
        problem: refusal(Status.address_in_use),
        holder: {
          process: 7,
          name: "deno",
          ours: true,
          confinement: { noNewPrivileges: true, filtered: true, capabilities: 1n << 13n },
        },
      },
    }),
    "skipped: skipped because disabled by --sandbox off; ok: running mmproxy (process 7): no new " +
    "privileges, system calls filtered, CAP_NET_RAW",
  ],
  [
    "a mark on an old kernel",
    "capabilities",
    facts(`${SERVICE} -m 7`, {
      self: { user: 0, capabilities: new Set(["net_raw"]) },
      incapable: refusal(Status.permission),
    }),
    "failed: Cannot do it: this kernel requires CAP_NET_ADMIN for --mark; in a container " +
    "--cap-add=NET_ADMIN, with systemd AmbientCapabilities=CAP_NET_ADMIN",
  ],
  [
    "a user without capabilities",
    "capabilities",
    facts(SERVICE, {
      self: { user: 1000, capabilities: new Set() },
      incapable: refusal(Status.permission),
    }),
    "failed: Cannot do it: CAP_NET_RAW is needed; run as root, in a container --cap-add=NET_RAW, with " +
    "systemd AmbientCapabilities=CAP_NET_RAW",
  ],
  [
    "an empty subnet file",
    "subnets",
    facts(`${SERVICE} -a /etc/subnets`, {
      subnets: new SubnetsError("/etc/subnets has no subnet"),
    }),
    "failed: /etc/subnets has no subnet; write one subnet per line into it",
  ],
  [
    "a transparent listener with a tproxy rule",
    "tproxy",
    facts(`${SERVICE} --transparent --offload auto`, { tproxy: true }),
    "ok: nftables has a tproxy rule",
  ],
  [
    "a transparent listener without a tproxy rule",
    "tproxy",
    facts(`${SERVICE} --transparent`, { tproxy: false }),
    "warning: nftables has no tproxy rule: unless eBPF (sk_lookup) passes packets on, only those to the " +
    "listen port arrive; see docs/recipes/transparent.md",
  ],
  [
    "rules that this user may not see",
    "tproxy",
    facts(`${SERVICE} --transparent`, { tproxy: refusal(Status.permission) }),
    "unknown: Cannot do it: whether there is a tproxy rule cannot be seen from here",
  ],
  [
    "rules of iptables-legacy",
    "tproxy",
    facts(`${SERVICE} --transparent`),
    "unknown: iptables-legacy may have a TPROXY rule: iptables-legacy -t mangle -S lists it",
  ],
  ["a listener that is not transparent", "tproxy", facts(SERVICE, { tproxy: false }), ""],
  [
    "a port of which nobody may be seen",
    "listen",
    facts(SERVICE, { taken: { problem: refusal(Status.address_in_use) } }),
    "failed: Cannot do it: another user's program uses it; stop that program, or choose another port with " +
    "--listen-addr → sudo ss -lntup 'sport = :8443'",
  ],
  [
    "a port of the first process, which nobody should end",
    "listen",
    facts(SERVICE, {
      taken: {
        problem: refusal(Status.address_in_use),
        holder: { process: 1, name: "systemd", ours: false },
      },
    }),
    "failed: 0.0.0.0:8443 is in use by systemd (process 1): stop it, or choose another port with " +
    "--listen-addr → ss -lntup 'sport = :8443'",
  ],
  [
    "a family without an upstream",
    "upstreams",
    facts("-4 127.0.0.1:22 -6 none"),
    "ok: IPv4 clients to 127.0.0.1:22; IPv6 clients are refused: no --ipv6 upstream",
  ],
  [
    "IPv6 alone",
    "upstreams",
    facts("-6 [::1]:22"),
    "ok: IPv6 clients to [::1]:22; IPv4 clients are refused: no --ipv4 upstream",
  ],
  [
    "both families",
    "upstreams",
    facts("-l 0.0.0.0:8443"),
    "ok: IPv4 clients to 127.0.0.1:443; IPv6 clients to [::1]:443",
  ],
  [
    "an upstream that is the listener",
    "upstreams",
    facts("-4 127.0.0.1:22 -l 0.0.0.0:22", { loop: refusal(Status.loop) }),
    "failed: Cannot do it: choose another port with --listen-addr, or set the upstream to the server itself → " +
    "ss -lntup 'sport = :22'",
  ],
  [
    "a table of connections that is nearly full",
    "conntrack",
    facts(SERVICE, {
      self: { user: 1000, capabilities: new Set() },
      conntrack: { count: 950, max: 1000 },
    }),
    "failed: 950 of 1000 tracked connections: a full table drops new connections → " +
    "sudo sysctl -w net.netfilter.nf_conntrack_max=2000",
  ],
  [
    "a table of connections with room",
    "conntrack",
    facts(SERVICE, { conntrack: { count: 899, max: 1000 } }),
    "ok: 899 of 1000 tracked connections",
  ],
  [
    "no IPv6 where nobody asked for it",
    "service",
    facts("-l 0.0.0.0:8443", {
      service: {
        address: { ...ENDPOINT6, text: "[::1]:443" },
        plain: { outcome: "failed", errno: 101 },
      },
    }),
    "skipped: skipped because this host has no IPv6",
  ],
  [
    "a service that no packet reaches",
    "service",
    facts(SERVICE, { service: { plain: { outcome: "failed", errno: 113 } } }),
    "failed: cannot be reached, no route to host (EHOSTUNREACH): is 127.0.0.1:22 right? → " +
    "ip -4 route get 127.0.0.1",
  ],
  [
    "a service that the routing cannot reach",
    "routes",
    facts(SERVICE, { routing: new RoutingError("This host has no route") }),
    "failed: This host has no route",
  ],
  [
    "rules of one's own",
    "routes",
    facts(SERVICE, { missing: true }),
    "ok: Replies to clients come back through rules of your own",
  ],
  [
    "routes that are set at the start",
    "routes",
    facts(`${SERVICE} --auto-routes`, { missing: true, service: { spoofed: SILENT } }),
    "ok: --auto-routes sets the rules and routes at the start",
  ],
  [
    "replies that leave this host, filtered",
    "rp_filter",
    facts("-4 192.0.2.9:22", {
      reach: REMOTE,
      service: { spoofed: SILENT },
      filter: { strict: ["eth0"], dropped: 2 },
    }),
    "failed: Strict on eth0: 2 replies to clients were dropped → " +
    "sysctl -w net.ipv4.conf.all.rp_filter=2",
  ],
  [
    "a filter that drops what others send",
    "rp_filter",
    facts("-4 192.0.2.9:22", { reach: REMOTE, filter: { strict: ["eth0"], dropped: 2 } }),
    "ok: Strict on eth0, and no reply was dropped",
  ],
  [
    "a strict filter, and replies that stay here",
    "rp_filter",
    facts(SERVICE, { service: { spoofed: SILENT }, filter: { strict: ["eth0"], dropped: 2 } }),
    "ok: Not relevant: the upstream's replies never leave this host",
  ],
  [
    "a client that a firewall refuses",
    "clients",
    facts(SERVICE, { service: { spoofed: REFUSED } }),
    "warning: answers this host but refuses a client's address: is there a firewall, or a list of allowed hosts? → " +
    "nft list ruleset",
  ],
  [
    "no answer though all is there",
    "clients",
    facts(SERVICE, { service: { spoofed: SILENT } }),
    "failed: does not answer clients, although the routing is present: does a firewall drop its " +
    "replies? → nft list ruleset",
  ],
  [
    "UDP that answers the proxy and no client",
    "clients",
    facts(`${SERVICE} -p udp`, { service: { spoofed: SILENT } }),
    "warning: answers this host but not a client's address, although the routing is present: does it answer " +
    "only its own networks, or does a firewall drop its replies? → nft list ruleset",
  ],
  [
    "a range on whose first port nobody listens now",
    "service",
    facts(RANGE, { service: { plain: REFUSED, spoofed: REFUSED } }),
    "unknown: nothing listens on port 30000 now, which is normal in a range",
  ],
  [
    "a range that refuses clients as it refuses this program",
    "clients",
    facts(RANGE, { service: { plain: REFUSED, spoofed: REFUSED } }),
    "ok: refuses a client's address and this host alike",
  ],
  [
    "several addresses",
    "listen",
    facts("-l 0.0.0.0:25 -l [::]:25 -l 0.0.0.0:587 -4 127.0.0.1"),
    "ok: 0.0.0.0:25, [::]:25 and 0.0.0.0:587 are free",
  ],
  [
    "a host name that is not resolved",
    "service",
    { ...withoutServices(facts(SERVICE)) },
    "skipped: skipped because its address is not known",
  ],
  [
    "a port that the upstream has itself",
    "listen",
    facts("-l 198.51.100.10:443 -4 127.0.0.1:443", {
      taken: {
        problem: refusal(Status.address_in_use),
        holder: { process: 7, name: "nginx", ours: false },
        upstream: {
          text: "0.0.0.0:443",
          isWildcard: true,
          named: { family: 4, bytes: [127, 0, 0, 1], port: 443, scope: 0, text: "127.0.0.1:443" },
        },
      },
    }),
    "failed: 198.51.100.10:443 is in use by the upstream itself, nginx (process 7): it listens on " +
    "0.0.0.0:443, which uses the port on every address. Let it listen on 127.0.0.1:443 only, or " +
    "choose another port with --listen-addr → ss -lntup 'sport = :443'",
  ],
  [
    "packets that a firewall drops",
    "listen",
    facts(SERVICE, {
      reached: [{ address: { ...ENDPOINT6, text: "[::1]:443" }, transport: "tcp", errno: 110 }],
    }),
    "failed: [::1]:443: a connection from this host does not get through, timed out (ETIMEDOUT): a " +
    "firewall drops or rejects it → nft list ruleset",
  ],
  [
    "an address of the default flags that is not there, beside one that is",
    "service",
    withSpare(facts("-l 0.0.0.0:8443"), REFUSED),
    "ok: accepts a connection; warning: does not answer, so that IPv6 clients are refused; give -4 " +
    "alone if this is intended",
  ],
  [
    "routes of a family that is not there and need not be",
    "routes",
    withSpare(facts("-l 0.0.0.0:8443", { missing: true }), SILENT),
    "ok: Replies to clients come back through rules of your own",
  ],
  [
    "UDP that says nothing to anyone",
    "clients",
    facts(`${SERVICE} -p udp`, { service: { plain: SILENT, spoofed: SILENT } }),
    "unknown: does not answer a client's address either; the routing is present",
  ],
];

/** The IPv6 default as well, of which this comes. */
function withSpare(given: Facts, plain: ProbeResult): Facts {
  const spare: ServiceFacts = {
    address: { ...ENDPOINT6, text: "[::1]:443" },
    transport: "tcp",
    plain,
    spoofed: plain,
    reach: LOCAL,
    elsewhere: [],
  };
  return {
    ...given,
    listeners: given.listeners.map((one) => ({ ...one, services: [...one.services, spare] })),
  };
}

/** No upstream of the listener has an address. */
function withoutServices(given: Facts): Facts {
  return {
    ...given,
    listeners: given.listeners.map((listener) => ({ ...listener, services: [] })),
  };
}

Deno.test("examine: of several listeners each has its checks, after those of the host", () => {
  const given = facts(SERVICE);
  const [one] = given.listeners;
  assert(one);
  const listeners = ["mail", "web"].map((name) => ({
    ...one,
    listener: { ...one.listener, name },
  }));
  assert.deepEqual(
    examine({ ...given, listeners }).map(({ name, listener = "-" }) => `${listener} ${name}`),
    [
      ...["capabilities", "loopback", "sandbox", "nofile", "routes", "rp_filter", "conntrack"].map(
        (name) => `- ${name}`,
      ),
      ...["mail", "web"].flatMap((listener) =>
        ["subnets", "listen", "upstreams", "service", "clients"].map((name) =>
          `${listener} ${name}`
        )
      ),
    ],
  );
  const transparent = facts(`${SERVICE} --transparent --offload auto`, { tproxy: true });
  assert.deepEqual(examine(transparent).map(({ name }) => name), CHECKS.map(({ name }) => name));
});

Deno.test("with a file the findings name its keys, and commands name the file", () => {
  const given = facts("-m 7 -4 127.0.0.1:22", {
    missing: true,
    service: { spoofed: SILENT, plain: REFUSED, elsewhere: [{ bytes: [127, 0, 0, 2] }] },
  });
  const file = { ...given, config: { ...given.config, file: "/etc/mmproxy.toml" } };
  assert.match(
    said("subnets", file),
    /^warning: .*list your load balancers in allowed-subnets of listener 0\.0\.0\.0:8443$/,
  );
  assert.match(said("routes", file), /missing → mmproxy routes up --config \/etc\/mmproxy\.toml$/);
  assert.equal(
    said("service", file),
    "failed: nothing listens there, but on 127.0.0.2:22: name that with " +
      "ipv4 = \"127.0.0.2:22\" in listener 0.0.0.0:8443 → ss -lntp 'sport = :22'",
  );
});

for (const [name, check, given, expected] of CASES) {
  Deno.test(`${check}: ${name}`, () => assert.equal(said(check, given), expected));
}

Deno.test("clients: a check whose ground is missing is skipped, and never ok", () => {
  const grounds: [Facts, RegExp][] = [
    [facts(SERVICE, { service: { plain: REFUSED, spoofed: REFUSED } }), /cannot be reached/],
    [facts(SERVICE, { service: { plain: SILENT, spoofed: SILENT } }), /does not answer/],
    [
      facts(SERVICE, { missing: true, service: { spoofed: SILENT } }),
      /rules or routes are missing/,
    ],
    [
      facts("-4 192.0.2.9:22", {
        reach: REMOTE,
        service: { spoofed: SILENT },
        filter: { strict: ["eth0"], dropped: 1 },
      }),
      /rp_filter drops/,
    ],
  ];
  for (const [given, why] of grounds) {
    assert.match(said("clients", given), why);
    assert.deepEqual(findings("clients", given).map(({ state }) => state), ["skipped"]);
  }
  const given = facts(SERVICE);
  const [listener] = given.listeners;
  const { spoofed: _, ...incapable } = listener?.services[0] ?? assert.fail();
  assert(listener);
  assert.match(
    said("clients", { ...given, listeners: [{ ...listener, services: [incapable] }] }),
    /^skipped: .*capability/,
  );
});

Deno.test("clients: another host is told what to set", () => {
  const given = facts("-4 192.0.2.9:22", { reach: REMOTE, service: { spoofed: SILENT } });
  const [finding] = findings("clients", given);
  assert.match(finding?.detail ?? "", /^does not answer clients\. .* On 192\.0\.2\.9/);
  assert.deepEqual(finding?.fix, [
    "ip route add default via 192.0.2.1 src 192.0.2.9 table 123",
    "ip rule add from 192.0.2.9 ipproto tcp sport 22 lookup 123",
  ]);
});

Deno.test("nofile: warns where there is room for few", () => {
  assert.match(said("nofile", facts(SERVICE)), /^ok: A limit of 65536 .* \d+ connections$/);
  assert.match(
    said("nofile", facts(`${SERVICE} -p both`, { fileLimit: 256 })),
    /^warning: A limit of 256 .* 43 connections and 98 UDP flows.* → ulimit -n 4096$/,
  );
});

Deno.test("what --fix sets is what the command sets", () => {
  const detour: Detour = {
    step: { kind: "rule", family: 4, device: "lo", table: 123 },
    by: { priority: 100, table: 254 },
    device: "wg0",
  };
  const given = facts(SERVICE, { service: { spoofed: SILENT } });
  assert(!(given.routing instanceof RoutingError));
  const astray = (one: Detour): Facts => {
    assert(!(given.routing instanceof RoutingError));
    return { ...given, routing: { ...given.routing, detours: [one] } };
  };
  const ahead = { ...detour.step, priority: 99 };
  const found = [
    ...findings("routes", facts(SERVICE, { missing: true, service: { spoofed: SILENT } })),
    ...findings("routes", astray({ ...detour, ahead })),
    ...findings("routes", astray(detour)),
    ...findings("conntrack", facts(SERVICE, { conntrack: { count: 95, max: 100 } })),
    ...findings("loopback", facts(SERVICE, { isLoopbackUp: false })),
  ];
  assert.deepEqual(found.map(({ fix, sets }) => [fix.join(), sets]), [
    ["mmproxy routes up -4 127.0.0.1:22", { kind: "routes" }],
    ["mmproxy routes up -4 127.0.0.1:22", { kind: "routes" }],
    ["ip rule show priority 100", undefined],
    [
      "sysctl -w net.netfilter.nf_conntrack_max=200",
      { kind: "sysctl", name: "net/netfilter/nf_conntrack_max", value: 200 },
    ],
    ["ip link set lo up", undefined],
  ]);
  assert.match(
    said("routes", astray({ ...detour, ahead })),
    /has no effect: IPv4 rule 100 \(lookup main\) comes before it and sends replies out of wg0; the rule of mmproxy .* 99 /,
  );
  assert.match(said("clients", astray(detour)), /^skipped: .*another program's rule/);
});

Deno.test("subnets: every wrong line is shown, up to eight", () => {
  const findingsOf = (length: number) => {
    const wrong = Array.from({ length }, (_, index) => ({
      line: index + 1,
      entry: `x${index}`,
      problem: "is not a subnet",
    }));
    const given = facts(`${SERVICE} -a /etc/s`, { subnets: new SubnetsError("wrong", wrong) });
    return findings("subnets", given);
  };
  const found = findingsOf(10);
  assert.equal(found.length, 8);
  assert.ok(found.every(({ state }) => state === "failed"));
  assert.equal(found[0]?.detail, '/etc/s, line 1: "x0" is not a subnet');
  assert.match(found[7]?.detail ?? "", /^\/etc\/s, line 8: .* \(and 2 more lines\); /);
  assert.match(found[7]?.fix[0] ?? "", /^sed -i '1s.*; 10s\/\^\/# \/' \/etc\/s$/);
  const many = findingsOf(33).at(-1);
  assert.match(many?.detail ?? "", /is \/etc\/s the right file\?$/);
  assert.deepEqual(many?.fix, []);
});
