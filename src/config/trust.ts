/** Which peers may connect to a listener, and what they must send first. */
import { contains, isSameSubnet, type Subnet } from "./subnet.ts";

/**
 * `require`: a header must come; `optional`: without one the peer is relayed as itself; `skip`: no header
 * is expected, and none is taken.
 */
export type HeaderRule = "require" | "optional" | "skip";

export const HEADER_RULES = ["require", "optional", "skip"] as const satisfies HeaderRule[];

/** One entry of `trust`. */
export interface TrustRule {
  readonly from: Subnet;
  readonly header: HeaderRule;
}

/** The rule of an allowed subnet. */
export function requireHeader(from: Subnet): TrustRule {
  return { from, header: "require" };
}

/** The rules with the longest prefix first: the first that holds a peer is the one that counts. */
export function longestFirst(rules: readonly TrustRule[]): TrustRule[] {
  return rules.toSorted((one, other) => other.from.prefix - one.from.prefix);
}

/** The rule for a peer, of rules in the order of `longestFirst`; without one the peer is refused. */
export function ruleFor(
  rules: readonly TrustRule[],
  peer: readonly number[],
): TrustRule | undefined {
  return rules.find(({ from }) => contains(from, peer));
}

/** The positions of rules for a subnet that an earlier rule is for: which of them counts is not said. */
export function duplicates(rules: readonly TrustRule[]): number[] {
  return [...rules.keys()].filter((index) =>
    rules.slice(0, index).some(({ from }) => isSameSubnet(from, rules[index]!.from))
  );
}
