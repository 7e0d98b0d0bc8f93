/** What the samples of a work say together. */

import type { Metric, Sample, WorkResult } from "./result.ts";
import { best, summarize, type Summary } from "./statistics.ts";

/** The names of the two programs that are no peers. */
export const OURS = "ours";
export const NO_PROXY = "no proxy";

/** The programs of a work, in the order of their first samples in a round. */
export function programsOf(work: WorkResult, order: readonly string[]): string[] {
  return order.filter((name) => work.samples.some((sample) => sample.program === name));
}

/** A metric of a program over all rounds; undefined when it was never measured. */
export function summaryOf(
  work: WorkResult,
  program: string,
  metric: Metric,
): Summary | undefined {
  return summarize(valuesOf(work, program, metric));
}

function valuesOf(work: WorkResult, program: string, metric: Metric): number[] {
  return work.samples.filter((sample) => sample.program === program)
    .flatMap((sample) => sample.numbers[metric.name] ?? []);
}

/**
 * Ours divided by the best peer's, each round by itself; undefined when there is no such round. A
 * peer at which operations failed or bytes were lost in a round did not do the same work, and is left
 * out of it.
 */
export function ratioToBestPeer(work: WorkResult, metric: Metric): Summary | undefined {
  return ratios(work, metric, ({ program }) => program !== OURS && program !== NO_PROXY);
}

/** The same against one program. */
export function ratioTo(work: WorkResult, metric: Metric, peer: string): Summary | undefined {
  return ratios(work, metric, ({ program }) => program === peer);
}

function ratios(
  work: WorkResult,
  metric: Metric,
  isPeer: (sample: Sample) => boolean,
): Summary | undefined {
  const rounds = new Set(work.samples.map((sample) => sample.round));
  const ratios = [...rounds].flatMap((round) => {
    const inRound = work.samples.filter((sample) => sample.round === round);
    const own = inRound.find(({ program }) => program === OURS)?.numbers[metric.name];
    const peers = inRound.filter((sample) => isPeer(sample) && didTheWork(sample));
    const peer = best(peers.flatMap(({ numbers }) => numbers[metric.name] ?? []), metric.better);
    return own === undefined || peer === undefined || peer === 0 ? [] : [own / peer];
  });
  return summarize(ratios);
}

function didTheWork({ numbers }: Sample): boolean {
  return ["failed", "lost_up", "lost_down"].every((counter) => (numbers[counter] ?? 0) === 0);
}

/** The largest part of the machine that others used while a sample of this work was taken. */
export function foreignShare(work: WorkResult): number {
  return Math.max(0, ...work.samples.map((sample) => sample.numbers.foreign_cpu_share ?? 0));
}

/** The sum of a counter over all rounds of a program. */
export function total(work: WorkResult, program: string, counter: string): number {
  return work.samples.filter((sample) => sample.program === program)
    .reduce((sum, sample) => sum + (sample.numbers[counter] ?? 0), 0);
}
