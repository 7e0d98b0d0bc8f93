/** The allowed-subnets file: text in, records for the native core out. */
import { encodeTrust } from "./records.ts";
import { parseSubnetList, type WrongLine } from "./subnet_list.ts";
import { requireHeader } from "./trust.ts";

/** Wrong lines of the file, or a file without an entry. */
export class SubnetsError extends Error {
  override readonly name = "SubnetsError";
  /** @param wrong the wrong lines; none when the file as a whole is wrong */
  constructor(message: string, readonly wrong: readonly WrongLine[] = []) {
    super(message);
  }
}

/**
 * Reads the file's text: an address or a CIDR a line, `#` starts a comment, blank lines are nothing.
 *
 * @param text the content
 * @param name the file's name, for errors
 * @returns `TrustRecord`s, one for each entry, whose peers must send a header; IPv4 as `::ffff:a.b.c.d`
 * @throws {SubnetsError} with the first wrong line in its message, or when no entry is there
 */
export function parseSubnets(text: string, name: string): Uint8Array<ArrayBuffer> {
  const { subnets, wrong } = parseSubnetList(text);
  const [first, ...others] = wrong;
  if (first) {
    const { line, entry, problem } = first;
    const more = others.length === 0
      ? ""
      : others.length === 1
      ? "; 1 more line is wrong"
      : `; ${others.length} more lines are wrong`;
    throw new SubnetsError(
      `${name}, line ${line}: ${JSON.stringify(entry)} ${problem}${more}`,
      wrong,
    );
  }
  if (subnets.length === 0) {
    throw new SubnetsError(
      `${name} has no subnet: add a line such as 192.0.2.0/24, or leave out --allowed-subnets to let every peer in`,
    );
  }
  return encodeTrust(subnets.map(requireHeader));
}
