// The images beside the map: a list that needs no pointer, and what is known of one image.
"use strict";

const ON_PAGE = 60;

function make(tag, properties = {}, ...children) {
  const { dataset = {}, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.dataset, dataset);
  element.append(...children);
  return element;
}

/** Texts of the data go into elements of their own: how they are written from right to left ends there. */
function isolated(text, className = "") {
  return make("bdi", { className, textContent: text });
}

/** A list of images, a page at a time. One of them is chosen; Enter, or a click, tells `onFind(row)`. */
class ImageList {
  constructor({ index, nameOf, onChoose, onFind }) {
    Object.assign(this, { index, nameOf, onChoose, onFind, rows: new Uint32Array(0), at: 0 });
    this.element = document.getElementById("list");
    this.range = document.getElementById("range");
    this.element.classList.toggle("without-pictures", index.thumbnails === null);
    this.element.addEventListener("keydown", (event) => this.onKey(event));
    this.element.addEventListener("click", (event) => {
      const item = event.target.closest("li");
      if (!item) return;
      this.choose(this.start + [...this.element.children].indexOf(item));
      this.onFind(this.rows[this.at]);
    });
    // Who comes by keyboard sees where they are.
    this.element.addEventListener("focus", () => this.rows.length && this.choose(this.at));
    for (const button of document.querySelectorAll(".pager button")) {
      button.addEventListener("click", () => this.turn(Number(button.dataset.page)));
    }
  }

  get start() {
    return this.at - (this.at % ON_PAGE);
  }

  /** Show other rows, from the first on. */
  show(rows) {
    this.rows = rows;
    this.at = 0;
    this.fill();
  }

  turn(by) {
    const there = this.start + by * ON_PAGE;
    if (there < 0 || there >= this.rows.length) return;
    this.at = there;
    this.fill();
  }

  fill() {
    const { start, rows } = this;
    const shown = [...rows.subarray(start, start + ON_PAGE)];
    this.element.replaceChildren(...shown.map((row, place) => this.item(row, place)));
    this.element.scrollTop = 0;
    this.element.removeAttribute("aria-activedescendant");
    const many = (number) => number.toLocaleString("en");
    this.range.textContent = rows.length ? `${many(start + 1)}–${many(start + shown.length)} of ${many(rows.length)}` : "none";
    for (const button of document.querySelectorAll(".pager button")) {
      const there = start + Number(button.dataset.page) * ON_PAGE;
      button.disabled = there < 0 || there >= rows.length;
    }
  }

  item(row, place) {
    const item = make("li", { id: `image-${place}`, dataset: { image: row } });
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", "false");
    const name = this.nameOf(row);
    item.setAttribute("aria-label", `${name ? `${name}, ` : ""}image ${row}`);
    if (this.index.thumbnails === null) {
      item.append(isolated(name || `image ${row}`));
      factsOfRow(row, this.index).then(({ path }) => path && item.append(" ", isolated(path, "faint")), () => {});
    } else {
      const picture = make("span", { className: "thumb" });
      item.title = name;
      item.append(picture);
      showThumbnail(picture, row, this.index).catch(() => {});
    }
    return item;
  }

  choose(at) {
    const before = this.start;
    this.at = Math.max(0, Math.min(this.rows.length - 1, at));
    if (this.start !== before) this.fill();
    this.mark(this.at - this.start);
    this.onChoose(this.rows[this.at]);
  }

  mark(place) {
    for (const item of this.element.children) item.setAttribute("aria-selected", "false");
    const item = this.element.children[place];
    if (!item) return;
    item.setAttribute("aria-selected", "true");
    this.element.setAttribute("aria-activedescendant", item.id);
    // Within the list only: the page stays where it is.
    const [top, bottom] = [item.offsetTop - this.element.offsetTop, item.offsetTop - this.element.offsetTop + item.offsetHeight];
    if (top < this.element.scrollTop) this.element.scrollTop = top;
    if (bottom > this.element.scrollTop + this.element.clientHeight) this.element.scrollTop = bottom - this.element.clientHeight;
  }

  /** Mark a row that was chosen elsewhere, if it is on the page. */
  reveal(row) {
    const place = [...this.element.children].findIndex((item) => Number(item.dataset.image) === row);
    if (place >= 0) this.at = this.start + place;
    this.mark(place);
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.rows.length) return;
    const columns = getComputedStyle(this.element).gridTemplateColumns.split(" ").length;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, PageDown: ON_PAGE, PageUp: -ON_PAGE };
    if (event.key in steps) this.choose(this.at + steps[event.key]);
    else if (event.key === "Home") this.choose(0);
    else if (event.key === "End") this.choose(this.rows.length - 1);
    else if (event.key === "Enter" || event.key === " ") this.onFind(this.rows[this.at]);
    else return;
    event.preventDefault();
  }
}

/** What is said of an image, with its thumbnail: {lines} at once, path and place in the data when they have come. */
function describe(element, row, index, lines, more = []) {
  const picture = make("span", { className: "thumb" });
  const path = isolated("", "path");
  const said = make("div", { className: "said" }, ...lines, path, ...more);
  element.replaceChildren(...(hasThumbnail(row, index) ? [picture, said] : [said]));
  element.dataset.image = row;
  showThumbnail(picture, row, index).catch((error) => (picture.title = error.message));
  factsOfRow(row, index).then(
    (facts) => {
      path.textContent = facts.path || "no path";
      said.querySelector(".place")?.replaceChildren(
        isolated(`${facts.shard}, row ${facts.row}${facts.synset ? `; ${facts.synset}` : ""}`, "path"),
      );
      if (!said.querySelector(".name")?.textContent) said.prepend(isolated(facts.class, "name"));
    },
    (error) => (path.textContent = error.message),
  );
}

/** A table with bars, under a heading: rows of [what, its bar of 0..1, numbers as written]. */
function countsTable(caption, heads, rows) {
  const bar = (share) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    svg.setAttribute("viewBox", "0 0 100 10");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    rect.setAttribute("width", String(100 * share));
    rect.setAttribute("height", "10");
    svg.append(rect);
    return make("td", { className: "bar" }, svg);
  };
  const head = heads.map((text, at) => make("th", { scope: "col", className: at ? "number" : "", textContent: text }));
  const body = rows.map(([what, share, ...numbers]) =>
    make("tr", {}, make("th", { scope: "row" }, what), ...numbers.map((text) => make("td", { className: "number", textContent: text })), bar(share)),
  );
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...head, make("td"))), make("tbody", {}, ...body));
  return make("div", {}, make("h2", { textContent: caption }), table);
}
