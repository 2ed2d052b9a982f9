// Draws the points, moves them, and says which one is where.
//
// A drawing is made in slices, one after the other on top of what is there, and each waits until the graphics processor
// is done with the one before. How many points a slice has follows from how long they take: all of them on most
// machines, some ten thousand where the processor does it. While the map moves only the first slice is drawn.
"use strict";

const VERTEX = `#version 300 es
in vec2 place;
in float code;
in float flag;
uniform vec4 view;
uniform float size;
uniform vec3 dimmed;
uniform sampler2D colours;
out vec3 colour;
out float pixels;
void main() {
  int number = int(code);
  bool isDimmed = flag > 0.5;
  colour = isDimmed ? dimmed : texelFetch(colours, ivec2(number & 255, number >> 8), 0).rgb;
  pixels = isDimmed ? max(1.0, size * 0.7) : size;
  gl_PointSize = pixels;
  gl_Position = vec4(place * view.xy + view.zw, isDimmed ? 0.5 : 0.0, 1.0);
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
in vec3 colour;
in float pixels;
uniform vec3 paper;
uniform float rim;
out vec4 drawn;
void main() {
  float radius = length(gl_PointCoord * 2.0 - 1.0);
  if (pixels > 3.0 && radius > 1.0) discard;
  // A rim of paper tells points apart that lie on one another.
  float inner = 1.0 - 2.0 * rim / pixels;
  drawn = vec4(pixels > 5.0 * rim ? mix(colour, paper, smoothstep(inner - 1.5 / pixels, inner, radius)) : colour, 1.0);
}`;

const FIRST_SLICE = 65536;
const SMALLEST_SLICE = 16384;
// Milliseconds that a slice should take.
const QUICK = 40;
const SLOW = 100;
const MARGIN = 0.94;
const MOST_ZOOMED = 256;
const LARGEST_POINT = 12;
// Pixels around the pointer in which a point is found.
const REACH = 12;
const LIMIT = 65535;

class MapView {
  /** `onMove()` is called when the map has moved, `onTrouble(words)` when it cannot be drawn. */
  constructor(field, count, onMove, onTrouble) {
    this.field = field;
    this.canvas = field.querySelector("canvas");
    this.count = count;
    this.onMove = onMove;
    this.places = new Uint16Array(2 * count);
    this.flags = new Uint8Array(count);
    this.ready = 0; // of the points, so many have come
    this.drawn = 0;
    this.slice = FIRST_SLICE;
    this.transform = mapLibraries.zoomIdentity;
    this.gl = this.canvas.getContext("webgl2", { preserveDrawingBuffer: true, antialias: false, alpha: true });
    if (this.gl) this.prepare(onTrouble);
    else onTrouble("This browser has no WebGL 2, so the map is not drawn; the list of its images works without.");
    this.zoom = mapLibraries
      .zoom()
      .scaleExtent([0.5, MOST_ZOOMED])
      .filter((event) => !this.isLassoing && !event.shiftKey && !event.button)
      .on("zoom", (event) => {
        this.transform = event.transform;
        this.redraw();
        this.onMove();
      });
    mapLibraries.select(field).call(this.zoom).on("dblclick.zoom", null);
    this.resize();
    new ResizeObserver(() => this.resize()).observe(field);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", () => this.setColours(this.colourOf));
  }

  prepare(onTrouble) {
    const { gl } = this;
    const { twgl } = mapLibraries;
    this.program = twgl.createProgramInfo(gl, [VERTEX, FRAGMENT]);
    this.buffers = twgl.createBufferInfoFromArrays(gl, {
      place: { numComponents: 2, data: this.places, normalize: true },
      code: { numComponents: 1, data: new Uint16Array(this.count), normalize: false },
      flag: { numComponents: 1, data: this.flags, normalize: false },
    });
    this.colours = twgl.createTexture(gl, { width: 256, height: 256, minMag: gl.NEAREST, auto: false });
    gl.enable(gl.DEPTH_TEST);
    // What was drawn first stays in front, so that a drawing does not change while it is filled in.
    gl.depthFunc(gl.LESS);
    this.canvas.addEventListener("webglcontextlost", () => {
      this.gl = null;
      onTrouble("The browser has given up the drawing of the map; load the page anew.");
    });
  }

  /** The field's size, and how its pixels come from the square that the places are in. */
  resize() {
    const { clientWidth: width, clientHeight: height } = this.field;
    if (!width || !height) return;
    const middle = this.width ? this.middle() : null;
    Object.assign(this, { width, height, side: MARGIN * Math.min(width, height) });
    this.ratio = Math.min(devicePixelRatio, 2);
    this.canvas.width = Math.round(width * this.ratio);
    this.canvas.height = Math.round(height * this.ratio);
    this.zoom.extent([[0, 0], [width, height]]).translateExtent([[-width / 2, -height / 2], [1.5 * width, 1.5 * height]]);
    if (middle) this.moveTo(middle);
    this.redraw();
  }

