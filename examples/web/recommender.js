// Raw item ids in, raw item ids out: what an edge model needs around ONNX Runtime, in a browser and in Node alike.

const LOWEST = -(2n ** 63n);
const HIGHEST = 2n ** 63n - 1n;

/** An edge model that is ready to recommend. */
export class Recommender {
  #ort;
  #session;
  #hasWholeIds;

  /**
   * Open a model file.
   *
   * @param ort the module onnxruntime-web or onnxruntime-node.
   * @param {string | Uint8Array} model path, address or bytes of the file that `ipsrec export --profile edge` writes.
   * @param {object} options of ONNX Runtime's session.
   */
  static async open(ort, model, options = {}) {
    return new Recommender(ort, await ort.InferenceSession.create(model, options));
  }

  constructor(ort, session) {
    const missing = ["item_history", "lengths"].find((name) => !session.inputNames.includes(name));
    if (missing || !session.outputNames.includes("item_ids")) {
      throw new Error(
        `this is no edge model: its inputs are ${session.inputNames.join(", ")}; ` +
          "write one with `ipsrec export --profile edge`",
      );
    }
    this.#ort = ort;
    this.#session = session;
    this.#hasWholeIds = session.inputMetadata.find(({ name }) => name === "item_history").type === "int64";
  }

  /** Whether the file was exported with --provider-switch. */
  get hasProviderSwitch() {
    return this.#session.inputNames.includes("use_providers");
  }

  /**
   * Recommend items to users.
   *
   * @param {string[][]} histories item ids of each user, oldest first, whole numbers as text, too. Unknown ones and
   *   none at all are fine.
   * @param {{useProviders?: boolean}} options false takes all providers for unknown; it is refused where the file
   *   has no switch.
   * @returns {Promise<{itemIds: string[], scores: number[], cold: boolean}[]>} one a user, best item first. A cold
   *   user is one without a known item: the items are the popular ones, the scores how often they were taken.
   */
  async recommend(histories, { useProviders = true } = {}) {
    if (!useProviders && !this.hasProviderSwitch) {
      throw new Error("this model has no switch for providers; export it with --provider-switch");
    }
    const { Tensor } = this.#ort;
    const users = histories.length;
    const longest = Math.max(0, ...histories.map((history) => history.length));
    const padded = histories.flatMap((history) => [
      ...history,
      ...Array(longest - history.length).fill(this.#hasWholeIds ? "0" : ""),
    ]);
    const ids = this.#hasWholeIds
      ? new Tensor("int64", BigInt64Array.from(padded, toInt64), [users, longest])
      : new Tensor("string", padded, [users, longest]);
    const lengths = BigInt64Array.from(histories, (history) => BigInt(history.length));
    const feeds = { item_history: ids, lengths: new Tensor("int64", lengths, [users]) };
    if (this.hasProviderSwitch) {
      feeds.use_providers = new Tensor("bool", Uint8Array.of(useProviders ? 1 : 0), [1]);
    }
    const { item_ids: itemIds, scores, counts, cold } = await this.#session.run(feeds);
    const width = itemIds.dims[1];
    return histories.map((_, user) => {
      const start = user * width;
      const end = start + Number(counts.data[user]);
      return {
        itemIds: Array.from(itemIds.data.slice(start, end), String),
        scores: Array.from(scores.data.slice(start, end)),
        cold: Boolean(cold.data[user]),
      };
    });
  }
}

/** A whole number of 64 bits, from text; BigInt64Array alone would wrap a larger one around. */
function toInt64(text) {
  if (!/^-?\d+$/.test(text)) {
    throw new Error(`item id "${text}" is not a whole number, and this model's ids are`);
  }
  const id = BigInt(text);
  if (id < LOWEST || id > HIGHEST) {
    throw new Error(`item id ${text} does not fit into 64 bits`);
  }
  return id;
}
