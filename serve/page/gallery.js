// Finished pictures and their receipts, kept in this browser's own database.

const NAME = "dreambooth", STORE = "pictures";

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function transact(mode, work) {
  const database = await open();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const request = work(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = () => reject(transaction.error);
      transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

export const keep = (picture) => transact("readwrite", (store) => store.add(picture));
export const all = () => transact("readonly", (store) => store.getAll());
export const forget = (id) => transact("readwrite", (store) => store.delete(id));
export const empty = () => transact("readwrite", (store) => store.clear());

const SHOWN = { seed: "Seed", num_inference_steps: "Steps", guidance_scale: "Guidance",
                solver: "Solver", negative_prompt: "Without", adapters: "Adapters", weights_sha256: "Weights" };

// Fields of a receipt that are no sampling parameters; a parameter that is added is none of them.
const OTHERS = new Set(["model", "weights_sha256", "base_sha256", "prompt", "negative_prompt", "seed",
                        "width", "height", "strength", "image_sha256", "mask_sha256", "adapters"]);

// As the form takes them: names and weights.
export const adapterText = (receipt) =>
  (receipt.adapters ?? []).map((one) => `${one.model ?? one.file}:${one.weight}`).join(", ");

// The sampling parameters of a receipt, all of them.
export const samplingParams = (receipt) =>
  Object.fromEntries(Object.entries(receipt).filter(([key]) => !OTHERS.has(key)));

// One entry as a list item. again(receipt), remove(id): what its buttons do.
export function card(entry, { again, remove }) {
  const { receipt } = entry;
  const item = make("li");
  const picture = make("img", { src: entry.image, alt: receipt.prompt, loading: "lazy" });
  const text = make("div", { className: "text" });
  text.append(make("p", { textContent: receipt.prompt }),
              make("p", { className: "empty", textContent: receipt.model }), details(receipt));
  const buttons = make("div", { className: "line" });
  const download = make("a", {
    href: entry.image, textContent: "Download",
    download: `${receipt.model}-${receipt.seed}.png`.replace(/[^\w.@-]/g, "_"),
  });
  const repeat = make("button", { type: "button", textContent: "Draw again" });
  repeat.addEventListener("click", () => again(receipt));
  const gone = make("button", { type: "button", textContent: "Remove",
                                ariaLabel: `Remove ${receipt.prompt}` });
  gone.addEventListener("click", () => remove(entry.id));
  buttons.append(download, repeat, gone);
  text.append(buttons);
  item.append(picture, text);
  return item;
}

function details(receipt) {
  const box = make("details");
  const list = make("dl");
  const labels = { ...SHOWN };
  for (const key of Object.keys(samplingParams(receipt))) labels[key] ??= key;
  for (const [key, label] of Object.entries(labels)) {
    const value = key === "adapters" ? adapterText(receipt) : receipt[key];
    if (value === "" || value === undefined || value === null) continue;
    const shown = key === "weights_sha256" ? `${value.slice(0, 12)}…` : String(value);
    list.append(make("dt", { textContent: label }), make("dd", { textContent: shown }));
  }
  box.append(make("summary", { textContent: "Receipt" }), list);
  return box;
}

export function make(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}
