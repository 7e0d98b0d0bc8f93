/**
 * The metrics: the current counters as families of samples, named according to Prometheus' conventions. Metrics of a
 * listener have its name as the label `listener`; those of the proxy have no such label.
 */
import { errorName } from "../log/events.ts";
import { BUCKETS_MS } from "../native/layout.ts";
import type { Buckets, CounterName, HistogramName, Stats } from "../native/stats.ts";
import type { Usage } from "../native/usage.ts";

/** One value with its labels. */
export interface Sample {
  readonly value: number;
  readonly labels: Readonly<Record<string, string>>;
  /** Where it is not the family's: `_bucket`, `_sum` and `_count` of a histogram. */
  readonly metricName?: string;
}

/** All samples of one name. */
export interface Family {
  readonly name: string;
  readonly help: string;
  readonly type: "counter" | "gauge" | "histogram";
  readonly samples: readonly Sample[];
}

/** What the counters do not know. */
export interface Surroundings {
  readonly version: string;
  readonly deno: string;
  readonly arch: string;
  /** Seconds since 1970. */
  readonly startedAt: number;
  /** Workers that there should be, and that run. */
  readonly workers: number;
  readonly serving: number;
  readonly restarts: number;
  /** Whether the last SIGHUP brought a good subnet file. */
  readonly lastReloadGood: boolean;
  /** Log lines that standard error did not take. */
  readonly linesLost: number;
  /** Nothing if the system does not say. */
  readonly usage?: Usage;
}

/** The counters of one listener. */
export interface ListenerStats {
  /** Its name. */
  readonly listener: string;
  readonly stats: Stats;
}

