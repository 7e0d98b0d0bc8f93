/**
 * A network of the tests' own: a user and a network namespace in which any user may set routes and
 * open transparent sockets. Nothing that is sent inside leaves it. Root can do without the user
 * namespace, for tests that need more than one user.
 */

/** What the README requests, run inside the namespace. */
export const SETUP = [
  "ip link set lo up",
  "ip rule add from 127.0.0.1/8 iif lo table 123",
  "ip route add local 0.0.0.0/0 dev lo table 123",
  "ip -6 rule add from ::1/128 iif lo table 123",
  "ip -6 route add local ::/0 dev lo table 123",
];

/** Debian keeps `ip` and most servers where a normal user's PATH does not look. */
export const SEARCH_PATH = [
  Deno.env.get("PATH") ?? "/usr/bin:/bin",
  "/usr/local/sbin:/usr/sbin:/sbin",
].join(":");

/** What any user needs to make one, and what allows it where it is forbidden. */
export const USER_NAMESPACES =
  "user namespaces (sysctl kernel.unprivileged_userns_clone=1, and on Ubuntu " +
  "kernel.apparmor_restrict_unprivileged_userns=0)";

/** Whose namespace it is: anyone's, where the command is root but has no other users; or root's. */
export type Owner = "anyone" | "root";

/**
 * Runs a command in a new network namespace that has the README's routing rules.
 *
 * @returns the command's exit code.
 * @throws {Error} when the machine cannot make such a namespace; the message says what is missing.
 */
export async function runInNamespace(command: string[], owner: Owner = "anyone"): Promise<number> {
  await checkNamespaces(owner);
  const script = ["set -e", ...SETUP, 'exec "$@"'].join("\n");
  const child = unshare(owner, ["sh", "-c", script, "namespace", ...command], "inherit").spawn();
  return await exitCode(child);
}

async function checkNamespaces(owner: Owner): Promise<void> {
  const script = ["set -e", ...SETUP].join("\n");
  let output: Deno.CommandOutput;
  try {
    output = await unshare(owner, ["sh", "-c", script], "piped").output();
  } catch (cause) {
    throw new Error("Could not run unshare; install util-linux", { cause });
  }
  if (output.success) return;
  const reason = new TextDecoder().decode(output.stderr).trim();
  throw new Error(
    `Could not make a network namespace: ${reason}. This needs iproute2, IPv6 and ${USER_NAMESPACES}`,
  );
}

function unshare(owner: Owner, command: string[], stdio: "inherit" | "piped"): Deno.Command {
  const user = owner === "anyone" ? ["--user", "--map-root-user"] : [];
  return new Deno.Command("unshare", {
    args: [...user, "--net", ...command],
    env: { PATH: SEARCH_PATH },
    stdin: "null",
    stdout: stdio,
    stderr: stdio,
  });
}

/** Waits for a child that is this program again, only elsewhere: its exit code is ours. */
export async function exitCode(child: Deno.ChildProcess): Promise<number> {
  // Ctrl-C reaches the whole group; the child decides, and this process reports its exit.
  const ignore = () => {};
  Deno.addSignalListener("SIGINT", ignore);
  try {
    return (await child.status).code;
  } finally {
    Deno.removeSignalListener("SIGINT", ignore);
  }
}
