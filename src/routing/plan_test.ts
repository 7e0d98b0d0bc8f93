import assert from "node:assert/strict";
import type { ListenerConfig } from "../config/model.ts";
import { parseArguments } from "../cli/arguments.ts";
import { datagramPorts, routingNeeds } from "./needs.ts";
import {
  compare,
  type Family,
  findDetours,
  hostIn,
  ORIGIN,
  type Plan,
  planRoutes,
  type Present,
  type Reach,
  type Reply,
  type ReplyRoute,
  type Step,
} from "./plan.ts";
import { describeDetour, detourRule, removeCommand, setCommand } from "./text.ts";

const LOCAL: Record<Family, Reach> = { 4: { kind: "local" }, 6: { kind: "local" } };
const LINK: Reach = { kind: "remote", device: "eth0", source: "192.0.2.1" };
const LOOPBACK6 = [
  "ip -6 route add local default dev lo table 123 proto 123",
  "ip -6 rule add from ::1 iif lo lookup 123 protocol 123",
];
const ONLY6 = { ipv4: undefined, ipv6: "[2001:db8::5]:53" };
const LOOPBACK4 = [
  "ip route add local default dev lo table 123 proto 123",
  "ip rule add from 127.0.0.1/8 iif lo lookup 123 protocol 123",
];

interface Changed {
  ipv4?: string | undefined;
  ipv6?: string | undefined;
  listenAddr?: string;
  transparent?: boolean;
  protocol?: string;
  mark?: number;
  table?: number;
}

/** The listener of a command line: -4 127.0.0.1:443, changed; what is changed to nothing is left out. */
function config(changed: Changed) {
  const {
    ipv4,
    ipv6,
    transparent,
    listenAddr = "0.0.0.0:8443",
    protocol = "tcp",
    mark = 0,
    table = 123,
  } = {
    ipv4: "127.0.0.1:443",
    ...changed,
  };
  const line = ["-l", listenAddr, "-p", protocol, "-m", `${mark}`, "--table", `${table}`];
  const upstreams = [["-4", ipv4], ["-6", ipv6]].flatMap(([flag = "", text]) =>
    text === undefined ? [] : [flag, text]
  );
  const flags = transparent ? ["--transparent"] : [];
  const request = parseArguments([...line, ...flags, ...upstreams], "0");
  assert(request.kind === "run" && request.setup.kind === "flags");
  return request.setup.config;
}

function plan(
  changed: Changed,
  reach: Partial<Record<Family, Reach>> = {},
  mayBeWildcard = true,
): Plan {
  const given = config(changed);
  return planRoutes(routingNeeds(given), {
    table: given.table,
    reach: ({ family }) => ({ ...LOCAL, ...reach })[family],
    mayBeWildcard: () => mayBeWildcard,
    datagramPorts: datagramPorts(given),
  });
}

/** The plan of several listeners, as commands. */
function commandsOf(...changed: Changed[]): string[] {
  return planOf(...changed).steps.map(setCommand);
}

function planOf(...changed: Changed[]): Plan {
  const listeners = changed.map((one, index): ListenerConfig => {
    const [listener] = config(one).listeners;
    assert(listener);
    return { ...listener, name: `listener ${index}` };
  });
  return planRoutes(routingNeeds({ listeners }), {
    table: 123,
    reach: () => ({ kind: "local" }),
    datagramPorts: datagramPorts({ listeners }),
  });
}

