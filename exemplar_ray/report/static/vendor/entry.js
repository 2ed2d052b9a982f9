// What the map's page takes from its libraries, as one global of a classic script: modules do not load from file://.
import { select } from "d3-selection";
import { zoom, zoomIdentity } from "d3-zoom";
import {
  createBufferInfoFromArrays,
  createProgramInfo,
  createTexture,
  drawBufferInfo,
  setAttribInfoBufferFromArray,
  setBuffersAndAttributes,
  setTextureFromArray,
  setUniforms,
} from "twgl.js";

globalThis.mapLibraries = {
  select,
  zoom,
  zoomIdentity,
  twgl: {
    createBufferInfoFromArrays,
    createProgramInfo,
    createTexture,
    drawBufferInfo,
    setAttribInfoBufferFromArray,
    setBuffersAndAttributes,
    setTextureFromArray,
    setUniforms,
  },
};
