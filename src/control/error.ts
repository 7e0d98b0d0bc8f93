/** The failure of a command for a running program. */

/** The running program cannot be asked, or refuses; the message is one line for the operator. */
export class ControlError extends Error {
  override readonly name = "ControlError";
}
