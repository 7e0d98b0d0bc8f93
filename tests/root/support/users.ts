/** The program as a user who is not root. */
import { layOut } from "../../../deploy/release.ts";
import type { Start } from "../../e2e/support/program.ts";
import type { Scratch } from "../../e2e/support/real_peers.ts";

/** A release and Deno, where every user reaches them. */
export async function installedFor(scratch: Scratch): Promise<{ root: string; deno: string }> {
  const root = `${scratch.path}/mmproxy`;
  const deno = `${scratch.path}/deno`;
  await Deno.chmod(scratch.path, 0o755);
  await layOut(root);
  await Deno.copyFile(Deno.execPath(), deno);
  return { root, deno };
}

/** How the program is started as a user, with these capabilities and no way to others. */
export function asUser(
  user: number,
  { root, deno }: { root: string; deno: string },
  capabilities: string,
): Start {
  const sets = ["inh-caps", "ambient-caps", "bounding-set"].map((set) =>
    `--${set}=-all${capabilities}`
  );
  const identity = `--reuid=${user} --regid=${user} --clear-groups`;
  return {
    root,
    deno,
    shell: `export HOME=/proc/nowhere; exec setpriv ${identity} ${sets.join(" ")} "$@"`,
  };
}
