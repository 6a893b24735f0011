// Draws the figures of the page from its numbers, those in view first. A figure's element holds places for its controls, its drawing,
// its legend and its table (figures.py); what is drawn comes from specs.py.
"use strict";

const page = JSON.parse(document.getElementById("page-data").textContent);
const shown = { first: null, last: null, smooth: 0, logSteps: false }; // of all curves together
const MOST_ROWS = 100;

const short = (value) => {
  if (value === null || value === undefined || !Number.isFinite(value)) return "";
  const size = Math.abs(value);
  if (size >= 1000 && size < 1e9) return Math.round(value).toLocaleString("en");
  return size && size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
};

const make = (name, attributes = {}, ...content) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...content);
  return element;
};

const theme = () => {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(`--${name}`).trim();
  return { ink: value("ink"), muted: value("muted"), line: value("line"), grid: value("grid"), card: value("card"), mark: value("mark"),
    series: value("series").split(/\s+/), heat: value("heat").split(/\s+/) };
};

const DASHES = [[1, 0], [6, 3], [2, 2]];
const colourOf = (place, colours) => colours.series[place % colours.series.length];
const dashOf = (place) => DASHES[Math.floor(place / 5) % DASHES.length];

const configOf = (colours) => ({
  background: "transparent", aria: false, font: "system-ui, sans-serif",
  view: { stroke: null },
  mark: { invalid: "show" }, // what is no number never comes so far, and looking for it takes time
  axis: { labelColor: colours.muted, titleColor: colours.muted, gridColor: colours.grid, domainColor: colours.line, tickColor: colours.line,
    labelFontSize: 11, titleFontSize: 11, titleFontWeight: 400 },
  legend: { labelColor: colours.muted, titleColor: colours.muted },
  range: { heatmap: colours.heat, ramp: colours.heat, category: colours.series },
});

function windowOf(steps) {
  // (first, last) place of what is shown, with a neighbour on either side so that lines go on to the edge.
  if (shown.first === null) return [0, steps.length];
  let start = steps.findIndex((step) => step >= shown.first);
  if (start < 0) start = steps.length;
  let end = steps.length;
  while (end > start && steps[end - 1] > shown.last) end -= 1;
  return [Math.max(0, start - 1), Math.min(steps.length, end + 1)];
}

class Drawing {
  constructor(element, figure) {
    Object.assign(this, { element, figure, choices: (figure.choices || []).map(() => 0), stale: "all", inView: false });
    this.plot = element.querySelector(".plot");
    this.place = element.querySelector(".drawing");
    this.legend = element.querySelector(".legend");
    this.controls = element.querySelector(".controls");
    (figure.choices || []).forEach((choice, index) => {
      this.select(choice.label, choice.options, (place) => { this.choices[index] = place; this.changed("all"); });
    });
    this.prepare();
    const numbers = element.querySelector("details");
    numbers.addEventListener("toggle", () => { if (numbers.open) this.fillTable(); });
  }

  prepare() {}
  dependsOnSteps() { return false; }

  select(label, options, act) {
    const select = make("select", {}, ...options.map((name, place) => make("option", { value: place }, name)));
    select.addEventListener("change", () => act(Number(select.value)));
    this.controls.append(make("label", {}, `${label} `, select));
  }

  get data() { // of the options that are chosen
    const place = (this.figure.choices || []).reduce((sum, choice, index) => sum * choice.options.length + this.choices[index], 0);
    return this.figure.data[place];
  }

  changed(stale) {
    if (this.stale !== "all") this.stale = stale;
    if (this.inView) queue(this);
    const numbers = this.element.querySelector("details");
    if (numbers.open) this.fillTable();
  }

