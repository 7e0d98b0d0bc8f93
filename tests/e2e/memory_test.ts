import assert from "node:assert/strict";
import { Program } from "./support/program.ts";
import { eventually } from "./support/time.ts";

/** Many: what else differs between two runs, such as the engine's heaps, is shared out over them. */
const WORKERS = 16;
const MIB = 1 << 20;

/** Bytes that the kernel accounts for, used or not (proc(5), VmFlags: `ac`): vm.overcommit_memory=2. */
function accounted(pid: number): number {
  let [sum, size] = [0, 0];
  for (const line of Deno.readTextFileSync(`/proc/${pid}/smaps`).split("\n")) {
    const [, kilobytes] = /^Size:\s+(\d+) kB$/.exec(line) ?? [];
    if (kilobytes !== undefined) size = 1024 * Number(kilobytes);
    if (/^VmFlags:.* ac\b/.test(line)) sum += size;
  }
  return sum;
}

/** Bytes of a process's program file that are mapped, and are as they are in the file. */
function mapped(pid: number): number {
  const program = Deno.readLinkSync(`/proc/${pid}/exe`);
  let [sum, isProgram] = [0, false];
  for (const line of Deno.readTextFileSync(`/proc/${pid}/smaps`).split("\n")) {
    if (/^[0-9a-f]+-/.test(line)) isProgram = / r-[x-]p /.test(line) && line.endsWith(program);
    const [, kilobytes] = /^Rss:\s+(\d+) kB$/.exec(line) ?? [];
    if (isProgram && kilobytes !== undefined) sum += 1024 * Number(kilobytes);
  }
  return sum;
}

Deno.test("memory: what the start alone needed of Deno is not resident afterwards", async () => {
  await using program = await Program.start({ args: ["--sandbox", "on"] });
  // The test's own process is Deno as well. It needs more of it, and no start ends with less than half.
  const whole = mapped(Deno.pid);
  assert.ok(whole > 20 * MIB, `${whole / MIB} MiB of the test's`);
  await eventually(() => mapped(program.pid) < whole / 2, "fewer pages of Deno's file");
});

Deno.test("memory: what is accounted for a UDP worker before its first datagram is little", async () => {
  const start = (protocol: string) =>
    Program.start({ args: ["-p", protocol, "--workers", `${WORKERS}`] });
  await using tcp = await start("tcp");
  await using udp = await start("udp");
  const each = (accounted(udp.pid) - accounted(tcp.pid)) / WORKERS;
  // Most of it are 64 buffers for long datagrams; it was 45 MiB.
  assert.ok(each > 2 * MIB && each < 16 * MIB, `${each / MIB} MiB`);
});
