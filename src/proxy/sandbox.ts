/** The sandbox: the privileges that the process gives up after its start (docs/sandbox.md). */
import type { ListenerConfig, ProxyConfig } from "../config/model.ts";
import { LITTLE_ENDIAN } from "../config/options.ts";
import { errorText } from "../log/events.ts";
import type { Log } from "../log/log.ts";
import { SANDBOX, Sandbox, SANDBOX_REQUEST } from "../native/layout.ts";
import type { Library } from "../native/library.ts";
import { StartError } from "./start_error.ts";

/** `set`: by this program; `held`: already in force before; `missing`: not available. */
export type Outcome = keyof typeof Sandbox;

/** What came of each mechanism. */
export interface SandboxResult {
  readonly mechanisms: Readonly<Record<Mechanism, { outcome: Outcome; errno: number }>>;
  /** What is left, as bits (capabilities(7)). */
  readonly capabilities: bigint;
}

/** In the order in which they are set; the names of the record's fields. */
const MECHANISMS = ["no_new_privileges", "lowered", "files", "filter"] as const;
type Mechanism = (typeof MECHANISMS)[number];

/** What is missing, where it is. */
const MISSING: Record<Mechanism, string> = {
  no_new_privileges: "no_new_privs cannot be set",
  lowered: "capabilities cannot be dropped",
  files: "files open for writing cannot be reopened read-only",
  filter: "system calls cannot be filtered",
};

/** Linux's names in the order of their bits (linux/capability.h). */
const CAPABILITIES = (
  "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable " +
  "net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot " +
  "sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease " +
  "audit_write audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read " +
  "perfmon bpf checkpoint_restore"
).split(" ");

/** What a run does later that takes privileges. */
export interface Needs extends Pick<ListenerConfig, "mark">, Pick<ProxyConfig, "autoRoutes"> {
  /** Connections are handed over to the kernel. */
  readonly offload: boolean;
}

/** The `SandboxRequest` of these options. */
export function encodeRequest(
  { mark, autoRoutes, offload }: Needs,
): Uint8Array<ArrayBuffer> {
  const record = new Uint8Array(SANDBOX_REQUEST.size);
  const view = new DataView(record.buffer);
  view.setUint32(SANDBOX_REQUEST.mark, mark, LITTLE_ENDIAN);
  view.setUint32(SANDBOX_REQUEST.routing, autoRoutes ? 1 : 0, LITTLE_ENDIAN);
  view.setUint32(SANDBOX_REQUEST.offload, offload ? 1 : 0, LITTLE_ENDIAN);
  return record;
}

/** Reads a `SandboxRecord`. */
export function decodeResult(record: Uint8Array<ArrayBuffer>): SandboxResult {
  const view = new DataView(record.buffer, record.byteOffset);
  const outcomes = Object.keys(Sandbox) as Outcome[];
  const mechanism = (name: Mechanism): [Mechanism, { outcome: Outcome; errno: number }] => {
    const code = view.getUint32(SANDBOX[name], LITTLE_ENDIAN);
    const errno = view.getInt32(SANDBOX[`${name}_errno`], LITTLE_ENDIAN);
    return [name, {
      outcome: outcomes.find((outcome) => Sandbox[outcome] === code) ?? "missing",
      errno,
    }];
  };
  return {
    mechanisms: Object.fromEntries(
      MECHANISMS.map(mechanism),
    ) as unknown as SandboxResult["mechanisms"],
    capabilities: view.getBigUint64(SANDBOX.capabilities, LITTLE_ENDIAN),
  };
}

/** The names of capabilities, as `CAP_NET_RAW`, in the order of their bits. */
export function capabilityNames(bits: bigint): string[] {
  return Array.from({ length: 64 }, (_, bit) => bit)
    .filter((bit) => bits >> BigInt(bit) & 1n)
    .map((bit) => `CAP_${(CAPABILITIES[bit] ?? String(bit)).toUpperCase()}`);
}

/** The mechanisms in force, as a list for a sentence; "(already)" marks those that the environment had set. */
export function whatHolds({ mechanisms, capabilities }: SandboxResult): string {
  const names = capabilityNames(capabilities).join(" and ");
  const words: Record<Mechanism, string> = {
    no_new_privileges: "no new privileges",
    lowered: names ? `no capability except ${names}` : "no capability",
    files: "no file open for writing",
    filter: "system calls filtered",
  };
  const held = MECHANISMS.filter((name) => mechanisms[name].outcome !== "missing");
  // That no file was open for writing is no merit of the surroundings.
  const said = held.map((name) =>
    name !== "files" && mechanisms[name].outcome === "held"
      ? `${words[name]} (already)`
      : words[name]
  );
  return said.join(", ") || "nothing";
}

/** The missing mechanisms with their reasons, as a list for a sentence; empty if nothing is missing. */
export function whatIsMissing({ mechanisms }: SandboxResult): string {
  return MECHANISMS.filter((name) => mechanisms[name].outcome === "missing")
    .map((name) => `${MISSING[name]}: ${errorText(mechanisms[name].errno)}`)
    .join(", ");
}

/**
 * Enters the sandbox that `--sandbox` requests, and logs what holds.
 *
 * @throws {StartError} with `on`, where something is missing
 */
export function enterSandbox(
  options: Needs & Pick<ProxyConfig, "sandbox">,
  library: Pick<Library, "enterSandbox">,
  log: Log,
): void {
  if (options.sandbox === "off") {
    log("info", "Sandbox: off", { event: "sandbox", sandbox: "off" });
    return;
  }
  const result = decodeResult(library.enterSandbox(encodeRequest(options)));
  const missing = whatIsMissing(result);
  if (missing && options.sandbox === "on") {
    throw new StartError(
      `Option --sandbox on: ${missing}; allow it in this environment, or use --sandbox auto (docs/sandbox.md)`,
      { lasting: true },
    );
  }
  const details = {
    event: "sandbox",
    sandbox: Object.fromEntries(
      MECHANISMS.map((name) => [name, result.mechanisms[name].outcome]),
    ),
    capabilities: capabilityNames(result.capabilities),
  };
  const holds = whatHolds(result);
  if (missing) {
    log(
      "warn",
      `Sandbox: incomplete: ${missing}; see docs/sandbox.md. In force: ${holds}`,
      details,
    );
  } else {
    log("info", `Sandbox: ${holds}`, details);
  }
}
