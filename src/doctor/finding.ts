/** Findings of checks, and helpers to create them. */
import type { ListenerConfig, ProxyConfig } from "../config/model.ts";
import type { Facts, ListenerFacts } from "./facts.ts";

/**
 * `ok`, `failed`; `warning`: it works, with a drawback; `unknown`: it cannot be known from here;
 * `skipped`: what it depends on is missing. Only `failed` speaks against a start.
 */
export type State = "ok" | "failed" | "warning" | "unknown" | "skipped";

/** What `doctor --fix` can set by itself. */
export type Setting =
  | { readonly kind: "routes" }
  /** A kernel parameter, a path below /proc/sys. */
  | { readonly kind: "sysctl"; readonly name: string; readonly value: number };

/** What a check says. */
export interface Finding {
  readonly state: State;
  /** The name of the listener that it is about, where it is about one. */
  readonly listener?: string;
  /** Which upstream it is about, where it is about one. */
  readonly protocol?: "tcp" | "udp";
  readonly address?: string;
  /** One line. */
  readonly detail: string;
  /** Commands for a shell, to run in this order. */
  readonly fix: readonly string[];
  /** What `--fix` sets to the same effect; without it the operator has to act. */
  readonly sets?: Setting;
}

/** A check about the host. */
export type HostCheck = (facts: Facts) => Finding[];
/** A check about one listener. */
export type ListenerCheck = (facts: Facts, given: ListenerFacts) => Finding[];

export function ok(detail: string): Finding {
  return { state: "ok", detail, fix: [] };
}

export function failed(detail: string, fix: readonly string[] = [], sets?: Setting): Finding {
  return { state: "failed", detail, fix, ...(sets && { sets }) };
}

export function warning(detail: string, fix: readonly string[] = []): Finding {
  return { state: "warning", detail, fix };
}

export function unknown(detail: string): Finding {
  return { state: "unknown", detail, fix: [] };
}

export function skipped(because: string): Finding {
  return { state: "skipped", detail: `skipped because ${because}`, fix: [] };
}

/** A kernel parameter that has to have another value. */
export function wrongSysctl(
  detail: string,
  self: Facts["self"],
  name: string,
  value: number,
): Finding {
  const command = asRoot(self, `sysctl -w ${name.replaceAll("/", ".")}=${value}`);
  return failed(detail, [command], { kind: "sysctl", name, value });
}

/** A command for which one has to be root. */
export function asRoot({ user }: Facts["self"], command: string): string {
  return user === 0 ? command : `sudo ${command}`;
}

/** What an operator changes: `--listen-addr`, or a key of a listener in the file. */
export function optionName({ file }: ProxyConfig, { name }: ListenerConfig, flag: string): string {
  return file === undefined
    ? `--${flag}`
    : `${flag.replace("listen-addr", "listen")} of listener ${name}`;
}

/** The same with a value: `--listen-addr 0.0.0.0:8443`, `listen = "0.0.0.0:8443" in listener mail`. */
export function optionWith(
  { file }: ProxyConfig,
  { name }: ListenerConfig,
  flag: string,
  value: string,
): string {
  return file === undefined
    ? `--${flag} ${value}`
    : `${flag.replace("listen-addr", "listen")} = "${value}" in listener ${name}`;
}

/** This many are named in a line. */
const MOST_LISTED = 8;

/** `a, b and c`; of many the first, and how many more. */
export function listOf(texts: readonly string[]): string {
  const shown = texts.length > MOST_LISTED
    ? [...texts.slice(0, MOST_LISTED), `${texts.length - MOST_LISTED} more`]
    : texts;
  return shown.join(", ").replace(/, ([^,]*)$/, " and $1");
}

export function capitalise(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
