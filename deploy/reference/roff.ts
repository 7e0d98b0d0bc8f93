/** Text as man(7) source, which man-db and mandoc read alike. */

/** A page's text, which `section` and the others add to. */
export class Page {
  readonly #lines: string[] = [];

  /**
   * @param title the page's name in capitals
   * @param section of the manual: 1 for commands, 5 for files
   */
  constructor(title: string, section: number) {
    this.#lines.push(
      '.\\" Generated: deno task manual',
      `.TH ${title} ${section} "" mmproxy "mmproxy manual"`,
    );
  }

  section(title: string): this {
    return this.#add(`.SH ${quote(title)}`);
  }

  subsection(title: string): this {
    return this.#add(`.SS ${quote(title)}`);
  }

  /** Text of its own, which is filled; the first one of a section needs no space above. */
  paragraph(text: string): this {
    return this.#space().#add(line(text));
  }

  /** A term in bold, and what it means, indented. */
  entry(term: string, ...paragraphs: string[]): this {
    this.#add(".TP", `\\fB${escape(term)}\\fR`);
    paragraphs.forEach((text, at) => this.#add(...(at > 0 ? [".IP"] : []), line(text)));
    return this;
  }

  /** Lines as they are. */
  example(text: string): this {
    return this.#space().#add(
      ".RS 4",
      ".nf",
      ...text.trimEnd().split("\n").map(line),
      ".fi",
      ".RE",
    );
  }

  toString(): string {
    return this.#lines.join("\n") + "\n";
  }

  #space(): this {
    return /^\.S[HS] /.test(this.#lines.at(-1) ?? "") ? this : this.#add(".PP");
  }

  #add(...lines: string[]): this {
    this.#lines.push(...lines);
    return this;
  }
}

/** A line of text: a dot or an apostrophe in front would be a request. */
function line(text: string): string {
  return escape(text).replace(/^(?=[.'])/, "\\&");
}

function quote(text: string): string {
  return `"${escape(text).replaceAll('"', "\\(dq")}"`;
}

/** ASCII that roff prints as it is: its hyphens and quotes would not be copied as typed. */
function escape(text: string): string {
  return text
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replaceAll("'", "\\(aq")
    .replaceAll("`", "\\(ga")
    .replaceAll("^", "\\(ha")
    .replaceAll("~", "\\(ti");
}
