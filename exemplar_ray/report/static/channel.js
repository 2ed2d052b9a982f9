// The views of each exemplar, made from its one picture; statistics; large pictures; keys.
"use strict";

const VIEWS = ["original", "crop", "map", "field"];
// How much darker a picture gets where its map is lowest.
const DARKEST = 0.75;

const numbers = (text) => text.split(" ").map(Number);
const views = document.getElementById("views");
const statistics = [...document.querySelectorAll("[data-statistic]")];
const figures = [...document.querySelectorAll("figure.exemplar[data-size]")];
const circuitKinds = [...document.querySelectorAll("#circuit-kinds [data-kind]")];
const dialog = document.getElementById("large");
let view = "crop";

/** Put `element`, a child of a picture's stage, over a box in the original's pixels. */
function lay(element, [x0, y0, x1, y1], [width, height]) {
  element.style.left = `${(100 * x0) / width}%`;
  element.style.top = `${(100 * y0) / height}%`;
  element.style.width = `${(100 * (x1 - x0)) / width}%`;
  element.style.height = `${(100 * (y1 - y0)) / height}%`;
}

/** A canvas with a pixel for each of the map's units, black and the more transparent the stronger it is. */
function drawMap(data) {
  const canvas = document.createElement("canvas");
  canvas.className = "overlay";
  [canvas.width, canvas.height] = numbers(data.mapSize);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const levels = atob(data.map);
  for (let i = 0; i < levels.length; i++) {
    pixels.data[4 * i + 3] = Math.round(DARKEST * (255 - levels.charCodeAt(i)));
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function outline(box, size, name) {
  const element = document.createElement("span");
  element.className = `overlay outline ${name}`;
  lay(element, box, size);
  return element;
}

/** Show an exemplar's picture (a square frame with a stage in it) in the view that is chosen. */
function frame(element, data) {
  const size = numbers(data.size);
  const [width, height] = size;
  const crop = numbers(data.crop);
  const field = data.field ? numbers(data.field) : null;
  const [x0, y0, x1, y1] = view === "original" ? [0, 0, width, height] : view === "field" && field ? field : crop;
  // The stage is the whole original. It is moved and scaled so that the box fills the frame, and cut off around it.
  const side = Math.max(x1 - x0, y1 - y0);
  const stage = element.querySelector(".stage");
  stage.style.width = `${(100 * width) / side}%`;
  stage.style.height = `${(100 * height) / side}%`;
  stage.style.left = `${50 - (50 * (x0 + x1)) / side}%`;
  stage.style.top = `${50 - (50 * (y0 + y1)) / side}%`;
  const cut = [y0 / height, 1 - x1 / width, 1 - y1 / height, x0 / width].map((share) => `${100 * share}%`);
  stage.style.clipPath = `inset(${cut.join(" ")})`;
  stage.querySelectorAll(".overlay").forEach((overlay) => overlay.remove());
  if (view === "original") {
    stage.append(outline(crop, size, "crop"), ...(field ? [outline(field, size, "field")] : []));
  }
  if (view === "map" && data.map) {
    const canvas = drawMap(data);
    lay(canvas, numbers(data.mapBox), size);
    stage.append(canvas);
  }
}

function showFigures() {
  for (const button of views?.children ?? []) {
    button.setAttribute("aria-pressed", button.dataset.view === view);
  }
  for (const figure of figures) frame(figure.querySelector(".frame"), figure.dataset);
  if (dialog.open) enlarge(figures[Number(dialog.dataset.place)]);
}

function showState() {
  const state = readState();
  const known = (name) => VIEWS.includes(name) && !views?.querySelector(`[data-view="${name}"]`)?.disabled;
  view = [state.view, recall("view"), "crop"].find(known) ?? "crop";
  const names = statistics.map((link) => link.dataset.statistic);
  const statistic = names.includes(state.statistic) ? state.statistic : names[0];
  for (const link of statistics) {
    const here = link.dataset.statistic === statistic;
    if (here) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
    document.getElementById(link.dataset.statistic).hidden = !here;
  }
  const kinds = circuitKinds.map((button) => button.dataset.kind);
  const kind = [state.circuit, recall("circuit"), kinds[0]].find((name) => kinds.includes(name));
  for (const button of circuitKinds) {
    button.setAttribute("aria-pressed", button.dataset.kind === kind);
    document.querySelector(`[data-of-kind="${button.dataset.kind}"]`).hidden = button.dataset.kind !== kind;
  }
  // Links to the neighbours keep what the address says.
  writeState(state);
  showFigures();
}

function change(changes) {
  writeState({ ...readState(), ...changes });
  showState();
}

views?.addEventListener("click", (event) => {
  const chosen = event.target.dataset.view;
  if (!chosen) return;
  remember("view", chosen);
  change({ view: chosen });
});
for (const link of statistics) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    change({ statistic: link.dataset.statistic });
  });
}
for (const button of circuitKinds) {
  button.addEventListener("click", () => {
    remember("circuit", button.dataset.kind);
    change({ circuit: button.dataset.kind });
  });
}
addEventListener("hashchange", showState);

// Large pictures -------------------------------------------------------------------------------------------------

function enlarge(figure) {
  const large = figure.cloneNode(true);
  const old = large.querySelector(".frame");
  const still = document.createElement("div");
  still.className = "frame";
  still.append(...old.childNodes);
  old.replaceWith(still);
  still.querySelector("img").loading = "eager";
  frame(still, figure.dataset);
  dialog.querySelector(".shown").replaceChildren(large);
  dialog.dataset.place = figures.indexOf(figure);
  if (!dialog.open) dialog.showModal();
}

/** Go to the next picture, or the one before, of those that are shown. */
function step(by) {
  const shown = figures.filter((figure) => !figure.closest("[hidden]"));
  const place = shown.indexOf(figures[Number(dialog.dataset.place)]);
  enlarge(shown[(place + by + shown.length) % shown.length]);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button.frame");
  if (button) enlarge(button.closest("figure"));
  else if (event.target.closest("button.step")) step(Number(event.target.closest("button.step").dataset.step));
  else if (event.target === dialog) dialog.close();
});

document.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.target.closest(".scroll")) return;
  if (dialog.open) step(by);
  else document.querySelector(`a[rel=${by < 0 ? "prev" : "next"}]`)?.click();
});

showState();
