/** The command line of `check`. */
import { Command } from "@commander-js/extra-typings";

/** `check --config <path>`. */
export interface CheckRequest {
  readonly kind: "check";
  /** The configuration's path. */
  readonly path: string;
}

/** The subcommand; it passes its request to `asked`. */
export function checkCommand(asked: (request: CheckRequest) => void) {
  return new Command("check")
    .description(
      "Checks a configuration file and the subnet files that it names, and reports every mistake: file, " +
        "line, key, value, and what was expected. Changes nothing.",
    )
    .requiredOption("--config <path>", "the configuration file (TOML); see docs/config.md")
    .addHelpText("after", "\nExit codes: 0 the file is valid, 2 it has mistakes.")
    .action(({ config }) => asked({ kind: "check", path: config }));
}
