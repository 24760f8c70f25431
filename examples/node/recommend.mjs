// Recommend in Node with ONNX Runtime and no Python: one model file, item ids in, item ids out.
//
//   make javascript                                             (or: npm ci --ignore-scripts in examples/)
//   node examples/node/recommend.mjs MODEL [ITEM_ID ...]        oldest item first; MODEL of `ipsrec export --profile edge`
//
// A service opens the model once and calls recommend for each request, as the last lines do.

import ort from "onnxruntime-node";
import { Recommender } from "../web/recommender.js";

const [model, ...history] = process.argv.slice(2);
if (!model) {
  console.error("usage: node examples/node/recommend.mjs MODEL [ITEM_ID ...]");
  process.exit(2);
}
try {
  const recommender = await Recommender.open(ort, model);
  const [{ itemIds, scores, cold }] = await recommender.recommend([history]);
  if (cold) console.error("no item of this history is known to the model: these are the popular items");
  itemIds.forEach((id, place) => console.log(`${place + 1}\t${id}\t${scores[place]}`));
} catch (error) {
  console.error(`${model}: ${error.message}`);
  process.exit(1);
}
