import { Status } from "../native/layout.ts";
import { NativeError } from "../native/library.ts";

/** The proxy cannot run; the message is one line with the remedy. */
export class StartError extends Error {
  override readonly name = "StartError";
  /** Whether another start has the same result until somebody changes something; see `isLasting`. */
  readonly lasting: boolean;

  constructor(message: string, options: ErrorOptions & { readonly lasting?: boolean } = {}) {
    super(message, options);
    this.lasting = options.lasting ?? isLasting(this);
  }
}

/**
 * What `act` gives; a refusal of the native core becomes a `StartError` with the same words.
 *
 * @throws {StartError}
 */
export async function orStartError<T>(act: () => Promise<T>): Promise<T> {
  try {
    return await act();
  } catch (error) {
    throw startErrorOf(error);
  }
}

/** As `orStartError`, for what does not wait. */
export function orStartErrorSync<T>(act: () => T): T {
  try {
    return act();
  } catch (error) {
    throw startErrorOf(error);
  }
}

function startErrorOf(error: unknown): unknown {
  return error instanceof NativeError ? new StartError(error.message, { cause: error }) : error;
}

/** Whether an error is caused by a missing permission, or by the configuration. */
export function isLasting({ cause }: Error): boolean {
  const statuses: number[] = [Status.permission, Status.loop];
  return cause instanceof NativeError && statuses.includes(cause.status);
}
