/**
 * The worker's modules, linked from memory: under `--allow-ffi` alone Deno starts no worker from a
 * local file, and reads none. A `blob:` URL needs no permission (docs/decisions).
 */
import layout from "../native/layout.ts" with { type: "text" };
import symbols from "../native/symbols.ts" with { type: "text" };
import verdict from "../decide/verdict.ts" with { type: "text" };
import proxyHeader from "../decide/proxy_header.ts" with { type: "text" };
import worker from "./worker.ts" with { type: "text" };
import { toJavaScript } from "./javascript.ts";

/** In the order of their dependencies: a module imports only those before it. */
const MODULES: readonly (readonly [string, string])[] = [
  ["native/layout.ts", layout],
  ["native/symbols.ts", symbols],
  ["decide/verdict.ts", verdict],
  ["decide/proxy_header.ts", proxyHeader],
  ["worker/worker.ts", worker],
];

/** Their names: paths below src/. */
export const WORKER_MODULES: readonly string[] = MODULES.map(([name]) => name);

let linked: string | undefined;

/** The URL of the worker's main module, linked on first use. */
export function workerUrl(): string {
  return linked ??= link(MODULES);
}

/**
 * Makes every module a `blob:` URL whose imports are the URLs of those before it.
 *
 * @returns the last module's URL
 * @throws {Error} if a module imports one that is not before it
 */
export function link(modules: readonly (readonly [string, string])[]): string {
  const urls = new Map<string, string>();
  let last = "";
  for (const [name, source] of modules) {
    const text = source.replace(/(from\s+")(\.[^"]+)(")/g, (_, before, specifier, after) => {
      const url = urls.get(resolve(name, specifier));
      if (!url) throw new Error(`${name} imports ${specifier}, which is not linked before it`);
      return before + url + after;
    });
    // Deno would remove the types, too, but would store the result of every `blob:` URL in its cache, which
    // is of no use to any later start; the sandbox forbids the write, and Deno then tries it five times,
    // 150 ms in all, before it continues.
    last = URL.createObjectURL(new Blob([toJavaScript(text)], { type: "application/javascript" }));
    urls.set(name, last);
  }
  return last;
}

/** The name of the module that `from` imports as `specifier`. */
function resolve(from: string, specifier: string): string {
  return new URL(specifier, `file:///${from}`).pathname.slice(1);
}
