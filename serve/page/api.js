// The public API and nothing else: what this page does, any client can do.

const KEY = "dreambooth-key";
const PAGES = 5;

export class ApiError extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `the endpoint answered ${status}`);
    this.status = status;
    this.code = body?.error?.code;
  }
}

export function useKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function checked(answer) {
  if (answer.ok) return answer;
  let body = null;
  try {
    body = await answer.json();
  } catch {
    // Not every proxy in between speaks JSON; the status says enough.
  }
  throw new ApiError(answer.status, body);
}

// The first of all models, and whether there are more than a list of choices can hold.
export async function models() {
  const found = [];
  let after = "";
  for (let page = 0; page < PAGES; page += 1) {
    const answer = await checked(await fetch(`/v1/models?limit=100${after}`, { headers: headers() }));
    const { data, has_more, last_id } = await answer.json();
    found.push(...data);
    if (!has_more) return { found, more: false };
    after = `&after=${encodeURIComponent(last_id)}`;
  }
  return { found, more: true };
}

export async function model(id) {
  const path = `/v1/models/${encodeURIComponent(id)}`;
  return (await checked(await fetch(path, { headers: headers() }))).json();
}

// Yields {step, total}, {position}, {preview: data URL} and at last {image: data URL, receipt}.
export async function* draw(request, image, signal) {
  const answer = await checked(await (image ? edit(request, image, signal)
                                            : generate(request, signal)));
  for await (const event of events(answer.body)) {
    if (event.comment) {
      const step = /^step (\d+) of (\d+)/.exec(event.comment);
      const position = /^position (\d+)/.exec(event.comment);
      if (step) yield { step: Number(step[1]), total: Number(step[2]) };
      if (position) yield { position: Number(position[1]) };
      continue;
    }
    if (event.name === "error") throw new ApiError(answer.status, event.data);
    const url = `data:image/${event.data.output_format};base64,${event.data.b64_json}`;
    if (event.name.endsWith(".partial_image")) yield { preview: url };
    if (event.name.endsWith(".completed")) yield { image: url, receipt: event.data.receipt };
  }
}

function generate(request, signal) {
  return fetch("/v1/images/generations", {
    method: "POST", signal, headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify({ ...request, stream: true, partial_images: 3 }),
  });
}

function edit(request, image, signal) {
  const form = new FormData();
  for (const [name, value] of Object.entries({ ...request, stream: true, partial_images: 3 })) {
    // Lists go as JSON text.
    form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  form.append("image", image);
  return fetch("/v1/images/edits", { method: "POST", signal, headers: headers(), body: form });
}

async function* events(body) {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const part of chunks(body)) {
    rest += decoder.decode(part, { stream: true });
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) yield parse(block);
  }
}

// Streams can't be iterated in every browser yet.
async function* chunks(body) {
  const reader = body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

function parse(block) {
  const event = { name: "message", data: "" };
  for (const line of block.split("\n")) {
    if (line.startsWith(":")) event.comment = line.slice(1).trim();
    if (line.startsWith("event:")) event.name = line.slice(6).trim();
    if (line.startsWith("data:")) event.data += line.slice(5);
  }
  if (event.data) event.data = JSON.parse(event.data);
  return event;
}
