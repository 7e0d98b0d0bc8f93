/** The mistakes of a configuration: all at once, one line each. */
import type { LogFormat } from "./options.ts";
import type { Path, Positions } from "./positions.ts";

/** One thing that is wrong. */
export interface Mistake {
  /** The file's name as it was given; none when the problem names it. */
  readonly file?: string;
  /** From 1; none when the file as a whole is wrong. */
  readonly line?: number;
  /** As `listen` or `trust.from`; none when no key is meant. */
  readonly key?: string;
  /** The value as written, truncated if it is long. */
  readonly value?: string;
  /** What was expected, or why the value cannot be taken. */
  readonly problem: string;
}

/** A configuration that cannot be taken; the message has a line for each mistake. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
  /** @param logFormat the form of log that the configuration requests, if so much is known */
  constructor(readonly mistakes: readonly Mistake[], readonly logFormat?: LogFormat) {
    super(mistakes.map(sentence).join("\n"));
  }
}

/** `mmproxy.toml, line 3: workers = 0: expected …`. */
function sentence({ file, line, key, value, problem }: Mistake): string {
  const place = line === undefined ? file : `${file}, line ${line}`;
  const assignment = value === undefined ? key : `${key} = ${value}`;
  return [place, assignment, problem].filter((part) => part !== undefined).join(": ");
}

/** Longer values are truncated: the line shows where to find the rest. */
const LONGEST_VALUE = 60;

/** Collects the mistakes of one document. */
export class Mistakes {
  readonly #found: Mistake[] = [];

  constructor(readonly file: string, readonly positions: Positions) {}

  /** Records a mistake at a path, or at the surrounding table if the path does not exist. */
  add(path: Path, problem: string): void {
    const known = this.positions.known(path);
    const { line, source } = this.positions.at(known) ?? { line: 1 };
    this.#add({
      line,
      key: keyOf(known),
      ...(source === undefined ? {} : { value: short(source) }),
      problem,
    });
  }

  /** Notes that something is missing in the table at a path. */
  addMissing(path: Path, problem: string): void {
    this.#add({ ...(path.length === 0 ? {} : { line: this.line(path) }), problem });
  }

  /** The line of a path, or of the surrounding table. */
  line(path: Path): number {
    return this.positions.at(this.positions.known(path))?.line ?? 1;
  }

  /** @throws {ConfigError} with every mistake in the order of its line, if there are any */
  throwIfAny(logFormat: LogFormat): void {
    if (this.#found.length === 0) return;
    throw new ConfigError(
      this.#found.toSorted((one, other) => (one.line ?? 0) - (other.line ?? 0)),
      logFormat,
    );
  }

  /** Two checks of a schema may find the same. */
  #add(found: Omit<Mistake, "file">): void {
    const mistake = { file: this.file, ...found };
    const isKnown = this.#found.some((known) =>
      known.line === mistake.line && known.key === mistake.key && known.value === mistake.value &&
      known.problem === mistake.problem
    );
    if (!isKnown) this.#found.push(mistake);
  }
}

/** A value in one line. */
function short(source: string): string {
  const line = source.replace(/\s+/g, " ");
  return line.length > LONGEST_VALUE ? `${line.slice(0, LONGEST_VALUE)}…` : line;
}

/** The key within its table: `trust.from` for `listener`, 2, `trust`, 0, `from`. */
function keyOf(path: Path): string {
  const keys = path.filter((key) => typeof key === "string");
  const inTable = keys.length > 1 && TABLES.has(keys[0] ?? "") ? keys.slice(1) : keys;
  return inTable.map((key) => /^[\w-]+$/.test(key) ? key : JSON.stringify(key)).join(".");
}

/** Tables whose header precedes the key. */
const TABLES = new Set(["listener", "defaults"]);
