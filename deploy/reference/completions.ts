/** Completions for bash, zsh and fish. */
import type { CommandInfo, OptionInfo } from "./commands.ts";

const GENERATED = "Generated: deno task manual";

/** Options that a command uses; others it takes only so that the flags of a run will do. */
function offered({ options }: CommandInfo): OptionInfo[] {
  return options.filter(({ hidden }) => !hidden);
}

function namesOf({ short, long }: OptionInfo): string[] {
  return [short, long].filter((name) => name !== undefined);
}

/** Words that may stand behind the program's name, or a command's. */
function wordsOf(
  { arguments: [argument] }: CommandInfo,
  topics: readonly string[],
): readonly string[] {
  return argument?.name === "topic" ? topics : argument?.choices ?? [];
}

/** For bash, without the package bash-completion. */
export function bash(
  [program, ...commands]: readonly CommandInfo[],
  topics: readonly string[],
): string {
  if (!program) throw new Error("no program");
  const all = [program, ...commands].flatMap(({ options }) => options);
  const values = unique(
    all.filter(({ choices }) => choices.length > 0).map((option) =>
      `    ${namesOf(option).join("|")}) COMPREPLY=($(compgen -W "${
        option.choices.join(" ")
      }" -- "$current")); return ;;`
    ),
  );
  const paths = unique(all.filter(({ isPath }) => isPath).flatMap(namesOf)).join("|");
  const others = unique(
    all.filter(({ placeholder, isPath, choices }) =>
      placeholder !== undefined && !isPath && choices.length === 0
    ).flatMap(namesOf),
  ).join("|");
  const cases = commands.map((command) => {
    const words = [...wordsOf(command, topics), ...offered(command).flatMap(namesOf)];
    return `    ${command.name}) words="${words.join(" ")}" ;;`;
  });
  const first = [...commands.map(({ name }) => name), ...offered(program).flatMap(namesOf)];
  return `# ${GENERATED}
# shellcheck shell=bash disable=SC2207

_mmproxy() {
  local current=\${COMP_WORDS[COMP_CWORD]} previous=\${COMP_WORDS[COMP_CWORD - 1]} words
  COMPREPLY=()
  case $previous in
${values.join("\n")}
    ${paths}) COMPREPLY=($(compgen -f -- "$current")); return ;;
    ${others}) return ;;
  esac
  case \${COMP_WORDS[1]} in
${cases.join("\n")}
    *) words="${offered(program).flatMap(namesOf).join(" ")}" ;;
  esac
  if ((COMP_CWORD == 1)); then
    words="${first.join(" ")}"
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o filenames -F _mmproxy mmproxy
`;
}

/** For zsh: a file on its fpath. */
export function zsh(
  [program, ...commands]: readonly CommandInfo[],
  topics: readonly string[],
): string {
  if (!program) throw new Error("no program");
  const specs = (command: CommandInfo, indent: string) =>
    offered(command).map((option) => `${indent}${zshOption(option)} \\`).join("\n");
  const described = commands.map(({ name, description }) =>
    `    ${single(`${name}:${firstSentence(description)}`)}`
  );
  const cases = commands.map((command) => {
    const words = wordsOf(command, topics);
    const operand = words.length > 0
      ? ` \\\n        ${single(`1:${command.name}:(${words.join(" ")})`)}`
      : "";
    return `    ${command.name})
      _arguments -s \\
${specs(command, "        ").replace(/ \\$/, "")}${operand} ;;`;
  });
  return `#compdef mmproxy
# ${GENERATED}

_mmproxy() {
  local -a commands
  commands=(
${described.join("\n")}
  )
  if ((CURRENT == 2)) && [[ $words[2] != -* ]]; then
    _describe -t commands command commands
    return
  fi
  case $words[2] in
    ${commands.map(({ name }) => name).join("|")}) shift words; ((CURRENT--)) ;;
  esac
  case $words[1] in
${cases.join("\n")}
    *)
      _arguments -s \\
${specs(program, "        ").replace(/ \\$/, "")} ;;
  esac
}

_mmproxy "$@"
`;
}

/** `'(-m --mark)'{-m,--mark}'[help]:n:'`, as _arguments takes it. */
function zshOption(option: OptionInfo): string {
  const names = namesOf(option);
  const help = option.help.replaceAll("[", "\\[").replaceAll("]", "\\]").replaceAll(":", "\\:");
  const placeholder = option.placeholder?.slice(1, -1);
  const action = option.isPath
    ? "_files"
    : option.choices.length > 0
    ? `(${option.choices.join(" ")})`
    : " ";
  const value = placeholder === undefined ? "" : `:${placeholder}:${action}`;
  const repeat = option.many ? "*" : names.length > 1 ? `(${names.join(" ")})` : "";
  const flags = names.length > 1 ? `{${names.join(",")}}` : single(names.join());
  return `${repeat === "" ? "" : single(repeat)}${flags}${single(`[${help}]${value}`)}`;
}

/** For fish. */
export function fish(
  [program, ...commands]: readonly CommandInfo[],
  topics: readonly string[],
): string {
  if (!program) throw new Error("no program");
  const names = commands.map(({ name }) => name).join(" ");
  const none = `not __fish_seen_subcommand_from ${names}`;
  const lines = commands.map(({ name, description }) =>
    `complete -c mmproxy -n __fish_use_subcommand -a ${name} -d ${
      single(firstSentence(description))
    }`
  );
  for (const option of offered(program)) lines.push(fishOption(option, none));
  for (const command of commands) {
    const seen = `__fish_seen_subcommand_from ${command.name}`;
    const words = wordsOf(command, topics);
    if (words.length > 0) {
      lines.push(`complete -c mmproxy -n ${single(seen)} -a ${single(words.join(" "))}`);
    }
    for (const option of offered(command)) lines.push(fishOption(option, seen));
  }
  return [`# ${GENERATED}`, "complete -c mmproxy -f", ...lines].join("\n") + "\n";
}

function fishOption(option: OptionInfo, condition: string): string {
  const short = option.short === undefined ? [] : ["-s", option.short.slice(1)];
  const value = option.placeholder === undefined
    ? []
    : option.isPath
    ? ["-r", "-F"]
    : option.choices.length > 0
    ? ["-x", "-a", single(option.choices.join(" "))]
    : ["-x"];
  return [
    ...["complete", "-c", "mmproxy", "-n", single(condition), ...short],
    ...["-l", option.long.slice(2), ...value, "-d", single(option.help)],
  ].join(" ");
}

function firstSentence(text: string): string {
  return text.split(/\. |\.$|; /)[0] ?? text;
}

/** In single quotes, as all three shells read them. */
function single(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function unique(texts: readonly string[]): string[] {
  return [...new Set(texts)];
}
