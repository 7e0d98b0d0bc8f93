/** Checks of a listener: addresses, trust and upstreams. */
import { quote } from "../cli/command_line.ts";
import { formatAddress } from "../config/address.ts";
import { endpointText } from "../config/endpoints.ts";
import type { ListenerConfig } from "../config/model.ts";
import { refusedFamilies, refusedSentence } from "../config/options.ts";
import { SubnetsError } from "../config/subnets.ts";
import { errorText } from "../log/events.ts";
import { Status } from "../native/layout.ts";
import { NativeError } from "../native/library.ts";
import type { Facts, Holder, ListenerFacts, OwnReach, Taken } from "./facts.ts";
import {
  asRoot,
  failed,
  type Finding,
  listOf,
  ok,
  optionName,
  optionWith,
  unknown,
  warning,
  wrongSysctl,
} from "./finding.ts";
import { count } from "../config/count.ts";

/** Wrong lines of a file that are shown. */
const MOST_LINES = 8;
/** A file with more of them is not one that a command should change. */
const MOST_EDITS = 32;

export function subnets({ config, self }: Facts, { listener, subnets }: ListenerFacts): Finding[] {
  const { allowedSubnets, trust } = listener;
  if (trust.length > 0) return [ok(`trust has ${count(trust.length, "rule")}`)];
  if (allowedSubnets === undefined) {
    const option = optionName(config, listener, "allowed-subnets");
    return [warning(`Every peer may send PROXY headers: list your load balancers in ${option}`)];
  }
  if (allowedSubnets.kind === "inline") {
    return [ok(`${count(allowedSubnets.subnets.length, "subnet")} may send PROXY headers`)];
  }
  const { path } = allowedSubnets;
  if (typeof subnets === "number") return [ok(`${path} lists ${count(subnets, "subnet")}`)];
  if (subnets === undefined) return [unknown(`${path} was not read`)];
  if (!(subnets instanceof SubnetsError) || subnets.wrong.length === 0) {
    return [failed(`${subnets.message}; write one subnet per line into it`)];
  }
  return wrongLines(subnets, path, self);
}

/** The first wrong lines; the last finding comments all of them out. */
function wrongLines({ wrong }: SubnetsError, path: string, self: Facts["self"]): Finding[] {
  const shown = wrong.slice(0, MOST_LINES).map(({ line, entry, problem }) =>
    `${path}, line ${line}: ${JSON.stringify(entry)} ${problem}`
  );
  const more = wrong.length - shown.length;
  const last = `${shown.pop()}${more > 0 ? ` (and ${count(more, "more line")})` : ""}`;
  const edits = wrong.map(({ line }) => `${line}s/^/# /`);
  const comment = asRoot(self, `sed -i '${edits.join("; ")}' ${quote(path)}`);
  return [
    ...shown.map((detail) => failed(detail)),
    wrong.length <= MOST_EDITS
      ? failed(`${last}; correct the file, or comment out the invalid lines`, [comment])
      : failed(`${last}; is ${path} the right file?`),
  ];
}

export function listen(facts: Facts, { listener, taken, reached }: ListenerFacts): Finding[] {
  const lost = reached.filter(({ errno }) => errno !== 0).map((one) => notReached(facts, one));
  if (taken.length > 0) return [...taken.map((one) => notFree(facts, listener, one)), ...lost];
  if (lost.length > 0) return lost;
  const texts = listener.listen.map(({ text }) => text);
  const free = `${listOf(texts)} ${texts.length === 1 ? "is" : "are"} free`;
  return [ok(reached.length > 0 ? `${free} and reachable from this host` : free)];
}

/** What makes packets to other ports arrive at a transparent listener, as far as it can be seen. */
export function tproxy({ tproxy }: Facts, { listener }: ListenerFacts): Finding[] {
  if (!listener.transparent) return [];
  if (tproxy === undefined) {
    return [
      unknown("iptables-legacy may have a TPROXY rule: iptables-legacy -t mangle -S lists it"),
    ];
  }
  if (tproxy instanceof NativeError) {
    return [unknown(`${tproxy.message}: whether there is a tproxy rule cannot be seen from here`)];
  }
  if (tproxy) return [ok("nftables has a tproxy rule")];
  return [warning(
    "nftables has no tproxy rule: unless eBPF (sk_lookup) passes packets on, only those to the listen " +
      "port arrive; see docs/recipes/transparent.md",
  )];
}

