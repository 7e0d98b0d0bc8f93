/** The command line of `help`. */
import { Command } from "@commander-js/extra-typings";

/** `help [topic]`. */
export interface HelpRequest {
  readonly kind: "help";
  /** The name of a page; without one the topics are listed. */
  readonly topic: string | undefined;
}

/** The subcommand; it passes its request to `asked`. */
export function helpCommand(asked: (request: HelpRequest) => void) {
  return new Command("help")
    .description("Prints a page of the documentation; without a topic, the list of topics.")
    .argument("[topic]", "name of a page, for example routes or sshd")
    .action((topic) => asked({ kind: "help", topic }));
}
