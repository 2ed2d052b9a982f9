// The page of a map: puts its view, its list and its controls together. What it shows stands in the address.
"use strict";

const NONE = 65535;
// Legends name so many categories; the rest is found by searching.
const IN_LEGEND = 40;
const IN_TABLE = 12;
// A point that is looked for is shown magnified so many times at least.
const FOUND = 6;
const CORNERS = 60;
const PALETTE = ["#4e79a7", "#f28e2b", "#e15759", "#3fa29a", "#59a14f", "#d4a72c", "#b07aa1", "#e77c8e", "#9c755f"];
const GREY = [150, 150, 158];

const element = (id) => document.getElementById(id);
const form = element("controls");
const field = element("field");
const many = (number) => number.toLocaleString("en");
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
const digits = (number) => Number(number.toPrecision(4)).toString();

let index;
let view;
let list;
let state;
let pointed = -1; // under the pointer
let focused = -1; // kept
let latest = 0; // of several filters that are being worked on, the last one counts
let passing = null; // of each point 1 or 0; null for all
let codesOf; // {number of a colouring: promise of its codes}
const known = []; // the codes that have come, by number

const pointOfRow = (row) => (row * index.inverse) % index.points;
const rowOfPoint = (point) => (point * index.stride) % index.points;

// Colours ------------------------------------------------------------------------------------------------------------

/** Hue, saturation and lightness (degrees, 0 to 1) as red, green, blue. */
function ofHue(hue, saturation, lightness) {
  const strength = saturation * Math.min(lightness, 1 - lightness);
  return [0, 8, 4].map((shift) => {
    const at = (shift + hue / 30) % 12;
    return 255 * (lightness - strength * Math.max(-1, Math.min(at - 3, 9 - at, 1)));
  });
}

function ofCategory(code, count) {
  if (code >= count) return GREY;
  if (count <= PALETTE.length) return [1, 3, 5].map((at) => parseInt(PALETTE[code].slice(at, at + 2), 16));
  // Hues a golden angle apart, so that neighbours in the list differ.
  return ofHue((code * 137.508) % 360, [0.62, 0.75, 0.5][code % 3], [0.5, 0.4, 0.63][Math.floor(code / 2) % 3]);
}

/** Viridis of 0..1, by the polynomial that Matt Zucker fitted to it (public domain). */
function viridis(t) {
  const terms = [
    [0.2777, 0.0054, 0.3341], [0.105, 1.4046, 1.3846], [-0.3309, 0.2148, 0.0951], [-4.6342, -5.7991, -19.3324],
    [6.2283, 14.1799, 56.6906], [4.7764, -13.7451, -65.353], [-5.4355, 4.6459, 26.3124],
  ];
  return [0, 1, 2].map((channel) => {
    const value = terms.reduceRight((sum, term) => sum * t + term[channel], 0);
    return 255 * Math.max(0, Math.min(1, value));
  });
}

/** Neither end of the scale is as dark, or as light, as the page. */
const ofShare = (share, isDark) => viridis(isDark ? 0.15 + 0.85 * share : 0.95 * share);

function colourOf(colouring) {
  if (!colouring) return () => GREY;
  if (colouring.kind === "categories") return (code) => ofCategory(code, colouring.names.length);
  const [low, high] = colouring.ends;
  return (code, isDark) => {
    if (code === NONE) return GREY;
    return ofShare(Math.max(0, Math.min(1, (valueOf(colouring, code) - low) / (high - low || 1))), isDark);
  };
}

const valueOf = ({ low, high }, code) => low + (code / (NONE - 1)) * (high - low);
const css = (colour) => `rgb(${colour.map(Math.round).join(" ")})`;

function labelOf(colouring, code) {
  if (colouring.kind === "categories") return code === NONE ? colouring.none : colouring.names[code];
  return code === NONE ? "not known" : digits(valueOf(colouring, code));
}

