import assert from "node:assert/strict";
import { readConfig } from "./file.ts";
import { ConfigError } from "./mistakes.ts";
import type { ListenerConfig, ProxyConfig } from "./model.ts";

const read = (text: string): ProxyConfig => readConfig(text, "mmproxy.toml");

/** The lines of what is wrong, without the file's name. */
function mistakesOf(text: string): string[] {
  try {
    read(text);
  } catch (error) {
    assert(error instanceof ConfigError);
    return error.message.split("\n").map((line) => line.replace(/^mmproxy\.toml, line /, ""));
  }
  return assert.fail(`is taken:\n${text}`);
}

const MAIL = `
workers = 2                       # or "auto"
metrics-addr = "127.0.0.1:9100"
log-format = "json"

[defaults]
allowed-subnets = ["198.51.100.0/24", "2001:db8::/32"]

[[listener]]
name = "mail"
listen = ["192.0.2.10:25", "[2001:db8::10]:25", "192.0.2.10:465", "192.0.2.10:587"]
ipv4 = "127.0.0.1"
ipv6 = "::1"

[[listener]]
name = "rtp"
listen = "192.0.2.10:30000-30999"
protocol = "udp"
ipv4 = "127.0.0.1:30000-30999"

[[listener]]
name = "any"
listen = "0.0.0.0:9000"
upstream = "destination"
allowed-destinations = ["127.0.0.0/8:1024-65535", "10.0.0.5:22"]

[[listener]]
listen = "0.0.0.0:8080"
ipv4 = "127.0.0.1:80"
trust = [
  { from = "10.0.0.0/8", header = "optional" },
  { from = "198.51.100.0/24", header = "require" },
  { from = "203.0.113.5/32", header = "skip" },
]
`;

Deno.test("readConfig: several listeners, each with its own and the defaults", () => {
  const { listeners, ...proxy } = read(MAIL);
  assert.deepEqual({ ...proxy, metricsAddr: proxy.metricsAddr?.text }, {
    workers: 2,
    metricsAddr: "127.0.0.1:9100",
    logLevel: "info",
    logFormat: "json",
    color: "auto",
    autoRoutes: false,
    watch: false,
    table: 123,
    sandbox: "auto",
    offload: "off",
    drainTimeout: 10,
    shutdownDelay: 0,
    upgradeDrain: 300,
    resolveInterval: 60,
  });
  const [mail, rtp, any, web] = listeners;
  assert.deepEqual(listeners.map(({ name }) => name), ["mail", "rtp", "any", "0.0.0.0:8080"]);
  assert.deepEqual(mail?.listen.map(({ text }) => text), [
    "192.0.2.10:25",
    "[2001:db8::10]:25",
    "192.0.2.10:465",
    "192.0.2.10:587",
  ]);
  assert.equal(mail.ipv6?.ports, "same");
  assert.deepEqual(subnetsOf(mail), ["198.51.100.0/24", "2001:db8::/32"]);
  assert.deepEqual(mail.trust, []);
  assert.equal(rtp?.protocol, "udp");
  assert.equal(rtp.listen[0]?.lastPort, 30_999);
  assert.deepEqual(rtp.ipv4?.ports, { first: 30_000, last: 30_999 });
  assert.equal(rtp.ipv6, undefined);
  assert.equal(any?.upstream, "destination");
  assert.deepEqual(any.allowedDestinations.map(({ text }) => text), [
    "127.0.0.0/8:1024-65535",
    "10.0.0.5:22",
  ]);
  // Longest first; who may connect is not taken from the defaults where the listener says it.
  assert.deepEqual(web?.trust.map(({ from, header }) => `${from.text} ${header}`), [
    "203.0.113.5/32 skip",
    "198.51.100.0/24 require",
    "10.0.0.0/8 optional",
  ]);
  assert.equal(web.allowedSubnets, undefined);
});

function subnetsOf({ allowedSubnets }: ListenerConfig): string[] {
  assert(allowedSubnets?.kind === "inline");
  return allowedSubnets.subnets.map(({ text }) => text);
}

const ONE = `[[listener]]\nlisten = "0.0.0.0:8443"\nipv4 = "127.0.0.1:443"\n`;

