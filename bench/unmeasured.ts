import type { RunResult } from "./result.ts";

/** A run that measured nothing: what tests of results need to have, but do not look at. */
export const UNMEASURED: RunResult = {
  started: "",
  minutes: 1,
  mode: "full",
  machine: { kernel: "", processor: "", cores: 2, memoryGiB: 1, loadBefore: 0 },
  settings: { rounds: 1, seconds: [1], tcpHeader: "v2", privilege: "root", sysctls: {} },
  programs: [],
  works: [],
};
