/** One subnet: an address or a CIDR as text, and which addresses are in it. */
import { formatAddress, parseIp } from "./address.ts";
import { Problem } from "./problem.ts";

/** A subnet in the IPv6 space, where IPv4 is behind `::ffff:0:0/96`. */
export interface Subnet {
  /** 16 bytes, network byte order; no bit is set behind the prefix. */
  readonly bytes: readonly number[];
  /** 0 to 128. */
  readonly prefix: number;
  /** As it was written. */
  readonly text: string;
}

/** The bits that IPv4 addresses lie behind in their IPv6 form. */
const MAPPED_BITS = 96;

/** Reads `192.0.2.1`, `192.0.2.0/24`, `2001:db8::1` or `2001:db8::/32`. */
export function parseSubnet(text: string): Subnet | Problem {
  const [address = "", prefixText, ...more] = text.split("/");
  const ip = parseIp(address);
  if (!ip || more.length > 0) {
    return new Problem("is not an IP address or subnet, for example 192.0.2.0/24");
  }
  const bits = ip.family === 4 ? 32 : 128;
  const plain = prefixText === undefined || /^(0|[1-9]\d{0,2})$/.test(prefixText);
  const prefix = Number(prefixText ?? bits);
  if (!plain || prefix > bits) return new Problem(`needs a prefix length from 0 to ${bits}`);
  const network = ip.bytes.map((byte, index) => byte & maskByte(prefix - 8 * index));
  if (network.some((byte, index) => byte !== ip.bytes[index])) {
    const meant = formatAddress(ip.family, Uint8Array.from(network));
    return new Problem(`has host bits set: the subnet is ${meant}/${prefix}`);
  }
  return { bytes: mapped(network), prefix: prefix + (ip.family === 4 ? MAPPED_BITS : 0), text };
}

/** Whether an address is in a subnet. `bytes`: 4 or 16, network byte order. */
export function contains(subnet: Subnet, bytes: readonly number[]): boolean {
  return mapped(bytes).every((byte, index) =>
    (byte & maskByte(subnet.prefix - 8 * index)) === subnet.bytes[index]
  );
}

/** Whether two subnets hold the same addresses, however they are written. */
export function isSameSubnet(one: Subnet, other: Subnet): boolean {
  return one.prefix === other.prefix && contains(one, other.bytes);
}

/** An address's 16 bytes in the IPv6 space. */
function mapped(bytes: readonly number[]): readonly number[] {
  return bytes.length === 16 ? bytes : [...new Array(10).fill(0), 0xff, 0xff, ...bytes];
}

/** The byte of a mask of which this many bits are left. */
function maskByte(bits: number): number {
  return bits >= 8 ? 0xff : bits <= 0 ? 0 : 0xff << (8 - bits) & 0xff;
}
