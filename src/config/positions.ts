/**
 * Finds the lines of the keys in a TOML document. The parser reports lines only for syntax errors; an invalid value needs
 * its line as well. The parser must have accepted the text: nothing is checked here, and an unknown form ends the scan, so
 * that later keys have no line.
 */
import { parse } from "smol-toml";

/** Keys and indexes from the document's root. */
export type Path = readonly (string | number)[];

/** The position of a key or an element. */
export interface Position {
  /** From 1. */
  readonly line: number;
  /** The value as written; none for a table with a header. */
  readonly source?: string;
}

/** Every key and element of a document. */
export class Positions {
  readonly #root: Node;

  /** @param text a TOML document that the parser takes */
  constructor(text: string) {
    this.#root = new Scanner(text).document();
  }

  /** Where a path stands, or undefined if the document has no such key. The document is at line 1. */
  at(path: Path): Position | undefined {
    let node: Node | undefined = this.#root;
    for (const key of path) node = node?.children.get(key);
    return node;
  }

  /** The part of a path that the document has: what is missing is missing there. */
  known(path: Path): Path {
    const length = path.findIndex((_, index) => !this.at(path.slice(0, index + 1)));
    return length < 0 ? path : path.slice(0, length);
  }
}

class Node implements Position {
  readonly children = new Map<string | number, Node>();
  /** Whether `[[…]]` made it: then a header means its last element. */
  isArrayOfTables = false;
  source?: string;

  constructor(readonly line: number) {}

  /** The child of a key, created if there is none. */
  child(key: string | number, line: number): Node {
    const known = this.children.get(key);
    if (known) return known;
    const node = new Node(line);
    this.children.set(key, node);
    return node;
  }

  /** The table that a header or a dotted key means by this node. */
  get table(): Node {
    return this.isArrayOfTables ? this.children.get(this.children.size - 1) ?? this : this;
  }
}

const VOID = /(?:[\uFEFF \t\r\n]|#[^\n]*)*/y;
const SPACE = /[ \t]*/y;
const BARE_KEY = /[\w-]+/y;
/** Three quotes begin and end what may have line breaks; of more at the end the last three count. */
const STRING = /"""(?:[^\\]|\\[^])*?"{3}(?!")|'''[^]*?'{3}(?!')|"(?:[^\\"\n]|\\.)*"|'[^'\n]*'/y;
/** Numbers, booleans, dates; a space may part a date from its time. */
const SCALAR = /[^\s,\]}#]+(?: \d\d:[^\s,\]}#]+)?/y;

class Scanner {
  #offset = 0;
  readonly #lineStarts: number[] = [0];

  constructor(readonly text: string) {
    for (const { index } of text.matchAll(/\n/g)) this.#lineStarts.push(index + 1);
  }

  document(): Node {
    const root = new Node(1);
    let table = root;
    for (this.#take(VOID); this.#offset < this.text.length; this.#take(VOID)) {
      const start = this.#offset;
      if (this.text[start] === "[") table = this.#header(root);
      else this.#keyValue(table);
      if (this.#offset === start) break;
    }
    return root;
  }

  /** `[a.b]` or `[[a.b]]`: the table whose keys follow. */
  #header(root: Node): Node {
    const line = this.#line();
    const [brackets] = this.#take(/\[\[?/y);
    const keys = this.#keys();
    this.#take(/\]\]?/y);
    const last = keys.pop() ?? "";
    const node = this.#descend(root, keys, line).child(last, line);
    if (brackets?.length !== 2) return node.table;
    node.isArrayOfTables = true;
    return node.child(node.children.size, line);
  }

  #keyValue(table: Node): void {
    const line = this.#line();
    const keys = this.#keys();
    const last = keys.pop() ?? "";
    const node = this.#descend(table, keys, line).child(last, line);
    this.#take(/[ \t]*=[ \t]*/y);
    this.#value(node);
  }

  #descend(from: Node, keys: readonly string[], line: number): Node {
    return keys.reduce((node, key) => node.child(key, line).table, from);
  }

  /** A dotted key's parts. */
  #keys(): string[] {
    const keys: string[] = [];
    do {
      this.#take(SPACE);
      const [bare] = this.#take(BARE_KEY);
      keys.push(bare ?? this.#quotedKey());
      this.#take(SPACE);
    } while (this.#take(/\./y)[0] !== undefined);
    return keys;
  }

  #quotedKey(): string {
    const [quoted = '""'] = this.#take(STRING);
    return parse(`key = ${quoted}`).key as string;
  }

  #value(node: Node): void {
    const start = this.#offset;
    if (this.text[start] === "[") this.#array(node);
    else if (this.text[start] === "{") this.#inlineTable(node);
    else if (this.#take(STRING)[0] === undefined) this.#take(SCALAR);
    node.source = this.text.slice(start, this.#offset);
  }

  #array(node: Node): void {
    this.#take(/\[/y);
    this.#items("]", () => this.#value(node.child(node.children.size, this.#line())));
  }

  #inlineTable(node: Node): void {
    this.#take(/\{/y);
    this.#items("}", () => this.#keyValue(node));
  }

  /** Reads the elements between commas, up to and including the closing bracket. */
  #items(end: "]" | "}", item: () => void): void {
    for (;;) {
      this.#take(VOID);
      const start = this.#offset;
      if (this.text[start] !== end) item();
      this.#take(VOID);
      this.#take(/,/y);
      if (this.text[this.#offset] === end) break;
      if (this.#offset === start) return;
    }
    this.#offset++;
  }

  /** Moves past a match that begins here; without one nothing moves and the result is empty. */
  #take(pattern: RegExp): [string] | [] {
    pattern.lastIndex = this.#offset;
    const match = pattern.exec(this.text);
    if (!match) return [];
    this.#offset += match[0].length;
    return [match[0]];
  }

  /** The line of the offset: the number of lines that start at or before it. */
  #line(): number {
    let [from, to] = [0, this.#lineStarts.length];
    while (from < to) {
      const middle = (from + to) >> 1;
      if (this.#lineStarts[middle]! <= this.#offset) from = middle + 1;
      else to = middle;
    }
    return from;
  }
}
