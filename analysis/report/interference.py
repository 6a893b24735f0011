"""The figure of how much tasks disturb one another. Legend: T tasks; rows are affected, columns influence."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.charts import Spec, heat_map
from analysis.report.figures import Figure, full
from analysis.report.metrics import numbers_of
from analysis.report.reading import RunFiles, Tree, list_of

ABOUT = (
    "Effect of a step for the column's task on the row's task, as a share of what a step for the row's own task does. "
    "Below zero it harms."
)


def interference(run: RunFiles, of: str) -> Figure | None:
    """The layers of the newest checkpoint, and of earlier ones that have the same layers and tasks."""
    tasks = [str(task) for task in list_of(run.interference, "tasks")]
    newest = _maps(run.interference, tasks)
    if not newest:
        return None
    by_step = {str(run.interference.get("step")): newest}
    for earlier in list_of(run.interference, "over_training"):
        maps = _maps(earlier, tasks) if isinstance(earlier, dict) else {}
        if maps.keys() == newest.keys():
            by_step.setdefault(str(earlier.get("step")), maps)
    specs = [spec for maps in by_step.values() for spec in maps.values()]
    samples = run.interference.get("samples")
    said = f"{ABOUT} {_lowest(run.interference, tasks)}Checkpoint of step {run.interference.get('step')}, {samples} samples of each task; "
    said += "the table has the 95 % intervals."
    return full(f"Task interference{of}", said, specs, Step=list(by_step), Layer=list(newest))


def _maps(content: Tree, tasks: list[str]) -> dict[str, Spec]:
    """By layer; layers without a matrix of the right size are left out."""
    found = {}
    for layer in list_of(content, "layers"):
        means_TT, low_TT, high_TT = (matrix(layer, key, len(tasks)) for key in ("ratio_of_means", "low", "high"))
        if means_TT is not None:
            low, high = (ends_TT.tolist() if ends_TT is not None else None for ends_TT in (low_TT, high_TT))
            found[str(layer.get("name"))[:100]] = heat_map(means_TT.tolist(), tasks, tasks, "", low, high, largest=1.0)
    return found


def _lowest(content: Tree, tasks: list[str]) -> str:
    """The most harmful influence, and rows that say nothing."""
    worst: list[tuple[float, str]] = []
    unsure: list[str] = []
    for layer in list_of(content, "layers"):
        means_TT = matrix(layer, "ratio_of_means", len(tasks))
        if means_TT is None:
            continue
        name, determined = str(layer.get("name"))[:100], list_of(layer, "determined")
        is_sure_T = np.array([determined[i] is not False if i < len(determined) else True for i in range(len(tasks))])
        if not is_sure_T.all():
            unsure.append(f"{name}: {', '.join(task for task, sure in zip(tasks, is_sure_T, strict=True) if not sure)}")
        off_TT = np.where(np.eye(len(tasks), dtype=bool) | ~is_sure_T[:, None], np.nan, means_TT)
        if np.isfinite(off_TT).any():
            i, j = np.unravel_index(np.nanargmin(off_TT), off_TT.shape)
            worst.append((float(off_TT[i, j]), f"{tasks[j]} on {tasks[i]} in {name}"))
    said = "The lowest: {:.3g}, {}. ".format(*min(worst)) if worst else ""
    return said + (f"Rows that cannot be told from chance: {'; '.join(unsure)}. " if unsure else "")


def matrix(layer: Any, key: str, size: int) -> np.ndarray | None:
    found = numbers_of(layer.get(key)) if isinstance(layer, dict) else None
    return found if found is not None and found.shape == (size, size) else None
