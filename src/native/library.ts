/** The native core: finds it, checks its version, and has a typed call for each export. */
import {
  ABI_VERSION,
  ADOPTION,
  ENDPOINT,
  EVENT,
  LISTENER,
  REACH,
  REPLY,
  ROUTING,
  SANDBOX,
  Status,
  SURVEY,
  USAGE,
} from "./layout.ts";
import type { Limits } from "../config/limits.ts";
import { Stats, STATS_LENGTH } from "./stats.ts";
import { symbols } from "./symbols.ts";
import { decodeUsage, type Usage } from "./usage.ts";

/** Of a host name; more are left out. */
const MOST_ADDRESSES = 64;

type NativeSymbols = Deno.DynamicLibrary<typeof symbols>["symbols"];

/** A call that the native core refused. `status` is one of `Status`. */
export class NativeError extends Error {
  override readonly name = "NativeError";
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

/** Why the native core refuses a call, if it does. Any other error is thrown on. */
export function problemOf(call: () => void): NativeError | undefined {
  try {
    call();
    return undefined;
  } catch (error) {
    if (error instanceof NativeError) return error;
    throw error;
  }
}

/** The library could not be loaded, from any of its places. */
export class LibraryError extends Error {
  override readonly name = "LibraryError";
}

/**
 * The places where the library may lie, in the order in which they are tried: next to the program in a
 * release, then where `deno task build` puts it.
 *
 * @param base the URL of the folder that holds `main.ts`
 */
export function libraryPlaces(base: URL): string[] {
  const names = [`libmmproxy-${Deno.build.arch}.so`, "target/release/libmmproxy.so"];
  return names.map((name) => pathOf(new URL(name, base)));
}

/** The path of a `file:` URL. Without `node:url`, which takes as long to load as the native core. */
export function pathOf(url: URL): string {
  return decodeURIComponent(url.pathname);
}

/**
 * Loads the library from the first place that has one that fits.
 *
 * @throws {LibraryError} naming every place and what was wrong there
 */
export function loadLibrary(places: readonly string[]): Library {
  const failures: string[] = [];
  for (const place of places) {
    let opened: ReturnType<typeof open>;
    try {
      opened = open(place);
    } catch (error) {
      if (error instanceof Deno.errors.NotCapable) {
        throw new LibraryError(`Cannot load ${place}: run with --allow-ffi`, { cause: error });
      }
      failures.push(`${place} (${brief(error)})`);
      continue;
    }
    const native = functionsAt(opened.symbols);
    if (native.abi_version?.() === ABI_VERSION) return new Library(place, native as NativeSymbols);
    opened.close();
    failures.push(`${place} (built from another version of this program)`);
  }
  throw new LibraryError(
    `Cannot load the native core: tried ${failures.join(", ")}; build it with: deno task build`,
  );
}

/**
 * Opens the addresses of all exports. `Deno.dlopen` compiles a function for each that it opens as one, which
 * takes 0.3 ms and a page of memory: more than all calls of a run together save.
 */
function open(place: string) {
  const names = Object.keys(symbols) as (keyof NativeSymbols)[];
  // A library of another version lacks some, and says so by its `abi_version`.
  const address = (optional: boolean) => ({ type: "pointer", optional } as const);
  return Deno.dlopen(
    place,
    Object.fromEntries(names.map((name) => [name, address(name !== "abi_version")])) as Record<
      keyof NativeSymbols,
      ReturnType<typeof address>
    >,
  );
}

/** A function for each address, made when it is first used; none for an export that the library lacks. */
function functionsAt(
  addresses: Record<keyof NativeSymbols, Deno.PointerValue>,
): Partial<NativeSymbols> {
  const made: Partial<Record<keyof NativeSymbols, ReturnType<typeof functionAt>>> = {};
  return new Proxy({}, {
    get(_, name: keyof NativeSymbols) {
      const address = addresses[name] as Deno.PointerValue<Deno.ForeignFunction>;
      if (address) made[name] ??= functionAt(address, symbols[name]);
      return made[name];
    },
  });
}

function functionAt(
  address: Deno.PointerObject<Deno.ForeignFunction>,
  definition: Deno.ForeignFunction,
) {
  const pointer = new Deno.UnsafeFnPointer(address, definition);
  return (...values: never[]) => pointer.call(...values);
}

/** dlopen's own words without the path, which is said already. */
function brief(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  if (/No such file/.test(message)) return "no such file";
  return message.replace(/^Could not open library: /, "").replaceAll("\n", " ");
}

/** What `Library.configure` takes. */
export interface ConfigurationRecords {
  /** `ListenerRecord`s. */
  readonly listeners: Uint8Array<ArrayBuffer>;
  /** `PortRecord`s, in the listeners' order. */
  readonly ports: Uint8Array<ArrayBuffer>;
  /** `TrustRecord`s, in the listeners' order. */
  readonly rules: Uint8Array<ArrayBuffer>;
  /** `DestinationRecord`s, in the listeners' order. */
  readonly destinations: Uint8Array<ArrayBuffer>;
}

/** Bytes of a request's number and its line at most. */
const MOST_REQUEST = 4100;
/** Bytes of an answer at most. */
const MOST_ANSWER = 16 << 20;

/** Bytes of a predecessor's words at most. */
const MOST_WORDS = 1 << 20;

/** Listening sockets that the service manager kept from an earlier run. */
export interface CameBack {
  /** They listen again. */
  readonly kept: number;
  /** No listener has them, or they are something else. */
  readonly closed: number;
}

/** What a hand-over came to. */
export interface HandedOver {
  /** The program that has taken over. */
  readonly process: number;
  /** Listening sockets. */
  readonly sockets: number;
  /** UDP flows. */
  readonly flows: number;
  /** How long neither program read, in milliseconds. */
  readonly pausedMs: number;
}

/** The numbers of an outcome; or its text is the error's. */
function told(status: number, outcome: Uint8Array<ArrayBuffer>): Uint32Array {
  if (status >= 0) return new Uint32Array(outcome.buffer);
  const text = new TextDecoder().decode(outcome.subarray(0, outcome.indexOf(0)));
  throw new NativeError(status, text);
}

/** A line that came by a control socket. */
export interface ControlRequest {
  /** What its answer names. */
  readonly id: number;
  readonly line: string;
}

/** The loaded core. Every method throws a `NativeError` when the core refuses. */
export class Library {
  readonly #native: NativeSymbols;

