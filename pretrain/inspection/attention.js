"use strict";
// Tokens become text nodes and canvas text, never HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const { tokens, layers, heads } = data;
const count = tokens.length, UNIT = 65535, MEAN = -1;
const element = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
// The selected layer, head (MEAN: mean of all heads), query and key (or null); `pinned` by a click.
const state = { layer: 0, head: MEAN, query: count - 1, key: null, pinned: false };

function decode(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer), weights = new Float32Array(bytes.length / 2);
  for (let i = 0; i < weights.length; i++) weights[i] = view.getUint16(2 * i, true) / UNIT;
  return weights;
}

const maps = data.maps.map((layer) => layer.map(decode));
const means = maps.map((layer) => {
  const sum = new Float32Array(count * (count + 1) / 2);
  for (const map of layer) for (let i = 0; i < sum.length; i++) sum[i] += map[i] / heads;
  return sum;
});
const mapOf = (layer, head) => (head === MEAN ? means[layer] : maps[layer][head]);
const at = (map, query, key) => map[query * (query + 1) / 2 + key];
const nameOf = (layer, head) => `layer ${layer}, ${head === MEAN ? "mean of all heads" : `head ${head}`}`;

// One hue from background to ink; each stop is [red, green, blue].
const RAMPS = {
  light: [[255, 255, 255], [196, 219, 251], [98, 151, 232], [30, 84, 183], [10, 28, 84]],
  dark: [[23, 27, 33], [26, 52, 102], [44, 98, 190], [110, 172, 255], [232, 243, 255]],
};
const STEPS = 1024;
let palette = [];
function mixPalette() {
  const ramp = RAMPS[dark.matches ? "dark" : "light"], root = element("scale").value === "root";
  palette = Array.from({ length: STEPS + 1 }, (_, step) => {
    const value = (root ? Math.sqrt(step / STEPS) : step / STEPS) * (ramp.length - 1);
    const low = Math.min(Math.floor(value), ramp.length - 2), share = value - low;
    return ramp[low].map((part, i) => Math.round(part + (ramp[low + 1][i] - part) * share));
  });
}
const color = (weight) => palette[Math.round(Math.min(weight, 1) * STEPS)];
const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;
const readable = ([red, green, blue]) => (0.3 * red + 0.59 * green + 0.11 * blue > 135 ? "#111" : "#fff");
const themed = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function paintThumbnail(canvas, map) {
  const context = canvas.getContext("2d"), image = context.createImageData(count, count);
  const pixels = image.data;
  for (let query = 0, from = 0; query < count; from += ++query) {
    for (let key = 0; key < count; key++) {
      const parts = key <= query ? color(map[from + key]) : palette[0], to = 4 * (query * count + key);
      pixels[to] = parts[0];
      pixels[to + 1] = parts[1];
      pixels[to + 2] = parts[2];
      pixels[to + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

function add(parent, tag, kind, text) {
  const child = document.createElement(tag);
  if (kind) child.className = kind;
  if (text !== undefined) child.textContent = text;
  parent.append(child);
  return child;
}

const buttons = new Map();
function buildOverview() {
  const grid = element("overview");
  const room = innerWidth < 1180 ? innerWidth - 140 : Math.min(620, 0.4 * innerWidth - 110);
  const size = Math.max(22, Math.min(72, Math.floor(room / (heads + 1)) - 4));
  grid.style.gridTemplateColumns = `max-content repeat(${heads + 1}, ${size}px)`;
  add(grid, "span");
  add(grid, "span", "name", size < 34 ? "μ" : "mean");
  for (let head = 0; head < heads; head++) add(grid, "span", "name", String(head));
  for (let layer = 0; layer < layers; layer++) {
    add(grid, "span", "layer", size < 34 ? String(layer) : `layer ${layer}`);
    for (let head = MEAN; head < heads; head++) {
      const button = add(grid, "button");
      const canvas = add(button, "canvas");
      canvas.width = canvas.height = count;
      button.title = [nameOf(layer, head), ...figureTexts(layer, head)].join("\n");
      button.setAttribute("aria-label", nameOf(layer, head));
      button.addEventListener("click", () => choose({ layer, head }, true));
      buttons.set(`${layer} ${head}`, { button, canvas, layer, head });
    }
  }
}

function paintOverview() {
  for (const { canvas, layer, head } of buttons.values()) paintThumbnail(canvas, mapOf(layer, head));
}

function figuresOf(layer, head) {
  return head === MEAN ? data.means[layer] : data.figures[layer][head];
}
function figureTexts(layer, head) {
  const found = figuresOf(layer, head);
  if (!found) return [];
  return [`entropy ${found[0].toFixed(2)} bits`, `${percent(found[1])} on the first token`, `${percent(found[2])} on the previous token`];
}
const percent = (share) => `${(100 * share).toFixed(1)}%`;

// The large map. Labels are at least LABEL pixels apart, so that they do not overlap.
const FONT = '11px ui-monospace, "SF Mono", Menlo, Consolas, "Noto Sans Mono CJK SC", monospace';
const LONGEST = 14, LABEL = 11;
const shortened = (token) => (Array.from(token).length > LONGEST ? `${Array.from(token).slice(0, LONGEST - 1).join("")}…` : token);
let frame = null;

function layout() {
  const context = element("map").getContext("2d");
  context.font = FONT;
  const labels = tokens.map(shortened);
  const margin = Math.ceil(Math.max(...labels.map((label) => context.measureText(label).width))) + 10;
  // As wide as the column, and no higher than the window unless cells would be under 16 pixels.
  const wide = (Math.min(element("map").parentElement.clientWidth - 3, 840) - margin) / count;
  const high = Math.max((innerHeight - 120 - margin) / count, 16);
  const cell = Math.max(count <= 64 ? LABEL : 6, Math.min(34, Math.floor(Math.min(wide, high))));
  return { labels, margin, cell, every: Math.ceil(LABEL / cell), size: margin + cell * count + 2 };
}

function paintMap() {
  const canvas = element("map"), context = canvas.getContext("2d"), map = mapOf(state.layer, state.head);
  frame = layout();
  const { labels, margin, cell, every, size } = frame, scale = window.devicePixelRatio || 1;
  canvas.width = canvas.height = Math.round(size * scale);
  canvas.style.width = canvas.style.height = `${size}px`;
  context.setTransform(scale, 0, 0, scale, 0, 0);
  const ink = themed("--ink"), soft = themed("--soft"), line = themed("--line"), chosen = themed("--b");
  context.fillStyle = css(color(0));
  context.fillRect(margin, margin, cell * count, cell * count);
  const gap = cell >= 16 ? 1 : 0;
  for (let query = 0; query < count; query++) {
    for (let key = 0; key <= query; key++) {
      context.fillStyle = css(color(at(map, query, key)));
      context.fillRect(margin + key * cell, margin + query * cell, cell - gap, cell - gap);
    }
  }
  context.strokeStyle = line;
  context.strokeRect(margin - 0.5, margin - 0.5, cell * count + 1, cell * count + 1);
  context.font = FONT;
  context.textBaseline = "middle";
  for (let i = 0; i < count; i++) {
    const isQuery = i === state.query, isKey = i === state.key, middle = margin + (i + 0.5) * cell;
    // If not all labels fit, those beside the selected one are dropped.
    const shown = (active, is) => is || (i % every === 0 && (active === null || every === 1 || Math.abs(i - active) >= every));
    if (shown(state.query, isQuery)) {
      context.fillStyle = isQuery ? ink : soft;
      context.textAlign = "right";
      context.fillText(labels[i], margin - 5, middle);
    }
    if (shown(state.key, isKey)) {
      context.save();
      context.translate(middle, margin - 5);
      context.rotate(-Math.PI / 2);
      context.fillStyle = isKey ? ink : soft;
      context.textAlign = "left";
      context.fillText(labels[i], 0, 0);
      context.restore();
    }
  }
  context.strokeStyle = chosen;
  context.lineWidth = 2;
  context.strokeRect(margin - 1, margin + state.query * cell - 1, cell * (state.query + 1) + 1, cell + 1);
  if (state.key !== null) {
    context.strokeStyle = ink;
    context.strokeRect(margin + state.key * cell - 1, margin + state.query * cell - 1, cell + 1, cell + 1);
  }
}

function paintRamp() {
  const canvas = element("ramp"), context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = css(color(x / (canvas.width - 1)));
    context.fillRect(x, 0, 1, canvas.height);
  }
}

const strip = tokens.map((token, place) => {
  const span = add(element("text"), "span", "", token);
  span.title = `token ${place}`;
  span.addEventListener("mouseenter", () => { if (!state.pinned) point(place, null); });
  span.addEventListener("click", () => { point(place, null); state.pinned = true; });
  return span;
});

function describe() {
  const map = mapOf(state.layer, state.head), { query, key } = state;
  strip.forEach((span, place) => {
    const parts = place <= query ? color(at(map, query, place)) : null;
    span.style.background = parts ? css(parts) : "";
    span.style.color = parts ? readable(parts) : "";
    span.className = [place === query ? "query" : "", place === key ? "hover" : ""].join(" ").trim();
  });
  const cell = element("cell");
  cell.replaceChildren();
  const token = (place) => add(cell, "span", `token${place === query ? " query" : ""}`, shortened(tokens[place]));
  cell.append(`token ${query} `);
  token(query);
  if (key === null) {
    cell.append(" attends mostly to");
  } else {
    cell.append(` attends to token ${key} `);
    token(key);
    cell.append(" with weight ");
    add(cell, "b", "", at(map, query, key).toFixed(4)).id = "weight";
  }
  const top = element("top");
  top.replaceChildren();
  const order = Array.from({ length: query + 1 }, (_, place) => place).sort((a, b) => at(map, query, b) - at(map, query, a) || a - b);
  for (const place of order.slice(0, 5)) {
    add(add(top, "span"), "span", "token", shortened(tokens[place]));
    add(add(top, "div"), "div", "bar").style.width = `${100 * at(map, query, place)}%`;
    add(top, "span", "number", `${at(map, query, place).toFixed(4)}  token ${place}`);
  }
}

function point(query, key) {
  if (query === state.query && key === state.key) return;
  state.query = query;
  state.key = key;
  paintMap();
  describe();
}

function show() {
  for (const { button, layer, head } of buttons.values()) {
    const chosen = layer === state.layer && head === state.head;
    button.classList.toggle("chosen", chosen);
    button.tabIndex = chosen ? 0 : -1;
  }
  const { layer, head } = state, found = figuresOf(layer, head);
  element("head-name").textContent = nameOf(layer, head);
  element("entropy").textContent = found ? found[0].toFixed(2) : "–";
  element("sink").textContent = found ? percent(found[1]) : "–";
  element("previous").textContent = found ? percent(found[2]) : "–";
  paintMap();
  describe();
}

function choose(change, scroll) {
  Object.assign(state, change);
  const head = state.head === MEAN ? "mean" : state.head;
  history.replaceState(null, "", `#layer=${state.layer}&head=${head}`);
  show();
  if (scroll && innerWidth < 1180) element("detail").scrollIntoView({ behavior: "smooth" });
}

// #layer=1&head=2&query=5&key=3, or head=mean; values out of range are ignored.
function readHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  const number = (name, most, otherwise) => {
    const text = given.get(name);
    return text !== null && /^\d+$/.test(text) && Number(text) <= most ? Number(text) : otherwise;
  };
  state.layer = number("layer", layers - 1, state.layer);
  state.head = given.get("head") === "mean" ? MEAN : number("head", heads - 1, state.head);
  state.query = number("query", count - 1, state.query);
  state.key = number("key", state.query, null);
  state.pinned = given.has("query");
  show();
}

function cellAt(event) {
  const box = element("map").getBoundingClientRect();
  const key = Math.floor((event.clientX - box.left - frame.margin) / frame.cell);
  const query = Math.floor((event.clientY - box.top - frame.margin) / frame.cell);
  return query >= 0 && query < count && key < count ? { query, key: key >= 0 && key <= query ? key : null } : null;
}

element("map").addEventListener("mousemove", (event) => {
  const cell = cellAt(event);
  if (cell && !state.pinned) point(cell.query, cell.key);
});
element("map").addEventListener("click", (event) => {
  const cell = cellAt(event);
  state.pinned = Boolean(cell) && !(state.pinned && cell.query === state.query && cell.key === state.key);
  if (cell) point(cell.query, cell.key);
});
addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const move = moves[event.key];
  if (!move || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  event.preventDefault();
  const layer = Math.min(Math.max(state.layer + move[0], 0), layers - 1);
  const head = Math.min(Math.max(state.head + move[1], MEAN), heads - 1);
  choose({ layer, head }, false);
  buttons.get(`${layer} ${head}`).button.scrollIntoView({ block: "nearest", inline: "nearest" });
});
function repaint() {
  mixPalette();
  paintOverview();
  paintRamp();
  show();
}
element("scale").addEventListener("change", repaint);
dark.addEventListener("change", repaint);
addEventListener("hashchange", readHash);
addEventListener("resize", () => paintMap());

const more = data.leftOut ? ` · ${data.leftOut} more tokens are left out` : "";
element("about").textContent = `${data.origin} · ${layers} layers × ${heads} heads · ${count} tokens${more}`;
buildOverview();
repaint();
readHash();