/** A packet of this host's own was lost on its way to where the program listens. */
function notReached({ self }: Facts, { address, transport, errno }: OwnReach): Finding {
  const what = transport === "tcp" ? "a connection" : "a datagram";
  return failed(
    `${address.text}: ${what} from this host does not get through, ${
      errorText(errno)
    }: a firewall drops or rejects it`,
    [asRoot(self, "nft list ruleset")],
  );
}

function notFree(facts: Facts, listener: ListenerConfig, taken: Taken): Finding {
  const { self, config } = facts;
  const { address, problem, holder, upstream } = taken;
  const { text, port } = address;
  const option = optionName(config, listener, "listen-addr");
  switch (problem.status) {
    case Status.permission:
      return wrongSysctl(
        `${problem.message}: grant CAP_NET_BIND_SERVICE, or open the port to all users`,
        self,
        "net/ipv4/ip_unprivileged_port_start",
        port,
      );
    case Status.address_in_use:
      if (holder?.ours) return ok(`mmproxy already runs there (process ${holder.process})`);
      if (upstream) return upstreamListens(facts, listener, taken, upstream);
      if (!holder) {
        return failed(
          `${problem.message}: another user's program uses it; stop that program, or choose another port ` +
            `with ${option}`,
          [`sudo ss -lntup 'sport = :${port}'`],
        );
      }
      return failed(
        `${text} is in use by ${holder.name} (process ${holder.process}): stop it, or choose ` +
          `another port with ${option}`,
        // systemd holds the sockets of services that it starts on demand; elsewhere 1 is the container.
        [asRoot(
          self,
          holder.process === 1 ? `ss -lntup 'sport = :${port}'` : `kill ${holder.process}`,
        )],
      );
    case Status.address_not_available: {
      const any = { ...address, bytes: address.bytes.map(() => 0), scope: 0 };
      const ports = listener.listen.find(({ bytes }) => bytes.join() === address.bytes.join());
      const first = ports?.port ?? port;
      const anyText = endpointText(any, { first, last: ports?.lastPort ?? first });
      return failed(
        `${problem.message}: ${text} is not an address of this host; choose one (ip address), or ` +
          `all of them with ${optionWith(config, listener, "listen-addr", anyText)}`,
      );
    }
    default:
      return failed(problem.message);
  }
}

/** The port is the upstream's: to end that would be the end of the service. */
function upstreamListens(
  { self, config }: Facts,
  listener: ListenerConfig,
  { address, holder }: Taken,
  upstream: NonNullable<Taken["upstream"]>,
): Finding {
  const { text, port } = address;
  const whose = holder ? `, ${holderText(holder)}` : "";
  const takes = upstream.isWildcard ? ", which uses the port on every address" : "";
  const option = optionName(config, listener, "listen-addr");
  const at = formatAddress(upstream.named.family, Uint8Array.from(upstream.named.bytes), port);
  return failed(
    `${text} is in use by the upstream itself${whose}: it listens on ${upstream.text}${takes}. Let it ` +
      `listen on ${at} only, or choose another port with ${option}`,
    [asRoot(self, `ss -lntup 'sport = :${port}'`)],
  );
}

function holderText({ name, process }: Holder): string {
  return `${name} (process ${process})`;
}

export function upstreams({ config }: Facts, { listener, loop }: ListenerFacts): Finding[] {
  if (loop) {
    const option = optionName(config, listener, "listen-addr");
    return [failed(
      `${loop.message}: choose another port with ${option}, or set the upstream to the server itself`,
      [`ss -lntup 'sport = :${listener.listen[0]?.port}'`],
    )];
  }
  if (listener.upstream === "destination") {
    const texts = listener.allowedDestinations.map(({ text }) => text);
    return [ok(`Clients to the destination in their header, within ${listOf(texts)}`)];
  }
  const named = ([4, 6] as const).flatMap((family) => {
    const upstream = listener[`ipv${family}`];
    return upstream ? [`IPv${family} clients to ${upstream.text}`] : [];
  });
  return [ok([...named, ...refusedFamilies(listener).map(refusedSentence)].join("; "))];
}
