/** Finds the known word that was probably meant. */

/** Words of which more than this part is wrong are other words. */
const MOST_WRONG = 0.4;

/** The nearest of `known` to a word, or undefined if none is near. */
export function nearest(word: string, known: readonly string[]): string | undefined {
  const [best] = known
    .map((name) => ({ name, distance: distance(word, name) }))
    .filter(({ name, distance }) => distance <= MOST_WRONG * Math.max(name.length, word.length))
    .toSorted((one, other) => one.distance - other.distance);
  return best?.name;
}

/** Letters to add, remove, replace or swap with their neighbour (optimal string alignment). */
function distance(from: string, to: string): number {
  let before: number[] = [];
  let last = [...Array(to.length + 1).keys()];
  for (let row = 1; row <= from.length; row++) {
    const next = [row];
    for (let column = 1; column <= to.length; column++) {
      const isSame = from[row - 1] === to[column - 1];
      let cost = Math.min(
        last[column]! + 1,
        next[column - 1]! + 1,
        last[column - 1]! + (isSame ? 0 : 1),
      );
      if (row > 1 && from[row - 1] === to[column - 2] && from[row - 2] === to[column - 1]) {
        cost = Math.min(cost, before[column - 2]! + 1);
      }
      next.push(cost);
    }
    before = last;
    last = next;
  }
  return last[to.length]!;
}

/** The message for an unknown key. */
export function unknownKey(key: string, known: readonly string[]): string {
  const name = nearest(key, known);
  return name === undefined
    ? `unknown key; the keys here are ${known.join(", ")}`
    : `unknown key; did you mean ${name}?`;
}
