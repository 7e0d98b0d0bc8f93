/** The scope of a link-local IPv6 address: an interface's number, or its name (RFC 4007, section 11). */

/** How a scope is written, for a regular expression: Linux has 15 characters for a name. */
export const SCOPE = String.raw`[^\]%/\s]{1,15}`;

/** What `/proc/net/if_inet6` has, a line for each address of an interface. */
type ReadTable = () => string;

let readTable: ReadTable = () => "";

/** Says how this host's interfaces are read, once; before that no name is known. */
export function setInterfaces(read: ReadTable): void {
  readTable = read;
}

/** The interface's number; undefined if no interface with an IPv6 address has that name. */
export function scopeOf(text: string): number | undefined {
  if (/^\d{1,9}$/.test(text)) return Number(text);
  for (const line of readTable().split("\n")) {
    const [, number = "", , , , name] = line.trim().split(/\s+/);
    if (name === text) return parseInt(number, 16);
  }
  return undefined;
}
