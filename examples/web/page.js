// The page: a history that a person edits, the list that the model gives for it, and what providers change in it.

import * as ort from "./ort/ort.wasm.min.mjs";
import { makeCombobox } from "./combobox.js";
import { compare, describe } from "./comparison.js";
import { Products } from "./products.js";
import { Recommender } from "./recommender.js";

const SHOWN = 12;
const SUGGESTIONS = 8;
const WITHOUT = "without providers";
const WITH = "with providers";

const find = (id) => document.getElementById(id);
const make = (name, className, ...children) => {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...children);
  return element;
};

let products;
let recommender;
let households = [];
let history = []; // ids, oldest first
let asked = 0; // so that an answer which a newer question overtook is dropped
let running = Promise.resolve(); // ONNX Runtime Web takes one run at a time

start().catch(complain);

async function start() {
  ort.env.wasm.numThreads = 1; // more would need cross-origin isolation
  ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
  const began = performance.now();
  const [bytes, fetched, drawn] = await Promise.all([
    fetchFile("model.onnx").then((answer) => answer.arrayBuffer()),
    Products.fetch("catalog.json"),
    fetchFile("households.json").then((answer) => answer.json()),
  ]);
  [products, households] = [fetched, drawn];
  recommender = await Recommender.open(ort, new Uint8Array(bytes));
  await recommender.recommend([[]]); // the first run of a session is slower than those that follow
  find("load-time").textContent = `${Math.round(performance.now() - began)} ms`;
  find("model-size").textContent = `${(bytes.byteLength / 1e6).toFixed(1)} MB`;
  find("product-count").textContent = products.all.length.toLocaleString("en");
  find("provider-count").textContent = products.providerNames.length.toLocaleString("en");
  find("runtime").textContent = `ONNX Runtime Web ${ort.env.versions.web}`;

  makeCombobox(find("search"), find("suggestions"), {
    search: (text) => products.search(text, SUGGESTIONS),
    render: (product) => [make("span", "name", product.name), make("span", "detail", about(product))],
    choose: (product) => add(product.id),
    announce,
  });
  find("picks").append(...products.popular(6).map(pick));
  find("household").addEventListener("click", takeHousehold);
  find("clear").addEventListener("click", () => {
    change([]);
    find("search").focus();
  });
  find("use-providers").addEventListener("change", refresh);
  find("use-providers").disabled = !recommender.hasProviderSwitch;
  find("use-providers").checked ||= !recommender.hasProviderSwitch; // a browser may keep it from an earlier visit
  find("search").disabled = false;
  find("household").disabled = households.length === 0;
  window.addEventListener("hashchange", () => {
    if (!isSame(fromAddress(), history)) change(fromAddress());
  });
  await change(fromAddress());
  document.body.dataset.ready = "";
}

async function fetchFile(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: the server says ${answer.status} ${answer.statusText}`);
  return answer;
}

/** The history in the page's address, #history=1,2,3, so that a reload and a link keep it. */
function fromAddress() {
  const ids = location.hash.match(/[#&]history=([^&]*)/)?.[1];
  return ids ? ids.split(",").map(decoded).filter(Boolean) : []; // a comma within an id is %2C
}

/** Text of a part of the address; what somebody typed there with a bare % is taken as it is. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Do two histories have the same ids? Ids may have commas. */
function isSame(one, other) {
  return one.length === other.length && one.every((id, place) => id === other[place]);
}

function add(id) {
  return change([...history, id]);
}

function takeHousehold() {
  const others = households.filter((household) => !isSame(household, history));
  return change(others[Math.floor(Math.random() * others.length)] ?? history);
}

function change(ids) {
  history = ids;
  const address = ids.length ? `#history=${ids.map(encodeURIComponent).join(",")}` : location.pathname;
  window.history.replaceState(null, "", address);
  showHistory();
  return refresh();
}

function pick(product) {
  const button = make("button", "", make("span", "unseen", "Add "), product.name);
  button.type = "button";
  button.addEventListener("click", () => add(product.id));
  return make("li", "", button);
}

function showHistory() {
  find("history-count").textContent = `${history.length} ${history.length === 1 ? "product" : "products"}, newest first`;
  find("history-empty").hidden = history.length > 0;
  find("history").hidden = history.length === 0;
  find("clear").disabled = history.length === 0;
  find("history").replaceChildren(
    ...history.map((id, place) => {
      const product = products.get(id);
      const remove = make("button", "remove", make("span", "unseen", `Remove ${product.name}`));
      remove.type = "button";
      remove.addEventListener("click", () => removeAt(place));
      return make("li", product.known ? "" : "unknown", words(product), remove);
    }).reverse(),
  );
}

/** Remove a product; the focus goes to the one that takes its place on the screen, or back to the search. */
function removeAt(place) {
  change(history.filter((_, at) => at !== place));
  const buttons = [...find("history").querySelectorAll(".remove")];
  (buttons[Math.min(buttons.length - place, buttons.length - 1)] ?? find("search")).focus();
}

