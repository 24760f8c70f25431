// What the other setting of the switch would have done.

/**
 * Compare the first places of two lists.
 *
 * @param {string[]} shown ids, best first.
 * @param {string[]} other ids, best first, by the other setting.
 * @param {number} places how many of each are looked at.
 * @returns {{moves: Map<string, {kind: "same" | "up" | "down" | "new", by: number}>, gone: string[]}} what became of
 *   each id that is shown, and the other list's ids that are not.
 */
export function compare(shown, other, places) {
  const before = new Map(other.slice(0, places).map((id, place) => [id, place]));
  const moves = new Map();
  shown.slice(0, places).forEach((id, place) => {
    const from = before.get(id);
    const by = from === undefined ? 0 : from - place;
    moves.set(id, { kind: from === undefined ? "new" : by > 0 ? "up" : by < 0 ? "down" : "same", by: Math.abs(by) });
  });
  return { moves, gone: [...before.keys()].filter((id) => !moves.has(id)) };
}

/** Say in words how much is different. */
export function describe({ moves, gone }, otherWay) {
  const count = (...kinds) => [...moves.values()].filter(({ kind }) => kinds.includes(kind)).length;
  const moved = count("up", "down");
  if (!moved && !gone.length) return `The list ${otherWay} is the same.`;
  return `Against the list ${otherWay}: ${count("new")} new, ${moved} moved, ${count("same")} in the same place.`;
}
