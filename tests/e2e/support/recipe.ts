/** The pages in docs/recipes: their files, and the hosts that docs/recipes/README.md describes. */
import { fileURLToPath } from "node:url";
import { Host } from "./host.ts";
import { Program } from "./program.ts";
import { Scratch } from "./real_peers.ts";

export const CLIENT4 = "203.0.113.7", CLIENT6 = "2001:db8:203::7";
/** Where clients reach the load balancer. */
export const BALANCER4 = "203.0.113.1", BALANCER6 = "2001:db8:203::1";
export const SERVER4 = "198.51.100.10", SERVER6 = "2001:db8:51::10";

/** The blocks of a language on a page, from the top. */
export async function blocksOf(page: string, language: string): Promise<string[]> {
  const path = fileURLToPath(new URL(`../../../docs/recipes/${page}`, import.meta.url));
  const text = await Deno.readTextFile(path);
  return [...text.matchAll(/^```(\w*)\n([^]*?)^```/gm)]
    .filter(([, tag]) => tag === language).map(([, , block = ""]) => block);
}

/** The only block of a language on a page. */
export async function blockOf(page: string, language: string): Promise<string> {
  const [block, ...more] = await blocksOf(page, language);
  if (block === undefined || more.length > 0) {
    throw new Error(`${page} does not have one block of ${language}`);
  }
  return block;
}

/** Client, load balancer and server, a wire between each; and what a test starts on them. */
export class Recipe implements AsyncDisposable {
  /** Ended in reverse order. */
  readonly stack = new AsyncDisposableStack();

  private constructor(
    readonly page: string,
    readonly scratch: Scratch,
    readonly client: Host,
    readonly balancer: Host,
    readonly server: Host,
  ) {
    for (const host of [client, balancer, server]) this.stack.use(host);
    this.stack.use(scratch);
  }

  static async make(page: string): Promise<Recipe> {
    const [client, balancer, server] = [await Host.make(), await Host.make(), await Host.make()];
    await client.connect("out", balancer, "clients");
    await balancer.connect("servers", server, "in");
    await client.run(
      `ip address add ${CLIENT4}/24 dev out
       ip address add ${CLIENT6}/64 dev out nodad`,
    );
    await balancer.run(
      `ip address add ${BALANCER4}/24 dev clients
       ip address add ${BALANCER6}/64 dev clients nodad
       ip address add 198.51.100.1/24 dev servers
       ip address add 2001:db8:51::1/64 dev servers nodad`,
    );
    await server.run(
      `ip address add ${SERVER4}/24 dev in
       ip address add ${SERVER6}/64 dev in nodad`,
    );
    return new Recipe(page, await Scratch.make(), client, balancer, server);
  }

  /** Writes the page's block of a language into a file; its path. */
  async file(language: string, more = ""): Promise<string> {
    return await this.scratch.write(`${language}.conf`, await blockOf(this.page, language) + more);
  }

  /** Runs the page's `sh` block that contains `part` on a host; what it printed. */
  async run(host: Host, part: string): Promise<string> {
    const block = (await blocksOf(this.page, "sh")).find((block) => block.includes(part));
    if (block === undefined) throw new Error(`${this.page} has no commands with ${part}`);
    return await host.run(block.replaceAll(/^sudo /gm, ""));
  }

  /** Starts the program on the server with the page's configuration. */
  async start(logLevel = "debug"): Promise<Program> {
    const config = await this.file("toml");
    return this.stack.use(await this.server.act(() => Program.start({ config, logLevel })));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stack.disposeAsync();
  }
}
