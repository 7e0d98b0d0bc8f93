/** Log lines about a listener that starts to accept connections. */
import type { ListenerConfig, ProxyConfig } from "../config/model.ts";
import { refusedFamilies, refusedSentence } from "../config/options.ts";
import type { Log } from "../log/log.ts";

/** In front of what is said about a listener, if there are several: `mail: `. */
export function whose(
  { listeners }: Pick<ProxyConfig, "listeners">,
  { name }: Pick<ListenerConfig, "name">,
): string {
  return listeners.length > 1 ? `${name}: ` : "";
}

/** `Listening on 0.0.0.0:443 (TCP), forwarding to 127.0.0.1:443`; `(TCP, transparent)`. */
export function listeningSentence(listener: ListenerConfig): string {
  const { protocol, listen, upstream, ipv4, ipv6, transparent } = listener;
  const protocols = protocol === "both" ? "TCP and UDP" : protocol.toUpperCase();
  const upstreams = [ipv4, ipv6].filter((upstream) => upstream !== undefined)
    .map(({ text }) => text).join(" and ");
  const target = upstream === "destination" ? "the destination of the header" : upstreams;
  const addresses = listen.map(({ text }) => text).join(", ");
  const how = transparent ? ", transparent" : "";
  return `Listening on ${addresses} (${protocols}${how}), forwarding to ${target}`;
}

/** The sentences of all listeners in one line, for the service manager. */
export function statusLine({ listeners }: Pick<ProxyConfig, "listeners">): string {
  return listeners.map(listeningSentence).join("; ");
}

/** Logs that a listener serves, and whose clients it refuses. */
export function logListening(
  config: ProxyConfig,
  listener: ListenerConfig,
  workers: number,
  log: Log,
): void {
  const { name, protocol, listen, ipv4, ipv6 } = listener;
  const start = whose(config, listener);
  log("info", start + listeningSentence(listener), {
    event: "listening",
    listener: name,
    protocol,
    address: listen.map(({ text }) => text).join(", "),
    ...(ipv4 && { ipv4: ipv4.text }),
    ...(ipv6 && { ipv6: ipv6.text }),
    workers,
  });
  if (listener.upstream === "destination") return;
  for (const family of refusedFamilies(listener)) {
    log("info", start + refusedSentence(family), {
      event: "no_upstream",
      listener: name,
      value: family,
    });
  }
}
