// The panel: sends a photograph to the server and shows every picture as it arrives.
"use strict";
(() => {
const page = JSON.parse(document.getElementById("page").textContent);
const at = id => document.getElementById(id);
const self_ = crypto.getRandomValues(new Uint32Array(3)).join("-");  // identifies this page among several that may be open
let photo = null, running = null, camera = null;

function element(kind, className, text) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}
function say(words) { at("status").textContent = words; }
function percent(value) { return value < 0.01 ? "< 1 %" : `${Math.round(100 * value)} %`; }

// -------------------------------------------------------------------------------------------------- the photograph

async function answer(path, options) {
  const got = await fetch(path, options), told = await got.json();
  if (!got.ok) throw new Error(told.error ?? got.statusText);
  return told;
}

async function send(blob, name, shownAs) {
  if (blob.size > page.limit) { say(`${name} is larger than the ${page.limit >> 20} MB allowed.`); return false; }
  try {
    const told = await answer("photo", { method: "POST", body: blob, headers: { "content-type": "application/octet-stream" } });
    take(told.photo, name, shownAs ?? URL.createObjectURL(blob));
    return true;
  } catch (error) { say(error.message); return false; }
}

async function fetchPhoto(path, shownAs) {
  try {
    const told = await answer(path, { method: "POST" });
    take(told.photo, told.name, shownAs || `photo/${told.photo}.jpg`);
  } catch (error) { say(error.message); }
}

function take(key, name, shownAs) {
  photo = key;
  const shown = at("shown");
  if (shownAs) {
    if (shown.src.startsWith("blob:")) URL.revokeObjectURL(shown.src);
    shown.src = shownAs; shown.alt = name; shown.hidden = camera !== null;
    at("hint").textContent = name;
  }
  see();
}

const drop = at("drop");
for (const name of ["dragenter", "dragover"]) document.addEventListener(name, event => { event.preventDefault(); drop.classList.add("over"); });
for (const name of ["dragleave", "drop"]) document.addEventListener(name, event => { event.preventDefault(); drop.classList.remove("over"); });
document.addEventListener("drop", event => { const [file] = event.dataTransfer.files; if (file) { endCamera(); send(file, file.name); } });
document.addEventListener("paste", event => { const [file] = event.clipboardData.files; if (file) { endCamera(); send(file, file.name); } });
at("choose").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", () => { const [file] = at("file").files; if (file) { endCamera(); send(file, file.name); } at("file").value = ""; });

page.known.slice(0, 60).forEach((name, number) => {
  const made = element("button"), small = element("img");
  made.type = "button"; made.title = name; made.setAttribute("aria-label", `photograph ${name}`);
  small.loading = "lazy"; small.alt = ""; small.src = `known/${number}.jpg`;
  made.append(small);
  made.addEventListener("click", () => { endCamera(); fetchPhoto(`photo/known/${number}`, small.src); });
  at("known").append(made);
});

// ---------------------------------------------------------------------------------------------------- the camera

at("camera").addEventListener("click", async () => {
  if (camera) { endCamera(); return; }
  if (!navigator.mediaDevices) { say("Browsers allow the camera only on localhost or over https."); return; }
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, height: { ideal: 480 } } });
  } catch (error) { say(`The camera cannot be used: ${error.message}`); return; }
  const video = at("video");
  video.srcObject = camera; video.hidden = false; at("shown").hidden = true; at("hint").textContent = "camera";
  at("camera").textContent = "Stop the camera"; at("camera").setAttribute("aria-pressed", "true");
  await video.play();
  const canvas = element("canvas");
  while (camera) {  // the next picture is taken when the last one has been shown completely
    canvas.width = video.videoWidth; canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await new Promise(done => canvas.toBlob(done, "image/jpeg", 0.92));
    if (!camera || !await send(blob, "camera", null)) break;
    await running;
    await new Promise(done => setTimeout(done, 50));
  }
  endCamera();
});

function endCamera() {
  if (!camera) return;
  for (const track of camera.getTracks()) track.stop();
  camera = null;
  at("video").hidden = true; at("shown").hidden = !at("shown").src;
  at("camera").textContent = "Use the camera"; at("camera").setAttribute("aria-pressed", "false");
}

// ------------------------------------------------------------------------------------------------------- settings

function network() { return page.networks[Number(at("network").value)]; }
function layer() { return network().layers.find(one => one.name === at("layer").value); }

function option(value, text) { const made = element("option", "", text); made.value = value; return made; }

function setUp() {
  at("network").replaceChildren(...page.networks.map((one, k) => option(k, one.name)));
  for (const one of page.methods) {
    const label = element("label"), check = element("input");
    check.type = "checkbox"; check.value = one.name;
    check.checked = ["saliency", "guided_backprop", "grad_cam", "occlusion"].includes(one.name);
    label.append(check, ` ${one.words}${one.slow && one.name !== "occlusion" ? " (slow)" : ""}`);
    at("methods").append(label);
  }
  document.querySelector("#settings details").open = document.documentElement.clientWidth > 760;
  if (!page.networks.length) { for (const one of at("settings").elements) one.disabled = true; return; }
  ofNetwork();
  at("settings").addEventListener("submit", event => event.preventDefault());
  at("network").addEventListener("change", () => { ofNetwork(); see(); });
  at("layer").addEventListener("change", () => { at("unit").value = ""; ofLayer(); see(); });
  let soon;
  at("settings").addEventListener("input", event => {
    if (event.target.matches("select, input[type=file]")) return;
    clearTimeout(soon);
    soon = setTimeout(see, event.target.matches("#target, #unit") ? 350 : 0);
  });
  const line = new URLSearchParams(location.search).get("line");
  if (line !== null && /^\d+$/.test(line)) fetchPhoto(`photo/line/${line}`, "");
}

