/** The pages of `docs/` as the topics of `mmproxy help`. */
import { nearest } from "../config/nearest.ts";

/** Reads a file below the program's folder. Throws where it cannot be read. */
export type ReadPage = (path: string) => string;

/** A topic without a page, or documentation that is not installed; the message is one line. */
export class HelpError extends Error {
  override readonly name = "HelpError";
}

/** The indexes: each names its pages in a table, as `[name](name.md)`. */
const FOLDERS = ["docs", "docs/recipes"];

interface Topic {
  readonly name: string;
  readonly path: string;
  readonly about: string;
}

/**
 * The text of a page, as Markdown.
 *
 * @throws {HelpError} if there is no such page
 */
export function page(topic: string, read: ReadPage): string {
  const topics = topicsOf(read);
  const found = topics.find(({ name }) => name === topic.toLowerCase());
  if (found) return readOr(found.path, read);
  const meant = nearest(topic, topics.map(({ name }) => name));
  throw new HelpError(
    `There is no page ${JSON.stringify(topic)}` +
      (meant === undefined ? "; mmproxy help lists the topics" : `; did you mean ${meant}?`),
  );
}

/**
 * The list of topics, one line each.
 *
 * @throws {HelpError} if the documentation is not installed
 */
export function topicList(read: ReadPage): string {
  const topics = topicsOf(read);
  const width = Math.max(...topics.map(({ name }) => name.length));
  const lines = topics.map(({ name, about }) => `  ${name.padEnd(width)}  ${about}`);
  return ["Usage: mmproxy help <topic>", "", "Topics:", ...lines].join("\n");
}

/** The names of the topics. */
export function topicNames(read: ReadPage): string[] {
  return topicsOf(read).map(({ name }) => name);
}

function topicsOf(read: ReadPage): Topic[] {
  const rows = FOLDERS.flatMap((folder) => rowsOf(readOr(`${folder}/README.md`, read), folder));
  // A table of symptoms may name a page again.
  return rows.filter(({ name }, at) => rows.findIndex((row) => row.name === name) === at);
}

/** The rows of an index that lead to a page next to it. */
function rowsOf(index: string, folder: string): Topic[] {
  return index.split("\n").flatMap((line): Topic[] => {
    const name = /\]\(([a-z0-9-]+)\.md\)/.exec(line)?.[1];
    const about = line.split("|").find((cell) => cell.trim() !== "" && !cell.includes("]("))
      ?.trim();
    if (!line.startsWith("|") || name === undefined || about === undefined) return [];
    return [{ name, path: `${folder}/${name}.md`, about }];
  });
}

function readOr(path: string, read: ReadPage): string {
  try {
    return read(path);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new HelpError(`Cannot read the documentation: ${reason}`);
  }
}
