/** A real browser without a window, driven by the Chrome DevTools Protocol. */

import { eventually, within } from "./time.ts";
import { installed } from "./real_peers.ts";

/** Debian's names of it. */
const NAMES = ["chromium-headless-shell", "chromium"];
/** Loading the browser on a busy machine. */
const STARTUP = 30_000;

/** The path of an installed browser, or `undefined`. */
export function installedBrowser(): string | undefined {
  return NAMES.map(installed).find((path) => path !== undefined);
}

/** How a page is looked at. */
export interface View {
  readonly width: number;
  readonly height: number;
  readonly scheme: "light" | "dark";
}

interface Reply {
  readonly id?: number;
  readonly method?: string;
  readonly sessionId?: string;
  readonly params: Record<string, unknown>;
  readonly result?: Record<string, unknown>;
  readonly error?: { readonly message: string };
}

/** A running browser. */
export class Browser implements AsyncDisposable {
  #next = 1;
  readonly #waiting = new Map<number, (reply: Reply) => void>();
  readonly #pages = new Map<string, Page>();

  private constructor(
    readonly profile: string,
    readonly child: Deno.ChildProcess,
    readonly socket: WebSocket,
  ) {
    socket.addEventListener("message", ({ data }) => this.#take(JSON.parse(data)));
  }

  static async start(): Promise<Browser> {
    const profile = await Deno.makeTempDir({ prefix: "mmproxy-browser-" });
    const child = new Deno.Command(installedBrowser() ?? "chromium", {
      args: [
        "--headless",
        // The namespace's root is no root outside: the browser's own sandbox cannot be set up.
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--remote-debugging-port=0",
        `--user-data-dir=${profile}`,
        "about:blank",
      ],
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
    try {
      const path = `${profile}/DevToolsActivePort`;
      const [port, endpoint] = await eventually(
        async () => {
          const text = await Deno.readTextFile(path).catch(() => "");
          const lines = text.split("\n");
          return lines.length > 1 && lines;
        },
        "browser",
        STARTUP,
      );
      const socket = new WebSocket(`ws://127.0.0.1:${port}${endpoint}`);
      const open = new Promise((resolve, reject) => {
        socket.addEventListener("open", resolve);
        socket.addEventListener("error", () => reject(new Error("The browser takes no commands")));
      });
      await within(open, "connection to the browser");
      return new Browser(profile, child, socket);
    } catch (error) {
      child.kill("SIGKILL");
      await child.status;
      await Deno.remove(profile, { recursive: true });
      throw error;
    }
  }

  /** Opens a page, and waits until it has loaded. */
  async open(url: string, view: View): Promise<Page> {
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true });
    const page = new Page(this, String(sessionId));
    this.#pages.set(page.session, page);
    for (const domain of ["Page", "Runtime", "Log", "Network"]) await page.send(`${domain}.enable`);
    await page.look(view);
    await page.send("Emulation.setScrollbarsHidden", { hidden: true });
    await page.send("Page.navigate", { url });
    await eventually(
      () => page.evaluate("document.readyState === 'complete'").catch(() => false),
      `page ${url}`,
      STARTUP,
    );
    return page;
  }

  /** @throws {Error} when the browser refuses */
  async send(
    method: string,
    params: Record<string, unknown> = {},
    sessionId?: string,
  ): Promise<Record<string, unknown>> {
    const id = this.#next++;
    const answer = new Promise<Reply>((resolve) => this.#waiting.set(id, resolve));
    this.socket.send(JSON.stringify({ id, method, params, ...(sessionId && { sessionId }) }));
    const { result, error } = await within(answer, `answer to ${method}`, STARTUP);
    if (error) throw new Error(`${method}: ${error.message}`);
    return result ?? {};
  }

  #take(reply: Reply): void {
    if (reply.id === undefined) {
      this.#pages.get(reply.sessionId ?? "")?.take(reply.method ?? "", reply.params);
      return;
    }
    this.#waiting.get(reply.id)?.(reply);
    this.#waiting.delete(reply.id);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Debian's browser is started by a script: a signal would end that, and not the browser.
    await this.send("Browser.close").catch(() => {});
    this.socket.close();
    await within(this.child.status, "end of the browser");
    // Its children end after it, and write until then.
    await eventually(
      () => Deno.remove(this.profile, { recursive: true }).then(() => true, () => false),
      "end of the browser's files",
    );
  }
}

/** A page that is open. */
export class Page {
  /** What its console and its loader complained about. */
  readonly complaints: string[] = [];
  /** Every URL that it requested. */
  readonly requests: string[] = [];

  constructor(readonly browser: Browser, readonly session: string) {}

  async send(method: string, params: Record<string, unknown> = {}) {
    return await this.browser.send(method, params, this.session);
  }

  /** Changes the size and the color scheme. */
  async look({ width, height, scheme }: View): Promise<void> {
    await this.send("Emulation.setDeviceMetricsOverride", {
      width,
      height,
      deviceScaleFactor: 1,
      mobile: width < 500,
    });
    const features = [{ name: "prefers-color-scheme", value: scheme }];
    await this.send("Emulation.setEmulatedMedia", { features });
  }

  /** The value of an expression, as JSON has it. */
  async evaluate(expression: string): Promise<unknown> {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", {
      expression,
      returnByValue: true,
      awaitPromise: true,
    });
    if (exceptionDetails) throw new Error(`${expression}: ${JSON.stringify(exceptionDetails)}`);
    return (result as { value?: unknown }).value;
  }

  /** The text of an element. */
  async text(selector: string): Promise<string> {
    const quoted = JSON.stringify(selector);
    return String(await this.evaluate(`document.querySelector(${quoted})?.innerText ?? ""`));
  }

  /** A picture of what the view shows, PNG. */
  async screenshot(): Promise<Uint8Array<ArrayBuffer>> {
    const { data } = await this.send("Page.captureScreenshot");
    return Uint8Array.fromBase64(String(data));
  }

  /** Takes an event of the browser's. */
  take(method: string, params: Record<string, unknown>): void {
    switch (method) {
      case "Network.requestWillBeSent":
        this.requests.push((params.request as { url: string }).url);
        break;
      case "Runtime.exceptionThrown":
        this.complaints.push(JSON.stringify(params.exceptionDetails));
        break;
      case "Runtime.consoleAPICalled":
        this.complaints.push(`console.${params.type}: ${JSON.stringify(params.args)}`);
        break;
      case "Log.entryAdded":
        this.complaints.push(JSON.stringify(params.entry));
        break;
    }
  }
}
