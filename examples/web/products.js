// The products that the model knows: what they are called, who offers them, and which ones a text means.

/** What build.py writes, most popular product first. */
export class Products {
  #places;
  #words;

  constructor({ ids, names, details, providers, providerNames }) {
    this.ids = ids;
    this.providerNames = providerNames;
    this.all = ids.map((id, place) => ({
      id,
      name: names[place],
      detail: details[place],
      provider: providerNames[providers[place]],
      known: true,
    }));
    this.#places = new Map(ids.map((id, place) => [id, place]));
    this.#words = this.all.map(({ name, detail, provider }) => wordsOf(`${name} ${detail} ${provider}`));
  }

  static async fetch(address) {
    const answer = await fetch(address);
    if (!answer.ok) throw new Error(`${address}: the server says ${answer.status} ${answer.statusText}`);
    return new Products(await answer.json());
  }

  /** A product; of an id that the model does not know, one that says so. */
  get(id) {
    const place = this.#places.get(id);
    if (place !== undefined) return this.all[place];
    return { id, name: `Product ${id}`, detail: "not known to the model", provider: "", known: false };
  }

  /** Products that have a word for each word of a text, the most popular ones first. */
  search(text, limit) {
    const wanted = wordsOf(text);
    const found = [];
    for (let place = 0; place < this.all.length && found.length < limit; place++) {
      if (wanted.every((start) => this.#words[place].some((word) => word.startsWith(start)))) {
        found.push(this.all[place]);
      }
    }
    return found;
  }

  /** The most popular products, no two of one kind. */
  popular(limit) {
    const kinds = new Map();
    for (const product of this.all) {
      const kind = product.detail.split(" · ")[0];
      if (!kinds.has(kind)) kinds.set(kind, product);
      if (kinds.size === limit) break;
    }
    return [...kinds.values()];
  }
}

function wordsOf(text) {
  return text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
}