const RECIPES: [name: string, changed: Changed, reach: Partial<Record<Family, Reach>>, string[]][] =
  [
    ["a loopback service", {}, {}, LOOPBACK4],
    ["both families' loopback services", { ipv6: "[::1]:443" }, {}, [...LOOPBACK4, ...LOOPBACK6]],
    ["another loopback address and table", { ipv4: "127.9.9.9:22", table: 70_000 }, {}, [
      "ip route add local default dev lo table 70000 proto 123",
      "ip rule add from 127.0.0.1/8 iif lo lookup 70000 protocol 123",
    ]],
    ["a mark changes nothing for loopback", { mark: 7 }, {}, LOOPBACK4],
    ["UDP on loopback, perhaps on a wildcard", { ipv4: "127.0.0.1:53", protocol: "udp" }, {}, [
      "ip route add local default dev lo src 127.0.0.1 table 123 proto 123",
      "ip rule add from 127.0.0.1/8 iif lo lookup 123 protocol 123",
      "ip rule add from 0.0.0.0 iif lo ipproto udp sport 53 lookup 123 protocol 123",
    ]],
    [
      "no rule takes all ports of this host's own traffic",
      { ipv4: "127.0.0.1", transparent: true, protocol: "both" },
      {},
      [
        "ip route add local default dev lo table 123 proto 123",
        "ip rule add from 127.0.0.1/8 iif lo lookup 123 protocol 123",
      ],
    ],
    [
      "not even from an address of the host",
      { ipv4: "192.0.2.5", transparent: true, protocol: "both" },
      {},
      ["ip route add local default dev lo table 123 proto 123"],
    ],
    ["an address of the host", { ipv4: "192.0.2.5:25" }, {}, [
      "ip route add local default dev lo table 123 proto 123",
      "ip rule add from 192.0.2.5 iif lo ipproto tcp sport 25 lookup 123 protocol 123",
    ]],
    ["an address of the host, with a mark", { ipv4: "192.0.2.5:25", mark: 255 }, {}, [
      "sysctl -w net.ipv4.tcp_fwmark_accept=1",
      "sysctl -w net.ipv4.fwmark_reflect=1",
      "ip route add local default dev lo table 123 proto 123",
      "ip rule add fwmark 0xff iif lo lookup 123 protocol 123",
    ]],
    ["a mark says nothing about UDP", { ipv4: "192.0.2.5:53", mark: 7, protocol: "udp" }, {}, [
      "ip route add local default dev lo src 192.0.2.5 table 123 proto 123",
      "ip rule add from 192.0.2.5 iif lo ipproto udp sport 53 lookup 123 protocol 123",
      "ip rule add from 0.0.0.0 iif lo ipproto udp sport 53 lookup 123 protocol 123",
    ]],
    ["an IPv6 address of the host", { ...ONLY6, protocol: "both" }, {}, [
      "ip -6 route add local default dev lo src 2001:db8::5 table 123 proto 123",
      "ip -6 rule add from 2001:db8::5 iif lo ipproto tcp sport 53 lookup 123 protocol 123",
      "ip -6 rule add from 2001:db8::5 iif lo ipproto udp sport 53 lookup 123 protocol 123",
      "ip -6 rule add iif lo ipproto udp sport 53 lookup 123 protocol 123",
    ]],
    ["an IPv6 address of the host, with a mark", { ...ONLY6, mark: 7 }, {}, [
      "sysctl -w net.ipv4.tcp_fwmark_accept=1",
      "sysctl -w net.ipv6.fwmark_reflect=1",
      "ip -6 route add local default dev lo table 123 proto 123",
      "ip -6 rule add fwmark 0x7 iif lo lookup 123 protocol 123",
    ]],
    [
      "IPv6 on the listener's own port, where no wildcard fits beside it",
      {
        ipv4: undefined,
        ipv6: "[::1]:53",
        listenAddr: "[2001:db8::1]:53",
        protocol: "udp",
      },
      {},
      LOOPBACK6,
    ],
    ["a service elsewhere", { ipv4: "192.0.2.9:53", protocol: "both", mark: 7 }, { 4: LINK }, [
      "ip route add local default dev lo table 123 proto 123",
      "ip rule add from 192.0.2.9 iif eth0 ipproto tcp sport 53 lookup 123 protocol 123",
      "ip rule add from 192.0.2.9 iif eth0 ipproto udp sport 53 lookup 123 protocol 123",
    ]],
    [
      "no IPv6, and none asked for",
      { ipv6: "[::1]:443" },
      { 6: { kind: "none" } },
      LOOPBACK4,
    ],
  ];

for (const [name, changed, reach, commands] of RECIPES) {
  Deno.test(`planRoutes: ${name}`, () => {
    assert.deepEqual(plan(changed, reach).steps.map(setCommand), commands);
  });
}

Deno.test("planRoutes: a family without a service needs nothing, and is not asked about", () => {
  assert.deepEqual(plan({}).steps.map(setCommand), LOOPBACK4);
});

Deno.test("planRoutes: what is not on a wildcard address needs no rule for that", () => {
  const { steps } = plan({ ipv4: "127.0.0.1:53", protocol: "udp" }, {}, false);
  assert.deepEqual(steps.map(setCommand), LOOPBACK4);
});

