/** The log: lines on standard error, as text for people or JSON for machines. */
import {
  configureSync,
  getLogger,
  type Logger,
  type LogLevel,
  type LogRecord,
} from "@logtape/logtape";
import type { LevelName, LogFormat } from "../config/options.ts";

/** What a line tells beside its message; each is a field of the JSON form. */
export interface Details {
  /** The stable name of what happened. */
  readonly event: string;
  readonly [field: string]: unknown;
}

/** Writes one line. */
export type Log = (level: LevelName, message: string, details: Details) => void;

/** LogTape has no "access" level: it lies between info and debug, where LogTape has debug and trace. */
const LOGTAPE: Record<LevelName, LogLevel> = {
  error: "error",
  warn: "warning",
  info: "info",
  access: "debug",
  debug: "trace",
};
const NAMES = new Map(Object.entries(LOGTAPE).map(([ours, theirs]) => [theirs, ours]));

/**
 * Sets the log up, once.
 *
 * @param write takes whole lines, and holds nobody up
 */
export function openLog(level: LevelName, format: LogFormat, write: (line: string) => void): Log {
  const line = FORMATS[format];
  configureSync({
    reset: true,
    sinks: { lines: (record: LogRecord) => write(line(record)) },
    loggers: [
      { category: "mmproxy", lowestLevel: LOGTAPE[level], sinks: ["lines"] },
      { category: ["logtape", "meta"], lowestLevel: "error", sinks: ["lines"] },
    ],
  });
  const logger = getLogger("mmproxy");
  return (level, message, details) => emit(logger, level, message, details);
}

/** The line that stands for `count` lines which found no room. */
export function lostLines(count: number, format: LogFormat): string {
  const lines = count === 1 ? "1 line was" : `${count} lines were`;
  const message = `${lines} left out here: standard error did not take them`;
  const details = { event: "log_lines_lost", value: count };
  return FORMATS[format]({ category: ["mmproxy"], ...recordOf("warn", message, details) });
}

const FORMATS: Record<LogFormat, (record: LogRecord) => string> = {
  text: formatText,
  json: formatJson,
};

function emit(logger: Logger, level: LevelName, message: string, details: Details): void {
  logger.emit(recordOf(level, message, details));
}

function recordOf(level: LevelName, message: string, details: Details) {
  return {
    timestamp: Date.now(),
    level: LOGTAPE[level],
    // A message is not a template: braces in it are the operator's.
    message: [message],
    rawMessage: message,
    properties: details,
  };
}

/** `2026-11-23T06:22:18.123Z WARN  message` */
function formatText(record: LogRecord): string {
  const level = levelName(record).toUpperCase().padEnd(6);
  // One event, one line: what a message quotes cannot start another.
  // deno-lint-ignore no-control-regex
  const message = record.message.join("").replaceAll(/[\x00-\x1f\x7f]+/g, " ");
  return `${new Date(record.timestamp).toISOString()} ${level} ${message}\n`;
}

function formatJson(record: LogRecord): string {
  const { event, ...rest } = record.properties;
  const time = new Date(record.timestamp).toISOString();
  const message = record.message.join("");
  return JSON.stringify({ time, level: levelName(record), event, message, ...rest }) + "\n";
}

function levelName(record: LogRecord): string {
  return NAMES.get(record.level) ?? record.level;
}