function listenerOf(keys: string, defaults = ""): ListenerConfig {
  const [listener] = read(`[defaults]\n${defaults}\n${ONE}${keys}`).listeners;
  return listener ?? assert.fail("no listener");
}

Deno.test("readConfig: a listener's keys that are not given have their defaults", () => {
  const { listen: _, ipv4: __, ...rest } = listenerOf("");
  assert.deepEqual(rest, {
    name: "0.0.0.0:8443",
    protocol: "tcp",
    udpHeader: "datagram",
    upstream: "family",
    allowedDestinations: [],
    trust: [],
    mark: 0,
    headerTimeout: 10,
    connectTimeout: 5,
    closeAfter: 60,
    keepalive: 15,
    idleTimeout: 0,
    optionalWait: 3,
    transparent: false,
  });
});

Deno.test("readConfig: a listener's own key goes before that of [defaults]", () => {
  assert.equal(listenerOf("", "mark = 7").mark, 7);
  assert.equal(listenerOf("mark = 0x7B", "mark = 7").mark, 123);
  assert.equal(listenerOf('ipv6 = "none"', 'ipv6 = "::1"').ipv6, undefined);
  assert.deepEqual(
    listenerOf('allowed-subnets = "a"', 'allowed-subnets = ["::/0"]').allowedSubnets,
    {
      kind: "file",
      path: "a",
    },
  );
  assert.equal(
    listenerOf('allowed-subnets = "a"', 'trust = [{ from = "::/0", header = "skip" }]').trust
      .length,
    0,
  );
});

Deno.test("readConfig: [defaults] may have destinations that not every listener heeds", () => {
  assert.equal(listenerOf("", 'allowed-destinations = "10.0.0.5:22"').upstream, "family");
});

Deno.test("readConfig: a comment behind a subnet names its proxy, in a list and in rules", () => {
  const list = listenerOf(`allowed-subnets = [  # load balancers
  "192.0.2.1",        # lb-1, Frankfurt
  "198.51.100.0/24",  # lb-2 "the old one"
  "2001:db8::/32"     # lb-3
]`);
  assert.deepEqual(subnetsOf(list), ["192.0.2.1", "198.51.100.0/24", "2001:db8::/32"]);
  const { trust } = listenerOf(`trust = [
  { from = "192.0.2.1", header = "require" },  # lb-1
  # the office
  { from = "198.51.100.0/24", header = "skip" }  # until "all" programs send one
]`);
  assert.deepEqual(trust.map(({ from, header }) => `${from.text} ${header}`), [
    "192.0.2.1 require",
    "198.51.100.0/24 skip",
  ]);
});

Deno.test("readConfig: a wrong subnet's line is found between comments", () => {
  assert.deepEqual(
    mistakesOf(`${ONE}allowed-subnets = [
  # "192.0.2.256"
  "192.0.2.1",  # lb-1, "192.0.2.256"
  "192.0.2.256",  # lb-2
]`),
    [
      '7: allowed-subnets = "192.0.2.256": is not an IP address or subnet, for example 192.0.2.0/24',
    ],
  );
});

Deno.test("readConfig: a flag's name is a key, for listen-addr and listeners, too", () => {
  const text = `listeners = 3\n[[listener]]\nlisten-addr = "[::]:1"\nipv6 = "[::1]:2"`;
  const { workers, listeners } = read(text);
  assert.equal(workers, 3);
  assert.equal(listeners[0]?.listen[0]?.text, "[::]:1");
});

Deno.test("readConfig: every key of a listener, as it is given", () => {
  const listener = listenerOf(`
    name = "web"
    protocol = "both"
    udp-header = "spp"
    mark = 1
    header-timeout = 4
    connect-timeout = 2
    close-after = 3
    keepalive = 5
    idle-timeout = 6
    optional-wait = 7
    transparent = true
    max-connections = 8
    max-flows = 9
    max-connections-per-client = 10
  `);
  const { listen: _, ipv4: __, ...rest } = listener;
  assert.deepEqual(rest, {
    name: "web",
    protocol: "both",
    udpHeader: "spp",
    upstream: "family",
    allowedDestinations: [],
    trust: [],
    mark: 1,
    headerTimeout: 4,
    connectTimeout: 2,
    closeAfter: 3,
    keepalive: 5,
    idleTimeout: 6,
    optionalWait: 7,
    transparent: true,
    maxConnections: 8,
    maxFlows: 9,
    maxConnectionsPerClient: 10,
  });
});