  constructor(readonly path: string, native: NativeSymbols) {
    this.#native = native;
  }

  /** Raises the limit of open files to the hard limit; the limit now in force. */
  raiseFileLimit(): number {
    return this.#native.raise_file_limit();
  }

  /** Queues complete lines for standard error; whether there was room. Never waits. */
  pushLog(lines: string): boolean {
    const bytes = new TextEncoder().encode(lines);
    return this.#unwrap(this.#native.log_push(bytes, bytes.length)) === 1;
  }

  /** How many queued lines could not be written so far. */
  failedLogLines(): number {
    return this.#native.log_failed();
  }

  /** Waits up to `timeout` milliseconds until what was queued is written; whether it is. */
  flushLog(timeout: number): boolean {
    return this.#unwrap(this.#native.log_flush(timeout)) === 1;
  }

  /** Has SIGUSR1 counted and nothing else done; whether somebody else had a handler for it. */
  takeUsr1(): boolean {
    return this.#unwrap(this.#native.take_usr1()) === 1;
  }

  /** How many SIGUSR1 came since the last call. */
  usr1Received(): number {
    return this.#native.usr1_received();
  }

  /** Whether this process listens where Deno's debugger does. */
  debuggerListens(): boolean {
    return this.#unwrap(this.#native.debugger_listens()) === 1;
  }

