// Curves over steps, with what the reader does to them: smoothing, axes, zoom, values below the pointer.
"use strict";

function smoothed(values) {
  // Exponential means without the pull of the first value towards zero.
  if (!shown.smooth) return values;
  let sum = 0, weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = shown.smooth * sum + (1 - shown.smooth) * value;
    weight = shown.smooth * weight + (1 - shown.smooth);
    return sum / weight;
  });
}

class Curves extends Drawing {
  prepare() {
    this.hidden = new Set();
    this.logValues = this.figure.log;
    const box = make("input", { type: "checkbox" });
    box.checked = this.logValues;
    box.addEventListener("change", () => { this.logValues = box.checked; this.changed("all"); });
    this.controls.append(make("label", {}, box, "log values"));
    const names = [...new Set(this.figure.series.map((series) => series.name))];
    this.byRun = page.runs.length > 1;
    this.isPicked = names.length > 1 && (this.byRun || this.figure.pick);
    this.picked = names[0];
    if (this.isPicked) this.select("Show", names, (place) => { this.picked = names[place]; this.changed("all"); });
    this.plot.classList.add("curves");
    watch(this);
  }

  dependsOnSteps() { return true; }

  get all() { // the curves of the picture, hidden ones too
    const series = this.figure.series.filter((one) => !this.isPicked || one.name === this.picked);
    return series.map((one, order) => {
      const place = this.byRun ? one.run : order;
      return { ...one, place, key: this.byRun ? page.runs[one.run] : one.name, steps: page.axes[one.axis] };
    });
  }

  get lines() { return this.all.filter((line) => !this.hidden.has(line.key)); }

  rows() {
    const rows = { band: [], raw: [], line: [], marks: [] }, isFit = (value) => value !== null && (!this.logValues || value > 0);
    for (const line of this.lines) {
      const [start, end] = windowOf(line.steps), soft = smoothed(line.mean);
      for (let i = start; i < end; i += 1) {
        const at = { step: line.steps[i], name: line.key };
        if (shown.logSteps && at.step <= 0) continue;
        if (isFit(soft[i])) rows.line.push({ ...at, value: soft[i] });
        if (line.low && isFit(line.low[i])) rows.band.push({ ...at, value: line.low[i], high: line.high[i] });
        else if (!line.low && shown.smooth && isFit(line.mean[i])) rows.raw.push({ ...at, value: line.mean[i] });
      }
    }
    rows.marks = this.marks().map((mark) => ({ step: mark.step }));
    return rows;
  }

  marks() {
    const runs = new Set(this.lines.map((line) => line.run)), [first, last] = this.domain();
    return page.marks.filter((mark) => runs.has(mark.run) && mark.step >= first && mark.step <= last);
  }

  domain() {
    const ends = this.all.map((line) => [line.steps[0], line.steps[line.steps.length - 1]]);
    let first = shown.first ?? Math.min(...ends.map((pair) => pair[0])), last = shown.last ?? Math.max(...ends.map((pair) => pair[1]));
    if (shown.logSteps) first = Math.max(1, first);
    if (last <= first) [first, last] = [Math.max(shown.logSteps ? 1 : 0, first - 1), first + 1];
    return [first, last];
  }

  spec(colours) {
    const spec = structuredClone(page.specs.curves), rows = this.rows(), lines = this.all;
    [spec.params[0].value, spec.params[1].value] = this.domain();
    if (shown.logSteps) Object.assign(spec.encoding.x.scale, { type: "log", zero: undefined });
    const keys = lines.map((line) => line.key), values = rows.line.map((row) => row.value);
    const level = !rows.band.length && values.length && values.every((value) => value === values[0]) ? values[0] : null;
    const scale = this.logValues ? { type: "log" } : { zero: false };
    if (level) scale.domain = [level - Math.abs(level) / 10, level + Math.abs(level) / 10]; // a curve that never moves
    for (const layer of spec.layer) {
      layer.data.values = rows[layer.data.name];
      if (layer.data.name === "marks") layer.mark.color = colours.mark;
      if (!layer.encoding) continue;
      layer.encoding.y.scale = scale;
      layer.encoding.color.scale = { domain: keys, range: lines.map((line) => colourOf(line.place, colours)) };
      if (layer.encoding.strokeDash) layer.encoding.strokeDash.scale = { domain: keys, range: lines.map((line) => dashOf(line.place)) };
    }
    return spec;
  }

