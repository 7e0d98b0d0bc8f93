/** The log: lines on standard error, as text for people or JSON for machines. */
import {
  configureSync,
  getLogger,
  type Logger,
  type LogLevel,
  type LogRecord,
} from "@logtape/logtape";
import type { LevelName, LogFormat } from "../config/options.ts";
import { type Paint, plain, type Style } from "./paint.ts";

/** The fields of a line in addition to its message, for the JSON format. */
export interface Details {
  /** The stable name of what happened. */
  readonly event: string;
  readonly [field: string]: unknown;
}

/** Writes one line. */
export type Log = (level: LevelName, message: string, details: Details) => void;

/** How a line is written. */
export interface Form {
  readonly format: LogFormat;
  /** For systemd's journal, which has a time and a priority of its own. */
  readonly journal: boolean;
  /** Colours a text line's time and level; without it they have none. */
  readonly paint?: Paint;
}

/** LogTape has no "access" level: it is between info and debug, where LogTape has debug and trace. */
const LOGTAPE: Record<LevelName, LogLevel> = {
  error: "error",
  warn: "warning",
  info: "info",
  access: "debug",
  debug: "trace",
};
/** The journal's priorities (sd-daemon(3)). */
const PRIORITIES: Record<LevelName, number> = { error: 3, warn: 4, info: 6, access: 6, debug: 7 };
const NAMES = new Map(
  Object.entries(LOGTAPE).map(([ours, theirs]) => [theirs, ours as LevelName]),
);

/**
 * Sets the log up, once.
 *
 * @param write accepts complete lines, and never blocks
 */
export function openLog(level: LevelName, form: Form, write: (line: string) => void): Log {
  const line = writerOf(form);
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

/** The line that represents `count` lost lines. */
export function lostLines(count: number, form: Form): string {
  const lines = count === 1 ? "1 line was" : `${count} lines were`;
  const message = `${lines} left out here: standard error did not take them`;
  const details = { event: "log_lines_lost", value: count };
  return lineOf("warn", message, details, form);
}

/** The lines of a failure, before there is a log or after it: one for each line of the message. */
export function failureLines(message: string, code: number, form: Form): string {
  // Without a log, a line begins as other programs' do.
  const isPlain = form.format === "text" && !form.journal;
  return message.split("\n").map((line) =>
    isPlain
      ? `mmproxy: ${line}\n`
      : lineOf("error", line, { event: "failed", exit_code: code }, form)
  ).join("");
}

function lineOf(level: LevelName, message: string, details: Details, form: Form): string {
  return writerOf(form)({ category: ["mmproxy"], ...recordOf(level, message, details) });
}

function writerOf({ format, journal, paint = plain }: Form): (record: LogRecord) => string {
  if (!journal) {
    return format === "json" ? formatJson : (record) => formatText(record, paint);
  }
  const line = format === "json" ? formatJson : formatMessage;
  return (record) => `<${PRIORITIES[levelName(record)]}>${line(record)}`;
}

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

const STYLES: Record<string, Style> = { error: "red", warn: "yellow", info: "green" };

/** `2026-11-23T06:22:18.123Z WARN   message` */
function formatText(record: LogRecord, paint: Paint): string {
  const name = levelName(record);
  const level = paint(STYLES[name] ?? "dim", name.toUpperCase().padEnd(6));
  const time = paint("dim", new Date(record.timestamp).toISOString());
  return `${time} ${level} ${formatMessage(record)}`;
}

/** One event, one line: what a message quotes cannot start another. */
function formatMessage(record: LogRecord): string {
  // deno-lint-ignore no-control-regex
  return `${record.message.join("").replaceAll(/[\x00-\x1f\x7f]+/g, " ")}\n`;
}

function formatJson(record: LogRecord): string {
  const { event, ...rest } = record.properties;
  const time = new Date(record.timestamp).toISOString();
  const message = record.message.join("");
  return JSON.stringify({ time, level: levelName(record), event, message, ...rest }) + "\n";
}

function levelName(record: LogRecord): LevelName {
  return NAMES.get(record.level) ?? "error";
}
