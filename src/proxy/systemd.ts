/**
 * Notifications to systemd: ready, reloading, stopping, watchdog (sd_notify(3)). Without a service manager nothing happens.
 * A failed notification is logged once and stops nothing.
 */
import type { Log } from "../log/log.ts";
import { type Library, NativeError } from "../native/library.ts";

/** What is needed of the native core. */
type Native = Pick<Library, "notify" | "storeListening" | "watchdogMilliseconds">;

/** Messages per watchdog interval, so that a late one does no harm. */
const SIGNS_AN_INTERVAL = 4;
/** What an end takes when the last connection is gone: removing routes, the log's last lines. */
const TO_END_S = 10;

/** The service manager's end of the line. */
export class ServiceManager {
  readonly #native: Native;
  readonly #log: Log;
  readonly #proxy: number;
  /** What `ready` told; `undefined` before it, and from `stopping` on. */
  #status: string | undefined;
  #failed = false;
  #watchdog: ReturnType<typeof setInterval> | undefined;

  /** @param proxy whose listening sockets are to outlive the program */
  constructor(native: Native, log: Log, proxy: number) {
    this.#native = native;
    this.#log = log;
    this.#proxy = proxy;
  }

  /**
   * The listeners serve. The service manager gets their sockets, and keeps them for the next run. `status`: one
   * line for `systemctl status`.
   */
  ready(status: string): void {
    this.#status = status;
    // Not before: of a program that takes over, systemd hears once it is the service.
    this.#store();
    this.#tell("READY=1", `STATUS=${status}`);
  }

  /**
   * The end has begun. `status` as for `ready`.
   *
   * @param seconds how long it may take, beside what the service manager grants anyway (TimeoutStopSec)
   */
  stopping(status: string, seconds: number): void {
    this.#status = undefined;
    const microseconds = (seconds + TO_END_S) * 1_000_000;
    this.#tell("STOPPING=1", `EXTEND_TIMEOUT_USEC=${microseconds}`, `STATUS=${status}`);
  }

  /**
   * Runs a reload, around which the service manager knows that it continues. Whether it came to anything
   * is the log's to say: the service is ready either way. One that comes before the service is ready, or
   * while it stops, is nothing to tell.
   *
   * @param status the status line afterwards
   */
  async reload<T>(reload: () => Promise<T>, status: () => string): Promise<T> {
    if (this.#status === undefined) return await reload();
    this.#tell("RELOADING=1", "STATUS=Reloading");
    try {
      return await reload();
    } finally {
      // It may have begun to stop meanwhile.
      if (this.#status !== undefined) this.ready(status());
    }
  }

  /**
   * From now on sends watchdog messages, if the service manager requests them, while `well()` is true.
   * Without them it ends the program and starts it again (systemd.service(5), WatchdogSec).
   */
  watch(well: () => boolean): void {
    const interval = this.#native.watchdogMilliseconds();
    if (interval === 0) return;
    const sign = () => {
      if (well()) this.#tell("WATCHDOG=1");
    };
    sign();
    this.#watchdog = setInterval(sign, Math.max(1, Math.floor(interval / SIGNS_AN_INTERVAL)));
  }

  /** Another process is the service from now on: this one tells nothing more. */
  handOver(process: number): void {
    this.close();
    this.#tell(`MAINPID=${process}`);
    this.#status = undefined;
  }

  /** Gives no more signs of life. */
  close(): void {
    clearInterval(this.#watchdog);
  }

  #store(): void {
    this.#attempt(() => {
      const { kept, closed } = this.#native.storeListening(this.#proxy);
      if (kept + closed === 0) return;
      const rest = closed > 0 ? `; closed ${closed} that no listener uses` : "";
      const sockets = kept === 1 ? "1 listening socket" : `${kept} listening sockets`;
      this.#log("info", `Resumed ${sockets} from the service manager's store${rest}`, {
        event: "sockets_kept",
        value: kept,
        closed,
      });
    });
  }

  #tell(...assignments: readonly string[]): void {
    this.#attempt(() => this.#native.notify(assignments.map(oneLine).join("\n")));
  }

  #attempt(telling: () => void): void {
    try {
      telling();
    } catch (error) {
      if (!(error instanceof NativeError)) throw error;
      if (this.#failed) return;
      this.#failed = true;
      this.#log("warn", `${error.message}; the service manager may treat this as a failed start`, {
        event: "notify_failed",
        error: error.message,
      });
    }
  }
}

/** A line feed would begin another assignment. */
function oneLine(assignment: string): string {
  return assignment.replaceAll("\n", " ");
}
