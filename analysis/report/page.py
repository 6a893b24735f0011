"""All of a report to one HTML file: it holds the drawing library, asks nothing of a network, and runs no script but its own."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert

from analysis.charts import short
from analysis.markup import Html, command, escaped, joined, json_block, note, tag
from analysis.report import pictures, specs, tables, training
from analysis.report.experts import experts
from analysis.report.figures import Axes, Figure, figure_markup
from analysis.report.interference import interference
from analysis.report.reading import RunFiles

HERE = Path(__file__).parent
MARKED = ("resume", "skipped", "alarm", "stop", "diverged")
"""Kinds of events that curves show as upright lines, at most MOST_MARKS of a run."""
MOST_MARKS = 60
NO_PEAK = "MFU n/a"
"""How the note begins that says why the utilisation is not known."""
LICENCE = (
    "/* Vega, Vega-Lite, Vega-Embed: BSD-3-Clause, (c) University of Washington Interactive Data Lab and others */\n"
)


@dataclasses.dataclass(frozen=True)
class Section:
    """parts: figures, which are drawn side by side, and markup."""

    name: str
    title: str
    parts: Sequence[Figure | Html | None]


def page_of(runs: Sequence[RunFiles], follow: int = 0) -> str:
    """follow: seconds after which the page loads itself again; 0 = never."""
    axes, figures = Axes(), list[Figure]()
    found = list(sections(runs, axes))
    main = joined(_section(section, figures) for section in found)
    names = _distinct([run.name for run in runs])
    marks = [mark for index, run in enumerate(runs) for mark in _marks(run, index)]
    data = {
        "runs": names,
        "figures": [{"kind": figure.kind} | figure.content for figure in figures],
        "axes": axes.lists,
        "specs": {kind: make() for kind, make in specs.KINDS.items()},
        "marks": marks,
        "lastStep": max([1, *(run.metrics.last_step for run in runs)]),
        "follow": follow,
    }
    scripts = [_vega(), *((HERE / name).read_text(encoding="utf-8") for name in ("drawing.js", "curves.js", "page.js"))]
    style = (HERE / "style.css").read_text(encoding="utf-8")
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return filled(
        (HERE / "page.html").read_text(encoding="utf-8"),
        {
            "policy": policy(scripts, style),
            "title": escaped(" and ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} others"),
            "kind": "a run" if len(runs) == 1 else f"{len(runs)} runs",
            "style": style,
            "written": f"Written {now}{f', again every {follow} s while the run goes on' if follow else ''}",
            "contents": joined(tag("li", tag("a", section.title, href=f"#{section.name}")) for section in found),
            "main": main,
            "foot": "Made by python -m analysis.report. Figures are drawn by Vega (BSD-3-Clause), which is part of this file.",
            "data": json_block(data),
            "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
        },
    )


def filled(template: str, parts: Mapping[str, str]) -> str:
    """Each {{name}} once; what looks like one within a part stays as it is."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def policy(scripts: Iterable[str], style: str) -> str:
    """What the page may do: run these scripts, no others; take this style; show pictures that it holds. Nothing is loaded."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    allowed = " ".join(map(digest, scripts))
    return f"default-src 'none'; script-src {allowed}; style-src {digest(style)}; img-src data:; base-uri 'none'; form-action 'none'"


@functools.cache
def _vega() -> str:
    """The library, in a scope of its own but for vegaEmbed."""
    return f"{LICENCE}(function () {{\n{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}\n}})();"


def sections(runs: Sequence[RunFiles], axes: Axes) -> Iterable[Section]:
    def each(make: Any) -> list[Any]:
        """Of each run, below its name where there are several."""
        parts: list[Any] = []
        for run in runs:
            content = make(run)
            if content is not None:
                parts += [tag("h3", run.name), content] if len(runs) > 1 else [content]
        return parts

    notes = [note(f"{run.name}: {text}" if len(runs) > 1 else text) for run in runs for text in run.notes]
    yield Section("run", "What was run", [*each(_tiles), *notes, tables.surroundings(runs), tables.configuration(runs)])
    if len(runs) > 1:
        yield Section("differences", "Differences", [tables.differences(runs)])
    yield Section(
        "learning", "Loss and metrics", _or_note(training.learning(runs, axes), "No loss has been written yet.")
    )
    yield Section("evaluation", "Evaluation", [tables.evaluations(run) for run in runs])
    speed = _or_note(training.speed(runs, axes), "No speed has been written yet.")
    yield Section("speed", "Speed and memory", [*speed, *(part for run in runs for part in _about_speed(run))])
    yield Section(
        "optimisation", "Optimisation", _or_note(training.optimisation(runs, axes), "No rate has been written yet.")
    )
    sparse = [run for run in runs if run.is_sparse]
    if sparse:
        missing = [
            _missing("Use by task and modality", run, "experts")
            for run in sparse
            if run.use is None and run.experts is None
        ]
        yield Section("experts", "Experts", [*experts(runs, axes), *missing])
    found = [(run, interference(run, f": {run.name}" if len(runs) > 1 else "")) for run in runs]
    yield Section(
        "interference",
        "Task interference",
        [figure or _missing("Task interference", run, "interference") for run, figure in found],
    )
    budget = pictures.Budget(pictures.MAX_MAPS)
    if sparse:
        shown = [(run, pictures.maps(run, budget)) for run in sparse]
        parts = [part or _missing("Routing maps", run, "routing_maps") for run, part in shown]
        yield Section("maps", "Routing maps", parts)
    others = pictures.Budget(pictures.MAX_SAMPLES)
    yield Section("samples", "Samples", each(lambda run: _samples(run, others)))
    yield Section("data", "Bad data", [tables.ledger(run) for run in runs])
    yield Section("events", "Events", [tables.events(run) for run in runs])


def _about_speed(run: RunFiles) -> Iterable[Html]:
    """Why there is no utilisation, and where profiles are."""
    if "mfu" not in run.metrics.columns:
        reasons = [event.text for event in run.events if event.text.startswith(NO_PEAK)]
        yield from (note(f"{run.name}: {text}") for text in reasons[-1:])
    traces = sorted(path.name for path in (run.folder / "profile").glob("trace_rank_*.json.gz"))
    if traces:
        where = f"{run.folder / 'profile'}: {', '.join(traces[:8])}{' and more' if len(traces) > 8 else ''}"
        yield note(f"Profiles of {run.name} are in {where}; Perfetto opens them.")


def _samples(run: RunFiles, budget: pictures.Budget) -> Html:
    captions, retrievals = pictures.captions(run, budget), pictures.retrievals(run, budget)
    if captions is None and retrievals is None:
        return _missing("Captions and retrievals", run, "samples")
    about = note(f"By the checkpoint of step {run.samples.get('step')}.")
    parts = [about]
    parts += [tag("h3", "Captions"), captions] if captions else []
    parts += [tag("h3", "Images found for a text"), retrievals] if retrievals else []
    return joined(parts)


def _missing(what: str, run: RunFiles, module: str) -> Html:
    return note(
        f"{what} of {run.name}: not there yet; ",
        command(f"python -m analysis.{module} --run {run.folder}"),
        " makes it.",
    )


def _or_note(figures: Sequence[Figure], words: str) -> Sequence[Figure | Html]:
    return figures or [note(words)]


def _section(section: Section, figures: list[Figure]) -> Html:
    """Figures that follow one another stand in one grid; they are added to `figures`."""
    parts: list[Html] = []
    grid: list[Html] = []
    for part in [*section.parts, Html("")]:
        if isinstance(part, Figure):
            grid.append(figure_markup(part, len(figures)))
            figures.append(part)
            continue
        if grid:
            parts.append(tag("div", *grid, class_="figures"))
            grid = []
        if part is not None:
            parts.append(part)
    heading = f"{section.name}-title"
    return tag("section", tag("h2", section.title, id=heading), *parts, id=section.name, aria_labelledby=heading)


def _marks(run: RunFiles, index: int) -> list[dict[str, Any]]:
    found = [
        {"run": index, "step": e.step, "kind": e.kind, "text": e.text[:200]} for e in run.events if e.kind in MARKED
    ]
    known = {(mark["step"], mark["text"]) for mark in found}
    alarms = [{"run": index, "step": step, "kind": "alarm", "text": text[:200]} for step, text in run.metrics.alarms]
    return [*found, *(mark for mark in alarms if (mark["step"], mark["text"]) not in known)][:MOST_MARKS]


def _tiles(run: RunFiles) -> Html:
    """The state of a run in a few numbers."""
    metrics, total = run.metrics, run.config.get("steps")
    state = run.events[-1].kind if run.has_ended else "goes on, or was cut off"
    if not run.events or state == "end":
        state = "finished" if isinstance(total, int) and metrics.last_step >= total else "not finished"
    state = {"stop": "stopped"}.get(state, state)
    steps = f"{metrics.last_step:,} of {total:,}" if isinstance(total, int) else f"{metrics.last_step:,}"
    samples = sum(value for value in metrics.columns.get("samples", ((), ()))[1] if value == value)
    found: list[tuple[str, str | None]] = [
        ("state", state),
        ("steps", steps),
        ("samples", f"{samples:,.0f}" if samples else None),
    ]
    for title, key, unit in (
        ("tokens per second", "tokens_per_s", ""),
        ("seconds per step", "step_s", ""),
        ("MFU", "mfu", "%"),
        ("waiting for data", "data_wait", "%"),
        ("peak memory", "memory/peak_gib", " GiB"),
    ):
        value = metrics.last(key)
        if value is not None:
            found.append((title, f"{value:.1%}" if unit == "%" else f"{short(value)}{unit}"))
    if run.faults:
        found.append(("bad data", f"{len(run.faults):,}"))
    alarms = len([event for event in run.events if event.kind == "alarm"]) or len(metrics.alarms)
    if alarms:
        found.append(("alarms", f"{alarms:,}"))
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in found if value), class_="tiles")


def _distinct(names: Sequence[str]) -> list[str]:
    """Runs of one name get a number."""
    return [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names, start=1)]