function ofNetwork() {
  const { layers, classes } = network();
  at("layer").replaceChildren(...layers.map(one => option(one.name, `${one.name} (${one.shape.join("×")})`)));
  at("layer").value = layers[Math.floor(layers.length / 2)].name;
  at("unit").value = "";
  at("classes").replaceChildren(...(classes ?? []).map(name => option(name)));
  at("target").disabled = !classes;
  ofLayer();
}
function ofLayer() { at("unit").max = layer().shape[0] - 1; }

function choose(unit) { at("unit").value = unit; see(); }

// ------------------------------------------------------------------------------------------- requests to the server

let order = 0;
function see() {
  if (!photo) return;
  const mine = ++order, abort = new AbortController();
  stop?.abort(); stop = abort;
  running = follow(mine, abort).catch(error => { if (mine === order && error.name !== "AbortError") say(error.message); });
}
let stop = null;

async function follow(mine, abort) {
  const unit = at("unit").valueAsNumber, checked = id => [...at(id).querySelectorAll("input:checked")].map(one => one.value);
  const look = {
    page: self_, photo, network: Number(at("network").value), layer: at("layer").value, unit: Number.isNaN(unit) ? null : Math.max(0, Math.floor(unit)),
    explain: at("settings").elements.explain.value, target: at("target").value || "predicted",
    methods: checked("methods"), pictures: camera ? [] : checked("pictures"),
  };
  say("working");
  const began = performance.now(), seen = new Set();
  const got = await fetch("see", { method: "POST", body: JSON.stringify(look), headers: { "content-type": "application/json" }, signal: abort.signal });
  if (!got.ok) throw new Error((await got.json()).error);
  const reader = got.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", ended = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) {
      if (mine !== order) return;
      const event = JSON.parse(part);
      if (event.end) ended = true; else { seen.add(event.card); card(event); }
    }
  }
  if (mine !== order) return;
  if (!ended) throw new Error("The server stopped sending; its terminal shows why.");
  for (const one of [...at("cards").children]) if (!seen.has(one.dataset.card)) one.remove();
  say(`finished after ${((performance.now() - began) / 1000).toFixed(1)} s`);
}

function card(event) {
  let made = at("cards").querySelector(`[data-card="${CSS.escape(event.card)}"]`);
  if (!made) {
    made = element("section", `card ${event.card.replace(/-.*/, "")}`);
    made.dataset.card = event.card;
    made.append(element("h2"), element("div", "body"), element("p", "quiet"));
    const title = made.firstChild;
    title.id = `title-${event.card}`;
    made.setAttribute("aria-labelledby", title.id);
    at("cards").append(made);
  }
  const [title, body, foot] = made.children;
  title.textContent = event.title;
  made.classList.toggle("working", event.state === "working");
  made.setAttribute("aria-busy", String(event.state === "working"));
  if (event.state === "failed") { body.replaceChildren(element("p", "error", event.error)); foot.textContent = ""; return; }
  if (event.card === "guesses") { guesses(body, event); return; }
  if (event.picture) {
    const image = body.querySelector("img") ?? element("img");
    image.src = event.picture; image.alt = event.alt;
    if (event.card === "activations") activations(body, image, event); else body.replaceChildren(image);
  }
  const seconds = event.seconds === undefined || event.state === "working" ? "" : `${event.seconds < 1 ? `${Math.round(1000 * event.seconds)} ms` : `${event.seconds.toFixed(1)} s`}`;
  foot.textContent = [event.alt, seconds, event.note].filter(Boolean).join(" · ") || "working";
}

function guesses(body, event) {
  body.replaceChildren(...event.guesses.map(({ name, probability }) => {
    const made = element("div", "guess"), bar = element("i"), choice = element("button", "", name);
    bar.style.width = `${100 * probability}%`;
    choice.type = "button"; choice.title = "explain this class";
    choice.addEventListener("click", () => { at("target").value = name; see(); });
    made.append(bar, choice, element("span", "", percent(probability)));
    return made;
  }));
  if (event.error) body.append(element("p", "error", event.error));
}

function activations(body, image, event) {
  const sheet = element("div", "sheet"), mark = element("span", "mark"), units = element("div", "units");
  const place = unit => {
    mark.style.left = `${100 * (unit % event.columns) / event.columns}%`; mark.style.top = `${100 * Math.floor(unit / event.columns) / event.rows}%`;
    mark.style.width = `${100 / event.columns}%`; mark.style.height = `${100 / event.rows}%`;
  };
  place(event.unit);
  image.onclick = click => {
    const box = image.getBoundingClientRect();
    const unit = Math.floor((click.clientY - box.top) / box.height * event.rows) * event.columns + Math.floor((click.clientX - box.left) / box.width * event.columns);
    if (unit < event.channels) choose(unit);
  };
  sheet.append(image, mark);
  units.append(element("span", "quiet", "strongest:"));
  for (const [unit, value] of event.strongest) {
    const made = element("button", "", `${unit}: ${value}`);
    made.type = "button"; made.setAttribute("aria-pressed", String(unit === event.unit)); made.setAttribute("aria-label", `channel ${unit}, ${value}`);
    made.addEventListener("click", () => choose(unit));
    units.append(made);
  }
  const held = body.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label")?.split(",")[0] : null;
  body.replaceChildren(sheet, units);
  if (held) [...units.querySelectorAll("button")].find(one => one.getAttribute("aria-label").split(",")[0] === held)?.focus();
}

setUp();
})();