function showLegend() {
  const legend = element("legend");
  const colouring = index.colourings[state.colour];
  if (!colouring) return legend.replaceChildren();
  if (colouring.kind === "values") return legend.replaceChildren(...ramp(colouring));
  const codes = colouring.names.map((_, code) => code).filter((code) => colouring.counts[code]);
  codes.sort((a, b) => colouring.counts[b] - colouring.counts[a] || a - b);
  const shown = codes.slice(0, IN_LEGEND);
  if (state.only >= 0 && state.only !== NONE && !shown.includes(state.only)) shown.unshift(state.only);
  if (colouring.ofNone) shown.push(NONE);
  const left = codes.length - shown.filter((code) => code !== NONE).length;
  legend.replaceChildren(...shown.map((code) => keyOf(colouring, code)));
  if (left > 0) legend.append(make("span", { className: "faint", textContent: `and ${many(left)} more` }));
}

function keyOf(colouring, code) {
  const swatch = make("span", { className: "swatch" });
  swatch.style.background = css(ofCategory(code, colouring.names.length));
  const count = code === NONE ? colouring.ofNone : colouring.counts[code];
  const number = make("span", { className: "count", textContent: many(count) });
  const button = make("button", { type: "button", dataset: { code } }, swatch, isolated(labelOf(colouring, code)), number);
  button.setAttribute("aria-pressed", String(state.only === code));
  return button;
}

function ramp(colouring) {
  const [low, high] = colouring.ends;
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const bar = make("span", { className: "bar" });
  const stops = Array.from({ length: 17 }, (_, at) => css(ofShare(at / 16, isDark)));
  bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
  const ends = [
    make("span", { textContent: `${digits(low)}${colouring.low < low ? " and less" : ""}` }),
    make("span", { textContent: `${digits(high)}${colouring.high > high ? ` and more, up to ${digits(colouring.high)}` : ""}` }),
  ];
  const parts = [make("div", { className: "ramp" }, bar, ...ends)];
  if (colouring.unknown) parts.push(make("span", { className: "faint", textContent: `grey: not known, ${many(colouring.unknown)}` }));
  if (colouring.page) parts.push(make("a", { href: colouring.page, textContent: "its page" }));
  return parts;
}

async function showColour() {
  const number = state.colour;
  for (const button of element("colours")?.children ?? []) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.colour) === number));
  }
  if (form.elements.channel) {
    form.elements.channel.value = number;
    if (form.elements.channel.selectedIndex < 0) form.elements.channel.value = "";
  }
  showLegend();
  const codes = await codesOf(number);
  if (state.colour !== number) return;
  view.setColours(colourOf(index.colourings[number]));
  if (codes) view.setCodes(codes);
  showFocused();
}

// What is said of a point ----------------------------------------------------------------------------------------------

const ofClasses = () => index.colourings.findIndex(({ name, kind }) => name === "class" && kind === "categories");

function className(point) {
  const number = ofClasses();
  return known[number] ? labelOf(index.colourings[number], known[number][point]) : "";
}

/** The class, and what the point is coloured by. */
function linesOf(point, numbers) {
  const lines = [isolated(className(point), "name")];
  for (const number of numbers) {
    if (number === ofClasses() || !known[number]) continue;
    const colouring = index.colourings[number];
    const label = isolated(labelOf(colouring, known[number][point]), "inline value");
    lines.push(make("div", {}, isolated(colouring.name, "inline"), " ", label));
  }
  return lines;
}

function showPointed(pixel) {
  const tip = element("tip");
  field.classList.toggle("on-point", pointed >= 0);
  tip.hidden = pointed < 0;
  placeRings();
  if (pointed < 0) return;
  const row = rowOfPoint(pointed);
  if (Number(tip.dataset.image) !== row) describe(tip, row, index, linesOf(pointed, [state.colour]));
  const { offsetWidth, offsetHeight } = tip;
  const [x, y] = pixel;
  const left = x + 16 + offsetWidth < view.width ? x + 16 : Math.max(0, x - 16 - offsetWidth);
  tip.style.transform = `translate(${left}px, ${Math.max(0, Math.min(view.height - offsetHeight - 2, y + 12))}px)`;
}

