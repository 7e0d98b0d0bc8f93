/** What stands around a program that hands its sockets on: two services, and a file with its listeners. */

import { freePort } from "./endpoints.ts";
import { Scratch } from "./real_peers.ts";
import { TcpService, tellAndEcho } from "./tcp.ts";
import { tell, UdpService } from "./udp.ts";

/** One listener: its port, and its table in the file. */
export interface Listener {
  readonly port: number;
  readonly table: string;
}

export class Surroundings implements AsyncDisposable {
  readonly #stack = new AsyncDisposableStack();
  readonly control: string;

  private constructor(
    readonly scratch: Scratch,
    readonly service: TcpService,
    readonly datagrams: UdpService,
    readonly head: string,
  ) {
    for (const part of [scratch, service, datagrams]) this.#stack.use(part);
    this.control = `${scratch.path}/control`;
  }

  /** @param head lines of the file next to the control socket and the workers */
  static async make(head: string): Promise<Surroundings> {
    const service = new TcpService(tellAndEcho);
    return new Surroundings(await Scratch.make(), service, await UdpService.start(tell), head);
  }

  tcp(name: string): Listener {
    return listener(name, "127.0.0.1", `ipv4 = "${this.service.address}"`);
  }

  udp(name: string, ip: string, more = ""): Listener {
    return listener(name, ip, `protocol = "udp"\nipv4 = "${this.datagrams.address}"\n${more}`);
  }

  /** Writes the file with these listeners; its path. */
  write(...listeners: readonly Listener[]): Promise<string> {
    const tables = listeners.map(({ table }) => table).join("");
    return this.scratch.write(
      "m.toml",
      `control = "${this.control}"\nworkers = 2\n${this.head}\n` +
        `[defaults]\nallowed-subnets = ["127.0.0.0/8"]\n${tables}`,
    );
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#stack.disposeAsync();
  }
}

function listener(name: string, ip: string, keys: string): Listener {
  const port = freePort();
  return { port, table: `[[listener]]\nname = "${name}"\nlisten = "${ip}:${port}"\n${keys}\n` };
}
