// The page: a form, the pictures being drawn, the pictures that are kept.

import { ApiError, draw, model, models, useKey } from "./api.js";
import { adapterText, all, card, empty, forget, keep, make, samplingParams } from "./gallery.js";

const $ = (id) => document.getElementById(id);
const OTHER = "?";
let running = null;
// Of each subject, the prompt that it was trained with.
let prompts = {};
// Sampling parameters of the receipt in the form, those without a field of their own.
let carried = {};

async function showModels() {
  try {
    const { found, more } = await models();
    prompts = Object.fromEntries(found.map((m) => [m.id, m.prompt]));
    for (const select of [$("model"), $("model2")]) {
      const before = select.value;
      select.replaceChildren(...found.map((m) => option(m.id)));
      if (more) select.append(make("option", { value: OTHER, textContent: "another, by its name …" }));
      if (found.some((m) => m.id === before)) select.value = before;
      select.onchange = () => choose(select);
    }
    $("locked").hidden = true;
    suggest();
  } catch (error) {
    tell(error);
  }
}

const option = (id) => make("option", { value: id, textContent: id });

// Of more subjects than a list can hold, one is named; the endpoint says whether it is there.
async function choose(select) {
  if (select.value === OTHER) {
    const id = (window.prompt("Which subject?") ?? "").trim();
    select.selectedIndex = 0;
    if (id) {
      try {
        const found = await model(id);
        prompts[id] = found.prompt;
        if (![...select.options].some((o) => o.value === id)) select.prepend(option(id));
        select.value = id;
        $("message").textContent = "";
      } catch (error) {
        tell(error);
      }
    }
  }
  suggest();
}

// A subject's own prompt, so that its rare word need not be known by heart.
function suggest() {
  $("prompt").placeholder = prompts[$("model").value] ?? "a red robot on the beach";
}

function tell(error) {
  if (error instanceof ApiError && error.status === 401) {
    $("locked").hidden = false;
    $("key").focus();
  }
  $("message").textContent = error.name === "AbortError" ? "" : error.message;
}

function asked(model, seed) {
  const request = {
    ...carried,
    model, prompt: $("prompt").value.trim(), num_inference_steps: $("steps").valueAsNumber,
    guidance_scale: $("guidance").valueAsNumber, solver: $("solver").value,
    size: $("size").value || "auto",
  };
  if ($("negative").value.trim()) request.negative_prompt = $("negative").value.trim();
  const adapters = parseAdapters($("adapters").value);
  if (adapters.length) request.adapters = adapters;
  if (seed !== "") request.seed = Number(seed);
  return request;
}

// "style.safetensors:0.8, subject": files end so, all else are subjects; a weight may follow.
function parseAdapters(text) {
  return text.split(",").map((one) => one.trim()).filter((one) => one).map((one) => {
    const [, name, weight] = one.match(/^(.*?)(?::([-+]?[\d.]+(?:e[-+]?\d+)?))?$/i);
    const kind = name.endsWith(".safetensors") ? "file" : "model";
    return { [kind]: name, weight: weight === undefined ? 1 : Number(weight) };
  });
}

function panel(label) {
  const figure = make("figure");
  const picture = make("img", { alt: "" });
  const progress = make("progress", { max: 1, value: 0, ariaLabel: `Progress of ${label}` });
  const caption = make("figcaption", { textContent: label });
  figure.append(picture, progress, caption);
  $("stage").append(figure);
  return { picture, progress, caption };
}

async function drawOne(request, image, signal) {
  const label = request.seed === undefined ? request.model : `${request.model}, seed ${request.seed}`;
  const { picture, progress, caption } = panel(label);
  for await (const news of draw(request, image, signal)) {
    if (news.position !== undefined) say(`${news.position} pictures go before this one`);
    if (news.step) {
      progress.max = news.total;
      progress.value = news.step;
    }
    if (news.preview) picture.src = news.preview;
    if (news.image) {
      picture.src = news.image;
      picture.alt = news.receipt.prompt;
      progress.value = progress.max;
      caption.textContent = `${request.model}, seed ${news.receipt.seed}`;
      await keep({ image: news.image, receipt: news.receipt });
    }
  }
}

async function submit(event) {
  event.preventDefault();
  if (running) return;
  running = new AbortController();
  lock(true);
  $("message").textContent = "";
  $("stage").replaceChildren();
  say("drawing");
  $("stage").scrollIntoView({ block: "nearest" });
  const seed = $("seed").value || ($("compare").checked ? String(anySeed()) : "");
  const requests = [asked($("model").value, seed)];
  if ($("compare").checked) requests.push(asked($("model2").value, $("seed2").value || seed));
  const image = $("image").files[0];
  if (image) for (const request of requests) request.strength = $("strength").valueAsNumber;
  const work = requests.map((request) => drawOne(request, image, running.signal));
  const failed = (await Promise.allSettled(work)).find((one) => one.status === "rejected");
  if (failed) tell(failed.reason);
  say(failed ? "" : "done");
  running = null;
  lock(false);
  await showGallery();
}

const anySeed = () => Math.floor(Math.random() * 2 ** 32);

function lock(busy) {
  $("draw").disabled = busy;
  $("stop").disabled = !busy;
}

function say(text) {
  $("status").textContent = text;
}

async function showGallery() {
  const entries = (await all()).reverse();
  $("none").hidden = entries.length > 0;
  $("clear").hidden = entries.length === 0;
  $("gallery").replaceChildren(...entries.map((entry) => card(entry, {
    again: fill,
    remove: async (id) => { await forget(id); await showGallery(); },
  })));
}

// Puts a receipt back into the form, with the very version it was drawn with.
function fill(receipt) {
  if (![...$("model").options].some((option) => option.value === receipt.model)) {
    $("model").append(make("option", { value: receipt.model, textContent: receipt.model }));
  }
  $("model").value = receipt.model;
  $("compare").checked = false;
  $("other").hidden = true;
  $("prompt").value = receipt.prompt;
  $("negative").value = receipt.negative_prompt;
  $("adapters").value = adapterText(receipt);
  $("seed").value = receipt.seed;
  $("steps").value = receipt.num_inference_steps;
  $("guidance").value = receipt.guidance_scale;
  $("solver").value = receipt.solver;
  const { num_inference_steps, guidance_scale, solver, ...rest } = samplingParams(receipt);
  carry(rest);
  $("size").value = `${receipt.width}x${receipt.height}`;
  $("image").value = "";
  if (receipt.strength !== undefined && receipt.strength !== null) {
    $("strength").value = receipt.strength;
    $("message").textContent = "This one was drawn from a picture; choose it again under More.";
    $("form").querySelector("details").open = true;
  }
  $("prompt").focus();
  window.scrollTo({ top: 0 });
}

function carry(params) {
  carried = params;
  const names = Object.entries(params).map(([key, value]) => `${key} ${value}`);
  $("params").textContent = names.join(", ");
  $("carried").hidden = names.length === 0;
}

$("form").addEventListener("submit", submit);
$("drop").addEventListener("click", () => carry({}));
$("stop").addEventListener("click", () => running?.abort());
$("compare").addEventListener("change", () => { $("other").hidden = !$("compare").checked; });
$("unlock").addEventListener("click", () => { useKey($("key").value); showModels(); });
$("key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  $("unlock").click();
});
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("clear").addEventListener("click", async () => {
  if (window.confirm("Remove all pictures from this browser?")) { await empty(); await showGallery(); }
});
await Promise.allSettled([showModels(), showGallery()]);
document.documentElement.dataset.ready = "yes";