  async draw() {
    const isPart = this.stale === "part" && this.result; // names and colours stay
    this.stale = null;
    if (isPart && this.update) return this.update();
    const colours = theme(), spec = this.spec(colours);
    if (this.result) this.result.finalize();
    // Expressions are interpreted, as the page forbids code from texts. Only errors are logged: a band without points is no mistake.
    const options = { ast: true, logLevel: 1, mode: "vega-lite", actions: false, defaultStyle: false, renderer: this.renderer || "svg",
      tooltip: { disableDefaultStyle: true }, config: configOf(colours) };
    this.result = await vegaEmbed(this.place, spec, options);
    if (!isPart) this.drawLegend(colours);
    this.element.dataset.state = "drawn";
  }

  toggle(name, ...content) { // a button of the legend that hides a part and shows it again
    const button = make("button", { type: "button", "aria-pressed": String(!this.hidden.has(name)) }, ...content);
    button.addEventListener("click", () => {
      const isHidden = this.hidden.delete(name);
      if (!isHidden) this.hidden.add(name);
      button.setAttribute("aria-pressed", String(isHidden));
      this.changed("part");
    });
    return button;
  }

  drawLegend(colours) {
    if (!this.names) return;
    this.legend.hidden = this.names.length < 2;
    this.legend.replaceChildren(...this.names.map((name, place) => make("span", { class: "key" }, swatch(place, colours, true), name)));
  }

  fillTable() {
    const { head, rows } = this.table(), title = this.element.querySelector("h3").textContent;
    const cells = (tag, row) => row.map((cell, place) => {
      const kind = place === 0 ? "th" : tag;
      const scope = tag === "th" ? { scope: "col" } : place === 0 ? { scope: "row" } : {};
      return make(kind, { ...scope, ...(place ? { class: "number" } : {}) }, typeof cell === "number" ? short(cell) : cell ?? "");
    });
    const table = make("table", {}, make("caption", {}, title), make("thead", {}, make("tr", {}, ...cells("th", head))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells("td", row)))));
    this.element.querySelector(".numbers").replaceChildren(table);
  }
}

function swatch(place, colours, isFilled) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg"), line = document.createElementNS(space, isFilled ? "rect" : "line");
  const sizes = isFilled ? { width: 12, height: 10 } : { x1: 0, x2: 18, y1: 5, y2: 5, "stroke-width": 2.5, "stroke-dasharray": dashOf(place) };
  for (const [key, value] of Object.entries({ ...sizes, [isFilled ? "fill" : "stroke"]: colourOf(place, colours) })) line.setAttribute(key, value);
  for (const [key, value] of Object.entries({ width: isFilled ? 12 : 18, height: 10, "aria-hidden": "true" })) svg.setAttribute(key, value);
  svg.append(line);
  return svg;
}

class Areas extends Drawing {
  prepare() { this.hidden = new Set(); }
  dependsOnSteps() { return true; }
  get names() { return this.data.map((part) => part.name); }

  spec(colours) {
    const spec = structuredClone(page.specs.areas), names = this.names;
    spec.data.values = this.data.flatMap((part, place) => {
      if (this.hidden.has(part.name)) return [];
      const steps = page.axes[part.axis], [start, end] = windowOf(steps);
      return steps.slice(start, end).map((step, i) => ({ step, name: part.name, place, value: part.mean[start + i] }));
    });
    spec.encoding.color.scale = { domain: names, range: names.map((_, place) => colourOf(place, colours)) };
    return spec;
  }

  drawLegend(colours) {
    this.legend.hidden = false;
    const parts = (name, place) => [swatch(place, colours, true), make("span", { class: "name" }, name)];
    this.legend.replaceChildren(...this.names.map((name, place) => this.toggle(name, ...parts(name, place))));
  }

  table() {
    const parts = this.data, steps = page.axes[parts[0].axis], every = Math.max(1, Math.ceil(steps.length / MOST_ROWS));
    const rows = steps.map((step, i) => [step.toLocaleString("en"), ...parts.map((part) => part.mean[i] ?? null)]);
    return { head: ["step", ...this.names], rows: rows.filter((_, i) => i % every === 0 || i === rows.length - 1) };
  }
}

