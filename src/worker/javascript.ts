/**
 * TypeScript as JavaScript; lines and columns stay where they were. A bundle and a compiled program have
 * the worker as JavaScript and another module in place of this one (deploy/bundle.ts).
 */
export { stripTypeScriptTypes as toJavaScript } from "node:module";
