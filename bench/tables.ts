/** What a run's tables show: which programs stand beside each other, and works that follow from others. */

import type { Metric, RunResult, Sample, WorkResult } from "./result.ts";
import { COST } from "./works.ts";

/** The run without its one-threaded programs, and with the works that follow from others. */
export function fairTable(result: RunResult): RunResult {
  const own = new Set(namesOf(result, "each core"));
  const works = result.works.map((work) => ({
    ...work,
    samples: work.samples.filter(({ program }) => !own.has(program)),
  }));
  return {
    ...result,
    programs: result.programs.filter(({ name }) => !own.has(name)),
    works: withDerived(works),
  };
}

/**
 * The run's one-threaded programs alone, each by its name without the number of threads, so that ours
 * is compared with peers that have as many.
 */
export function eachCoreTable(result: RunResult): RunResult {
  const own = new Set(namesOf(result, "each core"));
  const plain = (name: string) => name.replace(/-1$/, "");
  const works = result.works.map((work) => ({
    ...work,
    samples: work.samples.filter(({ program }) => own.has(program))
      .map((sample) => ({ ...sample, program: plain(sample.program) })),
  }));
  return {
    ...result,
    programs: result.programs.filter(({ name }) => own.has(name))
      .map((program) => ({ ...program, name: plain(program.name) })),
    works: works.filter(({ samples }) => samples.length > 0),
  };
}

function namesOf({ programs }: RunResult, table: "each core"): string[] {
  return programs.filter((program) => program.table === table).map(({ name }) => name);
}

/** A work whose numbers follow from those of two others, sample by sample. */
interface Derived {
  readonly name: string;
  readonly title: string;
  readonly protocol: "tcp" | "udp";
  readonly from: string;
  readonly to: string;
  readonly metrics: readonly (Metric & {
    /** The metric of both works. */
    readonly of: string;
    readonly by: (from: number, to: number) => number;
  })[];
}

const ratio = (from: number, to: number) => to / from;

function portMemory(protocol: "tcp" | "udp"): Derived {
  const suffix = protocol === "tcp" ? "" : "-udp";
  return {
    name: `port-memory${suffix}`,
    title: `Memory for each port, ${protocol.toUpperCase()}: the difference of 1,000 ports and 1`,
    protocol,
    from: `ports-1${suffix}`,
    to: `ports-1000${suffix}`,
    metrics: [{
      name: "mib_per_port",
      label: "memory",
      unit: "MiB/port",
      better: "less",
      absolute: true,
      of: "mib",
      by: (one, thousand) => (thousand - one) / 999,
    }],
  };
}

const DERIVED: readonly Derived[] = [
  {
    name: "growth",
    title: "Growth of a TCP exchange's cost from 10 to 7,000 open connections",
    protocol: "tcp",
    from: "open-10",
    to: "open-7000",
    metrics: [
      {
        ...{ name: "cost_growth", label: "CPU", unit: "of that at 10", better: "less" },
        of: COST,
        by: ratio,
      },
      {
        ...{ name: "rate_growth", label: "rate", unit: "of that at 10", better: "more" },
        of: "per_second",
        by: ratio,
      },
    ],
  },
  portMemory("tcp"),
  portMemory("udp"),
];

/** The works, each followed by what follows from it. */
function withDerived(works: readonly WorkResult[]): WorkResult[] {
  return works.flatMap((work) => {
    const derived = DERIVED.filter(({ to }) => to === work.name).flatMap((derived) => {
      const from = works.find(({ name }) => name === derived.from);
      return from === undefined ? [] : derive(derived, from, work);
    });
    return [work, ...derived];
  });
}

function derive(derived: Derived, from: WorkResult, to: WorkResult): WorkResult {
  const { name, title, protocol, metrics } = derived;
  const samples = to.samples.flatMap((sample): Sample[] => {
    const { program, round, faults } = sample;
    const before = from.samples.find((other) => other.program === program && other.round === round);
    if (before === undefined) return [];
    const numbers = metrics.flatMap(({ name, of, by }) => {
      const [first, second] = [before.numbers[of], sample.numbers[of]];
      return first === undefined || second === undefined ? [] : [[name, by(first, second)]];
    });
    return [{
      program,
      round,
      numbers: { ...Object.fromEntries(numbers), failed: failures(before) + failures(sample) },
      faults: [...before.faults, ...faults],
    }];
  });
  return {
    name,
    title,
    protocol,
    metrics: metrics.map(({ of: _of, by: _by, ...metric }) => metric),
    samples,
  };
}

function failures({ numbers }: Sample): number {
  return numbers.failed ?? 0;
}
