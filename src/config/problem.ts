/** The reason why a text is not a valid value. */
export class Problem {
  /** @param text what is said after the value, for example `expected a port from 1 to 65535` */
  constructor(readonly text: string) {}
}
