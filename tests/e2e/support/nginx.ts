/** nginx, as a service behind the program or as a balancer before it. */

import { freePort, socketsOf } from "./endpoints.ts";
import { installed, isFile, type Scratch, Server } from "./real_peers.ts";
import { blockOf, type Recipe } from "./recipe.ts";
import { eventually } from "./time.ts";

/** Whether nginx is here. */
export const nginx = installed("nginx");

/** Where Debian puts the stream module; other systems build it in. */
export const streamModule = [
  "/usr/lib/nginx/modules/ngx_stream_module.so",
  "/usr/lib64/nginx/modules/ngx_stream_module.so",
].find(isFile);

/** One process and one user: a user namespace that maps one user has no other to become. */
const GENERAL = `
user root root;
daemon off;
master_process off;
error_log stderr;
events { worker_connections 256; }
`;

/** Starts nginx with this configuration; `modules` are the `load_module` lines it needs first. */
export async function startNginx(
  scratch: Scratch,
  name: string,
  port: number,
  config: string,
  modules = "",
): Promise<Server> {
  const path = await scratch.write(
    `${name}.conf`,
    `${modules}\npid ${scratch.path}/${name}.pid;${GENERAL}${config}`,
  );
  return await Server.start(port, "nginx", ["-e", "stderr", "-p", scratch.path, "-c", path]);
}

/** Starts nginx on a recipe's balancer with the page's `nginx` block; it listens on UDP `port`. */
export async function startUdpBalancer(recipe: Recipe, port: number): Promise<void> {
  const { balancer, scratch, stack } = recipe;
  const config = `load_module ${streamModule};\npid ${scratch.path}/balancer.pid;${GENERAL}`;
  const path = await scratch.write("nginx.conf", config + await blockOf(recipe.page, "nginx"));
  await balancer.act(async () => {
    stack.use(Server.spawn("nginx", ["-e", "stderr", "-p", scratch.path, "-c", path]));
    await eventually(() => socketsOf(port).length > 0, `nginx on UDP port ${port}`);
  });
}

/** A web server whose access log holds the client's address and port. */
export class NginxService implements AsyncDisposable {
  #server: Server | undefined;

  private constructor(readonly scratch: Scratch, readonly port: number) {}

  static async start(scratch: Scratch, port = freePort()): Promise<NginxService> {
    const service = new NginxService(scratch, port);
    await service.start();
    return service;
  }

  get address4(): string {
    return `127.0.0.1:${this.port}`;
  }

  get address6(): string {
    return `[::1]:${this.port}`;
  }

  async start(): Promise<void> {
    const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
      .map((kind) => `${kind}_temp_path ${this.scratch.path}/${kind};`).join("\n  ");
    this.#server = await startNginx(
      this.scratch,
      "service",
      this.port,
      `http {
  ${temporary}
  log_format who '$remote_addr $remote_port';
  access_log ${this.scratch.path}/access.log who;
  server {
    listen ${this.address4};
    listen ${this.address6};
    location / { return 200 "hello\\n"; }
  }
}
`,
    );
  }

  async stop(): Promise<void> {
    await this.#server?.[Symbol.asyncDispose]();
    this.#server = undefined;
  }

  /** Waits until the access log has this line: the client's address, a space, its port. */
  async logged(ip: string, port: string): Promise<void> {
    await eventually(
      async () => (await this.log()).includes(`${ip} ${port}`),
      `line "${ip} ${port}" in nginx's access log`,
    );
  }

  /** The access log's lines so far. */
  async log(): Promise<string[]> {
    return (await Deno.readTextFile(`${this.scratch.path}/access.log`)).trim().split("\n");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}
