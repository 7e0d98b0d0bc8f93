/** Checks that an upstream answers this host, and a client's address. */
import { formatAddress } from "../config/address.ts";
import { isRange } from "../config/endpoints.ts";
import { type Address, hasDefaultServices } from "../config/options.ts";
import { errorText } from "../log/events.ts";
import { RoutingError } from "../routing/plan.ts";
import type { Facts, ListenerFacts, ServiceFacts } from "./facts.ts";
import {
  asRoot,
  failed,
  type Finding,
  type ListenerCheck,
  ok,
  optionWith,
  skipped,
  unknown,
  warning,
} from "./finding.ts";
import { routingGap } from "./routing_checks.ts";
import { isAnswered, isSpare } from "./spare.ts";

/** A check of each upstream of a listener; its findings name it. */
function each(
  run: (facts: Facts, given: ListenerFacts, service: ServiceFacts) => Finding,
): ListenerCheck {
  return (facts, given) =>
    given.services.length === 0
      ? [skipped(
        given.listener.upstream === "destination"
          ? "each header selects its upstream"
          : "its address is not known",
      )]
      : given.services.map((service) => ({
        ...run(facts, given, service),
        protocol: service.transport,
        address: service.address.text,
      }));
}

/** Errors that say that this host lacks an address family: EAFNOSUPPORT, EADDRNOTAVAIL, ENETUNREACH. */
const NO_FAMILY = new Set([97, 99, 101]);

export const service = each((facts, given, service) => {
  const { address, transport, plain: { outcome, errno } } = service;
  const { text, family, port } = address;
  if (outcome === "failed" && hasDefaultServices(given.listener) && NO_FAMILY.has(errno)) {
    return skipped(`this host has no IPv${family}`);
  }
  if (isSpare(given, service)) {
    return warning(
      `does not answer, so that IPv${family} clients are refused; give -${
        family === 4 ? 6 : 4
      } alone if this is intended`,
    );
  }
  switch (outcome) {
    case "ok":
      return ok(transport === "tcp" ? "accepts a connection" : "answers");
    case "silent":
      return transport === "udp"
        ? unknown(
          "does not answer the test datagram, which it may not understand; this is not a failure",
        )
        : failed("does not answer: is the host up, and does a firewall let this host in?");
    case "refused":
      return isRange(address)
        ? unknown(`nothing listens on port ${port} now, which is normal in a range`)
        : refused(facts, given, service);
    case "failed":
      return failed(`cannot be reached, ${errorText(errno)}: is ${text} right?`, [
        `ip -${family} route get ${ipText(address)}`,
      ]);
  }
});

function refused(
  { config }: Facts,
  { listener }: ListenerFacts,
  { address, transport, elsewhere }: ServiceFacts,
): Finding {
  const { family, port } = address;
  const [other] = elsewhere;
  const letter = transport === "tcp" ? "t" : "u";
  const look = [`ss -ln${letter}p 'sport = :${port}'`];
  if (!other) {
    return failed("nothing listens there: start the upstream, or correct the address", look);
  }
  const text = formatAddress(family, Uint8Array.from(other.bytes), port);
  return failed(
    `nothing listens there, but on ${text}: name that with ${
      optionWith(config, listener, `ipv${family}`, text)
    }`,
    look,
  );
}

export const clients = each((facts, _given, service) => {
  const { plain, spoofed, address, transport } = service;
  if (!spoofed) return skipped("the capability is missing");
  if (spoofed.outcome === "ok") {
    return ok(
      transport === "tcp"
        ? "accepts a connection from a client's address"
        : "answers a client's address",
    );
  }
  if (isAnswered(service)) return ok("refuses a client's address and this host alike");
  if (plain.outcome === "refused" || plain.outcome === "failed") {
    return skipped("the upstream cannot be reached");
  }
  if (transport === "tcp" && plain.outcome === "silent") {
    return skipped("the upstream does not answer");
  }
  if (facts.routing instanceof RoutingError) return skipped("the upstream cannot be reached");
  const gap = routingGap(facts, address.family);
  if (gap !== undefined) return skipped(gap);
  switch (spoofed.outcome) {
    case "refused":
      // The refusal came back, so the routing works; what refuses may know this client alone.
      return warning(
        "answers this host but refuses a client's address: is there a firewall, or a list of allowed hosts?",
        [asRoot(facts.self, "nft list ruleset")],
      );
    case "failed":
      return failed(`cannot be reached as a client: ${errorText(spoofed.errno)}`);
    case "silent":
      return plain.outcome === "silent"
        ? unknown("does not answer a client's address either; the routing is present")
        : noReply(facts, service);
  }
});

function noReply(
  { routing, filter, self }: Facts,
  { address, reach, transport }: ServiceFacts,
): Finding {
  const look = [asRoot(self, "nft list ruleset")];
  if (reach?.kind !== "remote" || routing instanceof RoutingError) {
    // A server may have reasons not to answer a datagram: a connection it has to answer.
    return transport === "udp"
      ? warning(
        "answers this host but not a client's address, although the routing is present: does it answer only " +
          "its own networks, or does a firewall drop its replies?",
        look,
      )
      : failed(
        "does not answer clients, although the routing is present: does a firewall drop its replies?",
        look,
      );
  }
  if (filter.dropped > 0) return skipped("rp_filter drops packets");
  const note = routing.notes.find(({ upstream }) => upstream === address.text);
  return failed(`does not answer clients. ${note?.text ?? ""}`.trim(), note?.commands ?? []);
}

function ipText({ family, bytes }: Address): string {
  return formatAddress(family, Uint8Array.from(bytes));
}