/** A wrong line of a listener, and what is said about it. */
const WRONG_IN_LISTENER: readonly (readonly [line: string, mistake: string])[] = [
  ["mark = -1", "mark = -1: expected a whole number from 0 to 4294967295"],
  ["mark = 1.5", "mark = 1.5: expected a whole number from 0 to 4294967295"],
  ['mark = "1"', 'mark = "1": expected a whole number from 0 to 4294967295'],
  [
    "mark = 99999999999999999999",
    "mark = 99999999999999999999: expected a whole number from 0 to 4294967295",
  ],
  ["header-timeout = 2", "header-timeout = 2: expected a whole number from 3 to 4000000 (seconds)"],
  ["optional-wait = 2", "optional-wait = 2: expected a whole number from 3 to 4000000 (seconds)"],
  ["close-after = 0", "close-after = 0: expected a whole number from 1 to 4000000 (seconds)"],
  ["keepalive = 32768", "keepalive = 32768: expected a whole number from 0 to 32767 (seconds)"],
  ["max-flows = 0", "max-flows = 0: expected a whole number from 1 to 4294967295"],
  ['protocol = "sctp"', 'protocol = "sctp": expected "tcp", "udp" or "both"'],
  ["transparent = 1", "transparent = 1: expected true or false"],
  ["transparent = 1979-05-27", "transparent = 1979-05-27: expected true or false"],
  [
    "name = 'a b'",
    "name = 'a b': expected up to 63 letters, digits, dots, dashes and underscores, the first a letter or digit",
  ],
  ["marc = 1", "marc = 1: unknown key; did you mean mark?"],
  [
    "workers = 2",
    "workers = 2: holds for the proxy and all listeners: write it at the top of the file, above every table",
  ],
  [
    'ipv6 = "unix:/run/app"',
    'ipv6 = "unix:/run/app": a unix socket cannot be an upstream, because a unix peer has no address to take the client\'s place: name an IP address and port',
  ],
  [
    'ipv6 = "127.0.0.1"',
    'ipv6 = "127.0.0.1": expected an IPv6 address or a host name, with or without a port or a range of ports, for example [::1]:443: this one is IPv4, which is for ipv4',
  ],
  ["ipv6 = 443", 'ipv6 = 443: expected a text, for example "[::1]:443"'],
  [
    'ipv6 = "[::1]:1-3"',
    'ipv6 = "[::1]:1-3": a range of 3 ports for 1 port of listener 0.0.0.0:8443: give the same number, or a single port for all',
  ],
  [
    'upstream = "destination"',
    'upstream = "destination": needs a list where headers may send clients, for example allowed-destinations = ["127.0.0.0/8:1024-65535"]',
  ],
  [
    'allowed-destinations = ["10.0.0.5:22"]',
    'allowed-destinations = ["10.0.0.5:22"]: has no effect without upstream = "destination"',
  ],
  [
    "allowed-subnets = []",
    'allowed-subnets = []: expected the path of a file, or a list of addresses and subnets, for example ["198.51.100.0/24", "2001:db8::/32"]',
  ],
  [
    'allowed-subnets = ""',
    'allowed-subnets = "": expected the path of a file, or a list of addresses and subnets, for example ["198.51.100.0/24", "2001:db8::/32"]',
  ],
  [
    'allowed-subnets = "10.0.0.0/8"',
    'allowed-subnets = "10.0.0.0/8": expected the path of a file, or a list of addresses and subnets, for example ["198.51.100.0/24", "2001:db8::/32"]',
  ],
  [
    'allowed-subnets = ["10.0.0.1/8"]',
    'allowed-subnets = "10.0.0.1/8": has host bits set: the subnet is 10.0.0.0/8',
  ],
  [
    "trust = []",
    'trust = []: expected a list of rules, for example [{ from = "198.51.100.0/24", header = "require" }]',
  ],
  [
    'trust = ["10.0.0.0/8"]',
    'trust = "10.0.0.0/8": expected a table with from and header, for example { from = "198.51.100.0/24", header = "require" }',
  ],
  [
    'trust = [{ from = "10.0.0.0/8" }]',
    'trust = { from = "10.0.0.0/8" }: expected a table with from and header, for example { from = "198.51.100.0/24", header = "require" }',
  ],
  [
    'trust = [{ from = "10.0.0.0/8", header = "maybe" }]',
    'trust.header = "maybe": expected "require", "optional" or "skip"',
  ],
  [
    'trust = [{ from = "10.0.0.1/8", header = "skip" }]',
    'trust.from = "10.0.0.1/8": has host bits set: the subnet is 10.0.0.0/8',
  ],
  [
    'trust = [{ from = "10.0.0.0/8", header = "skip", heder = "x" }]',
    'trust.heder = "x": unknown key; did you mean header?',
  ],
  [
    'trust = [{ from = "10.0.0.0/8", header = "skip" }, { from = "10.0.0.0/8", header = "require" }]',
    'trust.from = "10.0.0.0/8": an earlier rule is for the same subnet; leave one of them',
  ],
  [
    'listen-addr = "0.0.0.0:1"',
    'listen-addr = "0.0.0.0:1": says the same as listen: leave one of them',
  ],
];