  /** Reads a whole file. */
  readFile(path: string): Uint8Array {
    const name = new TextEncoder().encode(path);
    let content = new Uint8Array(64 << 10);
    for (;;) {
      const size = this.#unwrap(
        this.#native.read_file(name, name.length, content, content.length),
      );
      if (size <= content.length) return content.subarray(0, size);
      content = new Uint8Array(size);
    }
  }

  /** Watches these files and no others; whether one of them was not watched before. */
  watchFiles(paths: readonly string[]): boolean {
    const names = new TextEncoder().encode(paths.join("\0"));
    return this.#unwrap(this.#native.watch_files(names, names.length)) === 1;
  }

  /** Waits up to `timeout` milliseconds until a watched file has changed; whether one has. */
  async nextChange(timeout: number): Promise<boolean> {
    const changed = await this.#native.next_change(timeout);
    // The text of an error is on another thread.
    if (changed < 0) throw new NativeError(changed, "Cannot watch files for changes");
    return changed === 1;
  }

  /**
   * The addresses of a host name as `Endpoint`s with port 0, one or more, or why there are none. It may
   * take many seconds, in which nothing else waits.
   */
  async resolve(name: string, family: 4 | 6): Promise<Uint8Array<ArrayBuffer> | string> {
    const bytes = new TextEncoder().encode(name);
    const addresses = new Uint8Array(MOST_ADDRESSES * ENDPOINT.size);
    const why = new Uint8Array(256);
    const count = await this.#native.resolve(
      bytes,
      bytes.length,
      family,
      addresses,
      addresses.length,
      why,
      why.length,
    );
    if (count > 0) return addresses.subarray(0, count * ENDPOINT.size);
    const reason = new TextDecoder().decode(why).replace(/\0+$/, "");
    return reason === "" ? "the resolver failed" : reason;
  }

  /**
   * Tells the service manager assignments of sd_notify(3), one per line; a reload gets its time.
   *
   * @returns whether there is a service manager
   */
  notify(state: string): boolean {
    const text = new TextEncoder().encode(state);
    return this.#unwrap(this.#native.notify(text, text.length)) === 1;
  }

  /**
   * Makes the service manager's store hold the listening sockets of a proxy as they are now (FDSTORE). The
   * first call has what became of those that the store had from an earlier run.
   */
  storeListening(proxy: number): CameBack {
    const came = new Uint8Array(8);
    this.#unwrap(this.#native.store_listening(proxy, came, came.length));
    const [kept = 0, closed = 0] = new Uint32Array(came.buffer);
    return { kept, closed };
  }

  /** Milliseconds within which the service manager wants to hear of the program; 0: it does not ask. */
  watchdogMilliseconds(): number {
    return this.#native.watchdog_ms();
  }

  /** Holds a name in this network namespace, of 1 to 107 bytes, until the process ends or takes another. */
  holdName(name: string): void {
    const bytes = new TextEncoder().encode(name);
    this.#unwrap(this.#native.hold_name(bytes, bytes.length));
  }

  /** Whether standard error goes to systemd's journal. */
  stderrIsJournal(): boolean {
    return this.#native.stderr_is_journal() === 1;
  }

  /**
   * Prepares a proxy; its handle.
   *
   * @param config a `ProxyConfig`
   * @param predecessor from `takeOver`: its sockets are taken, and the workers wait for `finishTakeOver`
   */
  openProxy(config: Uint8Array<ArrayBuffer>, predecessor = 0): number {
    return this.#unwrap(this.#native.open_proxy(config, config.length, predecessor));
  }

  /** Hands relayed TCP connections of a proxy over to the kernel from here on. Call it before the sandbox. */
  startOffload(proxy: number): void {
    this.#unwrap(this.#native.start_offload(proxy));
  }

  /** Throws, with the reason, if the connections that a proxy hands over end with this program. */
  checkOutlives(proxy: number): void {
    this.#unwrap(this.#native.outlives_offload(proxy));
  }

  /**
   * Takes over the connections that earlier programs have left to the kernel: an `AdoptionRecord`. Call it before the
   * sandbox.
   */
  adoptOffload(proxy: number): Uint8Array<ArrayBuffer> {
    const record = new Uint8Array(ADOPTION.size);
    this.#unwrap(this.#native.adopt_offload(proxy, record, record.length));
    return record;
  }

  /** From here on, a proxy leaves connections to the kernel that need nothing of this program. */
  leaveOffload(proxy: number): void {
    this.#unwrap(this.#native.leave_offload(proxy));
  }

  /** Ends what `startOffload` began, after the workers; how many connections are left to the kernel. */
  endOffload(proxy: number): number {
    return this.#unwrap(this.#native.end_offload(proxy));
  }

  /** Throws, with the reason, if connections would end with a program that this process starts. */
  checkPins(): void {
    this.#unwrap(this.#native.check_pins());
  }

  /** Throws if this process may not load the BPF program of `startOffload`, or this kernel does not take it. */
  checkOffload(): void {
    this.#unwrap(this.#native.check_offload());
  }

  /** Opens one more worker; its handle. */
  openWorker(proxy: number): number {
    return this.#unwrap(this.#native.open_worker(proxy));
  }

  /**
   * Makes these all the listeners of a proxy: changes those that have a number, opens new ones, and closes
   * the others with a grace in milliseconds. All of it, or nothing.
   *
   * @param budgets what there may be at once, over all listeners
   * @returns their numbers, in order
   */
  configure(
    proxy: number,
    records: ConfigurationRecords,
    budgets: Limits,
    grace: number,
  ): number[] {
    const { listeners, ports, rules, destinations } = records;
    const ids = new Uint32Array(listeners.length / LISTENER.size);
    this.#unwrap(
      this.#native.configure(
        proxy,
        listeners,
        listeners.length,
        ports,
        ports.length,
        rules,
        rules.length,
        destinations,
        destinations.length,
        budgets.flows,
        budgets.connections,
        budgets.pipes,
        new Uint8Array(ids.buffer),
        ids.byteLength,
        grace,
      ),
    );
    return [...ids];
  }

  /**
   * Whether a connection or a flow still has a listener as one of the configurations `since` to `until` had
   * it, which a later one has replaced. The calls of `configure` that went well count from 1.
   */
  isListenerInUse(proxy: number, listener: number, since: number, until: number): boolean {
    return this.#unwrap(this.#native.listener_in_use(proxy, listener, since, until)) === 1;
  }

  /** Stops accepting, and ends what is left after the grace, in milliseconds. */
  stop(proxy: number, grace: number): void {
    this.#unwrap(this.#native.stop(proxy, grace));
  }

  /** Waits up to `timeout` milliseconds for events; how many were written to `events`. */
  async nextEvents(
    proxy: number,
    events: Uint8Array<ArrayBuffer>,
    timeout: number,
  ): Promise<number> {
    const room = events.length - events.length % EVENT.size;
    // The text of an error would lie on another thread; there is none that a caller can act on.
    const count = await this.#native.next_events(proxy, events, room, timeout);
    if (count < 0) throw new NativeError(count, "Cannot read the native core's events");
    return count;
  }

  /** Moves entries of the access log into `entries`; the bytes written, 0 when none waits. */
  nextAccess(proxy: number, entries: Uint8Array<ArrayBuffer>): number {
    return this.#unwrap(this.#native.next_access(proxy, entries, entries.length));
  }

  /** Throws unless this process may use the clients' addresses and, unless it is 0, the mark. */
  checkCapabilities(mark: number): void {
    this.#unwrap(this.#native.check_capabilities(mark));
  }

  /** Enters the sandbox, for good: a `SandboxRecord` says what holds. `request`: a `SandboxRequest`. */
  enterSandbox(request: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
    const record = new Uint8Array(SANDBOX.size);
    this.#unwrap(
      this.#native.enter_sandbox(request, request.length, record, record.length),
    );
    return record;
  }

  /** Puts in effect, on every thread, the capabilities that the process is permitted and has uses for. */
  raiseCapabilities(): void {
    this.#unwrap(this.#native.raise_capabilities());
  }

  /** Tries the sandbox and leaves this process as it is: a `SandboxRecord`. `request` as above. */
  rehearseSandbox(request: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
    const record = new Uint8Array(SANDBOX.size);
    this.#unwrap(
      this.#native.rehearse_sandbox(request, request.length, record, record.length),
    );
    return record;
  }

  /**
   * Throws where an upstream of these ports, of any number of listeners, is one of them, or where the
   * metrics are. `metrics`: an `Endpoint`, empty without them; `ports`: `PortRecord`s.
   */
  checkForwarding(metrics: Uint8Array<ArrayBuffer>, ports: Uint8Array<ArrayBuffer>): void {
    this.#unwrap(
      this.#native.check_forwarding(metrics, metrics.length, ports, ports.length),
    );
  }

  /** Throws unless this process can listen there. `address`: an `Endpoint`; `protocols`: their bits. */
  checkListen(address: Uint8Array<ArrayBuffer>, protocols: number): void {
    this.#unwrap(this.#native.check_listen(address, address.length, protocols));
  }

  /** The process that has a socket open, by its inode; 0 when this process may not see it. */
  socketOwner(inode: number): number {
    return this.#unwrap(this.#native.socket_owner(inode));
  }

  /**
   * Tries once to reach an upstream; `request` is a `Probe`, `payload` what is sent over UDP.
   *
   * @returns 0 when it was accepted or answered, otherwise the errno: ETIMEDOUT when nothing came
   */
  async probe(
    request: Uint8Array<ArrayBuffer>,
    payload: Uint8Array<ArrayBuffer>,
  ): Promise<number> {
    const outcome = await this.#native.probe(request, request.length, payload, payload.length);
    // The text of an error is on another thread; it would describe a mistake of the caller.
    if (outcome < 0) throw new NativeError(outcome, "Cannot probe the upstream");
    return outcome;
  }

  /**
   * Tries whether this host's own connection or datagram gets through to an address on which it listens or
   * could. `listen`: an `Endpoint`.
   *
   * @returns 0, or the errno: ETIMEDOUT when it was lost
   */
  async reachOwn(
    listen: Uint8Array<ArrayBuffer>,
    transport: "tcp" | "udp",
    timeout: number,
  ): Promise<number> {
    const isTcp = transport === "tcp" ? 1 : 0;
    const outcome = await this.#native.reach_own(listen, listen.length, isTcp, timeout);
    // The text of an error is on another thread; it would describe a mistake of the caller.
    if (outcome < 0) throw new NativeError(outcome, "Cannot try the listening address");
    return outcome;
  }

  /**
   * Asks every worker for the connections and flows of a selection, or has it close them.
   *
   * @param selection a `SelectionRecord`
   * @param records room for `ConnectionRecord`s
   * @returns a `SurveyRecord`: how many there were, and how many of them have a record
   */
  async survey(
    proxy: number,
    selection: Uint8Array<ArrayBuffer>,
    records: Uint8Array<ArrayBuffer>,
  ): Promise<Uint8Array<ArrayBuffer>> {
    const survey = new Uint8Array(SURVEY.size);
    const status = await this.#native.survey_connections(
      proxy,
      selection,
      selection.length,
      survey,
      survey.length,
      records,
      records.length,
    );
    // The text of an error is on another thread; it would describe a mistake of the caller.
    if (status < 0) throw new NativeError(status, "Cannot look at the connections");
    return survey;
  }

  /** Opens a control socket, or takes that of a predecessor, which accepts later; its handle. */
  openControl(path: string, predecessor = 0): number {
    const name = new TextEncoder().encode(path);
    return this.#unwrap(this.#native.open_control(name, name.length, predecessor));
  }

  /** From now on a control socket that was taken from a predecessor accepts. */
  acceptControl(control: number): void {
    this.#unwrap(this.#native.accept_control(control));
  }

  /** Forks the process that starts successors, which take over at this control socket. Before the sandbox. */
  openSpawner(control: string): void {
    const name = new TextEncoder().encode(control);
    this.#unwrap(this.#native.open_spawner(name, name.length));
  }

  /** Starts this program's command line again; the process. */
  startSuccessor(): number {
    return this.#unwrap(this.#native.start_successor());
  }

  /**
   * What the program that was started says on its standard error, within this many milliseconds; undefined
   * where it will say no more.
   */
  async successorWords(timeout: number): Promise<Uint8Array | undefined> {
    const words = new Uint8Array(4096);
    const count = await this.#native.successor_words(words, words.length, timeout);
    return count < 0 ? undefined : words.subarray(0, count);
  }

  /** Ends the program that was started, if it still runs; its status (wait(2)). */
  endSuccessor(): number {
    return this.#unwrap(this.#native.end_successor());
  }

  /** Hands over to whoever has made this request, with words for its `predecessorWords`. */
  async handOver(
    proxy: number,
    control: number,
    request: number,
    words: string,
  ): Promise<HandedOver> {
    const bytes = new TextEncoder().encode(words);
    const outcome = new Uint8Array(1024);
    const status = await this.#native.hand_over(
      proxy,
      control,
      request,
      bytes,
      bytes.length,
      outcome,
      outcome.length,
    );
    const [process = 0, sockets = 0, flows = 0, pausedMs = 0] = told(status, outcome);
    return { process, sockets, flows, pausedMs };
  }

  /** Tells the program that has taken over that all is done here. */
  finishHandOver(proxy: number): void {
    this.#unwrap(this.#native.finish_hand_over(proxy));
  }

  /**
   * Asks the program at a control socket, with a line without its end, to hand over; a handle, or undefined
   * if nobody answers.
   */
  takeOver(path: string, line: string): number | undefined {
    const [name, request] = [new TextEncoder().encode(path), new TextEncoder().encode(line)];
    const handle = this.#unwrap(
      this.#native.take_over(name, name.length, request, request.length),
    );
    return handle || undefined;
  }

  /** What the predecessor's program gave `handOver`. */
  predecessorWords(predecessor: number): string {
    const words = new Uint8Array(MOST_WORDS);
    const length = this.#unwrap(
      this.#native.predecessor_words(predecessor, words, words.length),
    );
    return new TextDecoder().decode(words.subarray(0, length));
  }

  /** Has the predecessor of a proxy hand over, and the workers read; how many UDP flows came. */
  async finishTakeOver(proxy: number): Promise<number> {
    const outcome = new Uint8Array(1024);
    const status = await this.#native.finish_take_over(proxy, outcome, outcome.length);
    const [flows = 0] = told(status, outcome);
    return flows;
  }

  /**
   * Waits up to `timeout` milliseconds for a request at a control socket; undefined when none came, or the
   * socket was closed.
   */
  async nextRequest(control: number, timeout: number): Promise<ControlRequest | undefined> {
    const request = new Uint8Array(MOST_REQUEST);
    const length = await this.#native.next_request(control, request, request.length, timeout);
    if (length < 0) throw new NativeError(length, "Cannot read from the control socket");
    if (length === 0) return undefined;
    const [id = 0] = new Uint32Array(request.buffer, 0, 1);
    return { id, line: new TextDecoder().decode(request.subarray(4, length)) };
  }

  /** Answers a request with a line, given without its end. */
  answerRequest(control: number, request: number, line: string): void {
    const answer = new TextEncoder().encode(line);
    this.#unwrap(this.#native.answer_request(control, request, answer, answer.length));
  }

  /** Closes a control socket. */
  closeControl(control: number): void {
    this.#unwrap(this.#native.close_control(control));
  }

  /** Asks the program at a control socket, with a line without its end; its answer, likewise. */
  async askControl(path: string, line: string, timeout: number): Promise<string> {
    const [name, request] = [new TextEncoder().encode(path), new TextEncoder().encode(line)];
    const answer = new Uint8Array(MOST_ANSWER);
    const length = await this.#native.ask_control(
      name,
      name.length,
      request,
      request.length,
      answer,
      answer.length,
      timeout,
    );
    const end = length < 0 ? answer.indexOf(0) : length;
    const text = new TextDecoder().decode(answer.subarray(0, end));
    if (length < 0) throw new NativeError(length, text);
    return text;
  }

  /** The counters of a listener as they are now; with 0, the default, those of the proxy. */
  stats(proxy: number, listener = 0): Stats {
    const values = new BigUint64Array(STATS_LENGTH);
    this.#unwrap(
      this.#native.stats(proxy, listener, new Uint8Array(values.buffer), values.byteLength),
    );
    return new Stats(values);
  }

  /** What this process uses of the system now. */
  usage(): Usage {
    const record = new Uint8Array(USAGE.size);
    this.#unwrap(this.#native.process_usage(record, record.length));
    return decodeUsage(record);
  }

  /** Returns the memory to the kernel that the start needed. */
  releaseMemory(): void {
    this.#unwrap(this.#native.release_memory());
  }

  /** The rules that look in a routing table, and its routes: `RoutingRecord`s. */
  listRouting(table: number): Uint8Array<ArrayBuffer> {
    let records = new Uint8Array(16 * ROUTING.size);
    for (;;) {
      const count = this.#unwrap(this.#native.list_routing(table, records, records.length));
      const size = count * ROUTING.size;
      if (size <= records.length) return records.subarray(0, size);
      records = new Uint8Array(size);
    }
  }

  /** Adds a rule or a route. `record`: a `RoutingRecord`. */
  addRouting(record: Uint8Array<ArrayBuffer>): void {
    this.#unwrap(this.#native.add_routing(record, record.length));
  }

  /** Removes a rule or a route, if it is there. `record`: a `RoutingRecord` as it was listed. */
  removeRouting(record: Uint8Array<ArrayBuffer>): void {
    this.#unwrap(this.#native.remove_routing(record, record.length));
  }

  /** How this host reaches an address: a `ReachRecord`. `address`: an `Endpoint`. */
  findReach(address: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
    const reach = new Uint8Array(REACH.size);
    this.#unwrap(this.#native.find_reach(address, address.length, reach, reach.length));
    return reach;
  }

  /** Which way a reply to a client takes: a `ReplyRecord`. `query`: a `ReplyQuery`. */
  findReply(query: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
    const reply = new Uint8Array(REPLY.size);
    this.#unwrap(this.#native.find_reply(query, query.length, reply, reply.length));
    return reply;
  }

  /** Whether nftables has a rule with tproxy. Throws a `NativeError` without CAP_NET_ADMIN. */
  hasTproxy(): boolean {
    return this.#unwrap(this.#native.has_tproxy()) === 1;
  }

  /** Whether an interface is up. */
  isLinkUp(name: string): boolean {
    const bytes = new TextEncoder().encode(name);
    return this.#unwrap(this.#native.link_is_up(bytes, bytes.length)) === 1;
  }

  /** Sets a kernel parameter, named as a path below /proc/sys. */
  setSysctl(name: string, value: number): void {
    const bytes = new TextEncoder().encode(name);
    this.#unwrap(this.#native.set_sysctl(bytes, bytes.length, value));
  }

  #unwrap(code: number): number {
    if (code >= Status.ok) return code;
    throw new NativeError(code, lastError(this.#native));
  }
}

/** The sentence of this thread's last failed call. */
export function lastError(native: Pick<NativeSymbols, "last_error">): string {
  const text = new Uint8Array(1024);
  const length = native.last_error(text, text.length);
  return new TextDecoder().decode(text.subarray(0, Math.min(length, text.length)));
}
