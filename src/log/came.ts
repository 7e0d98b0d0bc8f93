/** What came in place of a PROXY header, in words for the log. */

/**
 * Names the protocol that some first bytes belong to.
 *
 * @param bytes the first bytes, untrusted; none at all is "nothing"
 * @returns printable ASCII
 */
export function describeBytes(bytes: Uint8Array): string {
  if (bytes.length === 0) return "nothing";
  // A character a byte; the decoder named "latin1" is windows-1252.
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