for (const [line, mistake] of WRONG_IN_LISTENER) {
  Deno.test(`readConfig: refuses ${line}`, () => {
    assert.deepEqual(mistakesOf(ONE + line), [`4: ${mistake}`]);
  });
  Deno.test(`readConfig: refuses ${line} in [defaults], once`, () => {
    // There nothing says the same, and other listeners may use it.
    if (/^(listen-addr|allowed-destinations|upstream|ipv6 = "\[::1\]:1-3")/.test(line)) return;
    const rest = `name = "a"\n${ONE.replace("8443", "1")}name = "b"\n`;
    const found = mistakesOf(`[defaults]\n${line}\n${ONE}${rest}`);
    assert.deepEqual(found.filter((text) => text.startsWith("2: ")), [`2: ${mistake}`]);
  });
}

const WRONG: readonly (readonly [name: string, text: string, mistakes: readonly string[]])[] = [
  ["wrong syntax", 'a = 1\nb = "x', ["2: not TOML: unfinished string"]],
  ["a key twice", "mark = 1\nmark = 2", [
    "2: not TOML: trying to redefine an already defined table or value",
  ]],
  ["an empty file", "", [
    "mmproxy.toml: no listener: write [[listener]], and its listen and ipv4 or ipv6 below",
  ]],
  ["a listener in one bracket", ONE.replace("[[listener]]", "[listener]"), [
    "1: listener: is a list of tables: write [[listener]], in two brackets, above each",
  ]],
  ["tables of another name", ONE.replaceAll("listener", "listeners"), [
    "mmproxy.toml: no listener: write [[listener]], and its listen and ipv4 or ipv6 below",
    '1: listeners: expected a whole number from 1 to 1024, or "auto"; the table of a listener is [[listener]]',
  ]],
  ["defaults that are no table", `defaults = 1\n${ONE}`, [
    "1: defaults = 1: is a table: write [defaults] in a line of its own, and its keys below",
  ]],
  ["a key of a listener at the top", `mark = 1\n${ONE}`, [
    "1: mark = 1: is a key of a listener: write it below [[listener]], or below [defaults] for all of them",
  ]],
  ["an unknown key at the top", `wrokers = 1\n${ONE}`, [
    "1: wrokers = 1: unknown key; did you mean workers?",
  ]],
  [
    "wrong values at the top",
    `workers = 0\nlisteners = "all"\nmetrics-addr = "localhost:1"\ntable = 254\ncontrol = ""\n${ONE}`,
    [
      '1: workers = 0: expected a whole number from 1 to 1024, or "auto"',
      '2: listeners = "all": expected a whole number from 1 to 1024, or "auto"; the table of a listener is [[listener]]',
      '2: listeners = "all": says the same as workers: leave one of them',
      '3: metrics-addr = "localhost:1": expected an IP address and port, for example 127.0.0.1:9100; did you mean 127.0.0.1:1, or [::1]:1 for IPv6?',
      "4: table = 254: expected a table of its own: 252 to 255 are the kernel's",
      '5: control = "": expected a path of 1 to 107 bytes',
    ],
  ],
  ["a listener without anything", "[[listener]]", [
    '1: the listener has no address: add a line such as listen = "0.0.0.0:8443"',
    '1: the listener has no upstream: add a line such as ipv4 = "127.0.0.1:443"',
  ]],
  ["a listener without an upstream", ONE.replace("127.0.0.1:443", "none"), [
    '1: the listener has no upstream: add a line such as ipv4 = "127.0.0.1:443"',
  ]],
  [
    "listen values",
    '[[listener]]\nlisten = [\n  "0.0.0.0:25",\n  25,\n  "[::]",\n]\nipv4 = "::1"',
    [
      "4: listen = 25: expected an IP address with a port or a range of ports, for example 0.0.0.0:8443 or [::]:30000-30999; or a list of them",
      '7: ipv4 = "::1": expected an IPv4 address or a host name, with or without a port or a range of ports, for example 127.0.0.1:443: this one is IPv6, which is for ipv6',
    ],
  ],
  [
    "each wrong address of a list",
    '[[listener]]\nlisten = [\n  "0.0.0.0:0",\n  "[::]"]\nipv4 = "a"',
    [
      '3: listen = "0.0.0.0:0": expected an IP address with a port or a range of ports, for example 0.0.0.0:8443 or [::]:30000-30999; a port is from 1 to 65535',
      '4: listen = "[::]": expected an IP address with a port or a range of ports, for example 0.0.0.0:8443 or [::]:30000-30999; did you mean [::]:8443?',
    ],
  ],
  ["two listeners of one name", `${ONE}name = "a"\n${ONE.replace("8443", "1")}name = "a"`, [
    '8: name = "a": the listener on line 1 has this name: give each one of its own',
  ]],
  ["two listeners of one name by default", `${ONE}protocol = "udp"\n${ONE}`, [
    '6: listen = "0.0.0.0:8443": the listener on line 1 has this name: give each one of its own',
  ]],
  [
    "listeners that overlap",
    `${ONE}name = "a"\n${ONE.replace("0.0.0.0:8443", "192.0.2.1:8000-9000")}`,
    [
      '6: listen = "192.0.2.1:8000-9000": overlaps 0.0.0.0:8443 on line 2',
    ],
  ],
  [
    "a listener that overlaps itself",
    ONE.replace('"0.0.0.0:8443"', '["0.0.0.0:1",\n"0.0.0.0:1"]'),
    [
      '3: listen = "0.0.0.0:1": overlaps 0.0.0.0:1 on line 2',
    ],
  ],
  ["a listener on the port of the metrics", `metrics-addr = "127.0.0.1:8443"\n${ONE}`, [
    '1: metrics-addr = "127.0.0.1:8443": overlaps 0.0.0.0:8443 on line 3',
  ]],
  [
    "trust beside allowed-subnets",
    `${ONE}trust = [{ from = "::/0", header = "skip" }]\nallowed-subnets = "a"`,
    [
      '5: allowed-subnets = "a": trust says who may connect: name these subnets there, with header = "require"',
    ],
  ],
  ["a key that is no word, in one line", `"wo\\nkers" = 1\n${ONE}`, [
    '1: "wo\\nkers" = 1: unknown key; did you mean workers?',
  ]],
  [
    "two unknown keys of a rule",
    `${ONE}trust = [{ from = "::/0", header = "skip", a = 1, b = 2 }]`,
    [
      "4: trust.a = 1: unknown key; the keys here are from, header",
      "4: trust.b = 2: unknown key; the keys here are from, header",
    ],
  ],
  [
    "a range of upstream ports that does not match",
    '[[listener]]\nname = "rtp"\nlisten = ["0.0.0.0:1-5", "[::]:1-5"]\nipv4 = "127.0.0.1:11-14"\nipv6 = "[::1]:11-15"',
    [
      '4: ipv4 = "127.0.0.1:11-14": a range of 4 ports for 5 ports of listener rtp: give the same number, or a single port for all',
    ],
  ],
  [
    "upstreams that are the listener, or another one",
    `[[listener]]
listen = "0.0.0.0:1"
ipv4 = "127.0.0.1"
[[listener]]
listen = ["192.0.2.1:2-5", "[::]:2"]
ipv4 = "192.0.2.1:5"
ipv6 = "[::1]:2"
[[listener]]
listen = "192.0.2.9:9"
ipv4 = "127.9.9.9:1"
`,
    [
      '3: ipv4 = "127.0.0.1": mmproxy itself listens there, on 0.0.0.0:1 (line 2): listen on the address that peers use, for example 192.0.2.1:25, or name another port',
      '6: ipv4 = "192.0.2.1:5": mmproxy itself listens there, on 192.0.2.1:2-5 (line 5): listen on the address that peers use, for example 192.0.2.1:25, or name another port',
      '7: ipv6 = "[::1]:2": mmproxy itself listens there, on [::]:2 (line 5): listen on the address that peers use, for example 192.0.2.1:25, or name another port',
      '10: ipv4 = "127.9.9.9:1": mmproxy itself listens there, on 0.0.0.0:1 (line 2): listen on the address that peers use, for example 192.0.2.1:25, or name another port',
    ],
  ],
  ["a long value, which is cut", `${ONE}name = "${"x".repeat(99)}"`, [
    `4: name = "${
      "x".repeat(59)
    }…: expected up to 63 letters, digits, dots, dashes and underscores, the first a letter or digit`,
  ]],
];

