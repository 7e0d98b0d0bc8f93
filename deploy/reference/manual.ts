/** `mmproxy(1)` and `mmproxy.toml(5)`. */
import type { CommandInfo, OptionInfo } from "./commands.ts";
import { Page } from "./roff.ts";

/** A key of the configuration, as JSON Schema has it. */
export interface KeySchema {
  readonly type?: string;
  readonly description?: string;
  readonly default?: unknown;
  readonly const?: unknown;
  readonly enum?: readonly unknown[];
  readonly minimum?: number;
  readonly maximum?: number;
  readonly anyOf?: readonly KeySchema[];
  readonly items?: KeySchema;
  readonly properties?: Readonly<Record<string, KeySchema>>;
}

const SIGNALS: readonly [string, string][] = [
  [
    "SIGTERM, SIGINT",
    "Stop accepting after --shutdown-delay, and let connections finish for up to --drain-timeout. A " +
    "second one ends the program at once.",
  ],
  [
    "SIGHUP",
    "Read the configuration file and the subnet files again, and resolve the host names of upstreams.",
  ],
  ["SIGUSR1", "Ignored."],
];
const EXIT_CODES: readonly [number, string][] = [
  [0, "Stopped, or the command succeeded."],
  [1, "The program cannot run, or the command found something wrong."],
  [2, "Wrong command line or configuration file."],
];
const DOCUMENTATION =
  "The documentation is installed with the program: mmproxy help lists its pages.";
const CONFIG = "/etc/mmproxy/mmproxy.toml";

/** The page of the program and its commands. */
export function programPage([program, ...commands]: readonly CommandInfo[]): string {
  if (!program) throw new Error("no program");
  const page = new Page("MMPROXY", 1)
    .section("NAME")
    .paragraph("mmproxy - PROXY protocol in, the client's own address out")
    .section("SYNOPSIS");
  for (const command of [program, ...commands]) page.paragraph(synopsis(command));
  page.section("DESCRIPTION").paragraph(program.description)
    .paragraph(
      "Flags describe one listener. A configuration file describes any number of them: " +
        "--config, mmproxy.toml(5).",
    )
    .section("OPTIONS");
  for (const option of program.options) optionEntry(page, option);
  page.section("COMMANDS");
  for (const command of commands) {
    page.subsection(synopsis(command)).paragraph(command.description);
    const isOfARun = (option: OptionInfo) =>
      program.options.some(({ flags, help }) => flags === option.flags && help === option.help);
    const shown = command.options.filter(({ hidden, long }) => !hidden && long !== "--help");
    const own = shown.filter((option) => !isOfARun(option));
    const same = shown.filter(isOfARun).map(({ long }) => long);
    for (const option of own) optionEntry(page, option);
    if (same.length > 0) page.paragraph(`Options of a run that it uses: ${same.join(", ")}.`);
  }
  page.section("SIGNALS");
  for (const [signal, meaning] of SIGNALS) page.entry(signal, meaning);
  page.section("EXIT STATUS");
  for (const [code, meaning] of EXIT_CODES) page.entry(String(code), meaning);
  return page
    .section("FILES")
    .entry(CONFIG, "The configuration that the systemd unit of the packages runs; mmproxy.toml(5).")
    .section("EXAMPLES")
    .paragraph("Forward what a load balancer sends to port 8443 to a server on port 443:")
    .example(
      "mmproxy -l 0.0.0.0:8443 -4 127.0.0.1:443 -a /etc/mmproxy/subnets --auto-routes",
    )
    .paragraph("Find out why it does not work, with the flags of the run:")
    .example("mmproxy doctor -l 0.0.0.0:8443 -4 127.0.0.1:443 -a /etc/mmproxy/subnets")
    .paragraph("Check a configuration file, then run it:")
    .example(`mmproxy check --config ${CONFIG}\nmmproxy --config ${CONFIG}`)
    .section("SEE ALSO")
    .paragraph("mmproxy.toml(5), systemctl(1), ip-rule(8), tcp(7)")
    .paragraph(DOCUMENTATION)
    .toString();
}

function synopsis({ name, arguments: words, options }: CommandInfo): string {
  const named = words.map(({ name, required, choices }) => {
    const text = choices.length > 0 ? choices.join("|") : name;
    return required ? text : `[${text}]`;
  });
  const has = options.some(({ hidden, long }) => !hidden && long !== "--help");
  return ["mmproxy", name, ...named, has ? "[options]" : ""].filter((word) => word !== "").join(
    " ",
  );
}

function optionEntry(page: Page, option: OptionInfo): void {
  const given = option.default === undefined ? "" : ` (default: ${option.default})`;
  page.entry(option.flags, `${option.help}${given}.`);
}

/** The page of the configuration file. */
export function configPage(schema: KeySchema, example: string): string {
  const { defaults, listener, ...proxy } = schema.properties ?? {};
  const page = new Page("MMPROXY.TOML", 5)
    .section("NAME")
    .paragraph("mmproxy.toml - configuration file of mmproxy")
    .section("DESCRIPTION")
    .paragraph(
      "A TOML file (https://toml.io). Keys of the proxy stand above the first table. Each [[listener]] " +
        `table is one listener. ${defaults?.description}: [defaults].`,
    )
    .paragraph(
      "mmproxy check --config <path> reports every mistake with its line, and changes nothing. SIGHUP " +
        "or mmproxy reload makes a running program read the file again; a wrong file changes nothing.",
    )
    .section("KEYS OF THE PROXY");
  for (const entry of Object.entries(proxy)) key(page, ...entry);
  page.section("KEYS OF A LISTENER");
  for (const entry of Object.entries(listener?.items?.properties ?? {})) key(page, ...entry);
  return page
    .section("EXAMPLE")
    .example(example)
    .section("SEE ALSO")
    .paragraph("mmproxy(1)")
    .paragraph(`${DOCUMENTATION} mmproxy help config has the rules between keys.`)
    .toString();
}

function key(page: Page, name: string, schema: KeySchema): void {
  const facts = [
    `Type: ${typeOf(schema)}.`,
    ...(schema.default === undefined ? [] : [`Default: ${JSON.stringify(schema.default)}.`]),
  ];
  page.entry(name, sentence(schema.description ?? ""), facts.join(" "));
}

function typeOf(schema: KeySchema): string {
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  const { type, minimum, maximum, items, properties } = schema;
  if (type === "integer") return `integer from ${minimum} to ${maximum}`;
  if (type === "array") return `list of ${plural(typeOf(items ?? {}))}`;
  if (type === "object") return `table with ${Object.keys(properties ?? {}).join(" and ")}`;
  return type ?? "any";
}

function plural(type: string): string {
  return type.replace(/^\w+/, (word) => `${word}s`);
}

function sentence(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1).replace(/\.$/, "") + ".";
}
