/** This process's use of resources, read by the native core. */
import { LITTLE_ENDIAN } from "../config/options.ts";
import { USAGE } from "./layout.ts";

/** Memory, descriptors and CPU time of the process, at one moment. */
export interface Usage {
  readonly virtualBytes: number;
  readonly residentBytes: number;
  /** Open descriptors, and the limit in force (RLIMIT_NOFILE). */
  readonly openFiles: number;
  readonly fileLimit: number;
  /** User and system time of all threads. */
  readonly cpuSeconds: number;
}

/** Reads a `UsageRecord`. */
export function decodeUsage(record: Uint8Array<ArrayBuffer>): Usage {
  const view = new DataView(record.buffer, record.byteOffset, USAGE.size);
  const number = (offset: number) => Number(view.getBigUint64(offset, LITTLE_ENDIAN));
  return {
    virtualBytes: number(USAGE.virtual_bytes),
    residentBytes: number(USAGE.resident_bytes),
    openFiles: number(USAGE.open_files),
    fileLimit: number(USAGE.file_limit),
    cpuSeconds: number(USAGE.cpu_us) / 1_000_000,
  };
}