for (const [name, text, mistakes] of WRONG) {
  Deno.test(`readConfig: refuses ${name}`, () => assert.deepEqual(mistakesOf(text), mistakes));
}

Deno.test("readConfig: says every mistake at once, in the order of the lines", () => {
  const found = mistakesOf(`sandbox = true
workers = 2
[defaults]
mark = "x"
[[listener]]
name = "a"
listen = "0.0.0.0:1"
ipv4 = "127.0.0.1:70000"
[[listener]]
name = "a"
listen = "127.0.0.1:1"
colour = "red"
`);
  assert.deepEqual(found.map((line) => line.split(":")[0]), ["1", "4", "8", "9", "10", "11", "12"]);
});

Deno.test("readConfig: a wrong key is not also said to be missing, or to clash", () => {
  assert.deepEqual(mistakesOf('[[listener]]\nlisten = "x"\nipv4 = "y:z"\nupstream = 1').length, 3);
  const same = `${ONE}${ONE}name = "b"\n`;
  assert.deepEqual(mistakesOf(`${same}protocol = "sctp"`).length, 1);
  assert.deepEqual(mistakesOf(`${ONE}protocol = "udp"\n${ONE}name = "a b"`).length, 1);
});

Deno.test("readConfig: TCP and UDP listeners may share an address when they have names", () => {
  const text = ["tcp", "udp"].map((name) => `${ONE}protocol = "${name}"\nname = "${name}"\n`);
  assert.equal(read(text.join("")).listeners.length, 2);
});

