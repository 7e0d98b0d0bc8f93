/** Colours for a terminal. */
import type { ColorMode } from "../config/options.ts";

export type Style = "green" | "red" | "yellow" | "cyan" | "dim" | "bold";

/** A text in a style, or as it is if no colours are wanted. */
export type Paint = (style: Style, text: string) => string;

/** Leaves every text unchanged. */
export const plain: Paint = (_style, text) => text;

/**
 * What paints for an output. `auto` paints on a terminal, unless the environment has NO_COLOR
 * (https://no-color.org), which Deno says without a permission.
 */
export async function painter(
  mode: ColorMode,
  output: { isTerminal(): boolean },
): Promise<Paint> {
  const isWanted = mode === "always" || mode === "auto" && output.isTerminal() && !Deno.noColor;
  if (!isWanted) return plain;
  // Only now: a run whose log is a file need not load it.
  const { styleText } = await import("node:util");
  // Left to itself, it asks the environment, which needs --allow-env.
  return (style, text) => styleText(style, text, { validateStream: false });
}
