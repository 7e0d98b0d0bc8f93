import assert from "node:assert/strict";
import fc from "fast-check";
import { describeBytes } from "./received.ts";

/** Bytes of text: a character each. */
const raw = (text: string) => Uint8Array.from(text, (character) => character.charCodeAt(0));

const SIGNATURE = "\r\n\r\n\0\r\nQUIT\n";

const ROWS: readonly (readonly [bytes: string, words: string])[] = [
  ["", "nothing"],
  ["\x16\x03\x01\x02\x00\x01", "TLS ClientHello"],
  ["\x16\x04", "bytes 16 04"],
  ["PRI * HTTP/2.0\r\n", "HTTP/2 request"],
  ...["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"].map((
    method,
  ) => [`${method} / HTTP/1.1\r\n`, "HTTP request"] as const),
  ["GETTING", 'text "GETTING"'],
  ["SSH-2.0-OpenSSH_9.9\r\n", "SSH banner"],
  ["EHLO mail.example\r\n", "SMTP greeting"],
  ["helo mail.example\r\n", "SMTP greeting"],
  ["LHLO mail.example\r\n", "SMTP greeting"],
  ["PROXY TCP4 192.0.2.1\r\n", 'PROXY v1 line "PROXY TCP4 192.0.2.1\\r\\n"'],
  ['PROXY "\x1b\0\x7f\x80\x85\xff', 'PROXY v1 line "PROXY \\"\\u001b\\u0000\\x7f\\x80\\x85\\xff"'],
  [`${SIGNATURE}\x21\x11\0\x0c`, "PROXY v2 header 21 11 00 0c"],
  ["\x56\xec\xc0\0", "Simple Proxy Protocol header"],
  ["hello\tworld\r\n", 'text "hello\\tworld\\r\\n"'],
  ["hello\x80", "bytes 68 65 6c 6c 6f 80"],
  ["\0".repeat(16), `bytes ${"00 ".repeat(16).trim()}`],
  ["\0".repeat(17), `bytes ${"00 ".repeat(16)}…`],
];

for (const [bytes, words] of ROWS) {
  Deno.test(`describeBytes: ${JSON.stringify(bytes)} is ${words}`, () => {
    assert.equal(describeBytes(raw(bytes)), words);
  });
}

Deno.test("describeBytes: no byte reaches the log but as printable ASCII", () => {
  const start = fc.constantFrom("", "PROXY ", SIGNATURE, "text ", "\x16\x03", "EHLO ");
  fc.assert(fc.property(start, fc.uint8Array({ maxLength: 39 }), (start, rest) => {
    assert.match(describeBytes(Uint8Array.of(...raw(start), ...rest)), /^[ -~]+…?$/);
  }));
});
