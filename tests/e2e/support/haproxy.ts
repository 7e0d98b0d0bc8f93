/** HAProxy on the load balancer of a recipe. */

import { installed, Server } from "./real_peers.ts";
import type { Recipe } from "./recipe.ts";

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
  const config = await recipe.file("haproxy", `\nglobal\n  stats socket ${control}\n`);
  const start = () => Server.start(port, "haproxy", ["-db", "-f", config]);
  recipe.stack.use(await recipe.balancer.act(start));
  return new Control(control);
}
