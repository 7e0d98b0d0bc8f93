/** The examples in deploy/ give an end the time that it takes. */

import assert from "node:assert/strict";
import config from "../deno.json" with { type: "json" };
import { parseArguments } from "../src/cli/arguments.ts";
import type { ProxyConfig } from "../src/config/model.ts";

/** Beside the delay and the drain: routes are removed, the last lines written. */
const TO_END_S = 2;

function read(name: string): string {
  return Deno.readTextFileSync(new URL(`../deploy/${name}`, import.meta.url));
}

/** The words of a JSON array, or of a YAML list of quoted words. */
function quoted(text = ""): string[] {
  return [...text.matchAll(/"([^"]*)"/g)].map(([, word = ""]) => word);
}

function configOf(args: readonly string[]): ProxyConfig {
  const request = parseArguments(args, "0");
  assert.ok(request.kind === "run" && request.setup.kind === "flags");
  return request.setup.config;
}

function secondsToEnd(args: readonly string[]): number {
  const { shutdownDelay, drainTimeout } = configOf(args);
  return shutdownDelay + drainTimeout + TO_END_S;
}

/** What every container of the image is started with. */
function entryPoint(): string[] {
  const dockerfile = read("Dockerfile");
  assert.match(dockerfile, /^ENTRYPOINT \["\/opt\/mmproxy\/bin\/mmproxy"\]$/m);
  const [, drain = ""] = /^ENV MMPROXY_DRAIN_TIMEOUT=(\d+)$/m.exec(dockerfile) ?? [];
  return ["--drain-timeout", drain];
}

Deno.test("deploy: a container ends before docker stop kills it, after 10 seconds", () => {
  assert.ok(secondsToEnd(entryPoint()) <= 10);
});

Deno.test("deploy: Compose's grace is longer than the drain", () => {
  const [, service = ""] = read("compose.yaml").split("\n  mmproxy:\n");
  const args = quoted(/^ {4}command:\s*(\[[^\]]*\])/m.exec(service)?.[1]);
  const grace = Number(/^ {4}stop_grace_period: (\d+)s$/m.exec(service)?.[1]);
  assert.ok(args.includes("--drain-timeout"));
  assert.ok(secondsToEnd([...entryPoint(), ...args]) <= grace);
});

const MANIFESTS = ["kubernetes/daemonset.yaml", "kubernetes/sidecar.yaml"];

for (const name of MANIFESTS) {
  Deno.test(`deploy: Kubernetes' grace is longer than delay and drain, ${name}`, () => {
    const text = read(name);
    const [, list = ""] = /^ {10}args:\n((?: {12}.*\n)+)/m.exec(text) ?? [];
    const args = quoted(list.replaceAll(/^\s*#.*$/gm, "").replaceAll("$(NODE_IP)", "192.0.2.1"));
    const grace = Number(/^ {6}terminationGracePeriodSeconds: (\d+)$/m.exec(text)?.[1]);
    assert.ok(configOf([...entryPoint(), ...args]).shutdownDelay > 0, args.join(" "));
    assert.ok(secondsToEnd([...entryPoint(), ...args]) <= grace, `${grace} s`);
  });
}

Deno.test("deploy: systemd's grace is longer than the drain without flags", () => {
  const grace = Number(/^TimeoutStopSec=(\d+)$/m.exec(read("mmproxy.service"))?.[1]);
  assert.ok(secondsToEnd([]) <= grace);
});

Deno.test("deploy: image, manifests, Compose and pages name one image, of this version", () => {
  const image = `ghcr.io/mmproxy/mmproxy:${config.version}`;
  const pages = ["../README.md", "../docs/containers.md", "../docs/upgrade.md"];
  for (const name of ["Dockerfile", "compose.yaml", ...MANIFESTS, ...pages]) {
    const names = read(name).match(/ghcr\.io\/[\w/.:-]*[\w]/g) ?? [];
    assert.ok(names.length > 0, name);
    for (const found of names) assert.equal(found, image, name);
  }
  const chart = read("helm/Chart.yaml");
  assert.match(chart, new RegExp(`^appVersion: "?${config.version}"?$`, "m"));
  assert.match(read("helm/values.yaml"), /^ {2}repository: ghcr\.io\/mmproxy\/mmproxy$/m);
  const labels = read("Dockerfile");
  assert.ok(labels.includes(`image.version="${config.version}"`), "its label");
});