  async update() {
    const rows = this.rows(), [first, last] = this.domain(), view = this.result.view;
    for (const [name, values] of Object.entries(rows)) view.data(name, values);
    await view.signal("first", first).signal("last", last).runAsync();
  }

  drawLegend(colours) {
    this.values = new Map();
    this.legend.hidden = this.all.length < 2 && !this.byRun;
    this.legend.replaceChildren(...this.all.map((line) => {
      const value = make("span", { class: "value" });
      this.values.set(line.key, value);
      return this.toggle(line.key, swatch(line.place, colours, false), make("span", { class: "name" }, line.key), value);
    }));
    this.tell(Infinity);
  }

  tell(step) { // values of all curves at a step
    for (const line of this.all) {
      let place = line.steps.findIndex((own) => own > step);
      place = place < 0 ? line.steps.length - 1 : Math.max(0, place - 1);
      const value = this.values?.get(line.key);
      if (value) value.textContent = short(smoothed(line.mean)[place]);
    }
  }

  table() {
    const lines = this.lines, steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
    const every = Math.max(1, Math.ceil(steps.length / MOST_ROWS));
    const kept = steps.filter((_, place) => place % every === 0 || place === steps.length - 1);
    const at = lines.map((line) => new Map(line.steps.map((step, place) => [step, place])));
    const rows = kept.map((step) => [step.toLocaleString("en"), ...lines.map((line, i) => line.mean[at[i].get(step)] ?? null)]);
    return { head: ["step", ...lines.map((line) => line.key)], rows };
  }
}

function watch(drawing) { // the pointer on curves: values below it; a drag zooms, with shift it moves
  const { plot } = drawing, cursor = make("div", { class: "cursor", hidden: "" }), brush = make("div", { class: "brush", hidden: "" });
  const told = make("div", { class: "told", hidden: "" });
  plot.append(cursor, brush, told);
  let start = null;
  const place = (event) => event.clientX - plot.getBoundingClientRect().left;
  const stepAt = (x) => drawing.result.view.scale("x").invert(x - drawing.result.view.origin()[0]);
  const height = () => `${drawing.result.view.height()}px`;
  plot.addEventListener("pointermove", (event) => {
    if (!drawing.result) return;
    const x = place(event), [from] = drawing.result.view.origin(), width = drawing.result.view.width();
    const isInside = x >= from && x <= from + width;
    cursor.hidden = !isInside;
    Object.assign(cursor.style, { left: `${x}px`, height: height() });
    if (isInside) drawing.tell(stepAt(x));
    const near = drawing.marks().filter((mark) => Math.abs(drawing.result.view.scale("x")(mark.step) + from - x) < 5);
    const text = near.map((mark) => `${mark.kind} at step ${mark.step.toLocaleString("en")}: ${mark.text}`).join("; ");
    told.hidden = !isInside;
    told.textContent = text || `step ${Math.round(stepAt(x)).toLocaleString("en")}`;
    if (start === null) return;
    brush.hidden = event.shiftKey;
    Object.assign(brush.style, { left: `${Math.min(start, x)}px`, width: `${Math.abs(x - start)}px`, height: height() });
  });
  plot.addEventListener("pointerdown", (event) => {
    if (event.button || !drawing.result || event.target.closest("button")) return;
    start = place(event);
    if (event.pointerType === "mouse") event.preventDefault(); // no selection of text
    plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointerup", (event) => {
    const x = place(event), begun = start;
    start = null;
    brush.hidden = true;
    if (begun === null || Math.abs(x - begun) < 8) return;
    const [first, last] = [stepAt(begun), stepAt(x)];
    if (!event.shiftKey) show(Math.min(first, last), Math.max(first, last));
    else if (shown.first !== null) show(shown.first + first - last, shown.last + first - last);
  });
  plot.addEventListener("pointercancel", () => { start = null; brush.hidden = true; });
  plot.addEventListener("pointerleave", () => { cursor.hidden = told.hidden = true; drawing.tell(Infinity); });
  plot.addEventListener("dblclick", () => show(0, page.lastStep));
}
