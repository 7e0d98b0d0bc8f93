/** Reads Prometheus's text format (version 0.0.4) strictly, and asks its own tool about it. */

import assert from "node:assert/strict";
import { within } from "./time.ts";

/** Every sample by its name and labels as written but `listener`, and what each family is. */
export interface Scrape {
  /** Summed over the listeners. */
  readonly samples: ReadonlyMap<string, number>;
  /** Those of each listener by its name. */
  readonly listeners: ReadonlyMap<string, ReadonlyMap<string, number>>;
  readonly types: ReadonlyMap<string, string>;
}

const NAME = "[a-zA-Z_:][a-zA-Z0-9_:]*";
const LABEL = `[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\\\\n]|\\\\[\\\\"n])*"`;
const SAMPLE = new RegExp(`^(${NAME})(\\{${LABEL}(?:,${LABEL})*\\})? (\\S+)$`);

/** @throws {Error} at the first line that Prometheus would not take. */
export function parseScrape(text: string): Scrape {
  const written = new Set<string>();
  const samples = new Map<string, number>();
  const listeners = new Map<string, Map<string, number>>();
  const types = new Map<string, string>();
  const helped = new Set<string>();
  assert.ok(text.endsWith("\n"), "the last line is whole");
  for (const line of text.split("\n").filter((line) => line !== "")) {
    const [, name = "", help] = /^# HELP (\S+) (.+)$/.exec(line) ?? [];
    const [, typed = "", type = ""] = /^# TYPE (\S+) (counter|gauge|histogram)$/.exec(line) ?? [];
    if (help !== undefined) {
      assert.ok(!helped.has(name), `two helps: ${line}`);
      helped.add(name);
    } else if (typed !== "") {
      assert.ok(helped.has(typed) && !types.has(typed), line);
      types.set(typed, type);
    } else {
      const [, metric = "", labels = "", value = ""] = SAMPLE.exec(line) ?? [];
      const family = types.has(metric) ? metric : metric.replace(/_(bucket|sum|count)$/, "");
      assert.ok(types.has(family), `no type before: ${line}`);
      assert.ok(Number.isFinite(Number(value)), line);
      assert.ok(!written.has(metric + labels), `twice: ${line}`);
      written.add(metric + labels);
      const [whole = "", listener] = /listener="([^"]*)",?/.exec(labels) ?? [];
      const key = (metric + labels.replace(whole, "")).replace(/\{\}$/, "");
      samples.set(key, (samples.get(key) ?? 0) + Number(value));
      if (listener === undefined) continue;
      const own = listeners.get(listener) ?? new Map<string, number>();
      listeners.set(listener, own.set(key, Number(value)));
    }
  }
  for (const [name] of [...types].filter(([, type]) => type === "histogram")) {
    const counts = [...samples].filter(([key]) => key.startsWith(`${name}_bucket{`));
    counts.reduce((before, [key, count]) => {
      assert.ok(count >= before, `${key} is less than the bucket before`);
      return count;
    }, 0);
    assert.equal(counts.at(-1)?.[0], `${name}_bucket{le="+Inf"}`);
    assert.equal(counts.at(-1)?.[1], samples.get(`${name}_count`), name);
    assert.ok(samples.has(`${name}_sum`), name);
  }
  return { samples, listeners, types };
}

/** What `promtool` says of its standard input, or of files. */
export async function promtool(args: string[], input = ""): Promise<string> {
  const child = new Deno.Command("promtool", {
    args,
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(input));
  await writer.close();
  const { success, stdout, stderr } = await within(child.output(), "end of promtool");
  const said = new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
  assert.ok(success, `promtool ${args.join(" ")}: ${said}`);
  return said;
}
