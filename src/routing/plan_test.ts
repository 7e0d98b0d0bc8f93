import assert from "node:assert/strict";
import { parseAddress } from "../config/address.ts";
import type { Address } from "../config/options.ts";
import {
  compare,
  type Family,
  ORIGIN,
  planRoutes,
  type Present,
  type Reach,
  type Step,
} from "./plan.ts";
import { removeCommand, setCommand } from "./text.ts";

function address(text: string): Address {
  return parseAddress(text) ?? assert.fail(`${text} is no address`);
}

type Need = Parameters<typeof planRoutes>[0];

const TEXTS = { ipv4: "127.0.0.1:443", ipv6: undefined };
const DEFAULT: Omit<Need, "ipv4" | "ipv6"> = {
  listenAddr: address("0.0.0.0:8443"),
  protocol: "tcp",
  mark: 0,
  table: 123,
};

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

type Changed = Partial<Omit<Need, "ipv4" | "ipv6" | "listenAddr">> & {
  ipv4?: string | undefined;
  ipv6?: string | undefined;
  listenAddr?: string;
};

/** The defaults, changed; an address that is changed to nothing is left out. */
function need({ listenAddr, ...changed }: Changed): Need {
  const { ipv4, ipv6, ...rest } = { ...TEXTS, ...changed };
  return {
    ...DEFAULT,
    ...rest,
    ...(ipv4 === undefined ? {} : { ipv4: address(ipv4) }),
    ...(ipv6 === undefined ? {} : { ipv6: address(ipv6) }),
    ...(listenAddr === undefined ? {} : { listenAddr: address(listenAddr) }),
  };
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
    const plan = planRoutes(need(changed), { ...LOCAL, ...reach });
    assert.deepEqual(plan.steps.map(setCommand), commands);
  });
}

Deno.test("planRoutes: a family without a service needs nothing, and is not asked about", () => {
  const { steps } = planRoutes(need({}), { 4: { kind: "local" } });
  assert.deepEqual(steps.map(setCommand), LOOPBACK4);
});

Deno.test("planRoutes: what is not on a wildcard address needs no rule for that", () => {
  const udp = need({ ipv4: "127.0.0.1:53", protocol: "udp" });
  const { steps } = planRoutes(udp, LOCAL, { 4: false, 6: false });
  assert.deepEqual(steps.map(setCommand), LOOPBACK4);
});

Deno.test("planRoutes: refuses a named service that cannot be reached", () => {
  assert.throws(
    () => planRoutes(need({ ipv4: "192.0.2.9:80" }), { ...LOCAL, 4: { kind: "none" } }),
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
    /On 192\.0\.2\.9, unless 192\.0\.2\.1 is its default gateway/,
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
    const [note, ...more] = planRoutes(need(changed), { ...LOCAL, ...reach }).notes;
    assert.match(note?.text ?? "", text);
    assert.deepEqual(note?.commands, commands);
    assert.deepEqual(more, []);
  });
}

Deno.test("planRoutes: has nothing to tell about loopback", () => {
  assert.deepEqual(planRoutes(need({ ipv6: "[::1]:443" }), LOCAL).notes, []);
});

const STEPS = planRoutes(need({ ipv4: "192.0.2.5:53", protocol: "both" }), LOCAL).steps;

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
  port: 25,
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
  { port: 26 },
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
  const ours = present(RULE, { port: 1 });
  const found = compare([WITHOUT_SOURCE], [foreign, ours, present(WITHOUT_SOURCE)], new Set());
  assert.deepEqual([found.foreign, found.surplus, found.replaced], [[foreign], [ours], []]);
});

Deno.test("compare: a kernel parameter is there when it is on", () => {
  const step: Step = { kind: "sysctl", name: "net/ipv4/tcp_fwmark_accept" };
  assert.deepEqual(compare([step], [], new Set()).missing, [step]);
  assert.deepEqual(compare([step], [], new Set([step.name])).there, [step]);
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