Deno.test("planRoutes: refuses a named service that cannot be reached", () => {
  assert.throws(
    () => plan({ ipv4: "192.0.2.9:80" }, { 4: { kind: "none" } }),
    {
      name: "RoutingError",
      message: "This host has no route to 192.0.2.9:80: correct -4, or add the route (ip -4 route)",
    },
  );
});

const NOTES: [
  name: string,
  changed: Changed,
  reach: Partial<Record<Family, Reach>>,
  RegExp,
  string[],
][] = [
  ["direct clients without a mark", { ipv4: "192.0.2.5:25" }, {}, /\(TCP\).*--mark/, []],
  ["direct clients of UDP", { ipv4: "192.0.2.5:53", protocol: "udp" }, {}, /\(UDP\)[^-]*$/, []],
  [
    "no IPv6",
    { ipv6: "[::1]:443" },
    { 6: { kind: "none" } },
    /\[::1\]:443: this host has no IPv6/,
    [],
  ],
  [
    "a service on the link",
    { ipv4: "192.0.2.9:53", protocol: "both" },
    { 4: LINK },
    /On 192\.0\.2\.9, unless 192\.0\.2\.1 is already its default gateway/,
    [
      "ip route add default via 192.0.2.1 src 192.0.2.9 table 123",
      "ip rule add from 192.0.2.9 ipproto tcp sport 53 lookup 123",
      "ip rule add ipproto udp sport 53 lookup 123",
    ],
  ],
  [
    "a service behind a router",
    ONLY6,
    { 6: { kind: "remote", device: "eth1", gateway: "fe80::9", source: "2001:db8::1" } },
    /behind a router: on fe80::9, and 2001:db8::5 must send/,
    [
      "ip -6 route add default via 2001:db8::1 table 123",
      "ip -6 rule add from 2001:db8::5 ipproto tcp sport 53 lookup 123",
    ],
  ],
];

for (const [name, changed, reach, text, commands] of NOTES) {
  Deno.test(`planRoutes: tells about ${name}`, () => {
    const [note, ...more] = plan(changed, reach).notes;
    assert.match(note?.text ?? "", text);
    assert.deepEqual(note?.commands, commands);
    assert.deepEqual(more, []);
  });
}

Deno.test("planRoutes: has nothing to tell about loopback", () => {
  assert.deepEqual(plan({ ipv6: "[::1]:443" }).notes, []);
});

Deno.test("planRoutes: a range of ports is one rule", () => {
  assert.deepEqual(
    plan({ ipv4: "192.0.2.5", listenAddr: "0.0.0.0:30000-30999", protocol: "udp" })
      .steps.map(setCommand),
    [
      "ip route add local default dev lo src 192.0.2.5 table 123 proto 123",
      "ip rule add from 192.0.2.5 iif lo ipproto udp sport 30000-30999 lookup 123 protocol 123",
      "ip rule add from 0.0.0.0 iif lo ipproto udp sport 30000-30999 lookup 123 protocol 123",
    ],
  );
});

Deno.test("planRoutes: what several listeners share is set once", () => {
  assert.deepEqual(
    commandsOf({ ipv4: "127.0.0.1:25" }, { ipv4: "127.0.0.1:587" }, { ipv6: "[::1]:25" }),
    [...LOOPBACK4, ...LOOPBACK6],
  );
});

Deno.test("planRoutes: each listener's mark has its rule", () => {
  const marked = { ipv4: "192.0.2.5:25" };
  assert.deepEqual(commandsOf({ ...marked, mark: 1 }, { ...marked, mark: 2 }), [
    "sysctl -w net.ipv4.tcp_fwmark_accept=1",
    "sysctl -w net.ipv4.fwmark_reflect=1",
    "ip route add local default dev lo table 123 proto 123",
    "ip rule add fwmark 0x1 iif lo lookup 123 protocol 123",
    "ip rule add fwmark 0x2 iif lo lookup 123 protocol 123",
  ]);
});

