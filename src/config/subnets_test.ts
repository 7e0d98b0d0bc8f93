import assert from "node:assert/strict";
import fc from "fast-check";
import { LITTLE_ENDIAN } from "./options.ts";
import { TRUST } from "../native/layout.ts";
import { parseSubnets, SubnetsError } from "./subnets.ts";

/** The records as `hex of 16 bytes/prefix`. */
function read(text: string): string[] {
  const records = parseSubnets(text, "subnets");
  assert.equal(records.length % TRUST.size, 0);
  const view = new DataView(records.buffer);
  return Array.from({ length: records.length / TRUST.size }, (_, index) => {
    const start = index * TRUST.size;
    const bytes = records.subarray(start + TRUST.address, start + TRUST.address + 16);
    return `${bytes.toHex()}/${view.getUint32(start + TRUST.prefix, LITTLE_ENDIAN)}`;
  });
}

function refusalOf(text: string): string {
  try {
    parseSubnets(text, "subnets");
  } catch (error) {
    assert(error instanceof SubnetsError);
    return error.message;
  }
  return assert.fail(`${JSON.stringify(text)} is taken`);
}

const MAPPED = "00000000000000000000ffff";
const V6 = "20010db8000000000000000000000001";

const TAKEN: readonly (readonly [name: string, text: string, records: readonly string[]])[] = [
  ["an IPv4 address", "192.0.2.1", [`${MAPPED}c0000201/128`]],
  ["an IPv4 subnet", "192.0.2.128/25", [`${MAPPED}c0000280/121`]],
  ["all of IPv4", "0.0.0.0/0", [`${MAPPED}00000000/96`]],
  ["an IPv6 address", "2001:db8::1", [`${V6}/128`]],
  ["an IPv6 subnet", "2001:db8::/32", ["20010db8000000000000000000000000/32"]],
  ["an IPv6 subnet written large", "2001:DB8:0::1/128", [`${V6}/128`]],
  ["everything", "::/0", ["00000000000000000000000000000000/0"]],
  ["a mapped address", "::ffff:192.0.2.1", [`${MAPPED}c0000201/128`]],
  ["comments and blank lines", "# lb\n\n  \n192.0.2.1 # one\n\t#\n", [`${MAPPED}c0000201/128`]],
  ["go-mmproxy's example", "# This is a comment\n192.168.0.0/24 # allow local\n", [
    `${MAPPED}c0a80000/120`,
  ]],
  ["a comment that touches its entry", "192.0.2.1#one", [`${MAPPED}c0000201/128`]],
  ["spaces and tabs around", " \t192.0.2.1\t ", [`${MAPPED}c0000201/128`]],
  ["CRLF line ends", "192.0.2.1\r\n192.0.2.2\r\n", [
    `${MAPPED}c0000201/128`,
    `${MAPPED}c0000202/128`,
  ]],
  ["a byte order mark", "\uFEFF192.0.2.1\n", [`${MAPPED}c0000201/128`]],
  ["both families, in their order", "2001:db8::1\n192.0.2.1", [
    `${V6}/128`,
    `${MAPPED}c0000201/128`,
  ]],
];

for (const [name, text, records] of TAKEN) {
  Deno.test(`parseSubnets: takes ${name}`, () => assert.deepEqual(read(text), records));
}

Deno.test("parseSubnets: a mapped subnet has the very bytes of the IPv4 one", () => {
  assert.deepEqual(
    parseSubnets("::ffff:10.0.0.0/104", "subnets"),
    parseSubnets("10.0.0.0/8", "subnets"),
  );
});

const NO_ADDRESS = "is not an IP address or subnet, for example 192.0.2.0/24";

