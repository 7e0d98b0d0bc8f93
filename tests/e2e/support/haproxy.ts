/** HAProxy on the load balancer of a recipe. */

import { installed, runTool, type Scratch, Server } from "./real_peers.ts";
import { blockOf, type Recipe } from "./recipe.ts";

/** Whether HAProxy is here. */
export const haproxy = installed("haproxy");

/** HAProxy's control socket (`stats socket`). */
export class Control {
  constructor(readonly path: string) {}

  /** What HAProxy's checks say of a server: its status, and the last check. */
  async server(proxy: string, server: string): Promise<{ status: string; check: string }> {
    const [names = "", ...rows] = (await this.#ask("show stat")).trim().split("\n");
    const columns = names.replace(/^# /, "").split(",");
    const row = rows.find((row) => row.startsWith(`${proxy},${server},`))?.split(",") ?? [];
    const field = (name: string) => row[columns.indexOf(name)] ?? "";
    return { status: field("status"), check: field("check_status") };
  }

  async #ask(command: string): Promise<string> {
    using conn = await Deno.connect({ transport: "unix", path: this.path });
    await conn.write(new TextEncoder().encode(`${command}\n`));
    return await new Response(conn.readable).text();
  }
}

/** Starts HAProxy on a recipe's balancer with the page's configuration; it listens on `port`. */
export async function startHaproxy(recipe: Recipe, port: number): Promise<Control> {
  const control = `${recipe.scratch.path}/haproxy.sock`;
  // What a package's configuration has: a control socket, and a directory of certificates.
  const general = `global\n  stats socket ${control}\n  crt-base ${recipe.scratch.path}\n`;
  const page = await blockOf(recipe.page, "haproxy");
  const config = await recipe.scratch.write("haproxy.conf", `${general}\n${page}`);
  const start = () => Server.start(port, "haproxy", ["-db", "-f", config]);
  recipe.stack.use(await recipe.balancer.act(start));
  return new Control(control);
}

/** Makes a certificate for itself; returns the file with key and certificate. */
export async function certificate(scratch: Scratch, name = "site.pem"): Promise<string> {
  const [key, cert] = [`${scratch.path}/key.pem`, `${scratch.path}/cert.pem`];
  await runTool("openssl", [
    ...["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=example.org"],
    ...["-keyout", key, "-out", cert],
  ]);
  return await scratch.write(name, await Deno.readTextFile(key) + await Deno.readTextFile(cert));
}
