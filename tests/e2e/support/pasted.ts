/**
 * A host on which a page's commands are run as they are printed, one after the other: its addresses are those
 * of the pages, its /etc and /run are its own, and behind each start of the program its clients are looked at.
 */
import assert from "node:assert/strict";
import { parseArguments } from "../../../src/cli/arguments.ts";
import { commandLine } from "../../../src/cli/command_line.ts";
import { readConfig } from "../../../src/config/file.ts";
import type { ListenerConfig, ProxyConfig } from "../../../src/config/model.ts";
import { type Endpoint, show } from "./endpoints.ts";
import { spp, text, v2 } from "./headers.ts";
import { textOf } from "./page.ts";
import { ON_PATH } from "./program.ts";
import { Recipe, SERVER4 } from "./recipe.ts";
import { Stream, TcpService, tellAndEcho } from "./tcp.ts";
import { eventually, TIMEOUT, within } from "./time.ts";
import { tell, UdpService, UdpSocket } from "./udp.ts";

const BALANCER = { ip: "198.51.100.1", port: 443 };
/** Addresses of the README's example. */
const MAIL_HOST = "192.0.2.25";
/** The load balancers that the pages' subnet files have. */
const SUBNETS = "198.51.100.0/24\n127.0.0.0/8\n";
/** The files in which the pages have them; the first is in /etc/mmproxy. */
const SUBNET_FILES = ["etc/mmproxy/subnets", "home/subnets.txt", "home/networks.txt"];
/** For pages that name the file and print none. */
const ANY_CONFIG = '[[listener]]\nname = "mail"\nlisten = "198.51.100.10:25"\n' +
  'ipv4 = "127.0.0.1:25"\nallowed-subnets = ["198.51.100.0/24"]\n';

let lastPort = 40_000;

/** The program, started by a page. */
class Started {
  said = "";
  constructor(readonly child: Deno.ChildProcess, readonly config: ProxyConfig) {
    this.#read().catch(() => {});
  }

  async #read(): Promise<void> {
    for await (const chunk of this.child.stderr) {
      this.said += text(chunk as Uint8Array<ArrayBuffer>);
    }
  }
}

export class Pasted implements AsyncDisposable {
  readonly #services = new Map<string, AsyncDisposable>();
  #program: Started | undefined;

  private constructor(
    readonly hosts: Recipe,
    readonly config: string,
    readonly holder: Deno.ChildProcess,
  ) {}

  /** The host, and the page's configuration file where the page has it. */
  static async make(page: string): Promise<Pasted> {
    const hosts = await Recipe.make(page);
    await hosts.server.run(`ip address add ${MAIL_HOST}/32 dev in`);
    await hosts.balancer.run(`ip route add ${MAIL_HOST} via ${SERVER4}`);
    const printed = [...(await textOf(page)).matchAll(/^```toml\n([^]*?)^```/gm)]
      .map(([, text = ""]) => text).find((text) => text.includes("[[listener]]"));
    const config = printed ?? ANY_CONFIG;
    const root = hosts.scratch.path;
    for (const folder of ["etc/mmproxy", "run/mmproxy", "home", "bin", "old"]) {
      await Deno.mkdir(`${root}/${folder}`, { recursive: true });
    }
    for (const name of SUBNET_FILES) await hosts.scratch.write(name, SUBNETS);
    for (const name of ["etc/mmproxy/mmproxy.toml", "home/mmproxy.toml"]) {
      await hosts.scratch.write(name, config);
    }
    await Deno.chmod(await hosts.scratch.write("bin/sudo", '#!/bin/sh\nexec "$@"\n'), 0o755);
    // Of /etc all is there, and mmproxy.
    const script = `mount --bind /etc ${root}/old
      for path in /etc/*; do ln -s ${root}/old/\${path#/etc/} ${root}/etc/ 2>/dev/null || true; done
      mount --bind ${root}/etc /etc
      mount --bind ${root}/run /run
      echo ready; exec sleep 600`;
    const holder = new Deno.Command("unshare", {
      args: ["--mount", "sh", "-ec", script],
      stdin: "null",
      stdout: "piped",
    }).spawn();
    const reader = holder.stdout.getReader();
    await within(reader.read(), "the host's mounts");
    await reader.cancel();
    return new Pasted(hosts, config, holder);
  }

  /**
   * Runs a command of a page: to its end, or, where it starts the program, until it has shown its client.
   *
   * @param failure what it says where it is to fail
   */
  async run(command: string, failure?: RegExp): Promise<void> {
    const request = this.#request(command);
    switch (request?.kind) {
      case "run":
        return await this.#start(command, this.#configOf(request.setup));
      case "doctor":
        await this.#serve(this.#configOf(request.setup));
    }
    const { success, stdout, stderr } = await within(
      this.#shell(command).output(),
      command,
      2 * TIMEOUT,
    );
    const said = [stdout, stderr].map((part) => new TextDecoder().decode(part)).join("");
    if (failure) return assert.match(success ? "" : said, failure, command);
    assert.ok(success, `${command}\n${said}\n${this.#program?.said ?? ""}`);
  }

  /** Ends the program that was started last. */
  async stop(): Promise<void> {
    const program = this.#program;
    this.#program = undefined;
    if (!program) return;
    const { control } = program.config;
    // An upgrade has put another process in its place.
    const pid = control === undefined ? program.child.pid : await this.#pidAt(control);
    Deno.kill(pid, "SIGTERM");
    const { success } = await within(program.child.status, "end of the program", 30_000);
    assert.ok(success, program.said);
  }

