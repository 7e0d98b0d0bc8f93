/** The commands of the documentation's pages, as they are printed, and which of them no test runs. */
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../..", import.meta.url));

/** Every page with commands, by its path in the repository; not the notes of decisions. */
export function pages(): string[] {
  const below = (folder: string): string[] =>
    [...Deno.readDirSync(ROOT + folder)].flatMap(({ name, isDirectory }) => {
      const path = `${folder}/${name}`;
      if (isDirectory) return name === "decisions" ? [] : below(path);
      return name.endsWith(".md") ? [path] : [];
    }).sort();
  return ["README.md", "CONTRIBUTING.md", "SECURITY.md", ...below("docs")];
}

export function textOf(page: string): Promise<string> {
  return Deno.readTextFile(ROOT + page);
}

/** The `sh` blocks of a page, in its order. */
export async function blocksOf(page: string): Promise<string[]> {
  const text = await textOf(page);
  return [...text.matchAll(/^```sh\n([^]*?)^```/gm)].map(([, block = ""]) => block);
}

/** The commands of a block: a line each, but for continued lines and here-documents. */
export function commandsOf(block: string): string[] {
  const commands: string[] = [];
  let end: string | undefined;
  let isOpen = false;
  for (const line of block.split("\n")) {
    if (isOpen) commands.push(`${commands.pop()}\n${line}`);
    else if (line !== "" && !line.startsWith("#")) commands.push(line);
    if (end === undefined) end = /<<'?(\w+)'?$/.exec(line)?.[1];
    else if (line === end) end = undefined;
    isOpen = end !== undefined || line.endsWith("\\");
  }
  return commands;
}

/** Blocks that another test runs, by what they contain. */
export const ELSEWHERE: readonly (readonly [page: string, contains: string, test: string])[] = [
  ["README.md", "address=X.X.X.X", "tests/e2e/readme_test.ts"],
  ["docs/systemd.md", "systemctl enable --now mmproxy", "tests/root/pages_test.ts"],
  ["docs/containers.md", "docker build", "tests/root/support/images.ts"],
  ["docs/containers.md", "docker run --detach", "tests/root/pages_test.ts"],
  ["docs/containers.md", "docker exec", "tests/root/pages_test.ts"],
  ["docs/containers.md", "--network=container:web", "tests/root/pod_test.ts"],
  ["docs/upgrade.md", "docker run --detach", "tests/root/pages_test.ts"],
  ["docs/upgrade.md", "tar xf", "tests/root/package_test.ts"],
  ["docs/install.md", "dpkg --install", "tests/root/package_test.ts"],
  ["docs/install.md", "tar xf", "tests/root/package_test.ts"],
];

/** Commands that no test runs, and why. */
export const NOT_RUN: readonly (readonly [command: RegExp, reason: string])[] = [
  [/…/, "is not complete: … stands for what is the reader's"],
  [/^npx -y deno task demo\b/, "is a step of deno task test"],
  [/^(npx -y )?deno task (test|ok|dist|bench)\b/, "runs for minutes; CI runs its parts"],
  [/^(sudo )?deno (run|test|bench) /, "is for developers, and starts the tests or a measurement"],
  [/^cargo test /, "is a test itself"],
  [/^helm lint /, "runs in tests/manifests, with actionlint"],
  [/^helm install /, "needs a cluster; tests/manifests renders and validates the chart"],
  [/^kubectl /, "needs a cluster; tests/manifests validates the manifests"],
  [/ > deploy\/subnets /, "is for Docker Compose"],
  [/^docker compose /, "needs Docker Compose; tests/root/pod_test.ts starts its containers"],
  [/^cosign /, "needs a published release and its signature"],
  [/^sha256sum --check /, "needs a download; the release workflow checks the same file"],
  [/^ssh /, "needs another host"],
];

/** Why no test runs a command, if none does. */
export function reasonNotToRun(command: string): string | undefined {
  return NOT_RUN.find(([pattern]) => pattern.test(command))?.[1];
}

/** The test that runs a block, if it is not `pages_test.ts`. */
export function otherTestOf(page: string, block: string): string | undefined {
  return ELSEWHERE.find(([where, contains]) => where === page && block.includes(contains))?.[2];
}
