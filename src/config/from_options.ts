/** The command line's options as the model: a proxy with one listener. */
import { MODEL_DEFAULTS, type ProxyConfig } from "./model.ts";
import type { Address, Options } from "./options.ts";
import type { AddressUpstream } from "./upstreams.ts";

/** What these options mean; the equal file gives the same. */
export function fromOptions(options: Options): ProxyConfig {
  const { ipv4, ipv6, listenAddr, allowedSubnets, metricsAddr } = options;
  return {
    workers: options.listeners,
    logLevel: options.logLevel,
    logFormat: options.logFormat,
    autoRoutes: options.autoRoutes,
    table: options.table,
    sandbox: options.sandbox,
    drainTimeout: options.drainTimeout,
    shutdownDelay: options.shutdownDelay,
    upgradeDrain: MODEL_DEFAULTS.upgradeDrain,
    resolveInterval: MODEL_DEFAULTS.resolveInterval,
    ...(metricsAddr ? { metricsAddr } : {}),
    listeners: [{
      name: listenAddr.text,
      listen: [{ ...listenAddr, lastPort: listenAddr.port }],
      protocol: options.protocol,
      udpHeader: options.udpHeader,
      upstream: MODEL_DEFAULTS.upstream,
      allowedDestinations: [],
      trust: [],
      mark: options.mark,
      headerTimeout: options.headerTimeout,
      connectTimeout: options.connectTimeout,
      closeAfter: options.closeAfter,
      keepalive: options.keepalive,
      idleTimeout: options.idleTimeout,
      optionalWait: MODEL_DEFAULTS.optionalWait,
      transparent: MODEL_DEFAULTS.transparent,
      ...(ipv4 ? { ipv4: upstreamAt(ipv4) } : {}),
      ...(ipv6 ? { ipv6: upstreamAt(ipv6) } : {}),
      ...(allowedSubnets === undefined
        ? {}
        : { allowedSubnets: { kind: "file", path: allowedSubnets } as const }),
    }],
  };
}

function upstreamAt({ family, bytes, scope, port, text }: Address): AddressUpstream {
  return {
    kind: "address",
    address: { family, bytes, scope },
    ports: { first: port, last: port },
    text,
  };
}
