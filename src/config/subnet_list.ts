/** Subnets in a file, one per line; `#` starts a comment, and blank lines are ignored. */
import { Problem } from "./problem.ts";
import { parseSubnet, type Subnet } from "./subnet.ts";

/** A line that is not a subnet. */
export interface WrongLine {
  /** From 1. */
  readonly line: number;
  /** Without its comment. */
  readonly entry: string;
  readonly problem: string;
}

/**
 * Reads every line, so that all that is wrong is known at once. A comment may stand behind a subnet and
 * name its proxy, as in the files of go-mmproxy.
 */
export function parseSubnetList(text: string): { subnets: Subnet[]; wrong: WrongLine[] } {
  const subnets: Subnet[] = [];
  const wrong: WrongLine[] = [];
  text.split(/\r?\n/).forEach((content, index) => {
    // trim() takes a byte order mark, too.
    const entry = content.replace(/#.*$/, "").trim();
    if (entry === "") return;
    const subnet = parseSubnet(entry);
    if (!(subnet instanceof Problem)) subnets.push(subnet);
    else wrong.push({ line: index + 1, entry, problem: subnet.text });
  });
  return { subnets, wrong };
}
