/**
 * docs/flags.md and the README's table of flags, from the table of options: writes them with `--write`, or
 * says whether what is checked in is stale: `deno run -A tests/flags_page.ts [--write]`.
 */
import { fileURLToPath } from "node:url";
import { type Key, OPTIONS, type Row, ROWS } from "../src/cli/options.ts";

const PAGE = fileURLToPath(new URL("../docs/flags.md", import.meta.url));
const README = fileURLToPath(new URL("../README.md", import.meta.url));

/** Those that most runs have, in the README. */
const COMMON: readonly Key[] = [
  "listen",
  "ipv4",
  "ipv6",
  "allowedSubnets",
  "protocol",
  "autoRoutes",
  "workers",
  "mark",
  "udpHeader",
  "logLevel",
  "metricsAddr",
  "control",
];

/** Where docs/ has more about an option. */
const MORE: Partial<Record<Key, string>> = {
  listen: "config.md#addresses",
  ipv4: "config.md#upstreams",
  ipv6: "config.md#upstreams",
  allowedSubnets: "trust.md",
  mark: "routes.md",
  keepalive: "connections.md",
  idleTimeout: "connections.md",
  udpHeader: "recipes/game-server.md",
  logLevel: "logs.md",
  autoRoutes: "routes.md",
  watch: "config.md#reload",
  table: "routes.md",
  sandbox: "sandbox.md",
  metricsAddr: "metrics.md",
  control: "control.md",
  upgradeDrain: "upgrade.md",
  takeOver: "upgrade.md",
};

/** Of every command line, and of no configuration. */
const OTHERS =
  `| \`--config <path>\` | | a [configuration file](config.md) with any number of listeners |
| \`-h, --help\` | | print the help |
| \`--version\` | | print the version |
`;

const HEAD = "| flag | default | |\n|---|---|---|\n";

function cells(key: Key, row: Row, docs: string): string {
  const flags = [row, ...row.alias ? [row.alias] : []].map(({ flags }) => `\`${flags}\``);
  const more = MORE[key] === undefined ? "" : `. [More](${docs}${MORE[key]})`;
  const value = row.default === undefined ? "" : `\`${row.default}\``;
  // In Markdown a placeholder would be a tag, and a bar a cell's end.
  const help = row.help.replaceAll("<", "&lt;").replaceAll("|", "\\|");
  return `| ${flags.join(", ")} | ${value} | ${help}${more} |\n`.replaceAll("|  |", "| |");
}

function rowsOf(of: Row["of"]): string {
  return ROWS.filter(([, row]) => row.of === of).map(([key, row]) => cells(key, row, "")).join("");
}

/** The text of docs/flags.md. */
function pageText(): string {
  return `# Flags

<!-- Generated from src/cli/options.ts by deno task flags. -->

Each is also a key of the [configuration file](config.md), under its long name. With \`--config\` the file says
what a listener does, and flags of the proxy go before its keys. \`mmproxy doctor\`, \`routes\` and \`check\` take the
flags of a run; \`mmproxy <command> --help\` shows those that they use.

## Of the listener

${HEAD}${rowsOf("listener")}
## Of the proxy

${HEAD}${rowsOf("proxy")}
## Others

${HEAD}${OTHERS}`;
}

/** A README with the table between its two comments. */
function readmeText(before: string): string {
  const rows = COMMON.map((key) => cells(key, OPTIONS[key], "docs/")).join("");
  const block = /(<!-- Generated: deno task flags\. -->\n)[^]*?(<!-- End of the flags\. -->\n)/;
  if (!block.test(before)) throw new Error("README.md has no place for its table of flags");
  return before.replace(block, (_, start, end) => start + HEAD + rows + end);
}

/** The generated files: path, and what it must hold. */
export async function generated(): Promise<[path: string, text: string][]> {
  return [[PAGE, pageText()], [README, readmeText(await Deno.readTextFile(README))]];
}

if (import.meta.main) {
  for (const [path, text] of await generated()) {
    if (Deno.args.includes("--write")) {
      await Deno.writeTextFile(path, text);
    } else if (await Deno.readTextFile(path) !== text) {
      console.error(`${path} is stale: run deno task flags`);
      Deno.exit(1);
    }
  }
}
