/** Why a text is not the value that it should be. */
export class Problem {
  /** @param text what is said after the value, for example `expected a port from 1 to 65535` */
  constructor(readonly text: string) {}
}