  addPlaces(first, numbers) {
    this.places.set(numbers, 2 * first);
    this.ready = first + numbers.length / 2;
    if (this.gl) mapLibraries.twgl.setAttribInfoBufferFromArray(this.gl, this.buffers.attribs.place, numbers, 4 * first);
    this.schedule();
  }

  setCodes(codes) {
    if (this.gl) mapLibraries.twgl.setAttribInfoBufferFromArray(this.gl, this.buffers.attribs.code, codes, 0);
    this.redraw();
  }

  /** Flags are 0, or 1 for points that are dimmed and cannot be pointed at. */
  setFlags() {
    if (this.gl) mapLibraries.twgl.setAttribInfoBufferFromArray(this.gl, this.buffers.attribs.flag, this.flags, 0);
    this.redraw();
  }

  /** `colourOf(code, isDark)` gives [red, green, blue], 0 to 255. */
  setColours(colourOf) {
    this.colourOf = colourOf;
    if (!this.gl || !colourOf) return;
    const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
    const pixels = new Uint8Array(4 * (LIMIT + 1)).fill(255);
    for (let code = 0; code <= LIMIT; code++) pixels.set(colourOf(code, isDark), 4 * code);
    mapLibraries.twgl.setTextureFromArray(this.gl, this.colours, pixels, { width: 256, height: 256, auto: false });
    const style = getComputedStyle(document.documentElement);
    const named = (name) => [1, 3, 5].map((at) => parseInt(fullHex(style.getPropertyValue(name)).slice(at, at + 2), 16) / 255);
    this.paper = named("--paper");
    this.dimmed = named("--line");
    this.redraw();
  }

  redraw() {
    this.isStale = true;
    this.schedule();
  }

  schedule() {
    if (this.gl && !this.isScheduled) {
      this.isScheduled = true;
      requestAnimationFrame(() => this.frame());
    }
  }

  frame() {
    const { gl } = this;
    this.isScheduled = false;
    if (!gl || !this.paper) return;
    if (this.fence) {
      if (gl.getSyncParameter(this.fence, gl.SYNC_STATUS) !== gl.SIGNALED) return this.schedule();
      gl.deleteSync(this.fence);
      this.fence = null;
      const took = performance.now() - this.fenced;
      if (took > SLOW) this.slice = Math.max(SMALLEST_SLICE, this.slice / 2);
      else if (took < QUICK) this.slice = Math.min(2 * this.slice, Math.max(this.count, FIRST_SLICE));
    }
    if (this.isStale) {
      this.isStale = false;
      this.drawn = 0;
      gl.viewport(0, 0, this.canvas.width, this.canvas.height);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    }
    const next = Math.min(this.ready, this.drawn + this.slice);
    if (next === this.drawn) return;
    this.drawSlice(this.drawn, next);
    this.drawn = next;
    this.fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
    this.fenced = performance.now();
    gl.flush();
    this.schedule();
  }

  drawSlice(from, to) {
    const { gl, program, width, height, side } = this;
    const { x, y, k } = this.transform;
    const { twgl } = mapLibraries;
    gl.useProgram(program.program);
    twgl.setBuffersAndAttributes(gl, program, this.buffers);
    twgl.setUniforms(program, {
      view: [
        (2 * k * side) / width,
        (2 * k * side) / height,
        (2 * (k * (width - side) / 2 + x)) / width - 1,
        1 - (2 * (k * (height + side) / 2 + y)) / height,
      ],
      size: this.ratio * this.pointSize(),
      rim: this.ratio,
      paper: this.paper,
      dimmed: this.dimmed,
      colours: this.colours,
    });
    twgl.drawBufferInfo(gl, this.buffers, gl.POINTS, to - from, from);
  }

  /** Pixels of the page: fewer where there are many points, more where the map is magnified. */
  pointSize() {
    const whole = 9 * Math.min(1, 1500 / this.count) ** 0.27;
    return Math.min(LARGEST_POINT, whole * Math.max(1, this.transform.k) ** 0.35);
  }

  // Places are 0 to 1 in both directions, upwards; pixels are of the field, downwards.

  pixelOf(point) {
    return this.pixelAt(this.places[2 * point] / LIMIT, this.places[2 * point + 1] / LIMIT);
  }

