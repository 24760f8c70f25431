// What the workers of Node and of a browser share: one user at a time through an edge graph, answers of their language.

export async function openRecommender(ort, model) {
  const session = await ort.InferenceSession.create(model, {
    intraOpNumThreads: 1,
    interOpNumThreads: 1,
    logSeverityLevel: 3,
  });
  const whole = session.inputMetadata.find(({ name }) => name === "item_history").type === "int64";
  const outputs = ["item_ids", "scores", "counts"];

  async function recommend(history) {
    const dims = [1, history.length];
    const feeds = {
      item_history: whole
        ? new ort.Tensor("int64", BigInt64Array.from(history, BigInt), dims)
        : new ort.Tensor("string", history, dims),
      lengths: new ort.Tensor("int64", BigInt64Array.of(BigInt(history.length)), [1]),
    };
    const found = await session.run(feeds, outputs);
    const count = Number(found.counts.data[0]);
    return {
      itemIds: Array.from(found.item_ids.data.slice(0, count), String),
      scores: Array.from(found.scores.data.slice(0, count)),
    };
  }

  recommend.answer = async (what, histories) => {
    if (what === "lists") {
      const lists = [];
      for (const history of histories) lists.push(await recommend(history));
      return { item_ids: lists.map(({ itemIds }) => itemIds), scores: lists.map(({ scores }) => scores) };
    }
    const ms = [];
    const cpuMs = [];
    for (const history of histories) {
      const cpuStarted = globalThis.process?.cpuUsage();
      const started = performance.now();
      await recommend(history);
      ms.push(performance.now() - started);
      if (cpuStarted) {
        const { user, system } = process.cpuUsage(cpuStarted);
        cpuMs.push((user + system) / 1e3);
      }
    }
    return cpuMs.length ? { ms, cpu_ms: cpuMs } : { ms }; // a browser does not tell
  };
  return recommend;
}
