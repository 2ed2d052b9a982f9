// What a page shows stands in its address, after the #, so that a link shows what its sender saw.
"use strict";

/** The state as an object of texts. */
function readState() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

/** Put a state into the address, and into the links to pages like this one. Empty values are left out. */
function writeState(state) {
  const known = Object.entries(state).filter(([, value]) => value !== "");
  const hash = known.length ? "#" + new URLSearchParams(known) : "";
  if (hash !== location.hash) {
    history.replaceState(null, "", hash || location.pathname + location.search);
  }
  for (const link of document.querySelectorAll("a[data-keeps-state]")) {
    link.hash = hash;
  }
}

/** What was chosen last on another page; browsers may forbid to keep that. */
function recall(key) {
  try {
    return localStorage.getItem(`exemplar-ray.${key}`) ?? "";
  } catch {
    return "";
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(`exemplar-ray.${key}`, value);
  } catch {
    // Then the next page starts as it comes.
  }
}
