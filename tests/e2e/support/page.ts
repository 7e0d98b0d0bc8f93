/** The commands of the documentation's pages, as they are printed. */
import { fileURLToPath } from "node:url";

/** The `sh` blocks of a page, in its order. */
export async function blocksOf(page: string): Promise<string[]> {
  const path = fileURLToPath(new URL(`../../../${page}`, import.meta.url));
  return shellBlocks(await Deno.readTextFile(path));
}

/** The `sh` blocks of a page's text. */
export function shellBlocks(text: string): string[] {
  return [...text.matchAll(/^```sh\n([^]*?)^```/gm)].map(([, block = ""]) => block);
}
