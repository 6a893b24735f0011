// What the reader does with the page: zoom, smoothing, theme, print; and when figures are drawn.
"use strict";

const root = document.documentElement;
const byId = (id) => document.getElementById(id);

// ---- Drawing what is in view first, one after another ------------------------------------------------------

const waiting = new Set();
let work = null;

function queue(drawing) {
  waiting.add(drawing);
  work ??= (async () => {
    await new Promise((resolve) => setTimeout(resolve)); // several changes at once are one
    try {
      for (const next of waiting) {
        waiting.delete(next);
        if (next.stale) await next.draw();
      }
    } finally { work = null; } // a figure that fails is logged, and leaves the others alone
  })();
  return work;
}

const KINDS = { curves: Curves, areas: Areas, bars: Bars, time_map: Cells, table_map: Cells, full: Full };
const drawings = [...document.querySelectorAll("[data-figure]")].map((element) => {
  const figure = page.figures[Number(element.dataset.figure)];
  return new KINDS[figure.kind](element, figure);
});
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const drawing = drawings.find((one) => one.element === entry.target);
    drawing.inView = entry.isIntersecting;
    if (drawing.inView && drawing.stale) queue(drawing);
  }
}, { rootMargin: "250px" });
drawings.forEach((drawing) => seen.observe(drawing.element));

async function drawAll() {
  for (const drawing of drawings.filter((one) => one.stale)) await queue(drawing);
}

// The others once there is nothing else to do: the browser's own printing, and pictures of the whole page, do not bring them into view.
const whenIdle = window.requestIdleCallback ?? setTimeout;
async function drawNext() {
  const next = drawings.find((one) => one.stale);
  if (!next) return;
  await queue(next);
  whenIdle(drawNext);
}
whenIdle(drawNext);

// ---- Steps that are shown ------------------------------------------------------------------------------------

function show(first, last) {
  const end = page.lastStep, span = Math.max(1, Math.min(end, last - first));
  first = Math.round(Math.max(0, Math.min(first, end - span)));
  last = Math.round(first + span);
  [shown.first, shown.last] = first <= 0 && last >= end ? [null, null] : [first, last];
  byId("window").textContent = shown.first === null ? "" : `steps ${first.toLocaleString("en")} to ${last.toLocaleString("en")}`;
  drawings.filter((one) => one.dependsOnSteps()).forEach((one) => one.changed("part"));
}

const zoom = (factor, shift) => {
  const first = shown.first ?? 0, last = shown.last ?? page.lastStep, half = ((last - first) / 2) * factor;
  const middle = (first + last) / 2 + shift * (last - first);
  show(middle - half, middle + half);
};
byId("closer").addEventListener("click", () => zoom(0.5, 0));
byId("wider").addEventListener("click", () => zoom(2, 0));
byId("earlier").addEventListener("click", () => zoom(1, -0.5));
byId("later").addEventListener("click", () => zoom(1, 0.5));
byId("all").addEventListener("click", () => show(0, page.lastStep));
byId("smooth").addEventListener("input", (event) => {
  shown.smooth = Number(event.target.value);
  byId("smoothing").textContent = event.target.value;
  drawings.filter((one) => one instanceof Curves).forEach((one) => one.changed("part"));
});
byId("log-steps").addEventListener("change", (event) => {
  shown.logSteps = event.target.checked;
  drawings.filter((one) => one instanceof Curves).forEach((one) => one.changed("all"));
});

// ---- Theme and print -----------------------------------------------------------------------------------------

function keep(store, key, value) { // a browser may forbid it
  try { if (value === undefined) return store().getItem(key); store().setItem(key, value); } catch { /* nothing is kept */ }
  return null;
}

function setTheme(name) {
  root.dataset.theme = name;
  drawings.forEach((one) => one.changed("all"));
}
const chosen = keep(() => localStorage, "report-theme");
if (["light", "dark"].includes(chosen)) { byId("theme").value = chosen; root.dataset.theme = chosen; }
byId("theme").addEventListener("change", (event) => {
  keep(() => localStorage, "report-theme", event.target.value);
  setTheme(event.target.value);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(root.dataset.theme));

async function printAll() {
  const before = root.dataset.theme;
  setTheme("light");
  await drawAll();
  window.print();
  setTheme(before);
}
byId("print").addEventListener("click", printAll);
addEventListener("keydown", (event) => {
  if (event.key === "p" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); printAll(); }
});

// ---- A page that follows its run -----------------------------------------------------------------------------

if (page.follow) {
  const button = byId("reload"), place = Number(keep(() => sessionStorage, "report-scroll"));
  button.hidden = false;
  if (place) scrollTo({ top: place, behavior: "instant" });
  button.addEventListener("click", () => button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true")));
  setInterval(() => {
    if (button.getAttribute("aria-pressed") !== "true") return;
    keep(() => sessionStorage, "report-scroll", String(scrollY));
    location.reload();
  }, page.follow * 1000);
}