function placeRings() {
  for (const [name, point] of [["focused", focused], ["under", pointed]]) {
    const ring = document.querySelector(`.ring.${name}`);
    ring.toggleAttribute("hidden", point < 0 || point >= view.ready);
    if (point < 0) continue;
    const [x, y] = view.pixelOf(point);
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
  }
}

function showFocused() {
  placeRings();
  if (focused < 0) return;
  const numbers = index.colourings.map((_, number) => number).filter((number) => number === state.colour || !index.colourings[number].group);
  const channels = make("div", { className: "channels" });
  describe(element("card"), rowOfPoint(focused), index, linesOf(focused, numbers), [make("div", { className: "place" }), channels]);
  if (index.channels) showChannelsOf(focused, channels);
}

async function showChannelsOf(point, where) {
  const { count, names, pages } = index.channels;
  const strongest = await strongestChannels();
  where.replaceChildren("strongest: ", ...[...strongest.subarray(point * count, (point + 1) * count)].map((channel) => channelName(channel, names, pages)));
}

function channelName(channel, names, pages) {
  const name = isolated(names[channel]);
  return pages[channel] ? make("a", { href: pages[channel] }, name) : make("span", {}, name);
}

/** Keep a point: it is ringed, and said at length. */
function focusOn(point, isToBeFound = false) {
  focused = point;
  state.point = point < 0 ? "" : rowOfPoint(point);
  if (isToBeFound && view.ready > point) {
    const [right, up] = [view.places[2 * point] / NONE, view.places[2 * point + 1] / NONE];
    view.moveTo([right, up, Math.max(FOUND, view.transform.k)]);
  }
  showFocused();
  keepState();
}

let channelsAwaited;
const strongestChannels = () => (channelsAwaited ??= loadNumbers("top", index, index.channels.count));

// Filters: a class, a category of the legend, a lasso ------------------------------------------------------------------

/** The codes of the classes that a text finds: those of that very name, or else those with it in name or synset id. */
function classesFound(text) {
  const { names, also } = index.colourings[ofClasses()];
  const wanted = text.toLowerCase();
  const found = (test) => names.map((_, code) => code).filter(test);
  const exactly = found((code) => names[code].toLowerCase() === wanted || also[code]?.toLowerCase() === wanted);
  if (exactly.length) return exactly;
  return found((code) => `${names[code]}\n${also[code] ?? ""}`.toLowerCase().includes(wanted));
}

async function applyFilters() {
  const mine = ++latest;
  const tests = [];
  if (state.class && ofClasses() >= 0) {
    const isFound = new Uint8Array(NONE + 1);
    for (const code of classesFound(state.class)) isFound[code] = 1;
    const codes = await codesOf(ofClasses());
    tests.push((point) => isFound[codes[point]]);
  }
  if (state.only >= 0) {
    const codes = await codesOf(state.colour);
    const { only } = state;
    tests.push((point) => codes[point] === only);
  }
  if (state.lasso) {
    const inside = await view.within(state.lasso);
    tests.push((point) => inside[point]);
  }
  if (mine !== latest) return;
  const passes = tests.length ? new Uint8Array(index.points) : null;
  if (passes) {
    await inBlocks(index.points, (from, to) => {
      for (let point = from; point < to; point++) passes[point] = tests.every((test) => test(point)) ? 1 : 0;
    });
  }
  if (mine !== latest) return;
  passing = passes;
  for (let point = 0; point < index.points; point++) view.flags[point] = passes ? 1 - passes[point] : 0;
  view.setFlags();
  const rows = await passingRows();
  if (mine !== latest) return;
  form.elements.count.value = passes ? `${many(rows.length)} of ${many(index.points)} images` : `${many(index.points)} images`;
  list.show(rows);
  if (focused >= 0) list.reveal(rowOfPoint(focused));
  await summarise(rows.length, () => mine === latest);
}

