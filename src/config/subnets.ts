/** The allowed-subnets file: text in, records for the native core out. */
import { SUBNET } from "../native/layout.ts";
import { formatAddress, parseIp } from "./address.ts";
import { LITTLE_ENDIAN } from "./options.ts";

/** A wrong line of the file, or a file without an entry. */
export class SubnetsError extends Error {
  override readonly name = "SubnetsError";
  /** @param line the wrong line, from 1; none when the file as a whole is wrong */
  constructor(message: string, readonly line?: number) {
    super(message);
  }
}

/** The bits that IPv4 addresses lie behind in their IPv6 form. */
const MAPPED_BITS = 96;

/**
 * Reads the file's text: an address or a CIDR a line, `#` starts a comment, blank lines are nothing.
 *
 * @param text the content
 * @param name the file's name, for errors
 * @returns `SubnetRecord`s, one for each entry; IPv4 as `::ffff:a.b.c.d`
 * @throws {SubnetsError} with the number of the first wrong line, or when no entry is there
 */
export function parseSubnets(text: string, name: string): Uint8Array<ArrayBuffer> {
  const entries: Subnet[] = [];
  text.split(/\r?\n/).forEach((line, index) => {
    // trim() takes a byte order mark, too.
    const entry = line.replace(/#.*$/, "").trim();
    if (entry === "") return;
    entries.push(parseSubnet(entry, (problem) => {
      const line = index + 1;
      throw new SubnetsError(`${name}, line ${line}: ${JSON.stringify(entry)} ${problem}`, line);
    }));
  });
  if (entries.length === 0) {
    throw new SubnetsError(
      `${name} has no subnet: add a line such as 192.0.2.0/24, or leave out --allowed-subnets to let every peer in`,
    );
  }
  return encode(entries);
}

interface Subnet {
  /** 16 bytes, network byte order. */
  bytes: number[];
  /** 0 to 128. */
  prefix: number;
}

function parseSubnet(entry: string, fail: (problem: string) => never): Subnet {
  const [address = "", prefixText, ...more] = entry.split("/");
  const ip = parseIp(address);
  if (!ip || more.length > 0) return fail("is no IP address or subnet (as 192.0.2.0/24)");
  const bits = ip.family === 4 ? 32 : 128;
  const plain = prefixText === undefined || /^(0|[1-9]\d{0,2})$/.test(prefixText);
  const prefix = Number(prefixText ?? bits);
  if (!plain || prefix > bits) return fail(`needs a prefix from 0 to ${bits}`);
  const network = ip.bytes.map((byte, index) => byte & maskByte(prefix - 8 * index));
  if (network.some((byte, index) => byte !== ip.bytes[index])) {
    const meant = formatAddress(ip.family, Uint8Array.from(network));
    return fail(`has bits behind its prefix: the subnet is ${meant}/${prefix}`);
  }
  if (ip.family === 6) return { bytes: network, prefix };
  return {
    bytes: [...new Array(10).fill(0), 0xff, 0xff, ...network],
    prefix: prefix + MAPPED_BITS,
  };
}

/** The byte of a mask of which so many bits are left. */
function maskByte(bits: number): number {
  return bits >= 8 ? 0xff : bits <= 0 ? 0 : 0xff << (8 - bits) & 0xff;
}

function encode(entries: readonly Subnet[]): Uint8Array<ArrayBuffer> {
  const records = new Uint8Array(entries.length * SUBNET.size);
  const view = new DataView(records.buffer);
  entries.forEach(({ bytes, prefix }, index) => {
    records.set(bytes, index * SUBNET.size + SUBNET.address);
    view.setUint32(index * SUBNET.size + SUBNET.prefix, prefix, LITTLE_ENDIAN);
  });
  return records;
}
