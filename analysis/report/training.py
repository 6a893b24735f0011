"""Which figures there are of how runs learn, how fast they are, and what moves their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.charts import short
from analysis.report.figures import Axes, Figure, areas, bars, curves, keys, lines
from analysis.report.metrics import Column, as_float
from analysis.report.reading import RunFiles
from run.metrics.names import EVALUATION, metric_of

PHASES = ("data", "forward", "backward", "reduce", "step", "report", "save")
"""They partition the time of a step: exchanges are part of forward and backward, and evaluations of none."""
COUNTS = ("samples", "images", "texts", "trials", "training_samples", "questions", "tokens")
"""Metrics of an evaluation that say how much there was, and so are no curves."""


def learning(runs: Sequence[RunFiles], axes: Axes) -> list[Figure]:
    found = [
        curves("Loss by task", "nats", lines(runs, lambda run: run.metrics.below("loss")), runs, axes),
        curves(
            "Accuracy by task", "share of read-outs", lines(runs, lambda run: run.metrics.below("accuracy")), runs, axes
        ),
        curves("Evaluation while training", "", lines(runs, _evaluated), runs, axes, pick=True),
    ]
    return [figure for figure in found if figure]


def speed(runs: Sequence[RunFiles], axes: Axes) -> list[Figure]:
    def curve(title: str, unit: str, **names: str) -> Figure | None:
        """names: keys in the records by what they are called here, with _ for spaces."""
        shown = {name.replace("_", " "): key for name, key in names.items()}
        return curves(title, unit, lines(runs, lambda run: keys(run, shown)), runs, axes)

    def group(title: str, unit: str, prefix: str) -> Figure | None:
        return curves(title, unit, lines(runs, lambda run: run.metrics.below(prefix)), runs, axes)

    def phases(run: RunFiles) -> dict[str, Column]:
        times = run.metrics.below("time")
        return {name: times[name] for name in PHASES if name in times}

    found = [
        curve("Tokens per second", "tokens/s on all ranks", tokens="tokens_per_s"),
        group("Tokens per second by modality", "tokens/s on all ranks", "tokens_per_s"),
        curve("Samples per second", "samples/s on all ranks", samples="samples_per_s"),
        areas("Time of a step by phase", "seconds", lines(runs, phases), runs, axes),
        curve("Time of an evaluation", "seconds", evaluation="evaluation_s"),
        curve("Time of a step", "seconds", step="step_s", exchange_within_it="time/exchange"),
        curve("Waits and padding", "share", waiting_for_data="data_wait", padding="padding"),
        curve("Model FLOPs utilisation", "share of the device's peak", MFU="mfu"),
        curve("Model FLOPs", "TFLOP/s on all ranks", model="model_tflops_per_s"),
        curve("Peak memory", "GiB, the largest of ranks", peak="memory/peak_gib"),
        group("Bytes sent per step", "GiB of a rank", "sent_gib"),
        *(figure for run in runs for figure in memory(run, f": {run.name}" if len(runs) > 1 else "")),
    ]
    return [figure for figure in found if figure]


def optimisation(runs: Sequence[RunFiles], axes: Axes) -> list[Figure]:
    def norms(run: RunFiles) -> dict[str, Column]:
        found = keys(run, {"all": "grad_norm"}) | run.metrics.below("grad_norm")
        return {name: column for name, column in found.items() if any(column[1])}  # dense runs have no experts

    epochs = lines(runs, lambda run: run.metrics.below("epoch"))
    found = [
        curves("Learning rate", "", lines(runs, lambda run: keys(run, {"rate": "lr"})), runs, axes),
        curves("Gradient norms by family", "before clipping", lines(runs, norms), runs, axes, log=True),
        curves("Auxiliary losses", "unweighted", lines(runs, lambda run: run.metrics.below("auxiliary")), runs, axes),
        curves("Epochs by task", "samples so far over the data set's size", epochs, runs, axes),
    ]
    return [figure for figure in found if figure]


def memory(run: RunFiles, of: str) -> list[Figure]:
    """What was predicted against what was measured, in all and by family of weights."""
    whole = {kind: gib_of(run.memory.get(kind)) for kind in ("predicted", "measured")}
    families = run.memory.get("families")
    parts = families if isinstance(families, dict) else {}
    by_family = {
        kind: {
            f"{family} {part}": gib
            for part, of_part in (parts[kind].items() if isinstance(parts.get(kind), dict) else ())
            for family, gib in gib_of(of_part).items()
        }
        for kind in whole
    }
    found = [
        _side_by_side(f"Memory of the first rank, GiB{of}", whole, is_long=False),
        _side_by_side(f"Memory of the first rank by family, GiB{of}", by_family, is_long=True),
    ]
    return [figure for figure in found if figure]


def _side_by_side(title: str, numbers: Mapping[str, Mapping[str, float]], is_long: bool) -> Figure | None:
    """is_long: so many parts that only their sums are said."""
    kinds = [kind for kind, parts in numbers.items() if parts]
    names = list(dict.fromkeys(name for kind in kinds for name in numbers[kind]))
    if not names:
        return None
    values = np.array([[numbers[kind].get(name, np.nan) for name in names] for kind in kinds])
    parts = {kind: {"in all": sum(numbers[kind].values())} if is_long else numbers[kind] for kind in kinds}
    said = "; ".join(
        f"{kind} {', '.join(f'{name} {short(gib)}' for name, gib in parts[kind].items())}" for kind in kinds
    )
    return bars(title, f"{said}.", values, kinds, names, "part", is_stacked=False)


def gib_of(part: Any) -> dict[str, float]:
    """Finite numbers by name."""
    if not isinstance(part, dict):
        return {}
    return {
        str(name): as_float(gib)
        for name, gib in part.items()
        if isinstance(gib, int | float) and math.isfinite(as_float(gib))
    }


def _evaluated(run: RunFiles) -> dict[str, Column]:
    """SPLIT/TASK/METRIC, those that say how good a task is first."""
    # The name of a row says more than the task behind a comma.
    main = {f"{row.partition(', ')[0]}/{of['figure']}" for kept in run.evaluations for row, of in kept.rows.items()}
    found = {key: column for key, column in run.metrics.columns.items() if is_evaluation(key)}
    return dict(sorted(found.items(), key=lambda item: item[0].partition("/")[2] not in main))


def is_evaluation(key: str) -> bool:
    """Whether a key of metrics.jsonl is SPLIT/TASK/METRIC. Names of tasks may hold slashes."""
    found = metric_of(key)
    return found is not None and found[0] is EVALUATION and key.rpartition("/")[2] not in COUNTS
