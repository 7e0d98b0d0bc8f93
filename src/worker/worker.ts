/**
 * The life of a worker: it opens the library, warms up its decoder, and runs one blocking call until its proxy stops. It runs from a blob: URL (see worker_source.ts), so it imports only
 * modules that are linked there.
 */
import { Action, Refusal, SCRATCH_SIZE } from "../native/layout.ts";
import { symbols } from "../native/symbols.ts";
import { createDecoder, warmUp } from "../decide/proxy_header.ts";
import { Verdict } from "../decide/verdict.ts";

/** What the main isolate asks of a worker. */
export interface Assignment {
  readonly library: string;
  /** The worker's handle. */
  readonly worker: number;
}

/** What a worker tells: it is about to serve; it has returned with a status and, if below zero, why. */
export type Report =
  | { readonly kind: "ready" }
  | { readonly kind: "ended"; readonly status: number; readonly error: string };

/** Each export that is opened takes 0.2 ms and memory: a worker opens those that it calls. */
const { last_error, scratch, serve: run } = symbols;

function serve({ library, worker }: Assignment): Report {
  const native = Deno.dlopen(library, { last_error, scratch, serve: run }).symbols;
  const address = native.scratch(worker);
  if (address === null) return { kind: "ended", status: -1, error: `No worker ${worker}` };
  const region = Deno.UnsafePointerView.getArrayBuffer(address, SCRATCH_SIZE);
  const decode = createDecoder(region);
  warmUp(region, decode);
  const verdict = new Verdict(region);
  const onHeader = new Deno.UnsafeCallback(
    { parameters: ["u32", "u32"], result: "u32" },
    (length, carrier) => {
      try {
        return decode(length, carrier);
      } catch {
        // Deno ignores what a callback throws; a failed decoder must refuse the header.
        verdict.refuse(Refusal.decoder);
        return Action.drop;
      }
    },
  );
  post({ kind: "ready" });
  const status = native.serve(worker, onHeader.pointer);
  onHeader.close();
  const text = new Uint8Array(1024);
  const length = status < 0 ? native.last_error(text, text.length) : 0;
  const error = new TextDecoder().decode(text.subarray(0, Math.min(length, text.length)));
  return { kind: "ended", status, error };
}

function post(report: Report): void {
  self.postMessage(report);
}

// The types of a worker's global scope are not in Deno's default library.
declare const self: {
  onmessage: ((message: MessageEvent<Assignment>) => void) | null;
  postMessage(report: Report): void;
  close(): void;
};

if (typeof self.postMessage === "function") {
  self.onmessage = ({ data }) => {
    try {
      post(serve(data));
    } catch (error) {
      // Uncaught, Deno would print it past the log.
      post({ kind: "ended", status: -1, error: String(error) });
    }
    self.close();
  };
}
