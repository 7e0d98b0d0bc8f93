/** Suggests what was probably meant by a text that is not an address and a port. */
import { parseIp } from "./address.ts";
import { parsePorts } from "./ranges.ts";
import { scopeOf } from "./scope.ts";

/** What the address is for. */
export type Purpose = "listen" | "metrics" | "upstream";

/** A question or a reason to add to "is not an IP address and a port"; empty if there is none. */
export function addressHint(text: string, purpose: Purpose): string {
  const meant = portAlone(text, purpose) ?? withoutBrackets(text) ?? withoutPort(text, purpose) ??
    localhost(text, purpose);
  if (meant !== undefined) return `; did you mean ${meant}?`;
  const [, host = "", port = ""] = /^(.*):([\d-]+)$/.exec(text) ?? [];
  if (port !== "" && !parsePorts(port)) {
    return port.includes("-")
      ? "; ports are from 1 to 65535, and a range goes from the lower to the higher"
      : "; a port is from 1 to 65535";
  }
  const scope = /%([^\]%]+)\]$/.exec(host)?.[1];
  if (scope !== undefined && scopeOf(scope) === undefined) {
    return `; no interface named ${scope} has an IPv6 address (ip -6 address)`;
  }
  if (port !== "" && /^[a-z0-9.-]*[g-z][a-z0-9.-]*$/i.test(host) && purpose !== "upstream") {
    return "; a host name cannot be listened on";
  }
  return "";
}

/** `8443`, `:8443`, `*:8443`. */
function portAlone(text: string, purpose: Purpose): string | undefined {
  const port = /^(?:\*?:)?([\d-]+)$/.exec(text)?.[1] ?? "";
  if (!parsePorts(port)) return undefined;
  const [any, any6] = purpose === "listen" ? ["0.0.0.0", "[::]"] : ["127.0.0.1", "[::1]"];
  return `${any}:${port}, or ${any6}:${port} for IPv6`;
}

/** `localhost:443`, where a name cannot be. */
function localhost(text: string, purpose: Purpose): string | undefined {
  const port = /^localhost:([\d-]+)$/i.exec(text)?.[1] ?? "";
  if (!parsePorts(port) || purpose === "upstream") return undefined;
  return `127.0.0.1:${port}, or [::1]:${port} for IPv6`;
}

/** `::1:443`. */
function withoutBrackets(text: string): string | undefined {
  const [, host = "", port = ""] = /^([^[\]]*:[^[\]]*):([\d-]+)$/.exec(text) ?? [];
  return parseIp(host)?.family === 6 && parsePorts(port) ? `[${host}]:${port}` : undefined;
}

/** `0.0.0.0`, `::1`, `[::1]`. */
function withoutPort(text: string, purpose: Purpose): string | undefined {
  const host = text.replace(/^\[(.*)\]$/, "$1");
  const port = purpose === "listen" ? 8443 : 443;
  const ip = parseIp(host);
  return ip && (ip.family === 6 ? `[${host}]:${port}` : `${host}:${port}`);
}
