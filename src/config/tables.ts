/** One table of the file, read key by key, so that no mistake hides another. */
import * as v from "valibot";
import type { Mistakes } from "./mistakes.ts";
import type { Path } from "./positions.ts";

/** The schema of each key. */
export type Keys = Record<string, v.GenericSchema>;
export type Values<K extends Keys> = { readonly [Key in keyof K]?: v.InferOutput<K[Key]> };

/** The content of a table: its valid values, and the line of each key. */
export class Table<K extends Keys> {
  /**
   * @param header the line of the table itself
   * @param places of the keys that it has, whether their values can be taken or not
   */
  constructor(
    readonly header: Path,
    readonly values: Values<K>,
    readonly places: ReadonlyMap<keyof K, Path>,
  ) {}

  has(key: keyof K): boolean {
    return this.places.has(key);
  }

  /** Whether the table has the key, and its value cannot be taken: more must not be said about it. */
  isWrong(key: keyof K): boolean {
    return this.has(key) && this.values[key] === undefined;
  }

  /** Where a key stands, or the table if it has none. */
  place(key: keyof K): Path {
    return this.places.get(key) ?? this.header;
  }

  /** This table with the keys of another one that it has not itself. */
  over(other: Table<K>, except: readonly (keyof K)[] = []): Table<K> {
    const taken = other.keep((key) => !this.has(key) && !except.includes(key));
    return new Table(
      this.header,
      { ...taken.values, ...this.values },
      new Map([...taken.places, ...this.places]),
    );
  }

  /** This table with those of its keys that `isWanted`. */
  keep(isWanted: (key: keyof K) => boolean): Table<K> {
    const places = [...this.places].filter(([key]) => isWanted(key));
    const values = Object.entries(this.values).filter(([key]) => isWanted(key));
    return new Table(this.header, Object.fromEntries(values) as Values<K>, new Map(places));
  }

  /** This table with the key `alias` under its proper name; a table that has both is a mistake. */
  rename<Alias extends keyof K & string, Name extends keyof K & string>(
    alias: Alias,
    name: Name,
    mistakes: Mistakes,
  ): Table<K> {
    const place = this.places.get(alias);
    if (place === undefined) return this;
    if (this.has(name)) {
      mistakes.add(place, `says the same as ${name}: leave one of them`);
      return this;
    }
    const { [alias]: value, ...values } = this.values;
    return new Table(
      this.header,
      { ...values, ...(value === undefined ? {} : { [name]: value }) } as Values<K>,
      new Map([...this.places, [name, place]]),
    );
  }
}

/**
 * Reads a table.
 *
 * @param keys the schema of each key
 * @param path the position of the table
 * @param unknown the message for a key that is not in the schema
 */
export function readTable<K extends Keys>(
  keys: K,
  table: object,
  path: Path,
  mistakes: Mistakes,
  unknown: (key: string) => string,
): Table<K> {
  const values: Record<string, unknown> = {};
  const places = new Map<keyof K, Path>();
  for (const [key, value] of Object.entries(table)) {
    const place = [...path, key];
    const schema = Object.hasOwn(keys, key) ? keys[key] : undefined;
    if (!schema) {
      mistakes.add(place, unknown(key));
      continue;
    }
    places.set(key, place);
    const result = v.safeParse(schema, value);
    if (result.success) values[key] = result.output;
    else for (const issue of result.issues) addIssue(issue, place, mistakes);
  }
  return new Table(path, values as Values<K>, places);
}

/** Records an issue at its position; of a union, the issue deepest in the value is the most specific. */
function addIssue(issue: v.BaseIssue<unknown>, place: Path, mistakes: Mistakes): void {
  const [furthest] = [issue, ...issue.issues ?? []].toSorted((one, other) =>
    (other.path?.length ?? 0) - (one.path?.length ?? 0)
  );
  const keys = furthest?.path?.map(({ key }) => key as string | number) ?? [];
  mistakes.add([...place, ...keys], furthest?.message ?? issue.message);
}

/** Whether a value of the document is a table. */
export function isTable(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) &&
    !(value instanceof Date);
}
