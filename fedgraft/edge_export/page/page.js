// The page: load the bundle beside it, classify what is picked or dropped.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { probabilities, readClasses } from "./classes.js";
import { decode, preprocess } from "./pixels.js";

const SHOWN = 10;
const $ = (id) => document.getElementById(id);
const bundle = (name) => new URL(`../${name}`, import.meta.url);

ort.env.wasm.numThreads = 1; // more would need headers that a plain file server does not send
ort.env.wasm.wasmPaths = { wasm: new URL("./ort-wasm-simd-threaded.wasm", import.meta.url).href };

async function fetched(name) {
  const response = await fetch(bundle(name));
  if (!response.ok) throw new Error(`${name} of the bundle cannot be loaded (${response.status}).`);
  return response;
}

async function load() {
  const json = async (name) => (await fetched(name)).json();
  const bytes = async (name) => (await fetched(name)).arrayBuffer();
  const [manifest, config, { labels }, classes, model] = await Promise.all([
    json("manifest.json"), json("preprocessor_config.json"), json("labels.json"), bytes("classes.safetensors"),
    bytes("model.onnx"),
  ]);
  const session = await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"] });
  const { values, shape } = preprocess({ width: 1, height: 1, data: new Uint8Array(3) }, config);
  await session.run({ pixels: new ort.Tensor("float32", values, [1, ...shape]) }); // the first pass is slow
  return { manifest, config, labels, classes: readClasses(classes), session, megabytes: model.byteLength / 1e6 };
}

async function classify(device, image) {
  const began = performance.now();
  const { values, shape } = preprocess(image, device.config);
  const { embedding } = await device.session.run({ pixels: new ort.Tensor("float32", values, [1, ...shape]) });
  const { temperature, unknown_below } = device.manifest.calibration;
  const answer = probabilities(embedding.data, device.classes, temperature);
  const ranked = device.labels.map((label, k) => ({ label, probability: answer[k] }));
  ranked.sort((a, b) => b.probability - a.probability);
  return { ranked, unknown: ranked[0].probability < unknown_below, milliseconds: performance.now() - began };
}

function show(image, { ranked, unknown, milliseconds }) {
  const preview = $("preview");
  preview.width = image.width;
  preview.height = image.height;
  const rgba = new ImageData(image.width, image.height);
  for (let from = 0, to = 0; from < image.data.length; ) {
    rgba.data[to++] = image.data[from++];
    rgba.data[to++] = image.data[from++];
    rgba.data[to++] = image.data[from++];
    rgba.data[to++] = 255;
  }
  preview.getContext("2d").putImageData(rgba, 0, 0);
  preview.hidden = false;
  $("hint").hidden = true;
  $("label").textContent = ranked[0].label;
  $("unknown").hidden = !unknown;
  $("time").textContent = `${milliseconds.toFixed(0)} ms on this device`;
  $("classes").replaceChildren(...ranked.slice(0, SHOWN).map(bar));
  $("answer").hidden = false;
}

function bar({ label, probability }) {
  const item = document.createElement("li"), name = document.createElement("span"), part = document.createElement("span");
  name.textContent = label;
  part.textContent = `${(100 * probability).toFixed(1)} %`;
  item.style.setProperty("--part", `${100 * probability}%`);
  item.dataset.label = label;
  item.dataset.probability = probability;
  item.append(name, part);
  return item;
}

function fail(error) {
  $("error").textContent = error.message ?? String(error);
  $("error").hidden = false;
}

async function take(file) {
  if (!file) return;
  $("error").hidden = $("answer").hidden = true;
  try {
    const device = await ready;
    const image = await decode(file).catch((error) => {
      throw new Error(`${file.name} cannot be decoded: ${error.message}`);
    });
    show(image, await classify(device, image));
  } catch (error) {
    fail(error);
  }
}

const ready = load();
ready.then(({ manifest, labels, megabytes }) => {
  const { method, site } = manifest.run;
  $("run").textContent = site === "global" ? `${method}, the prompt of all sites` : `${method}, site ${site}`;
  $("about").textContent = `${labels.length} classes, ${megabytes.toFixed(1)} MB encoder. Everything runs in this browser.`;
  document.body.dataset.ready = "yes";
}, fail);

$("file").addEventListener("change", async (event) => {
  await take(event.target.files[0]);
  event.target.value = ""; // so that the same file can be picked again
});
$("drop").addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
$("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(event.dataTransfer.files[0]);
});