const NO_LOOPS: readonly (readonly [name: string, listener: string])[] = [
  ["an address that peers use", 'listen = "192.0.2.1:25"\nipv4 = "127.0.0.1"'],
  ["another transport", 'listen = "0.0.0.0:53"\nprotocol = "udp"\nipv4 = "127.0.0.1:9100"'],
  ["another host", 'listen = "0.0.0.0:25"\nipv4 = "192.0.2.1"'],
  ["another port", 'listen = "0.0.0.0:25-26"\nipv4 = "127.0.0.1:27-28"'],
  // The port is that of the connection, which TPROXY took from elsewhere.
  ["TPROXY", 'listen = "0.0.0.0:25"\ntransparent = true\nipv4 = "127.0.0.1"'],
];

for (const [name, listener] of NO_LOOPS) {
  Deno.test(`readConfig: an upstream is no listener with ${name}`, () => {
    read(`metrics-addr = "127.0.0.1:9100"\n[[listener]]\n${listener}`);
  });
}

Deno.test("readConfig: keys that JavaScript's objects have are unknown like others", () => {
  for (const key of ["__proto__", "constructor", "toString", "hasOwnProperty"]) {
    assert.match(mistakesOf(`${key} = 1\n${ONE}`).join(), /^1: \w+ = 1: unknown key/);
    assert.match(mistakesOf(`${ONE}${key} = 1`).join(), /^4: \w+ = 1: unknown key/);
  }
});