  pixelAt(right, up) {
    const x = (this.width - this.side) / 2 + right * this.side;
    const y = (this.height + this.side) / 2 - up * this.side;
    return this.transform.apply([x, y]);
  }

  placeAt(pixel) {
    const [x, y] = this.transform.invert(pixel);
    return [(x - (this.width - this.side) / 2) / this.side, ((this.height + this.side) / 2 - y) / this.side];
  }

  /** What is in the middle: [right, up, magnification]. */
  middle() {
    return [...this.placeAt([this.width / 2, this.height / 2]), this.transform.k];
  }

  moveTo([right, up, k]) {
    const x = (this.width - this.side) / 2 + right * this.side;
    const y = (this.height + this.side) / 2 - up * this.side;
    const there = mapLibraries.zoomIdentity.translate(this.width / 2 - k * x, this.height / 2 - k * y).scale(k);
    mapLibraries.select(this.field).call(this.zoom.transform, there);
  }

  moveBy(x, y) {
    mapLibraries.select(this.field).call(this.zoom.translateBy, x / this.transform.k, y / this.transform.k);
  }

  magnify(times) {
    mapLibraries.select(this.field).call(this.zoom.scaleBy, times);
  }

  showWhole() {
    mapLibraries.select(this.field).call(this.zoom.transform, mapLibraries.zoomIdentity);
  }

  /** Sort the points into cells, so that those near the pointer are found at once. */
  async makeCells() {
    const across = Math.max(1, Math.min(512, Math.round(Math.sqrt(this.count / 8))));
    const cellOf = (point) => {
      const column = Math.floor((this.places[2 * point] * across) / (LIMIT + 1));
      return Math.floor((this.places[2 * point + 1] * across) / (LIMIT + 1)) * across + column;
    };
    const starts = new Uint32Array(across * across + 1);
    await inBlocks(this.count, (from, to) => {
      for (let point = from; point < to; point++) starts[cellOf(point) + 1]++;
    });
    for (let cell = 0; cell < across * across; cell++) starts[cell + 1] += starts[cell];
    const next = starts.slice();
    const members = new Uint32Array(this.count);
    await inBlocks(this.count, (from, to) => {
      for (let point = from; point < to; point++) members[next[cellOf(point)]++] = point;
    });
    this.cells = { across, starts, members };
  }

  /** The point at a pixel that is not dimmed; -1 where there is none. */
  pointAt(pixel) {
    if (!this.cells) return -1;
    const { across, starts, members } = this.cells;
    const [right, up] = this.placeAt(pixel);
    const reach = REACH / (this.side * this.transform.k);
    const cell = (place) => Math.max(0, Math.min(across - 1, Math.floor(place * across)));
    let [found, nearest] = [-1, (reach * LIMIT) ** 2];
    for (let row = cell(up - reach); row <= cell(up + reach); row++) {
      const [first, last] = [cell(right - reach), cell(right + reach)];
      for (let at = starts[row * across + first]; at < starts[row * across + last + 1]; at++) {
        const point = members[at];
        const x = this.places[2 * point] - right * LIMIT;
        const y = this.places[2 * point + 1] - up * LIMIT;
        const distance = x * x + y * y;
        if (distance < nearest && !this.flags[point]) [found, nearest] = [point, distance];
      }
    }
    return found;
  }

  /** Which points lie in a polygon of places, as 0 and 1. */
  async within(polygon) {
    const inside = new Uint8Array(this.count);
    const corners = polygon.map((corner) => corner.map((place) => place * LIMIT));
    const [low, high] = [Math.min, Math.max].map((of) => [0, 1].map((axis) => of(...corners.map((corner) => corner[axis]))));
    await inBlocks(this.count, (from, to) => {
      for (let point = from; point < to; point++) {
        const [x, y] = [this.places[2 * point], this.places[2 * point + 1]];
        if (x >= low[0] && x <= high[0] && y >= low[1] && y <= high[1]) inside[point] = isWithin(corners, x, y);
      }
    });
    return inside;
  }
}

/** Whether a line from a point to the right crosses the polygon's sides an odd number of times. */
function isWithin(corners, x, y) {
  let odd = 0;
  for (let at = 0, before = corners.length - 1; at < corners.length; before = at++) {
    const [[x0, y0], [x1, y1]] = [corners[before], corners[at]];
    if (y0 > y !== y1 > y && x < ((x1 - x0) * (y - y0)) / (y1 - y0) + x0) odd ^= 1;
  }
  return odd;
}

/** "#fff" as "#ffffff". */
function fullHex(text) {
  const hex = text.trim();
  return hex.length === 4 ? `#${[...hex.slice(1)].map((digit) => digit + digit).join("")}` : hex;
}