Deno.test("planRoutes: a table brings replies without a source back for one address alone", () => {
  const udp = { protocol: "udp" };
  const { steps, notes } = planOf(
    { ipv4: "127.0.0.1:25" },
    { ...udp, ipv4: "127.0.0.1:53" },
    { ...udp, ipv4: "127.0.0.1:54" },
    { ...udp, ipv4: "127.0.0.2:53" },
  );
  assert.deepEqual(steps.map(setCommand), [
    "ip route add local default dev lo src 127.0.0.1 table 123 proto 123",
    "ip rule add from 127.0.0.1/8 iif lo lookup 123 protocol 123",
    "ip rule add from 0.0.0.0 iif lo ipproto udp sport 53 lookup 123 protocol 123",
    "ip rule add from 0.0.0.0 iif lo ipproto udp sport 54 lookup 123 protocol 123",
  ]);
  assert.deepEqual(notes.length, 1);
  assert.match(notes[0]?.text ?? "", /^A UDP server at 127\.0\.0\.2:53 must be bound to that/);
});

Deno.test("planRoutes: names the listener whose upstream cannot be reached", () => {
  const listeners = [{ ipv4: "127.0.0.1:25" }, { ipv4: "192.0.2.9:80" }].map((changed, index) => {
    const [listener] = config(changed).listeners;
    assert(listener);
    return { ...listener, name: ["mail", "web"][index] ?? "" };
  });
  assert.throws(
    () =>
      planRoutes(routingNeeds({ listeners }), {
        table: 123,
        reach: ({ bytes }) => ({ kind: bytes[0] === 127 ? "local" : "none" }),
      }),
    {
      message: "This host has no route to 192.0.2.9:80: correct ipv4 of listener web, or add the " +
        "route (ip -4 route)",
    },
  );
});

const STEPS = plan({ ipv4: "192.0.2.5:53", protocol: "both" }).steps;

function present(step: Step, changed: Partial<Present> = {}): Present {
  assert(step.kind !== "sysctl");
  const there = { ...step, origin: ORIGIN, priority: 7, other: false, ...changed };
  return there as Present;
}

function isThere(step: Step, entry: Present): boolean {
  return compare([step], [entry], new Set()).there.length === 1;
}

Deno.test("compare: what was set as planned is there", () => {
  const all = compare(STEPS, STEPS.map((step) => present(step)), new Set());
  assert.deepEqual(all, { there: STEPS, missing: [], replaced: [], surplus: [], foreign: [] });
});

for (const [index, step] of STEPS.entries()) {
  Deno.test(`compare: ${setCommand(step)} is missing beside everything else`, () => {
    const others = STEPS.filter((other) => other !== step).map((other) => present(other));
    assert.deepEqual(compare(STEPS, others, new Set()).missing, [STEPS[index]]);
  });
}

const RULE: Step = {
  kind: "rule",
  family: 4,
  from: { bytes: [127, 0, 0, 1], length: 8 },
  device: "lo",
  mark: 7,
  transport: "tcp",
  ports: { first: 25, last: 25 },
  table: 123,
};

Deno.test("compare: a rule of somebody else does as well, its source written in whichever way", () => {
  const from = { bytes: [127, 0, 0, 0], length: 8 };
  assert(isThere(RULE, present(RULE, { origin: 3, from })));
});

const OTHER_RULES: Partial<Present>[] = [
  { other: true },
  { from: { bytes: [127, 0, 0, 1], length: 16 } },
  { from: { bytes: [126, 0, 0, 1], length: 8 } },
  { device: "eth0" },
  { mark: 8 },
  { transport: "udp" },
  { ports: { first: 26, last: 26 } },
  { ports: { first: 25, last: 26 } },
  { table: 124 },
];

for (const changed of OTHER_RULES) {
  Deno.test(`compare: a rule with ${JSON.stringify(changed)} is another one`, () => {
    assert(!isThere(RULE, present(RULE, changed)));
  });
}

const WITH_SOURCE: Step = { kind: "route", family: 4, source: [192, 0, 2, 5], table: 123 };
const WITHOUT_SOURCE: Step = { kind: "route", family: 4, table: 123 };

Deno.test("compare: a route's source may be more than was asked for, and not less", () => {
  assert(isThere(WITHOUT_SOURCE, present(WITH_SOURCE)));
  assert(!isThere(WITH_SOURCE, present(WITHOUT_SOURCE)));
  const { missing, replaced } = compare([WITH_SOURCE], [present(WITHOUT_SOURCE)], new Set());
  assert.deepEqual([missing, replaced], [[WITH_SOURCE], [present(WITHOUT_SOURCE)]]);
});

