/** Programs to which the kernel refuses some system calls; without_calls.py has their names. */
import { join } from "node:path";

/** A shell command that becomes the program without these system calls. */
export function without(...calls: string[]): string {
  const script = join(import.meta.dirname ?? "", "without_calls.py");
  return `exec python3 '${script}' ${calls.join(",")} "$@"`;
}