async function refresh() {
  const question = ++asked;
  try {
    const answer = await ask([...history], find("use-providers").checked);
    if (question === asked) showAnswer(answer);
  } catch (error) {
    if (question === asked) complain(error);
  }
}

/** Both lists of a history, one after the other, and how long the one that is shown took. */
function ask(ids, useProviders) {
  const answer = running.then(async () => {
    const began = performance.now();
    const [shown] = await recommender.recommend([ids], { useProviders });
    const latency = performance.now() - began;
    const [other] = recommender.hasProviderSwitch
      ? await recommender.recommend([ids], { useProviders: !useProviders })
      : [shown];
    return { shown, other, latency, useProviders };
  });
  running = answer.catch(() => {});
  return answer;
}

function showAnswer({ shown, other, latency, useProviders }) {
  find("problem").hidden = true;
  const otherWay = useProviders ? WITHOUT : WITH;
  const comparison = compare(shown.itemIds, other.itemIds, SHOWN);
  const isCompared = recommender.hasProviderSwitch && !shown.cold; // popular items are the same either way
  let said = isCompared ? describe(comparison, otherWay) : "";
  if (shown.cold) said = "Popular with everybody: the model knows no product of this history.";
  find("comparison").textContent = said;
  find("latency").textContent = `${latency.toFixed(1)} ms`;
  const bought = new Set(history.map((id) => products.get(id).provider));
  const list = find("list");
  const before = positions(list);
  list.replaceChildren(
    ...shown.itemIds.slice(0, SHOWN).map((id) => {
      const product = products.get(id);
      const item = make("li", "", words(product, bought));
      if (isCompared) item.append(mark(comparison.moves.get(id), otherWay));
      item.dataset.id = id;
      return item;
    }),
  );
  glide(list, before);
  find("legend").hidden = !list.querySelector(".bought");
  find("gone").hidden = comparison.gone.length === 0;
  find("gone-title").textContent = `Only ${otherWay}`;
  find("gone-list").replaceChildren(
    ...comparison.gone.map((id) => make("li", "", make("s", "", products.get(id).name), about(products.get(id)))),
  );
  const [first] = shown.itemIds;
  const number = Math.min(SHOWN, shown.itemIds.length);
  const found =
    first === undefined
      ? "Nothing more to recommend."
      : `${number} products recommended, first ${products.get(first).name}.`;
  announce(`${found} ${said}`);
}

/** A product in two lines: what it is; its kind and who offers it. */
function words(product, bought = new Set()) {
  const lines = make("div", "words", make("span", "name", product.name));
  const detail = make("span", "detail", product.detail);
  if (product.provider) {
    const isBought = bought.has(product.provider);
    detail.append(product.detail ? " · " : "", make("span", isBought ? "provider bought" : "provider", product.provider));
    if (isBought) detail.lastChild.append(make("span", "unseen", ", in the basket, too"));
  }
  lines.append(detail);
  return lines;
}

function about(product) {
  return [product.detail, product.provider].filter(Boolean).join(" · ");
}

/** How an item moved: a sign and a number to see, a sentence to hear. */
function mark({ kind, by }, otherWay) {
  const places = `${by} ${by === 1 ? "place" : "places"}`;
  const [sign, sentence] = {
    new: ["new", `new: not among the first ${SHOWN} ${otherWay}`],
    up: [`▲ ${by}`, `${places} higher than ${otherWay}`],
    down: [`▼ ${by}`, `${places} lower than ${otherWay}`],
    same: ["=", `in the same place ${otherWay}`],
  }[kind];
  const seen = make("span", "", sign);
  seen.setAttribute("aria-hidden", "true");
  const element = make("span", `mark ${kind}`, seen, make("span", "unseen", sentence));
  element.title = sentence;
  return element;
}

function positions(list) {
  return new Map([...list.children].map((item) => [item.dataset.id, item.getBoundingClientRect().top]));
}

/** Let items that stay glide to their new places, and new ones fade in. */
function glide(list, before) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const timing = { duration: 260, easing: "cubic-bezier(0.2, 0, 0, 1)" };
  for (const item of list.children) {
    const from = before.get(item.dataset.id);
    if (from === undefined) {
      item.animate([{ opacity: 0 }, { opacity: 1 }], timing);
      continue;
    }
    const distance = from - item.getBoundingClientRect().top;
    if (distance) item.animate([{ transform: `translateY(${distance}px)` }, { transform: "none" }], timing);
  }
}

function announce(text) {
  find("status").textContent = text;
}

function complain(error) {
  const problem = find("problem");
  problem.textContent = `The model cannot answer. ${error.message}`;
  problem.hidden = false;
  document.body.dataset.failed = "";
}