/** Errors that every scrape names, so that their first increase shows. */
const COMMON_ERRORS = ["ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "EADDRNOTAVAIL", "EPERM"];
const SECOND_MS = 1000;

/**
 * Every family, of the counters and surroundings of one moment.
 *
 * @param listeners one or more
 * @param total what is counted for no listener is in it
 */
export function families(
  listeners: readonly ListenerStats[],
  total: Pick<Stats, "get">,
  around: Surroundings,
): Family[] {
  return [...merged(listeners), ...proxyFamilies(total, around)];
}

/** The families of every listener, each sample with its listener's name. */
function merged(listeners: readonly ListenerStats[]): Family[] {
  const all = listeners.map(({ listener, stats }) =>
    listenerFamilies(stats).map((family) => ({
      ...family,
      samples: family.samples.map((sample) => ({
        ...sample,
        labels: { listener, ...sample.labels },
      })),
    }))
  );
  const [first = []] = all;
  return first.map((family, index) => ({
    ...family,
    samples: all.flatMap((families) => families[index]?.samples ?? []),
  }));
}

/** What is counted for each listener. */
function listenerFamilies(stats: Stats): Family[] {
  const count = (name: CounterName) => stats.get(name);
  return [
    counter(
      "mmproxy_connections_accepted_total",
      "TCP connections accepted from the listening sockets.",
      count("accepted"),
    ),
    counter(
      "mmproxy_silent_connections_total",
      "TCP connections that ended without a byte: health checks, or a sender that waits for the client to send first.",
      count("silent"),
    ),
    gauge("mmproxy_connections_active", "TCP connections open now.", count("connections_active")),
    labelled(
      "mmproxy_refused_total",
      "Connections closed and datagrams dropped before they reached the upstream, by reason.",
      "reason",
      [...stats.refusals].filter(([reason]) => reason !== "none"),
    ),
    labelled(
      "mmproxy_headers_total",
      "PROXY headers accepted, by version; none: connections and flows without one. UDP: one for each session; without sessions, one each time that a header is decoded.",
      "version",
      [
        ["1", count("headers_v1")],
        ["2", count("headers_v2")],
        ["spp", count("headers_spp")],
        ["none", count("headers_none")],
      ],
    ),
    counter(
      "mmproxy_headers_without_client_total",
      "Headers without a client address (LOCAL, UNKNOWN, UNSPEC, unix): relayed from the proxy's own address.",
      count("headers_own"),
    ),
    counter(
      "mmproxy_connections_established_total",
      "TCP connections to the upstream that were established.",
      count("connected"),
    ),
    labelled(
      "mmproxy_connect_errors_total",
      "TCP connections to the upstream that failed, by error; timeout is the proxy's own connect timeout.",
      "error",
      connectErrors(stats),
    ),
    counter(
      "mmproxy_ports_exhausted_total",
      "TCP connections to the upstream that failed because no source port was free; also counted as EADDRNOTAVAIL.",
      count("ports_exhausted"),
    ),
    counter(
      "mmproxy_port_fallbacks_total",
      "Connections and flows that used another source port because the client's port was not available.",
      count("port_fallbacks"),
    ),
    counter(
      "mmproxy_connections_offloaded_total",
      "TCP connections handed over to the kernel.",
      count("offloaded"),
    ),
    counter(
      "mmproxy_idle_timeouts_total",
      "TCP connections closed because they were idle for the idle timeout.",
      count("idle_timeouts"),
    ),
    counter(
      "mmproxy_accept_pauses_total",
      "Times that accepting paused because file descriptors or memory ran out.",
      count("accept_pauses"),
    ),
    {
      name: "mmproxy_bytes_total",
      help: "Payload bytes relayed; up is from clients to the upstream.",
      type: "counter",
      samples: [
        { labels: { protocol: "tcp", direction: "up" }, value: count("bytes_up") },
        { labels: { protocol: "tcp", direction: "down" }, value: count("bytes_down") },
        { labels: { protocol: "udp", direction: "up" }, value: count("datagram_bytes_up") },
        { labels: { protocol: "udp", direction: "down" }, value: count("datagram_bytes_down") },
      ],
    },
    labelled(
      "mmproxy_datagrams_total",
      "Datagrams relayed; up is from clients to the upstream.",
      "direction",
      [
        ["up", count("datagrams_up")],
        ["down", count("datagrams_down")],
      ],
    ),
    counter(
      "mmproxy_datagrams_lost_total",
      "Datagrams that the kernel refused to send, in either direction.",
      count("datagrams_lost"),
    ),
    counter(
      "mmproxy_icmp_errors_total",
      "ICMP errors from the upstream, reported on a UDP flow.",
      count("upstream_unreachable"),
    ),
    counter("mmproxy_flows_opened_total", "UDP flows opened.", count("flows_opened")),
    gauge("mmproxy_flows_active", "UDP flows open now.", count("flows_active")),
    counter(
      "mmproxy_flows_evicted_total",
      "UDP flows evicted for newer ones.",
      count("flows_evicted"),
    ),
    counter(
      "mmproxy_flow_errors_total",
      "UDP flows that could not be opened.",
      count("flow_errors"),
    ),
    histogram(
      "mmproxy_header_duration_seconds",
      "Time from accepting a connection to its complete header, in whole milliseconds.",
      stats,
      "header_time",
    ),
    histogram(
      "mmproxy_connect_duration_seconds",
      "Time from the connection attempt to the upstream's answer, in whole milliseconds.",
      stats,
      "connect_time",
    ),
  ];
}

/** What is the proxy's own. */
function proxyFamilies(total: Pick<Stats, "get">, around: Surroundings): Family[] {
  return [
    gauge("mmproxy_workers", "Configured number of workers.", around.workers),
    gauge("mmproxy_workers_up", "Workers running.", around.serving),
    counter(
      "mmproxy_worker_restarts_total",
      "Workers restarted after a failure.",
      around.restarts,
    ),
    gauge(
      "mmproxy_last_reload_successful",
      "Whether the last reload succeeded; 1 before the first.",
      Number(around.lastReloadGood),
    ),
    counter(
      "mmproxy_log_lines_lost_total",
      "Log lines lost because they could not be written, or not fast enough.",
      total.get("events_lost") + around.linesLost,
    ),
    {
      name: "mmproxy_build_info",
      help: "Always 1; the labels carry the version.",
      type: "gauge",
      samples: [{
        labels: { version: around.version, deno: around.deno, arch: around.arch },
        value: 1,
      }],
    },
    gauge(
      "process_start_time_seconds",
      "Start time of the process since the Unix epoch in seconds.",
      around.startedAt,
    ),
    ...around.usage ? usageFamilies(around.usage) : [],
  ];
}

/** The process, under the names that Prometheus's own clients use. */
function usageFamilies(usage: Usage): Family[] {
  return [
    counter(
      "process_cpu_seconds_total",
      "User and system CPU time of all threads, in seconds.",
      usage.cpuSeconds,
    ),
    gauge("process_resident_memory_bytes", "Memory in use, in bytes.", usage.residentBytes),
    gauge("process_virtual_memory_bytes", "Address space in use, in bytes.", usage.virtualBytes),
    gauge("process_open_fds", "Open file descriptors.", usage.openFiles),
    gauge("process_max_fds", "Limit of open file descriptors.", usage.fileLimit),
  ];
}

function counter(name: string, help: string, value: number): Family {
  return { name, help, type: "counter", samples: [{ labels: {}, value }] };
}

function gauge(name: string, help: string, value: number): Family {
  return { ...counter(name, help, value), type: "gauge" };
}

/** A counter for each value of one label. */
function labelled(
  name: string,
  help: string,
  label: string,
  values: readonly (readonly [string, number])[],
): Family {
  const samples = values.map(([key, value]) => ({ labels: { [label]: key }, value }));
  return { name, help, type: "counter", samples };
}

function connectErrors(stats: Stats): [string, number][] {
  const errors = new Map(COMMON_ERRORS.map((name) => [name, 0]));
  for (const [errno, count] of stats.connectErrors) errors.set(errorName(errno), count);
  return [...errors, ["timeout", stats.get("connect_timeouts")]];
}

function histogram(name: string, help: string, stats: Stats, from: HistogramName): Family {
  const { counts, sum }: Buckets = stats.histograms.get(from) ?? { counts: [], sum: 0 };
  let total = 0;
  const buckets = counts.map((count, index): Sample => {
    total += count;
    const bound = BUCKETS_MS[index];
    const le = bound === undefined ? "+Inf" : String(bound / SECOND_MS);
    return { metricName: `${name}_bucket`, labels: { le }, value: total };
  });
  return {
    name,
    help,
    type: "histogram",
    samples: [
      ...buckets,
      { metricName: `${name}_sum`, labels: {}, value: sum / SECOND_MS },
      { metricName: `${name}_count`, labels: {}, value: total },
    ],
  };
}
