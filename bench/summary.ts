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
 * Ours divided by the best peer's, each round by itself; undefined when there is no such round. The
 * best peer is the one with the best median: the best of each round would be a series that no program
 * has, and the more so the more they vary. A round in which operations of a peer failed or its bytes
 * were lost is not the same work and does not count, and a peer that did the work in less than half of
 * our rounds is not the best.
 */
export function ratioToBestPeer(work: WorkResult, metric: Metric): Summary | undefined {
  const peer = bestPeer(work, metric);
  return peer === undefined ? undefined : ratioTo(work, metric, peer);
}

/** The same against one program. */
export function ratioTo(work: WorkResult, metric: Metric, peer: string): Summary | undefined {
  const theirs = soundSamples(work, metric, peer);
  const ratios = soundSamples(work, metric, OURS).flatMap(({ round, value }) => {
    const other = theirs.find((sample) => sample.round === round)?.value;
    return other === undefined || other === 0 ? [] : [value / other];
  });
  return summarize(ratios);
}

/** The peer with the best median; undefined when there is none, or nothing to compare. */
export function bestPeer(work: WorkResult, metric: Metric): string | undefined {
  if (metric.absolute) return undefined;
  const least = soundSamples(work, metric, OURS).length / 2;
  const names = new Set(work.samples.map(({ program }) => program));
  const peers = [...names].filter((name) => name !== OURS && name !== NO_PROXY).flatMap((name) => {
    const summary = summarize(soundSamples(work, metric, name).map(({ value }) => value));
    return summary === undefined || summary.count < least ? [] : [{ name, ...summary }];
  });
  const found = best(peers.map(({ median }) => median), metric.better);
  return peers.find(({ median }) => median === found)?.name;
}

/** A program's values of a metric in the rounds in which it did the work. */
function soundSamples(
  work: WorkResult,
  metric: Metric,
  program: string,
): { readonly round: number; readonly value: number }[] {
  return work.samples.flatMap((sample) => {
    const value = sample.numbers[metric.name];
    // Our own failures stand in the table and against us: a goal has none of them.
    const sound = program === OURS || didTheWork(sample);
    return sample.program === program && sound && value !== undefined
      ? [{ round: sample.round, value }]
      : [];
  });
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