const WRONG: readonly (readonly [entry: string, problem: string])[] = [
  ["010.0.0.1", NO_ADDRESS],
  ["10.1", NO_ADDRESS],
  ["10/8", NO_ADDRESS],
  ["0x0a.0.0.1", NO_ADDRESS],
  ["::ffff:010.0.0.1", NO_ADDRESS],
  ["192.0.2.256", NO_ADDRESS],
  ["192.0.2.1:443", NO_ADDRESS],
  ["192.0.2.1-192.0.2.9", NO_ADDRESS],
  ["192.0.2.1, 192.0.2.2", NO_ADDRESS],
  ["lb.example", NO_ADDRESS],
  ["fe80::1%eth0", NO_ADDRESS],
  ["[2001:db8::1]", NO_ADDRESS],
  ["10.0.0.0/8/8", NO_ADDRESS],
  ["/8", NO_ADDRESS],
  ["10.0.0.0/33", "needs a prefix length from 0 to 32"],
  ["10.0.0.0/-1", "needs a prefix length from 0 to 32"],
  ["10.0.0.0/08", "needs a prefix length from 0 to 32"],
  ["10.0.0.0/", "needs a prefix length from 0 to 32"],
  ["10.0.0.0/8.0", "needs a prefix length from 0 to 32"],
  ["10.0.0.0/255.0.0.0", "needs a prefix length from 0 to 32"],
  ["2001:db8::/129", "needs a prefix length from 0 to 128"],
  ["10.1.2.3/8", "has host bits set: the subnet is 10.0.0.0/8"],
  ["192.0.2.1/31", "has host bits set: the subnet is 192.0.2.0/31"],
  ["2001:db8::1/64", "has host bits set: the subnet is 2001:db8::/64"],
  ["1.2.3.4/0", "has host bits set: the subnet is 0.0.0.0/0"],
];

for (const [entry, problem] of WRONG) {
  Deno.test(`parseSubnets: refuses ${entry}`, () => {
    assert.equal(refusalOf(entry), `subnets, line 1: ${JSON.stringify(entry)} ${problem}`);
  });
}

Deno.test("parseSubnets: counts comments and blank lines for the first wrong line's number", () => {
  const text = "# first\r\n\r\n192.0.2.1\r\nnonsense # fourth\r\nmore nonsense";
  assert.equal(refusalOf(text), `subnets, line 4: "nonsense" ${NO_ADDRESS}; 1 more line is wrong`);
  assert.match(refusalOf(`${text}\nx`), /; 2 more lines are wrong$/);
});

Deno.test("parseSubnets: an error has every wrong line", () => {
  assert.throws(() => parseSubnets("x\n192.0.2.1\ny", "subnets"), (error) => {
    assert(error instanceof SubnetsError);
    assert.deepEqual(error.wrong.map(({ line, entry }) => `${line} ${entry}`), ["1 x", "3 y"]);
    return true;
  });
});

for (const text of ["", "\n\n", "# 192.0.2.1\n", "\uFEFF"]) {
  Deno.test(`parseSubnets: refuses a file without an entry, ${JSON.stringify(text)}`, () => {
    assert.match(refusalOf(text), /^subnets has no subnet: add a line such as 192\.0\.2\.0\/24/);
  });
}

/** A random subnet: its family's bits, its network as one number, and its prefix. */
const subnet = fc.constantFrom(32, 128).chain((bits) =>
  fc.record({
    bits: fc.constant(bits),
    address: fc.bigInt({ min: 0n, max: (1n << BigInt(bits)) - 1n }),
    prefix: fc.nat(bits),
  })
).map(({ bits, address, prefix }) => {
  const host = BigInt(bits - prefix);
  return { bits, prefix, network: address >> host << host };
});

function write(bits: number, network: bigint): string {
  const [width, separator, radix] = bits === 32 ? [8, ".", 10] : [16, ":", 16];
  const parts: string[] = [];
  for (let shift = bits - width; shift >= 0; shift -= width) {
    parts.push((network >> BigInt(shift) & (1n << BigInt(width)) - 1n).toString(radix));
  }
  return parts.join(separator);
}

Deno.test("parseSubnets: encodes every subnet as the number that it is", () => {
  fc.assert(fc.property(fc.array(subnet, { minLength: 1, maxLength: 5 }), (subnets) => {
    const text = subnets.map(({ bits, network, prefix }) => `${write(bits, network)}/${prefix}`);
    const expected = subnets.map(({ bits, network, prefix }) => {
      const number = bits === 32 ? 0xffffn << 32n | network : network;
      return `${number.toString(16).padStart(32, "0")}/${prefix + 128 - bits}`;
    });
    assert.deepEqual(read(text.join("\n")), expected);
  }));
});

Deno.test("parseSubnets: refuses every subnet with a bit behind its prefix", () => {
  fc.assert(fc.property(subnet, fc.nat(127), ({ bits, network, prefix }, position) => {
    fc.pre(prefix < bits);
    const stray = 1n << BigInt(position % (bits - prefix));
    assert.match(refusalOf(`${write(bits, network | stray)}/${prefix}`), /has host bits set/);
  }));
});
