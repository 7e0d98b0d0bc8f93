/**
 * Renders the pictures of this folder into docs/images, with Graphviz: `deno task pictures`. Each SVG has the
 * hash of what it was made of, by which a test sees that it is stale; so a test needs no Graphviz, whose output
 * differs with a machine's fonts.
 */
import { createHash } from "node:crypto";
import { join } from "node:path";

const HERE = import.meta.dirname ?? ".";
const IMAGES = join(HERE, "../images");

/** By CSS, so that one file is right on a light and on a dark page. Its own ground makes it readable on any. */
const STYLE = `
svg { color-scheme: light dark; }
.ground { fill: #ffffff; stroke: #d0d7de; }
text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328; }
.node polygon, .node path { fill: #ffffff; stroke: #57606a; stroke-width: 1.2; }
.cluster polygon, .cluster path { fill: #f3f5f8; stroke: #c3cad3; }
.inner polygon, .inner path { fill: #e8ecf1; stroke: #c3cad3; }
.cluster text { fill: #57606a; }
.mmproxy path, .ts path { fill: #ddeeff; stroke: #0969da; }
.rust path { fill: #ffe8d9; stroke: #bc4c00; }
.service path { fill: #dcf5e4; stroke: #1a7f37; }
.kernel path { fill: #fff3cc; stroke: #9a6700; }
.request path { stroke: #0969da; stroke-width: 1.6; }
.request polygon { fill: #0969da; stroke: #0969da; }
.reply path { stroke: #bc4c00; stroke-width: 1.6; stroke-dasharray: 6 3; }
.reply polygon { fill: #bc4c00; stroke: #bc4c00; }
.other path { stroke: #6e7781; }
.other polygon { fill: #6e7781; stroke: #6e7781; }
@media (prefers-color-scheme: dark) {
  .ground { fill: #0d1117; stroke: #30363d; }
  text { fill: #e6edf3; }
  .node polygon, .node path { fill: #161b22; stroke: #8b949e; }
  .cluster polygon, .cluster path { fill: #161b22; stroke: #3d444d; }
  .inner polygon, .inner path { fill: #1f262e; stroke: #3d444d; }
  .cluster text { fill: #9198a1; }
  .mmproxy path, .ts path { fill: #10294a; stroke: #58a6ff; }
  .rust path { fill: #3d2412; stroke: #f0883e; }
  .service path { fill: #12301d; stroke: #3fb950; }
  .kernel path { fill: #342a0c; stroke: #d29922; }
  .request path { stroke: #58a6ff; }
  .request polygon { fill: #58a6ff; stroke: #58a6ff; }
  .reply path { stroke: #f0883e; }
  .reply polygon { fill: #f0883e; stroke: #f0883e; }
  .other path { stroke: #9198a1; }
  .other polygon { fill: #9198a1; stroke: #9198a1; }
}
`;

/** The names of all pictures. */
export function pictures(): string[] {
  return Array.from(Deno.readDirSync(HERE), ({ name }) => name)
    .filter((name) => name.endsWith(".dot")).map((name) => name.replace(/\.dot$/, "")).sort();
}

/** Where a picture is. */
export function imageOf(name: string): string {
  return join(IMAGES, `${name}.svg`);
}

/** The line of an SVG that says what it was made of. */
export async function origin(name: string): Promise<string> {
  const source = await Deno.readTextFile(join(HERE, `${name}.dot`));
  const hash = createHash("sha256").update(source).update(STYLE).digest("hex").slice(0, 16);
  return `<!-- Made of docs/pictures/${name}.dot (${hash}): deno task pictures -->`;
}

async function render(name: string): Promise<string> {
  const { success, stdout } = await new Deno.Command("dot", {
    args: [
      "-Tsvg",
      "-Gfontname=DejaVu Sans",
      "-Nfontname=DejaVu Sans",
      "-Efontname=DejaVu Sans",
      "-Gfontsize=12",
      "-Nfontsize=12",
      "-Efontsize=11",
      "-Gpad=0.25",
      join(HERE, `${name}.dot`),
    ],
    stderr: "inherit",
  }).output();
  if (!success) throw new Error(`Graphviz cannot render ${name}.dot`);
  const svg = new TextDecoder().decode(stdout);
  const title = /^\/\/ (.*)$/m.exec(await Deno.readTextFile(join(HERE, `${name}.dot`)))?.[1] ??
    name;
  return `${await origin(name)}\n` + svg
    // The document's own type, declaration and comments say nothing of the picture.
    .replace(/^[^]*?(?=<svg)/, "")
    .replaceAll(/<!--[^]*?-->\n/g, "")
    .replaceAll(/<title>[^]*?<\/title>\n/g, "")
    .replace(/(<svg[^>]*)>/, `$1 role="img" aria-label="${title}">\n<style>${STYLE}</style>`)
    // Colors and fonts are those of the style.
    .replaceAll(/ (fill|stroke|font-family)="(?!none)[^"]*"/g, "")
    .replace(/<polygon (?=points)/, '<polygon class="ground" ');
}

if (import.meta.main) {
  for (const name of pictures()) {
    await Deno.writeTextFile(imageOf(name), await render(name));
    console.log(`docs/images/${name}.svg`);
  }
}