/** The rows whose points pass, ascending. */
async function passingRows() {
  const rows = new Uint32Array(index.points);
  let count = 0;
  let point = 0;
  await inBlocks(index.points, (from, to) => {
    for (let row = from; row < to; row++) {
      if (!passing || passing[point]) rows[count++] = row;
      point += index.inverse;
      if (point >= index.points) point -= index.points;
    }
  });
  return rows.slice(0, count);
}

/** Count classes, and the channels that are often among the strongest, of what passes. */
async function summarise(count, isStillWanted) {
  const where = element("selection");
  where.hidden = !passing || !count;
  if (where.hidden) return;
  const tables = [];
  const number = ofClasses();
  if (number >= 0) tables.push(await classesTable(number, count));
  if (index.channels) tables.push(await channelsTable(count));
  if (isStillWanted()) where.replaceChildren(...tables);
}

async function classesTable(number, count) {
  const colouring = index.colourings[number];
  const codes = await codesOf(number);
  const counts = new Uint32Array(NONE + 1);
  const chosen = passing;
  await inBlocks(index.points, (from, to) => {
    for (let point = from; point < to; point++) if (chosen[point]) counts[codes[point]]++;
  });
  const found = [...colouring.names.keys(), NONE].filter((code) => counts[code]);
  found.sort((a, b) => counts[b] - counts[a] || a - b);
  const rows = found.slice(0, IN_TABLE).map((code) => {
    const all = code === NONE ? colouring.ofNone : colouring.counts[code];
    return [isolated(labelOf(colouring, code)), counts[code] / counts[found[0]], many(counts[code]), percent(counts[code] / all)];
  });
  const title = `Its ${found.length === 1 ? "class" : `${many(found.length)} classes`}`;
  return countsTable(found.length > IN_TABLE ? `${title}, the most frequent` : title, ["class", "images", "of the class"], rows);
}

async function channelsTable(count) {
  const { count: each, names, pages, among } = index.channels;
  const strongest = await strongestChannels();
  const counts = new Uint32Array(names.length);
  const chosen = passing;
  await inBlocks(index.points, (from, to) => {
    for (let point = from; point < to; point++) {
      if (chosen[point]) for (let at = point * each; at < (point + 1) * each; at++) counts[strongest[at]]++;
    }
  });
  const here = (channel) => counts[channel] / count;
  const everywhere = (channel) => among[channel] / index.points;
  const found = [...names.keys()].filter((channel) => here(channel) > everywhere(channel));
  found.sort((a, b) => here(b) - everywhere(b) - here(a) + everywhere(a) || a - b);
  const shown = found.slice(0, IN_TABLE);
  const most = Math.max(...shown.map(here));
  const rows = shown.map((channel) => [
    channelName(channel, names, pages),
    here(channel) / most,
    percent(here(channel)),
    percent(everywhere(channel)),
  ]);
  return countsTable("What its channels share", ["among the strongest of", "these", "all"], rows);
}

// State ------------------------------------------------------------------------------------------------------------------

/** The address's state; what it does not know is as the page comes. */
function stateOfAddress() {
  const said = readState();
  const corners = (said.lasso ?? "").split("_").map((corner) => corner.split(".").map((place) => Number(place) / NONE));
  const at = (said.at ?? "").split("_").map(Number);
  const colour = index.colourings.findIndex(({ name }) => said.colour === name);
  const only = /^\d+$/.test(said.only ?? "") ? Number(said.only) : -1;
  const row = /^\d+$/.test(said.point ?? "") ? Number(said.point) : -1;
  return {
    colour: Math.max(0, colour),
    class: ofClasses() >= 0 ? (said.class ?? "") : "",
    only: index.colourings[Math.max(0, colour)]?.kind === "categories" ? only : -1,
    lasso: corners.length > 2 && corners.every((pair) => pair.length === 2 && pair.every(Number.isFinite)) ? corners : null,
    at: at.length === 3 && at.every(Number.isFinite) && at[2] > 0 ? at : null,
    point: row >= 0 && row < index.points ? row : "",
  };
}

