/** What a run leaves behind: the JSON in `bench/results/`, which the charts are drawn from. */

import type { Better } from "./statistics.ts";

/** A number that a work is judged by. */
export interface Metric {
  /** Its name among a sample's numbers. */
  readonly name: string;
  readonly label: string;
  readonly unit: string;
  readonly better: Better;
  /** No ratio: it may be about 0, and then a ratio says nothing. */
  readonly absolute?: boolean;
}

/** One program at one work, once. */
export interface Sample {
  readonly program: string;
  /** From 1. */
  readonly round: number;
  /** Everything that was measured and counted, by name. */
  readonly numbers: Readonly<Record<string, number>>;
  /** What makes it no result, in words. */
  readonly faults: readonly string[];
}

/** One line of the benchmark. */
export interface WorkResult {
  readonly name: string;
  readonly title: string;
  /** Results before there was a table of TCP works do not say. */
  readonly protocol?: "tcp" | "udp";
  readonly metrics: readonly Metric[];
  readonly samples: readonly Sample[];
}

/** Everything that a reader needs to judge a run, and to repeat it. */
export interface RunResult {
  readonly started: string;
  readonly minutes: number;
  readonly mode: "quick" | "full";
  readonly machine: {
    readonly kernel: string;
    readonly processor: string;
    readonly cores: number;
    readonly memoryGiB: number;
    /** Of the machine in the minute before the run: others at work blur a result. */
    readonly loadBefore: number;
  };
  readonly settings: {
    readonly rounds: number;
    /** Measured time of a sample, by round; results before had one length for all. */
    readonly seconds: number | readonly number[];
    readonly tcpHeader: string;
    /** Results before it was an option do not say. */
    readonly ipv6?: boolean;
    /** Run by root, or in a user namespace. */
    readonly privilege: string;
    /** Of the namespaces that the programs ran in. */
    readonly sysctls: Readonly<Record<string, string>>;
  };
  readonly programs: readonly {
    readonly name: string;
    readonly version: string;
    readonly command: string;
    /** In which table it stands; in the fair one where a result does not say. */
    readonly table?: "fair" | "each core";
  }[];
  readonly works: readonly WorkResult[];
}
