// Sorts, searches and filters the tiles that stand in the page.
"use strict";

const MEASURES = ["selectivity", "active", "skew"];
// What tiles show of their channels; the first as the page comes.
const SHOWN = ["exemplars", "visualization", "both"];
const isShown = (name) => SHOWN.includes(name);
const form = document.getElementById("controls");
const list = document.getElementById("tiles");
const classes = [...(document.getElementById("classes")?.options ?? [])].map((option) => ({
  label: option.dataset.label,
  text: option.value,
  searched: `${option.value}\n${option.label}`.toLowerCase(),
}));
const nameOfClass = new Map(classes.map((one) => [one.label, one.text]));
const tiles = [...list.children].map((element) => ({
  element,
  channel: Number(element.dataset.channel),
  topLabel: element.dataset.top,
  class: nameOfClass.get(element.dataset.top) ?? "",
  labels: element.dataset.labels.split(" "),
  visualized: element.querySelector("img.made") !== null,
  // A dash is no number, and comes last in any order.
  ...Object.fromEntries(MEASURES.map((name) => [name, Number.parseFloat(element.dataset[name])])),
}));

/** The form's fields as a state; what is as it comes is left out. */
function stateOfForm() {
  const state = {};
  for (const field of form.elements) {
    if (!field.name || field.localName === "output") continue;
    state[field.name] = field.type === "checkbox" ? (field.checked ? "1" : "") : field.value.trim();
  }
  if (state.sort === "channel") state.sort = "";
  // Who has chosen once sends links that say so, whatever is usual elsewhere.
  if (state.show === SHOWN[0] && !recall("tiles")) state.show = "";
  return state;
}

function fillForm(state) {
  for (const field of form.elements) {
    if (!field.name || field.localName === "output") continue;
    if (field.type === "checkbox") field.checked = state[field.name] === "1";
    else field.value = state[field.name] ?? (field.name === "sort" ? "channel" : "");
  }
  if (!form.elements.sort.value) form.elements.sort.value = "channel";
  if (form.elements.show) form.elements.show.value = [state.show, recall("tiles")].find(isShown) ?? SHOWN[0];
  const filters = MEASURES.concat("channel", "visualized");
  if (filters.some((name) => state[name] || state[`${name}-from`] || state[`${name}-to`])) {
    form.querySelector(".filters").open = true;
  }
}

/** "0-9,476" as a test of channels; a text that is none lets all through. */
function channelTest(text) {
  const ranges = text.split(",").map((piece) => /^\s*(\d+)\s*(?:-\s*(\d+)\s*)?$/.exec(piece));
  if (ranges.some((range) => !range)) return () => true;
  return (channel) => ranges.some(([, from, to]) => Number(from) <= channel && channel <= Number(to ?? from));
}

function filterOf(state) {
  const tests = [];
  if (state.channel) {
    const within = channelTest(state.channel);
    tests.push((tile) => within(tile.channel));
  }
  for (const name of MEASURES) {
    const from = state[`${name}-from`];
    const to = state[`${name}-to`];
    if (from) tests.push((tile) => tile[name] >= Number(from));
    if (to) tests.push((tile) => tile[name] <= Number(to));
  }
  if (state.visualized) tests.push((tile) => tile.visualized);
  if (state.class) {
    const wanted = state.class.toLowerCase();
    const labels = new Set(classes.filter((one) => one.searched.includes(wanted)).map((one) => one.label));
    const among = state.top ? () => false : (tile) => tile.labels.some((label) => labels.has(label));
    tests.push((tile) => labels.has(tile.topLabel) || among(tile));
  }
  return (tile) => tests.every((test) => test(tile));
}

/** Channels and classes from the lowest, measures from the highest. */
function orderOf(state) {
  const by = state.sort || "channel";
  const sign = (MEASURES.includes(by) ? -1 : 1) * (state.reverse ? -1 : 1);
  return (a, b) => {
    const [x, y] = [a[by], b[by]];
    const missing = (value) => value === "" || Number.isNaN(value);
    if (missing(x) || missing(y)) return missing(x) - missing(y) || a.channel - b.channel;
    const order = typeof x === "string" ? x.localeCompare(y) : x - y;
    return sign * order || a.channel - b.channel;
  };
}

function show(state) {
  if (form.elements.show) list.dataset.show = state.show || SHOWN[0];
  const passes = filterOf(state);
  let shown = 0;
  for (const tile of tiles) {
    const passing = passes(tile);
    tile.element.hidden = !passing;
    shown += passing;
  }
  const sort = state.sort || "channel";
  const reverse = state.reverse ?? "";
  // Moving thousands of tiles takes a moment; a search that is being typed leaves them where they are.
  if (list.dataset.sort !== sort || list.dataset.reverse !== reverse) {
    list.replaceChildren(...tiles.toSorted(orderOf(state)).map((tile) => tile.element));
    Object.assign(list.dataset, { sort, reverse });
  }
  form.elements.count.value = shown < tiles.length ? `${shown} of ${tiles.length} channels` : `${shown} channels`;
}

function change() {
  const state = stateOfForm();
  writeState(state);
  show(state);
}

form.addEventListener("input", change);
form.addEventListener("submit", (event) => event.preventDefault());
form.elements.show?.addEventListener("input", () => remember("tiles", form.elements.show.value));
// The fields are reset after the event. All channels are shown then, as they were.
form.addEventListener("reset", () =>
  setTimeout(() => {
    if (form.elements.show) form.elements.show.value = list.dataset.show;
    change();
  }),
);
addEventListener("hashchange", () => {
  fillForm(readState());
  change();
});

// Nothing to do for a page as it comes: its tiles stand in order already.
fillForm(readState());
if (Object.values(stateOfForm()).some(Boolean)) change();
