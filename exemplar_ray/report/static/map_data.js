// Brings in what lies beside the page: arrays and texts in scripts, since browsers fetch nothing else from disk.
"use strict";

const MOST_SHEETS_KEPT = 24;
const MOST_ROWS_KEPT = 256;
// A block of work ends when so many milliseconds are over, so that the page stays quick.
const BLOCK = 12;

const awaited = new Map();

/** What each script in data/ calls. */
function mapData(name, value) {
  awaited.get(name)?.(value);
}

/** The value that data/NAME.js hands over. */
function loadData(name) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    const finish = () => {
      awaited.delete(name);
      script.remove();
    };
    awaited.set(name, (value) => {
      finish();
      resolve(value);
    });
    script.onerror = () => {
      finish();
      reject(new Error(`data/${name}.js is missing or cannot be read; write the map's page anew`));
    };
    script.src = `data/${name}.js`;
    document.head.append(script);
  });
}

/** Base64 as numbers of 16 bits. */
function decodeNumbers(text) {
  const bytes = Uint8Array.fromBase64
    ? Uint8Array.fromBase64(text)
    : Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Uint16Array(bytes.buffer);
}

/** Load an array of so many numbers a point; `take(first point, numbers)` is called for each part as it comes. */
async function loadNumbers(name, index, width, take = () => {}) {
  const numbers = new Uint16Array(index.points * width);
  for (let part = 0; part * index.inPart < index.points; part++) {
    const decoded = decodeNumbers(await loadData(`${name}-${part}`));
    numbers.set(decoded, part * index.inPart * width);
    take(part * index.inPart, decoded);
    await pause();
  }
  return numbers;
}

/** Let the browser do what waits. */
function pause() {
  return new Promise((resolve) => setTimeout(resolve));
}

/** Call `work(from, to)` for all of 0..count, and pause in between. `false` stops it. */
async function inBlocks(count, work, size = 16384) {
  let started = performance.now();
  for (let from = 0; from < count; from += size) {
    if (work(from, Math.min(count, from + size)) === false) return false;
    if (performance.now() - started > BLOCK) {
      await pause();
      started = performance.now();
    }
  }
  return true;
}

/** A cache of promises that forgets what was asked for longest ago. What failed is asked for again. */
function keeping(most, make) {
  const kept = new Map();
  return (key) => {
    const found = kept.get(key) ?? make(key);
    kept.delete(key);
    kept.set(key, found);
    found.catch(() => kept.delete(key));
    if (kept.size > most) kept.delete(kept.keys().next().value);
    return found;
  };
}

/** What the points of a sheet are of. */
const rowsOfSheet = keeping(MOST_ROWS_KEPT, (sheet) => loadData(`rows-${sheet}`));

/** The picture with a sheet's thumbnails, decoded. */
const pictureOfSheet = keeping(MOST_SHEETS_KEPT, async (sheet) => {
  const image = new Image();
  image.src = `thumbnails/${sheet}.jpg`;
  await image.decode();
  return image;
});

/** What a row is of: {shard, row, path, label, synset, class}. */
async function factsOfRow(row, index) {
  const rows = await rowsOfSheet(Math.floor(row / index.inSheet));
  const at = row % index.inSheet;
  return {
    shard: rows.texts[rows.shard[at]],
    row: rows.row[at],
    path: rows.path[at],
    label: rows.label[at],
    synset: rows.texts[rows.synset[at]],
    class: rows.texts[rows.class[at]],
  };
}

/** Whether there is a thumbnail of a row's sheet. */
function hasThumbnail(row, index) {
  return index.thumbnails !== null && index.thumbnails.known.has(Math.floor(row / index.inSheet));
}

/** Put a row's thumbnail into an element of any size; resolves when it is there. */
async function showThumbnail(element, row, index) {
  if (!hasThumbnail(row, index)) return;
  element.dataset.row = row;
  const sheet = Math.floor(row / index.inSheet);
  await pictureOfSheet(sheet);
  if (element.dataset.row !== String(row)) return;
  const beside = index.thumbnails.beside;
  const at = row % index.inSheet;
  const share = (place) => `${(100 * place) / (beside - 1)}%`;
  element.style.backgroundImage = `url("thumbnails/${sheet}.jpg")`;
  element.style.backgroundSize = `${100 * beside}% ${100 * beside}%`;
  element.style.backgroundPosition = `${share(at % beside)} ${share(Math.floor(at / beside))}`;
  element.dataset.shown = row;
}
