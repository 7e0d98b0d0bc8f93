/** Tables of plain text. */

/** A column's heading, and whether it has numbers, which are right-aligned. */
export interface Column {
  readonly heading: string;
  readonly right?: true;
}

/** The lines of a table, each column as wide as its widest cell. What a terminal would obey is left out. */
export function table(columns: readonly Column[], rows: readonly (readonly string[])[]): string[] {
  const cells = [columns.map(({ heading }) => heading), ...rows.map((row) => row.map(printable))];
  const widths = columns.map((_, at) => Math.max(...cells.map((row) => row[at]?.length ?? 0)));
  return cells.map((row) =>
    columns.map(({ right }, at) => {
      const cell = row[at] ?? "";
      const width = widths[at] ?? 0;
      return right ? cell.padStart(width) : cell.padEnd(width);
    }).join("  ").trimEnd()
  );
}

/** A text without control characters: a name may come from a file of somebody else's. */
export function printable(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, "?");
}
