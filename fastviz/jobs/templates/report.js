// The report of a job: lines are read block by block, and only the visible ones are in the page.
"use strict";
const fastviz = (() => {
const page = JSON.parse(document.getElementById("page").textContent);
const at = id => document.getElementById(id);
const methods = page.methods, [cellHeight, cellWidth] = page.cell, ratio = cellHeight / cellWidth;

// ------------------------------------------------------------------------------------------------------- the lines

// A list for each column; names are stored as indices into `names`.
const lines = { id: [], label: [], target: [], predicted: [], probability: [], confidence: [], seconds: [] };
const errors = new Map(), missing = new Map();
const names = [], places = new Map();
let classes = new Set();

function place(name) {
  if (!places.has(name)) { places.set(name, names.length); names.push(name); }
  return places.get(name);
}

function add(block) {
  const own = block.names.map(place), number = value => value < 0 ? -1 : own[value];
  const start = lines.id.length;
  for (const key of ["id", "probability", "confidence", "seconds"]) for (const value of block[key]) lines[key].push(value);
  for (const key of ["label", "target", "predicted"]) for (const value of block[key]) lines[key].push(number(value));
  for (const [line, words] of Object.entries(block.error)) errors.set(start + Number(line), words);
  for (const [line, which] of Object.entries(block.missing)) missing.set(start + Number(line), which);
  for (const value of block.target) if (value >= 0) classes.add(own[value]);
  changed();
}

function forget() {
  for (const values of Object.values(lines)) values.length = 0;
  errors.clear(); missing.clear(); classes = new Set();
  focused = 0;
}

// ------------------------------------------------------------------------------------------------- filter and order

let order = new Uint32Array(0), view = "sheet", focused = 0;

const collator = new Intl.Collator(undefined, { numeric: true });

function chosen() {
  const word = at("class").value.trim().toLowerCase(), name = at("name").value.trim().toLowerCase();
  const low = at("low").valueAsNumber || 0, high = Number.isNaN(at("high").valueAsNumber) ? 1 : at("high").valueAsNumber;
  const which = view === "failures" ? "failed" : at("which").value;
  // the filter is matched once per class, not once per line
  const exact = names.some((each, k) => classes.has(k) && each.toLowerCase() === word);
  const fits = names.map(each => !word || (exact ? each.toLowerCase() === word : each.toLowerCase().includes(word)));
  const every = low <= 0 && high >= 1;
  return line => {
    if (word && !(lines.target[line] >= 0 && fits[lines.target[line]])) return false;
    if (name && !lines.id[line].toLowerCase().includes(name)) return false;
    if (!every) {
      const probability = lines.probability[line];
      if (probability === null || probability < low || probability > high) return false;
    }
    const failed = errors.has(line), { target, predicted, label } = lines;
    if (which === "good") return !failed;
    if (which === "failed") return failed;
    if (which === "same") return predicted[line] >= 0 && predicted[line] === target[line];
    if (which === "other") return predicted[line] >= 0 && predicted[line] !== target[line];
    if (which === "wrong") return predicted[line] >= 0 && label[line] >= 0 && predicted[line] !== label[line];
    return true;
  };
}

function arrange() {
  const keep = chosen(), found = [];
  for (let line = 0; line < lines.id.length; line++) if (keep(line)) found.push(line);
  const by = at("sort").value;
  const numbers = (values, missing_, sign) => (a, b) => sign * ((values[a] ?? missing_) - (values[b] ?? missing_)) || a - b;
  if (by === "name") found.sort((a, b) => collator.compare(lines.id[a], lines.id[b]) || a - b);
  if (by === "high") found.sort(numbers(lines.probability, -1, -1));
  if (by === "low") found.sort(numbers(lines.probability, 2, 1));
  if (by === "slow") found.sort(numbers(lines.seconds, -1, -1));
  if (by === "failed") found.sort((a, b) => errors.has(b) - errors.has(a) || a - b);
  if (by === "class") {
    const sorted = [...names.keys()].sort((a, b) => collator.compare(names[a], names[b])), rank = [];
    sorted.forEach((each, k) => { rank[each] = k; });
    const of = line => lines.target[line] < 0 ? names.length : rank[lines.target[line]];
    found.sort((a, b) => of(a) - of(b) || (lines.probability[b] ?? -1) - (lines.probability[a] ?? -1) || a - b);
  }
  order = Uint32Array.from(found);
  focused = Math.min(focused, Math.max(0, order.length - 1));
  at("failed").textContent = `(${errors.size.toLocaleString("en")})`;
  say();
  draw(true);
}

let told;
function say() {
  clearTimeout(told);
  told = setTimeout(() => {
    const all = lines.id.length, text = n => n.toLocaleString("en");
    const more = page.live || all >= page.lines ? "" : ` (reading ${text(page.lines)})`;
    at("count").textContent = order.length === all ? `${text(all)} shown${more}` : `${text(order.length)} of ${text(all)} shown${more}`;
  }, 150);
}

let waiting = 0;
function changed() {  // after new lines or another filter, at most a few times per second
  if (waiting) return;
  waiting = setTimeout(() => { waiting = 0; arrange(); listClasses(); }, order.length ? 250 : 0);
}

let listed = 0;
function listClasses() {
  if (classes.size === listed) return;
  listed = classes.size;
  const sorted = [...classes].map(k => names[k]).sort(collator.compare).slice(0, 5000);
  at("classes").replaceChildren(...sorted.map(name => { const one = document.createElement("option"); one.value = name; return one; }));
}

// ------------------------------------------------------------------------------------------------------ the pictures

function sheetUrl(kind, number, size) {
  const name = `report_files/${kind}-${String(number).padStart(6, "0")}.jpg`;
  if (!page.live) return name;
  // the address changes when the sheet gets more lines
  return `${name}?v=${page.version}&n=${Math.min(lines.id.length, (number + 1) * size) - number * size}`;
}

// the position of a line's picture: of a method by its index, of the photograph by -1
function source(line, method) {
  const size = method < 0 ? page.per_sheet : page.lines_per_sheet, number = Math.floor(line / size), within = line % size;
  const spot = method < 0 ? within : within * methods.length + method;
  return { url: sheetUrl(method < 0 ? "photos" : "maps", number, size), column: spot % page.across, row: Math.floor(spot / page.across) };
}

function has(line, method) {
  if (method < 0) return page.photos && !(errors.has(line) && missing.get(line)?.length === methods.length && lines.predicted[line] < 0);
  return page.maps && !missing.get(line)?.includes(method);
}

function words(method) { return method < 0 ? "photograph" : methods[method].replaceAll("_", " "); }

function element(kind, className, text) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

let late = [];
function picture(line, method, width) {
  const made = element("span", "picture");
  made.style.width = `${width}px`; made.style.height = `${width * ratio}px`;
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", `${words(method)} of ${lines.id[line]}`);
  if (!has(line, method)) {
    made.classList.add("none");
    made.textContent = errors.has(line) ? "failed" : "none";
    made.setAttribute("aria-label", `no ${words(method)} of ${lines.id[line]}`);
    return made;
  }
  const { url, column, row } = source(line, method);
  const fill = () => {
    made.style.backgroundImage = `url("${url}")`;
    made.style.backgroundSize = `${page.across * width}px auto`;
    made.style.backgroundPosition = `${-column * width}px ${-row * width * ratio}px`;
  };
  // during fast scrolling no pictures are loaded; those still visible are loaded soon after
  if (fast) late.push([made, fill]); else fill();
  return made;
}

// ------------------------------------------------------------------------------------------ rows as they come into view

const list = at("list"), space = at("space"), MOST = 8_000_000, GAP = 8;
const shown = new Map();  // number of a row → its element
let geometry = null, fast = false, lastTop = 0, lastTime = 0;

function width_() { return Number(at("size").value); }
function visible() { return methods.map((_, k) => k).filter(k => at(`method-${k}`).checked); }

function measure() {
  const width = width_(), room = Math.max(width, list.clientWidth - 2 * GAP), outer = width + GAP;
  const across = Math.max(1, Math.floor((room + GAP) / outer)), caption = 2.6 * 16;
  if (view === "sheet") return { width, across, height: width * ratio + caption + GAP, rows: Math.ceil(order.length / across), per_row: across };
  if (view === "rows") {
    const pictures = (page.photos ? 1 : 0) + visible().length, deep = Math.max(1, Math.ceil(pictures / across));
    return { width, across, height: 3.4 * 16 + deep * (width * ratio + 24) + GAP, rows: order.length, per_row: 1 };
  }
  return { width, across, height: 3.6 * 16, rows: order.length, per_row: 1 };
}

// Browsers limit elements to about 16 million pixels, so in longer lists a pixel of the scroll bar is several pixels.
function scrolled() {
  const total = geometry.rows * geometry.height, tall = Math.min(total, MOST), room = Math.max(1, tall - list.clientHeight);
  return total <= MOST ? list.scrollTop : Math.min(1, list.scrollTop / room) * (total - list.clientHeight);
}

function draw(anew = false) {
  if (view === "charts") return;
  let held = false;
  if (anew || !geometry) {
    geometry = measure();
    held = space.contains(document.activeElement);
    for (const one of shown.values()) one.remove();
    shown.clear();
    space.style.height = `${Math.min(geometry.rows * geometry.height, MOST)}px`;
    at("empty").hidden = geometry.rows > 0;
  }
  const top = scrolled(), { height, rows } = geometry;
  const first = Math.max(0, Math.floor(top / height) - 1), last = Math.min(rows, Math.ceil((top + list.clientHeight) / height) + 1);
  for (const [row, one] of shown) if (row < first || row >= last) { one.remove(); shown.delete(row); }
  const before = list.scrollTop;
  for (let row = first; row < last; row++) {
    let one = shown.get(row);
    if (!one) { one = make(row); shown.set(row, one); space.append(one); }
    one.style.transform = `translateY(${before + row * height - top}px)`;
  }
  if (held) space.querySelector(`button.line[data-place="${focused}"]`)?.focus({ preventScroll: true });
  if (!space.contains(document.activeElement)) enter(first);
  if (!drawn && shown.size) { drawn = true; performance.mark("fastviz-lines"); }
}
let drawn = false;

function enter(row) {  // makes one image reachable by Tab: the last one that had the focus, or the first visible one
  const { per_row } = geometry, buttons = [...space.querySelectorAll("button.line")];
  if (!buttons.length) return;
  if (!buttons.some(one => Number(one.dataset.place) === focused)) focused = row * per_row;
  for (const one of buttons) one.tabIndex = Number(one.dataset.place) === focused ? 0 : -1;
  if (!buttons.some(one => one.tabIndex === 0)) buttons[0].tabIndex = 0;
}

function title(line) {
  const name = lines.target[line] < 0 ? "" : names[lines.target[line]];
  return errors.has(line) && lines.target[line] < 0 ? "failed" : name;
}
function percent(value) { return value === null || value === undefined ? "" : value < 0.01 ? "< 1 %" : `${Math.round(100 * value)} %`; }

function button(place_, line) {
  const made = element("button", "line");
  made.type = "button"; made.tabIndex = place_ === focused ? 0 : -1; made.dataset.place = place_;
  made.setAttribute("aria-label", `${lines.id[line]}: ${title(line)} ${percent(lines.probability[line])}${errors.has(line) ? ", failed" : ""}. Open`);
  made.addEventListener("click", () => open(place_));
  made.addEventListener("focus", () => { focused = place_; });
  return made;
}

function make(row) {
  const { width, per_row } = geometry, made = element("div", `row ${view}`);
  const from = row * per_row, to = Math.min(order.length, from + per_row);
  for (let place_ = from; place_ < to; place_++) {
    const line = order[place_], item = element("div", "item");
    item.setAttribute("role", "listitem");
    item.setAttribute("aria-setsize", order.length); item.setAttribute("aria-posinset", place_ + 1);
    if (errors.has(line)) item.classList.add("failed");
    item.append(...({ sheet: thumbnail, rows: wide, failures: failure }[view](place_, line, width)));
    made.append(item);
  }
  return made;
}

function thumbnail(place_, line, width) {
  const made = button(place_, line);
  made.style.width = `${width}px`;
  made.append(picture(line, Number(at("shows").value), width));
  made.append(element("span", "name", title(line)), element("span", "confidence", percent(lines.probability[line])));
  made.append(element("span", "id", lines.id[line]));
  return [made];
}

function wide(place_, line, width) {
  const made = button(place_, line);
  made.append(element("b", "", title(line)), element("span", "confidence", percent(lines.probability[line])));
  if (lines.predicted[line] >= 0 && lines.predicted[line] !== lines.target[line])
    made.append(element("span", "quiet", `predicted: ${names[lines.predicted[line]]} ${percent(lines.confidence[line])}`));
  made.append(element("span", "id", !errors.has(line) ? lines.id[line] : errors.get(line).includes(lines.id[line]) ? errors.get(line) : `${lines.id[line]}: ${errors.get(line)}`));
  const pictures = element("div", "pictures");
  if (![-1, ...methods.keys()].some(method => has(line, method))) return [made];
  for (const method of [...(page.photos ? [-1] : []), ...visible()]) {
    const figure = element("figure");
    figure.append(picture(line, method, width), element("figcaption", "", words(method)));
    figure.style.width = `${width}px`;
    pictures.append(figure);
  }
  return [made, pictures];
}

function failure(place_, line) {
  const made = button(place_, line);
  made.append(element("b", "", lines.id[line]), element("span", "quiet", errors.get(line)));
  return [made];
}

let stopped;
list.addEventListener("scroll", () => {
  const now = performance.now(), top = scrolled(), speed = Math.abs(top - lastTop) / Math.max(1, now - lastTime);
  fast = speed > list.clientHeight / 120;
  lastTop = top; lastTime = now;
  requestAnimationFrame(() => draw());
  clearTimeout(stopped);
  stopped = setTimeout(() => {
    fast = false;
    for (const [one, fill] of late) if (one.isConnected) fill();
    late = [];
  }, 90);
}, { passive: true });
new ResizeObserver(() => { if (geometry) draw(true); }).observe(list);

function show(place_) {  // scroll the line at this place into view, and focus it
  focused = Math.max(0, Math.min(order.length - 1, place_));
  const { height, per_row, rows } = geometry, y = Math.floor(focused / per_row) * height, top = scrolled(), room = list.clientHeight;
  let wanted = top;
  if (y < top) wanted = y;
  if (y + height > top + room) wanted = Math.min(y, y + height - room);
  if (wanted !== top) {
    const total = rows * height;
    list.scrollTop = total <= MOST ? wanted : wanted / (total - room) * (MOST - room);
    draw();
  }
  const one = space.querySelector(`button.line[data-place="${focused}"]`);
  if (one) { for (const other of space.querySelectorAll("button.line")) other.tabIndex = -1; one.tabIndex = 0; one.focus({ preventScroll: true }); }
}

list.addEventListener("keydown", event => {
  if (!event.target.matches("button.line") || event.altKey || event.ctrlKey || event.metaKey) return;
  const per_row = geometry.per_row, screen = Math.max(1, Math.floor(list.clientHeight / geometry.height)) * per_row;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: per_row, ArrowUp: -per_row, PageDown: screen, PageUp: -screen, Home: -order.length, End: order.length }[event.key];
  if (!step) return;
  event.preventDefault();
  show(focused + step);
});

// ------------------------------------------------------------------------------------------------ one image, large

const detail = at("detail");
let opened = 0;  // separate from `focused`: the browser restores the focus when the dialog closes
function open(place_) {
  opened = Math.max(0, Math.min(order.length - 1, place_));
  const line = order[opened], facts = element("dl", "facts");
  at("detail-name").textContent = lines.id[line];
  const fact = (name, value) => { if (value) { const one = element("div"); one.append(element("dt", "", name), element("dd", "", value)); facts.append(one); } };
  fact("Explained", lines.target[line] < 0 ? "" : `${names[lines.target[line]]} ${percent(lines.probability[line])}`);
  fact("Predicted", lines.predicted[line] < 0 ? "" : `${names[lines.predicted[line]]} ${percent(lines.confidence[line])}`);
  fact("Label", lines.label[line] < 0 ? "" : names[lines.label[line]]);
  fact("Seconds", lines.seconds[line] ? lines.seconds[line].toPrecision(3) : "");
  fact("Failed", errors.get(line));
  const width = Math.min(cellWidth * 1.5, 320, document.documentElement.clientWidth - 60), pictures = element("div", "pictures");
  for (const method of [...(page.photos ? [-1] : []), ...methods.keys()]) {
    if (!has(line, method)) continue;
    const figure = element("figure");
    figure.append(picture(line, method, width), element("figcaption", "", words(method)));
    figure.style.width = `${width}px`;
    pictures.append(figure);
  }
  at("detail-facts").replaceChildren(facts);
  if (page.live) {
    const inside = element("a", "", "Look inside with this photograph");
    inside.href = `panel?line=${line}`;
    at("detail-facts").append(inside);
  }
  at("detail-pictures").replaceChildren(pictures);
  at("before").disabled = opened === 0; at("after").disabled = opened >= order.length - 1;
  if (!detail.open) detail.showModal();
}
at("before").addEventListener("click", () => open(opened - 1));
at("after").addEventListener("click", () => open(opened + 1));
detail.addEventListener("keydown", event => {
  if (event.key === "ArrowLeft" && opened > 0) open(opened - 1);
  if (event.key === "ArrowRight" && opened < order.length - 1) open(opened + 1);
});
detail.addEventListener("click", event => { if (event.target === detail) detail.close(); });
detail.addEventListener("close", () => show(opened));

// ---------------------------------------------------------------------------------------------------------- charts

function bars(values, label, low, high, tick) {
  const chart = element("div", "bars"), most = Math.max(1, ...values);
  chart.setAttribute("role", "img"); chart.setAttribute("aria-label", label);
  values.forEach((value, k) => {
    const bar = element("i");
    bar.style.height = value ? `${Math.max(2, 100 * value / most)}%` : "0";
    bar.title = `${tick(k)}: ${value.toLocaleString("en")}`;
    chart.append(bar);
  });
  const axis = element("div", "axis");
  axis.append(element("span", "", low), element("span", "", high));
  const both = element("div", "chart");
  both.append(chart, axis);
  return both;
}

function section(name, hint) {
  const made = element("section");
  made.append(element("h2", "", name));
  if (hint) made.append(element("p", "quiet", hint));
  at("charts").append(made);
  return made;
}

function table(into, heads) {
  const made = element("table"), head = element("tr"), box = element("div", "scroll");
  for (const name of heads) { const one = element("th", "", name); one.scope = "col"; head.append(one); }
  made.append(head); box.append(made); into.append(box);
  return cells => { const row = element("tr"); for (const cell of cells) { const one = element("td"); one.append(cell); row.append(one); } made.append(row); };
}

function seconds(value) { return value === null ? "–" : value < 1 ? `${Number((1000 * value).toPrecision(2))} ms` : `${Number(value.toPrecision(2))} s`; }

function charts() {
  const found = page.distributions;
  at("charts").replaceChildren();
  const few = found.probability.length, part = k => `${Math.round(100 * k / few)} to ${Math.round(100 * (k + 1) / few)} %`;
  if (few) {
    const confidence = section("How probable the explained class is", "Images by the network's probability of the explained class.");
    confidence.append(bars(found.probability, `Images by probability: ${found.probability.map((n, k) => n ? `${part(k)}: ${n}` : "").filter(Boolean).join("; ")}`, "0 %", "100 %", part));
    const by = section("By class", found.more_classes ? `The most frequent classes; ${found.more_classes.toLocaleString("en")} more are not shown.` : "");
    const add_ = table(by, ["class", "images", "mean probability", "probability, 0 to 100 %"]);
    for (const one of found.classes) {
      const name = element("button", "link", one.name);
      name.type = "button"; name.title = "show these images";
      name.addEventListener("click", () => { at("controls").reset(); at("class").value = one.name; look("sheet"); });
      add_([name, String(one.count), percent(one.mean), bars(one.bins, `${one.name}, images by probability`, "", "", part)]);
    }
  }
  const took = found.seconds.filter(one => one.median !== null);
  if (took.length) {
    const time = section("Time per image, by method", "The batch's time divided by its images; five bars per factor of ten.");
    const used = [...took[0].bins.keys()].filter(k => took.some(one => one.bins[k]));
    const low = Math.min(...used), high = Math.max(...used) + 1, edge = k => found.least_second * 10 ** (k / found.bins_per_decade);
    const add_ = table(time, ["method", "median", `${seconds(edge(low))} to ${seconds(edge(high))}`]);
    for (const one of [...took].sort((a, b) => b.median - a.median))
      add_([one.method.replaceAll("_", " "), seconds(one.median), bars(one.bins.slice(low, high), `seconds of ${one.method}`, "", "", k => `${seconds(edge(low + k))} to ${seconds(edge(low + k + 1))}`)]);
  }
  if (found.reasons.length) {
    const why = section(`${found.failed.toLocaleString("en")} failed`, "By reason, without names; the tab Failures lists each.");
    const add_ = table(why, ["reason", "images"]);
    for (const [reason, count] of found.reasons) add_([reason, count.toLocaleString("en")]);
  }
}

// -------------------------------------------------------------------------------------------------------- controls

function look(wanted) {
  view = wanted;
  for (const one of document.querySelectorAll("nav button")) one.setAttribute("aria-pressed", String(one.dataset.view === view));
  const isCharts = view === "charts";
  at("count").hidden = list.hidden = isCharts; at("charts").hidden = !isCharts; at("filters").hidden = isCharts;
  at("empty").hidden = true;
  if (isCharts) { charts(); return; }
  list.scrollTop = 0; focused = 0; geometry = null;
  arrange();
}

function setUp() {
  const box = at("methods");
  methods.forEach((name, k) => {
    const label = element("label"), check = element("input");
    check.type = "checkbox"; check.checked = true; check.defaultChecked = true; check.id = `method-${k}`;
    label.append(check, ` ${words(k)}`);
    box.append(label);
  });
  const kinds = [...(page.photos ? [-1] : []), ...(page.maps ? methods.keys() : [])];
  at("shows").replaceChildren(...(kinds.length ? kinds : [-1]).map(k => { const one = element("option", "", words(k)); one.value = k; return one; }));
  const narrow = document.documentElement.clientWidth < 600;
  at("size").value = at("size").defaultValue = narrow ? 104 : Math.min(cellWidth, 144);
  at("filters").open = !narrow;
  for (const one of document.querySelectorAll("nav button")) one.addEventListener("click", () => look(one.dataset.view));
  let soon;
  at("controls").addEventListener("input", event => {
    clearTimeout(soon);
    if (event.target.id === "size") { draw(true); return; }
    soon = setTimeout(() => { list.scrollTop = 0; arrange(); }, event.target.matches("input[type=search], #class") ? 120 : 0);
  });
  at("controls").addEventListener("reset", () => setTimeout(() => { list.scrollTop = 0; arrange(); }));
  at("controls").addEventListener("submit", event => event.preventDefault());
  arrange();
}

// -------------------------------------------------------------------------------------------- where lines come from

function read(number) {  // a page opened from a file may not use fetch, so blocks are scripts, loaded one by one
  if (number >= page.blocks) { say(); return; }
  const script = element("script");
  script.src = `report_files/lines-${String(number).padStart(5, "0")}.js`;
  script.onload = () => { script.remove(); read(number + 1); };
  script.onerror = () => { at("count").textContent = `${script.src} cannot be read`; };
  document.head.append(script);
}

async function follow() {
  try {
    const answer = await fetch(`lines?version=${page.version}&start=${lines.id.length}`);
    if (!answer.ok) throw new Error((await answer.json()).error);
    const news = await answer.json();
    if (news.methods.join() !== methods.join()) { location.reload(); return; }  // another job has started in the folder
    if (news.version !== page.version) { forget(); page.version = news.version; changed(); }
    page.distributions = news.distributions;
    if (news.block.id.length) add(news.block);
    if (view === "charts") charts();
    if (news.more) { follow(); return; }
  } catch (error) {
    at("count").textContent = `the server does not answer: ${error.message}`;
  }
  setTimeout(follow, 2000);
}

// deferred, because blocks need the global name, which exists only after this script
setTimeout(() => { setUp(); if (page.live) follow(); else read(0); });
return { add, lines };
})();