  /** What the program's own parser makes of a command, where it is one of the program. */
  #request(command: string) {
    const line = command.replaceAll("\\\n", " ").replace(/\s#\s.*$/, "");
    const flags = /^(?:sudo )?mmproxy (.*)$/.exec(line)?.[1];
    if (flags === undefined) return undefined;
    const words = [...flags.matchAll(/'([^']*)'|(\S+)/g)].map(([, quoted, word]) =>
      quoted ?? word ?? ""
    );
    return parseArguments(words, "0");
  }

  #configOf(
    setup: (ReturnType<typeof parseArguments> & { kind: "run" })["setup"],
  ): ProxyConfig {
    return setup.kind === "flags" ? setup.config : readConfig(this.config, setup.path);
  }

  async #start(command: string, config: ProxyConfig): Promise<void> {
    await this.stop();
    await this.#serve(config);
    if (!config.autoRoutes) await this.run(commandLine("routes up", config));
    const child = await this.hosts.server.act(() => this.#shell(`exec ${command}`).spawn());
    const program = this.#program = new Started(child, config);
    let ended = false;
    child.status.then(() => ended = true);
    const listening = () => ended || program.said.includes("Listening on");
    await eventually(listening, `${command}: a listener`, 2 * TIMEOUT);
    assert.ok(!ended, `${command}\n${program.said}`);
    assert.doesNotMatch(program.said, /Clients will get no answer/);
    for (const listener of config.listeners) await this.#look(listener, program);
  }

  /** A listener's clients, as the service sees them; not where TPROXY brings them. */
  async #look(listener: ListenerConfig, program: Started): Promise<void> {
    const [first] = listener.listen;
    if (!first || listener.transparent || first.text.startsWith("[")) return;
    const ip = first.text.replace(/:[^:]*$/, "").replace("0.0.0.0", SERVER4);
    const listen = { ip, port: first.port };
    const client = { ip: "203.0.113.7", port: ++lastPort };
    const from = ip.startsWith("127.") ? this.hosts.server : this.hosts.balancer;
    try {
      if (listener.protocol !== "udp") {
        using stream = await from.act(() => Stream.connect(listen.port, ip));
        await stream.send(v2(client, BALANCER));
        assert.equal(await stream.line(), show(client));
      }
      if (listener.protocol !== "tcp") {
        const header = listener.udpHeader === "spp"
          ? spp(client, BALANCER)
          : v2(client, BALANCER, { datagram: true });
        const own = ip.startsWith("127.") ? "127.0.0.1" : BALANCER.ip;
        await using peer = await from.act(() => UdpSocket.open(own));
        await peer.send(listen, header, "hello");
        const { data } = await peer.receive();
        // An answer of this form has such a header, too.
        assert.ok(text(data).endsWith(`${show(client)} hello`), text(data));
      }
    } catch (error) {
      throw new Error(`${listener.name}: ${error}\n${program.said}`, { cause: error });
    }
  }

  /** Starts what the listeners forward to, of each its first port. */
  async #serve({ listeners }: ProxyConfig): Promise<void> {
    for (const listener of listeners) {
      for (const upstream of [listener.ipv4, listener.ipv6]) {
        if (upstream === undefined || listener.transparent) continue;
        const [, bracketed, plain, port] =
          /^(?:\[([^\]]+)\]|([^:]+|[^:]*:[^:]*:.*?))(?::(\d+)(?:-\d+)?)?$/.exec(upstream.text) ??
            [];
        const ip = bracketed ?? plain ?? "";
        const to = { ip, port: Number(port ?? listener.listen[0]?.port) };
        if (listener.protocol !== "udp") await this.#serveOnce("TCP", to);
        if (listener.protocol !== "tcp") await this.#serveOnce("UDP", to);
      }
    }
  }

  async #serveOnce(transport: "TCP" | "UDP", { ip, port }: Endpoint): Promise<void> {
    const key = `${transport} ${ip} ${port}`;
    if (this.#services.has(key)) return;
    const service = await this.hosts.server.act<AsyncDisposable>(() =>
      transport === "TCP" ? new TcpService(tellAndEcho, ip, port) : UdpService.start(tell, ip, port)
    );
    this.#services.set(key, service);
  }

  async #pidAt(control: string): Promise<number> {
    const { stdout } = await this.#shell(`mmproxy status --json --control ${control}`).output();
    return JSON.parse(new TextDecoder().decode(stdout)).pid;
  }

  /** A shell on the host; it is to be spawned while acting there. */
  #shell(command: string): Deno.Command {
    const { path } = this.hosts.scratch;
    const script =
      `${ON_PATH}:"${path}/bin"\nexport NSTAT_HISTORY=${path}/nstat\ncd ${path}/home\n${command}`;
    return new Deno.Command("nsenter", {
      args: [
        `--mount=/proc/${this.holder.pid}/ns/mnt`,
        `--net=/proc/${Deno.pid}/fd/${this.hosts.server.fd}`,
        ...["sh", "-ec", script],
      ],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#program?.child.kill("SIGKILL");
    for (const service of this.#services.values()) await service[Symbol.asyncDispose]();
    this.holder.kill("SIGKILL");
    await this.holder.status;
    await this.hosts[Symbol.asyncDispose]();
  }
}
