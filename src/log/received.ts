/** Describes what was received instead of a PROXY header, for the log. */

/**
 * Names the protocol that the first bytes of a connection belong to.
 *
 * @param bytes the first bytes, untrusted; if there are none, the result is "nothing"
 * @returns printable ASCII
 */
export function describeBytes(bytes: Uint8Array): string {
  if (bytes.length === 0) return "nothing";
  // One character per byte; TextDecoder("latin1") decodes windows-1252 instead.
  const start = String.fromCharCode(...bytes);
  if (bytes[0] === 0x16 && bytes[1] === 0x03) return "TLS ClientHello";
  if (start.startsWith("PRI * HTTP/2")) return "HTTP/2 request";
  if (/^(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|CONNECT|TRACE) /.test(start)) return "HTTP request";
  if (start.startsWith("SSH-")) return "SSH banner";
  if (/^(EHLO|HELO|LHLO) /i.test(start)) return "SMTP greeting";
  if (start.startsWith("PROXY ")) return `PROXY v1 line ${quote(start)}`;
  if (start.startsWith("\r\n\r\n\0\r\nQUIT\n")) return `PROXY v2 header ${hex(bytes.subarray(12))}`;
  if (bytes[0] === 0x56 && bytes[1] === 0xec) return "Simple Proxy Protocol header";
  return /^[\x20-\x7e\r\n\t]+$/.test(start) ? `text ${quote(start)}` : `bytes ${hex(bytes)}`;
}

function quote(start: string): string {
  // JSON escapes control characters; the rest beyond ASCII is escaped here.
  return JSON.stringify(start).replace(
    /[\x7f-\xff]/g,
    (character) => `\\x${character.charCodeAt(0).toString(16)}`,
  );
}

function hex(bytes: Uint8Array): string {
  const shown = [...bytes.subarray(0, 16)].map((byte) => byte.toString(16).padStart(2, "0"));
  return shown.join(" ") + (bytes.length > 16 ? " …" : "");
}