let keepingState;
/** Put the state into the address, once nothing moves: browsers refuse to do that often. */
function keepState() {
  clearTimeout(keepingState);
  keepingState = setTimeout(() => {
    const round = (number) => String(Number(number.toFixed(4)));
    const { x, y, k } = view.transform;
    writeState({
      colour: state.colour > 0 ? index.colourings[state.colour].name : "",
      class: state.class,
      only: state.only >= 0 ? String(state.only) : "",
      lasso: (state.lasso ?? []).map((corner) => corner.map((place) => Math.round(place * NONE)).join(".")).join("_"),
      at: x || y || k !== 1 ? view.middle().map(round).join("_") : "",
      point: String(state.point),
    });
  }, 150);
}

function change(changes) {
  const isRecoloured = "colour" in changes && changes.colour !== state.colour;
  // A category is one of the colouring that it was chosen in.
  if (isRecoloured && !("only" in changes)) changes.only = -1;
  Object.assign(state, changes);
  keepState();
  if (isRecoloured) showColour();
  else showLegend();
  if (["class", "only", "lasso"].some((name) => name in changes)) {
    drawLasso(state.lasso);
    applyFilters();
  }
}

async function showState() {
  state = stateOfAddress();
  if (form.elements.class) form.elements.class.value = state.class;
  if (state.at) view.moveTo(state.at);
  else view.showWhole();
  focused = state.point === "" ? -1 : pointOfRow(state.point);
  drawLasso(state.lasso);
  await showColour();
  await applyFilters();
  showFocused();
}

// Pointer, keys, tools -----------------------------------------------------------------------------------------------------

const pixelOf = (event) => {
  const box = field.getBoundingClientRect();
  return [event.clientX - box.left - field.clientLeft, event.clientY - box.top - field.clientTop];
};

let drawing = null;

function drawLasso(corners) {
  const pixels = (corners ?? []).map((corner) => view.pixelAt(...corner).map((number) => number.toFixed(1)).join(" "));
  document.querySelector("path.lasso").setAttribute("d", pixels.length > 1 ? `M${pixels.join("L")}Z` : "");
}

function setLasso(isOn) {
  view.isLassoing = isOn;
  field.classList.toggle("lassoing", isOn);
  document.querySelector("[data-tool=lasso]").setAttribute("aria-pressed", String(isOn));
}

field.addEventListener("pointerdown", (event) => {
  delete field.dataset.lassoed;
  if (event.button || !(view?.isLassoing || event.shiftKey)) return;
  drawing = [view.placeAt(pixelOf(event))];
  field.setPointerCapture(event.pointerId);
});

let isAsked = false;
field.addEventListener("pointermove", (event) => {
  if (!view) return;
  const pixel = pixelOf(event);
  if (drawing) {
    drawing.push(view.placeAt(pixel));
    return drawLasso(drawing);
  }
  if (event.pointerType === "touch" || isAsked) return;
  isAsked = true;
  requestAnimationFrame(() => {
    isAsked = false;
    // Held down, the pointer moves the map.
    pointed = event.buttons ? -1 : view.pointAt(pixel);
    showPointed(pixel);
  });
});

for (const kind of ["pointerup", "pointercancel"]) {
  field.addEventListener(kind, (event) => {
    if (!drawing) return;
    const every = Math.ceil(drawing.length / CORNERS);
    const corners = drawing.filter((_, at) => at % every === 0);
    drawing = null;
    if (kind === "pointercancel" || corners.length < 3) return drawLasso(state.lasso);
    field.dataset.lassoed = "1";
    setLasso(false);
    change({ lasso: corners });
  });
}

field.addEventListener("pointerleave", () => {
  pointed = -1;
  if (view) showPointed();
});

