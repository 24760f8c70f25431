// node recommend_users.mjs node|web MODEL < ASKED > LISTS: many users at once, by each of some options, in JSON.

import { readFile } from "node:fs/promises";
import { text } from "node:stream/consumers";
import { createRequire } from "node:module";
import { Recommender } from "../examples/web/recommender.js";

const require = createRequire(new URL("../examples/package.json", import.meta.url));
const [runtime, model] = process.argv.slice(2);
const { histories, eachOptions } = JSON.parse(await text(process.stdin));
const ort = require(runtime === "web" ? "onnxruntime-web" : "onnxruntime-node");
if (runtime === "web") ort.env.wasm.numThreads = 1;
const recommender = await Recommender.open(ort, runtime === "web" ? await readFile(model) : model);
const lists = [];
for (const options of eachOptions) lists.push(await recommender.recommend(histories, options));
console.log(JSON.stringify(lists));
