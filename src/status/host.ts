/** Who may request the page: a browser that uses its IP address, not a host name controlled by somebody else. */

const IPV4 = /^\d{1,3}(\.\d{1,3}){3}$/;
const IPV6 = /^\[[0-9a-f:.]+(%25[\w.-]+)?\]$/i;
const LOCAL = /^([a-z0-9-]+\.)*localhost$/i;

/**
 * Whether a Host field (RFC 9110, section 7.2) is an IP address or localhost. DNS rebinding needs a name: with
 * one, a web site could have its visitor's browser read this page and hand it over.
 *
 * @param host as it was sent, with or without a port; nothing if there was none, which browsers never do
 */
export function isAddressed(host: string | undefined): boolean {
  if (host === undefined) return true;
  const name = host.trim().replace(/:\d*$/, "");
  return IPV4.test(name) || IPV6.test(name) || LOCAL.test(name);
}