field.addEventListener("click", (event) => {
  // A lasso ends with a click that means nothing.
  if (field.dataset.lassoed) return delete field.dataset.lassoed;
  const point = view?.pointAt(pixelOf(event)) ?? -1;
  if (point < 0) return;
  focusOn(point);
  list.reveal(rowOfPoint(point));
});

const STEP = 60;
const KEYS = {
  ArrowLeft: () => view.moveBy(STEP, 0),
  ArrowRight: () => view.moveBy(-STEP, 0),
  ArrowUp: () => view.moveBy(0, STEP),
  ArrowDown: () => view.moveBy(0, -STEP),
  "+": () => view.magnify(1.5),
  "=": () => view.magnify(1.5),
  "-": () => view.magnify(1 / 1.5),
  0: () => view.showWhole(),
  Escape: () => (view.isLassoing ? setLasso(false) : change({ lasso: null })),
};

field.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS) || !view) return;
  event.preventDefault();
  KEYS[event.key]();
});

const TOOLS = {
  in: () => view.magnify(1.7),
  out: () => view.magnify(1 / 1.7),
  whole: () => view.showWhole(),
  lasso: () => setLasso(!view.isLassoing),
  view: () => {
    const { width, height } = view;
    change({ lasso: [[0, 0], [width, 0], [width, height], [0, height]].map((corner) => view.placeAt(corner)) });
  },
};

function listen() {
  for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => TOOLS[button.dataset.tool]());
  element("colours")?.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) change({ colour: Number(button.dataset.colour) });
  });
  element("legend").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const code = Number(button.dataset.code);
    change({ only: state.only === code ? -1 : code });
    element("legend").querySelector(`[data-code="${code}"]`)?.focus();
  });
  form.elements.channel?.addEventListener("input", () => {
    change({ colour: form.elements.channel.value === "" ? 0 : Number(form.elements.channel.value) });
  });
  form.elements.class?.addEventListener("input", () => change({ class: form.elements.class.value.trim() }));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    view.showWhole();
    setTimeout(() => change({ class: "", only: -1, lasso: null }));
  });
  addEventListener("hashchange", showState);
}

// Start -----------------------------------------------------------------------------------------------------------------------

function trouble(words) {
  const line = element("trouble");
  line.textContent = words;
  line.hidden = false;
  field.classList.toggle("without-drawing", !view?.gl);
}

async function start() {
  index = await loadData("index");
  if (index.thumbnails) index.thumbnails.known = new Set(index.thumbnails.sheets);
  const kept = new Map();
  codesOf = (number) => {
    if (!index.colourings[number]) return Promise.resolve(null);
    if (!kept.has(number)) {
      kept.set(number, loadNumbers(`c${number}`, index, 1).then((codes) => (known[number] = codes)));
    }
    return kept.get(number);
  };
  const moved = () => {
    placeRings();
    drawLasso(drawing ?? state?.lasso);
    if (pointed >= 0) {
      pointed = -1;
      showPointed();
    }
    if (state) keepState();
  };
  view = new MapView(field, index.points, moved, (words) => setTimeout(() => trouble(words)));
  list = new ImageList({
    index,
    nameOf: (row) => className(pointOfRow(row)),
    onChoose: (row) => focusOn(pointOfRow(row)),
    onFind: (row) => focusOn(pointOfRow(row), true),
  });
  listen();
  state = stateOfAddress();
  view.setColours(colourOf(index.colourings[state.colour]));
  const placed = loadNumbers("xy", index, 2, (first, numbers) => view.addPlaces(first, numbers));
  await Promise.all([placed, codesOf(state.colour), ofClasses() >= 0 && codesOf(ofClasses())]);
  await showState();
  document.body.dataset.ready = "1";
  await view.makeCells();
  document.body.dataset.pointing = "1";
  // What the card says of a point.
  for (const [number, { group }] of index.colourings.entries()) if (!group) await codesOf(number);
  showFocused();
}

start().catch((error) => trouble(error.message));
