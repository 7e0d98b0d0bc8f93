import { Status } from "../native/layout.ts";
import { NativeError } from "../native/library.ts";

/** The proxy cannot run; the message is one line that says what to do. */
export class StartError extends Error {
  override readonly name = "StartError";
  /** Whether another start comes to the same until somebody changes something; see `isLasting`. */
  readonly lasting: boolean;

  constructor(message: string, options: ErrorOptions & { readonly lasting?: boolean } = {}) {
    super(message, options);
    this.lasting = options.lasting ?? isLasting(this);
  }
}

/** Whether an error comes from a permission that is missing, or from what the configuration says. */
export function isLasting({ cause }: Error): boolean {
  const statuses: number[] = [Status.permission, Status.loop];
  return cause instanceof NativeError && statuses.includes(cause.status);
}
