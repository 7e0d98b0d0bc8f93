/** The order of the samples, and how long each is measured so that a run ends within its budget. */

import { noProxy, type Program } from "./programs.ts";
import type { Kind, Work } from "./works.ts";

/** One sample to be taken. */
export interface Step {
  /** From 1. */
  readonly round: number;
  readonly work: Work;
  readonly program: Program;
}

/** Measured seconds of a sample of share 1: shorter ones say nothing, longer ones say no more. */
export const SECONDS = { least: 0.4, most: 4 };

/** What a step takes in addition to its measured time, in seconds, until one like it has been timed. */
const FIRST_GUESS: Readonly<Record<Kind, number>> = {
  load: 1.5,
  idle: 4,
  startup: 1,
  "highest-rate": 12,
  ports: 3,
  open: 3,
  memory: 5,
};

/**
 * Rounds in which no proxy and one-threaded programs are measured. No proxy is in no ratio: it shows
 * what the load alone can do. One-threaded programs are in no goal.
 */
const FEWER_ROUNDS = 4;

/** What is kept back, as a share of the budget: a stall in the last round cannot be made up for. */
const RESERVE = 0.02;

/**
 * Round by round, work by work, program by program. Who comes first changes with the round, and
 * with it the direction: nobody always runs in the wake of the same neighbour.
 */
export function planRounds(
  works: readonly Work[],
  programs: readonly Program[],
  rounds: number,
): Step[][] {
  return Array.from({ length: rounds }, (_, index) => {
    const round = index + 1;
    const present = programs.filter((one) =>
      round <= FEWER_ROUNDS || (one !== noProxy && one.table === "fair")
    );
    return works.filter(({ mostRounds = rounds }) => round <= mostRounds).flatMap((work) =>
      inTurn(present.filter((program) => isAble(program, work)), round)
        .map((program) => ({ round, work, program }))
    );
  });
}

/** The first load of each protocol with every program: taken before the first round, for nothing. */
export function planTrial(steps: readonly Step[]): Step[] {
  const first = new Map<string, Step>();
  for (const step of steps) {
    if (step.work.kind === "load") {
      const before = first.get(ability(step));
      if (before === undefined) first.set(ability(step), { ...step, round: 0 });
    }
  }
  return [...first.values()];
}

function isAble(program: Program, work: Work): boolean {
  return program.protocols.includes(work.protocol) &&
    (program.table === "fair" || (work.eachCore ?? false)) &&
    (program.takesThreads || work.kind !== "memory") &&
    // Without a program there is none to start, and none whose memory could be measured.
    (program !== noProxy || ["load", "highest-rate", "open"].includes(work.kind));
}

function inTurn<T>(items: readonly T[], round: number): T[] {
  const first = (round - 1) % Math.max(1, items.length);
  const turned = [...items.slice(first), ...items.slice(0, first)];
  return round % 2 === 0 ? turned.toReversed() : turned;
}

/** How long a step is measured, in shares of a round's length; 0 when that is not ours to say. */
export function shareOf({ kind, share = 1 }: Work): number {
  return kind === "load" || kind === "ports" || kind === "open" ? share : 0;
}

/** What the next round is to be like. */
export interface Round {
  /** Measured seconds of a sample of share 1. */
  readonly seconds: number;
  /** The last round that still fits the budget, from 1. */
  readonly last: number;
}

/** Keeps a run within its budget: what steps take is timed, and the rest is shared out again. */
export class Schedule {
  readonly #rounds: readonly (readonly Step[])[];
  readonly #limit: number;
  /** Timed seconds next to the measured ones, by step and by what resembles it. */
  readonly #timed = new Map<string, number[]>();

  /**
   * @param rounds the steps of each.
   * @param budget how long the run may take, in seconds.
   */
  constructor(rounds: readonly (readonly Step[])[], budget: number) {
    this.#rounds = rounds;
    this.#limit = budget * (1 - RESERVE);
  }

  /** Notes what a step took in all, and how much of that was measured, in seconds. */
  learn(step: Step, took: number, measured: number): void {
    for (const key of [identity(step), ability(step)]) {
      this.#timed.set(key, [...this.#timed.get(key) ?? [], took - measured]);
    }
  }

  /**
   * Shares the rest of the budget out among the rounds from this one on; with too little for all,
   * the last ones are given up, this one never.
   *
   * @param round from 1.
   * @param elapsed seconds since the run began.
   */
  next(round: number, elapsed: number): Round {
    const left = this.#limit - elapsed;
    let last = this.#rounds.length;
    while (last > round && this.#length(round, last, left) < SECONDS.least) last--;
    const seconds = this.#length(round, last, left);
    return { seconds: Math.min(SECONDS.most, Math.max(SECONDS.least, seconds)), last };
  }

  #length(from: number, to: number, left: number): number {
    const steps = this.#rounds.slice(from - 1, to).flat();
    const shares = steps.reduce((sum, { work }) => sum + shareOf(work), 0);
    const beside = steps.reduce((sum, step) => sum + this.#beside(step), 0);
    // If nothing depends on the length, only the other times decide whether it fits.
    return shares === 0 ? (beside <= left ? SECONDS.most : 0) : (left - beside) / shares;
  }

  #beside(step: Step): number {
    const timed = this.#timed.get(identity(step)) ?? this.#timed.get(ability(step)) ?? [];
    if (timed.length === 0) return FIRST_GUESS[step.work.kind];
    return timed.reduce((sum, seconds) => sum + seconds, 0) / timed.length;
  }
}

function identity({ work, program }: Step): string {
  return `${work.name} of ${program.name}`;
}

/** What steps that take about as long have in common. */
function ability({ work, program }: Step): string {
  return `${work.kind} over ${work.protocol} of ${program.name}`;
}