Deno.test("compare: other routes of others are foreign, ours are left over", () => {
  const foreign = present(WITHOUT_SOURCE, { origin: 3, other: true });
  const ours = present(RULE, { ports: { first: 1, last: 1 } });
  const found = compare([WITHOUT_SOURCE], [foreign, ours, present(WITHOUT_SOURCE)], new Set());
  assert.deepEqual([found.foreign, found.surplus, found.replaced], [[foreign], [ours], []]);
});

Deno.test("compare: a kernel parameter is there when it is on", () => {
  const step: Step = { kind: "sysctl", name: "net/ipv4/tcp_fwmark_accept" };
  assert.deepEqual(compare([step], [], new Set()).missing, [step]);
  assert.deepEqual(compare([step], [], new Set([step.name])).there, [step]);
});

/** The detours of a plan that is all there, where the kernel answers so for every reply. */
function detours(made: Plan, route: ReplyRoute, asked: Reply[] = []) {
  const steps = made.steps.filter((step) => step.kind !== "sysctl").map((step) => present(step));
  const compared = compare(made.steps, steps, new Set());
  return findDetours(made, compared, steps, (reply) => {
    asked.push(reply);
    return route;
  });
}

const ASTRAY: ReplyRoute = { isLocal: false, device: "wg0", rule: { priority: 6, table: 51_820 } };

Deno.test("findDetours: a rule before the plan's own is one, once for each rule", () => {
  const asked: Reply[] = [];
  const [found, ...more] = detours(planOf({}, { protocol: "both" }), ASTRAY, asked);
  assert.deepEqual(more.map(({ step }) => step.transport), ["udp"]);
  assert.deepEqual(
    asked.map(({ source, port, transport }) => [source.join("."), port, transport]),
    [
      ["127.0.0.1", 443, "tcp"],
      ["0.0.0.0", 443, "udp"],
    ],
  );
  assert.ok(found?.ahead);
  assert.equal(
    describeDetour(found),
    "IPv4 rule 6 (lookup 51820) comes before it and sends replies out of wg0",
  );
  assert.equal(
    setCommand(found.ahead),
    "ip rule add pref 5 from 127.0.0.1/8 iif lo lookup 123 protocol 123",
  );
});

Deno.test("findDetours: what the kernel answers for other reasons is none", () => {
  const made = plan({});
  for (
    const route of [
      { ...ASTRAY, isLocal: true },
      { isLocal: false, device: "eth0" },
      { ...ASTRAY, rule: { priority: 7, table: 123 } },
      { ...ASTRAY, rule: { priority: 32_766, table: 254 } },
    ]
  ) assert.deepEqual(detours(made, route), []);
  const compared = compare(made.steps, [], new Set());
  assert.deepEqual(findDetours(made, compared, [], () => assert.fail("nothing is there")), []);
});

Deno.test("findDetours: the mark, the device and a subnet's host are asked for", () => {
  const asked: Reply[] = [];
  const marked = plan({ ipv4: "198.51.100.5:80", mark: 9 });
  detours(
    { ...marked, steps: marked.steps.filter(({ kind }) => kind !== "sysctl") },
    ASTRAY,
    asked,
  );
  detours(plan({ ipv4: "192.0.2.2:80" }, { 4: LINK }), ASTRAY, asked);
  assert.deepEqual(
    asked.map(({ rule, source }) => [rule.mark, rule.device, source.join(".")]),
    [[9, "lo", "198.51.100.5"], [undefined, "eth0", "192.0.2.2"]],
  );
  assert.deepEqual(hostIn({ bytes: [10, 0, 0, 0], prefix: 8 }), [10, 0, 0, 1]);
});

Deno.test("describeDetour: a rule may refuse, and may be where nothing comes before it", () => {
  const refusing = { isLocal: false, device: "", rule: { priority: 1, table: 0 } };
  const [found] = detours(plan({}), refusing);
  assert.ok(found && !found.ahead);
  assert.equal(
    describeDetour(found),
    "IPv4 rule 1 (which refuses packets) comes before it and drops replies",
  );
  assert.equal(detourRule(found), "ip rule show priority 1");
});

Deno.test("removeCommand: names exactly what is there", () => {
  assert.equal(
    removeCommand(present(RULE)),
    "ip rule del pref 7 from 127.0.0.1/8 fwmark 0x7 iif lo ipproto tcp sport 25 lookup 123 protocol 123",
  );
  assert.equal(
    removeCommand(present(WITH_SOURCE)),
    "ip route del local default dev lo src 192.0.2.5 table 123 proto 123",
  );
});
