/** The program in a terminal of its own: 80 columns and 24 rows. */
import { fileURLToPath } from "node:url";
import { commandLine } from "./program.ts";

/** What a command in a terminal did. */
export interface Shown {
  /** All that it wrote, with the terminal's escapes. */
  written: string;
  code: number;
  /** Whether it read key by key at any time. */
  raw: boolean;
  /** Whether the terminal's modes are as they were before. */
  restored: boolean;
}

export interface Typing {
  /** Typed after some seconds, and once it has written this text; backslash escapes as Python has them. */
  keys?: string;
  seconds?: number;
  after?: string;
  /** A shell command in front, ended by `exec "$@"`. */
  shell?: string;
}

/** Runs it to its end. It has no NO_COLOR unless `shell` sets it. */
export async function atTerminal(args: string[], typing: Typing = {}): Promise<Shown> {
  const { keys = "", seconds = 0, after = "", shell = 'exec "$@"' } = typing;
  const helper = fileURLToPath(new URL("terminal.py", import.meta.url));
  const words = commandLine(args, { shell: `unset NO_COLOR; ${shell}` });
  const { stdout } = await new Deno.Command("python3", {
    args: [helper, "80", "24", keys, String(seconds), after, ...words],
    stderr: "inherit",
  }).output();
  return JSON.parse(new TextDecoder().decode(stdout)) as Shown;
}
