/** The page's files, as text: imported, so that they need no permission to be read. */
import uplotScript from "uplot/dist/uPlot.iife.min.js" with { type: "text" };
import uplotStyle from "uplot/dist/uPlot.min.css" with { type: "text" };
import charts from "./page/charts.js" with { type: "text" };
import html from "./page/index.html" with { type: "text" };
import numbers from "./page/numbers.js" with { type: "text" };
import page from "./page/page.js" with { type: "text" };
import style from "./page/page.css" with { type: "text" };

const SCRIPT = "text/javascript; charset=utf-8";
const STYLE = "text/css; charset=utf-8";

/** By path: content type and text. */
export const ASSETS: ReadonlyMap<string, readonly [type: string, body: string]> = new Map([
  ["/", ["text/html; charset=utf-8", html]],
  ["/page/page.css", [STYLE, style]],
  ["/page/page.js", [SCRIPT, page]],
  ["/page/charts.js", [SCRIPT, charts]],
  ["/page/numbers.js", [SCRIPT, numbers]],
  ["/page/uplot.js", [SCRIPT, uplotScript]],
  ["/page/uplot.css", [STYLE, uplotStyle]],
]);
