// The same as edge_worker.py in Node: node edge_worker.mjs node|web MODEL USERS NODE_MODULES

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { openRecommender } from "./edge_recommend.mjs";

const [runtime, model, users, modules] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const ort = require(runtime === "web" ? "onnxruntime-web" : "onnxruntime-node");
if (runtime === "web") ort.env.wasm.numThreads = 1;
const histories = JSON.parse(readFileSync(users, "utf8"));
const say = (answer) => console.log(JSON.stringify(answer));

function memoryMb() {
  const rollup = readFileSync("/proc/self/smaps_rollup", "utf8");
  const mb = (name) => Number(rollup.match(new RegExp(`^${name}: *(\\d+)`, "m"))[1]) / 1024;
  return { pss_mb: mb("Pss"), anonymous_mb: mb("Anonymous") };
}

globalThis.gc?.();
const before = memoryMb();
const started = performance.now();
const recommend = await openRecommender(ort, runtime === "web" ? new Uint8Array(readFileSync(model)) : model);
const loadMs = performance.now() - started;
await recommend(histories[0]);
globalThis.gc?.();
const after = memoryMb();
say({
  load_ms: loadMs,
  pss_mb: after.pss_mb - before.pss_mb,
  anonymous_mb: after.anonymous_mb - before.anonymous_mb,
});
for await (const line of createInterface({ input: process.stdin })) {
  const [what, first, count] = line.split(" ");
  const part = histories.slice(Number(first), Number(first) + Number(count));
  say(await recommend.answer(what, part));
}
