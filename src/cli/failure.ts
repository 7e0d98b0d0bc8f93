/** The exit code and the message of a failure, in the requested log format. */
import { ConfigError } from "../config/mistakes.ts";
import type { LogFormat } from "../config/options.ts";
import { ControlError } from "../control/error.ts";
import { HelpError } from "../help/pages.ts";
import { LibraryError } from "../native/library.ts";
import { isLasting, StartError } from "../proxy/start_error.ts";
import { RoutingError } from "../routing/plan.ts";
import type { Environment } from "./environment.ts";
import { UsageError } from "./usage_error.ts";

/** A failure as the operator gets it. */
export interface Failure {
  /** One line, or several of a configuration. */
  readonly message: string;
  /** 2 where another start changes nothing until somebody changes something, otherwise 1. */
  readonly code: 1 | 2;
}

/** @param isRun whether the proxy was to run, and nothing else was asked */
export function failureOf(error: unknown, isRun: boolean): Failure {
  if (error instanceof UsageError || error instanceof ConfigError) {
    return { message: error.message, code: 2 };
  }
  if (error instanceof StartError) return { message: error.message, code: error.lasting ? 2 : 1 };
  if (error instanceof RoutingError) {
    return { message: error.message, code: isRun && isLasting(error) ? 2 : 1 };
  }
  const others = [LibraryError, ControlError, HelpError];
  if (others.some((kind) => error instanceof kind)) {
    return { message: (error as Error).message, code: 1 };
  }
  const text = error instanceof Error ? error.stack ?? error.message : String(error);
  return { message: `internal error, please report it: ${text}`, code: 1 };
}

/** The log's form as a command line requests it that may be wrong otherwise. */
export function formatAskedFor(args: readonly string[], environment: Environment): LogFormat {
  const flag = "--log-format";
  const typed = args.flatMap((word, index) => {
    if (word.startsWith(`${flag}=`)) return [word.slice(flag.length + 1)];
    return args[index - 1] === flag ? [word] : [];
  });
  const text = typed.at(-1) ?? environment("MMPROXY_LOG_FORMAT");
  return text?.toLowerCase() === "json" ? "json" : "text";
}