class Bars extends Drawing {
  get names() { return this.figure.names; }

  spec(colours) {
    const spec = structuredClone(page.specs.bars), { names, columns, label, stacked } = this.figure, width = columns.length;
    spec.data.values = names.flatMap((name, place) => columns.map((column, i) => ({ name, place, column, value: this.data[place * width + i] })));
    spec.encoding.x.title = label;
    spec.encoding.color.scale = { domain: names, range: names.map((_, place) => colourOf(place, colours)) };
    if (stacked) Object.assign(spec.encoding.y, { stack: "zero", scale: { domain: [0, 1] } }); // shares
    else Object.assign(spec.encoding, { xOffset: { field: "name", sort: names }, y: { ...spec.encoding.y, stack: null } });
    return spec;
  }

  table() {
    const { names, columns, label } = this.figure, width = columns.length;
    return { head: [label, ...names], rows: columns.map((column, i) => [column, ...names.map((_, place) => this.data[place * width + i])]) };
  }
}

class Cells extends Drawing { // a map over steps, or over columns
  prepare() { this.renderer = "canvas"; }
  get isOverTime() { return this.figure.kind === "time_map"; }
  dependsOnSteps() { return this.isOverTime; }

  spec() {
    const spec = structuredClone(page.specs[this.figure.kind]), { rows, columns, steps, domain, label, rowLabel } = this.figure;
    const width = this.isOverTime ? steps.length - 1 : columns.length, values = [];
    rows.forEach((row, r) => {
      for (let i = 0; i < width; i += 1) {
        const value = this.data[r * width + i];
        if (!this.isOverTime) values.push({ row, column: columns[i], value });
        else if (shown.first === null || (steps[i + 1] > shown.first && steps[i] < shown.last)) values.push({ row, step: steps[i], end: steps[i + 1], value });
      }
    });
    spec.data.values = values;
    spec.height = rows.length * Math.max(4, Math.min(24, Math.floor(560 / rows.length))); // whole pixels for each row
    spec.encoding.color.scale = { domain, interpolate: "rgb" };
    if (this.isOverTime) spec.encoding.y.title = rowLabel;
    if (!this.isOverTime) spec.encoding.x.title = label;
    return spec;
  }

  table() {
    const { rows, columns, steps, label, rowLabel } = this.figure, width = this.isOverTime ? steps.length - 1 : columns.length;
    const places = [...Array(width).keys()].filter((i) => !this.isOverTime || i % Math.ceil(width / 20) === 0);
    const names = places.map((i) => (this.isOverTime ? `step ${steps[i].toLocaleString("en")}` : `${label} ${columns[i]}`));
    return { head: [rowLabel, ...names], rows: rows.map((row, r) => [row, ...places.map((i) => this.data[r * width + i])]) };
  }
}

class Full extends Drawing { // specifications that bring their data: one row and column of names, numbers in the cells
  spec() {
    const spec = structuredClone(this.data), cells = spec.data.values;
    const [rows, columns] = ["row", "column"].map((key) => new Set(cells.map((cell) => cell[key])).size);
    const isNarrow = (this.place.clientWidth - 150) / columns < 42;
    if (isNarrow) spec.layer = spec.layer.slice(0, 1); // numbers would lie on one another; the table has them
    delete spec.title;
    return { ...spec, width: "container", height: 34 * rows, autosize: { type: "fit-x", contains: "padding" } };
  }

  table() {
    const cells = this.data.data.values, columns = [...new Set(cells.map((cell) => cell.column))];
    const rows = [...new Set(cells.map((cell) => cell.row))].map((row) => [row, ...columns.map((column) => {
      const cell = cells.find((one) => one.row === row && one.column === column);
      return cell.interval && cell.interval !== "unknown" ? `${cell.text} (${cell.interval})` : cell.text;
    })]);
    return { head: ["affected task", ...columns], rows };
  }
}
