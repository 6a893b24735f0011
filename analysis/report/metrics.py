"""metrics.jsonl and expert_use.jsonl, however long, line by line. Legend: N decisions, M modalities, E experts, S buckets of steps."""

from __future__ import annotations

import array
import collections
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from analysis.report.downsample import Buckets

MAX_COLUMNS = 5000
MAX_NAME = 200
OVER_TIME = 60
"""Arrays over time have so many buckets of steps, and up to twice as many."""
LATE = 4
"""Of the records by task the last 1 / LATE are summed: how experts are used once they have settled."""

Column = tuple[array.array, array.array]


@dataclasses.dataclass(frozen=True)
class Metrics:
    """columns: of each key its (steps, values); over_time: of each key with a list (first steps of the buckets, means [S, ...]);
    alarms: (step, text); damaged: lines that could not be read."""

    columns: Mapping[str, Column]
    over_time: Mapping[str, tuple[list[int], np.ndarray]]
    alarms: tuple[tuple[int, str], ...]
    last_step: int
    damaged: int

    def below(self, prefix: str) -> dict[str, Column]:
        """Columns `prefix/NAME` by NAME."""
        return {key[len(prefix) + 1 :]: self.columns[key] for key in self.columns if key.startswith(f"{prefix}/")}

    def last(self, key: str) -> float | None:
        """The last finite value."""
        _, values = self.columns.get(key, ((), ()))
        return next((value for value in reversed(values) if math.isfinite(value)), None)


@dataclasses.dataclass(frozen=True)
class Use:
    """How experts were used, summed over samples: by task taken and weight [N, M, E], asked [N, M]. about: when it was counted."""

    about: str
    decisions: tuple[str, ...]
    modalities: tuple[str, ...]
    num_experts: int
    tasks: Mapping[str, Mapping[str, np.ndarray]]

    def total(self, name: str) -> np.ndarray:
        return np.sum([arrays[name] for arrays in self.tasks.values()], axis=0)


def json_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Objects, and None for a line that is none; nothing where there is no file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                content = json.loads(line)
            except (ValueError, RecursionError):
                content = None
            yield content if isinstance(content, dict) else None


def read_metrics(path: Path) -> Metrics:
    columns: dict[str, Column] = {}
    over_time: dict[str, Buckets] = {}
    alarms: list[tuple[int, str]] = []
    damaged = last_step = 0
    for record in json_lines(path):
        step = record.get("step") if record else None
        if record is None or not is_count(step):
            damaged += 1
            continue
        last_step = step
        for key, value in record.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
                if key not in columns and (len(columns) >= MAX_COLUMNS or len(key) > MAX_NAME):
                    continue
                steps, values = columns.setdefault(key, (array.array("q"), array.array("d")))
                steps.append(step)
                values.append(as_float(value))
            elif key == "alarms" and isinstance(value, list):
                alarms += [(step, str(text)) for text in value]
            elif isinstance(value, list) and (numbers := numbers_of(value)) is not None:
                over_time.setdefault(key, Buckets(OVER_TIME)).add(step, numbers)
    means = {key: buckets.means() for key, buckets in over_time.items()}
    return Metrics(columns, means, tuple(alarms), last_step, damaged)


def read_use(path: Path) -> Use | None:
    """Of the run's last quarter; None where there is no file, or no record in it that can be read."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        count = sum(1 for _ in file)
    late = collections.deque(_lines_from(path, count - max(1, count // LATE)))
    found = [use for use in late if use is not None]
    if not found:
        return None
    last = found[-1][1]
    alike = [(step, use) for step, use in found if _shape(use) == _shape(last)]
    tasks: dict[str, dict[str, np.ndarray]] = {}
    for _, use in alike:
        for task, arrays in use.tasks.items():
            sums = tasks.setdefault(task, {name: np.zeros_like(numbers) for name, numbers in arrays.items()})
            for name, numbers in arrays.items():
                sums[name] += numbers
    first, end = alike[0][0], alike[-1][0]
    about = (
        f"while training, records of steps {first:,} to {end:,}"
        if len(alike) > 1
        else f"while training, up to step {end:,}"
    )
    return dataclasses.replace(last, tasks=tasks, about=about)


def _lines_from(path: Path, start: int) -> Iterator[tuple[int, Use] | None]:
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if number >= start:
                try:
                    content = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                use = use_of(content, "") if isinstance(content, dict) else None
                yield (content["step"], use) if use is not None and is_count(content.get("step")) else None


def _shape(use: Use) -> tuple[Any, ...]:
    return use.decisions, use.modalities, use.num_experts


def use_of(content: Mapping[str, Any], about: str) -> Use | None:
    """None where names and numbers do not go together."""
    decisions, modalities, num_experts = (content.get(key) for key in ("decisions", "modalities", "experts"))
    if not isinstance(decisions, list) or not isinstance(modalities, list) or not is_count(num_experts):
        return None
    if not decisions or not modalities or not num_experts or not isinstance(content.get("tasks"), dict):
        return None
    shape_NME = (len(decisions), len(modalities), num_experts)
    shapes = {"taken": shape_NME, "asked": shape_NME[:2], "weight": shape_NME}
    tasks = {}
    for task, arrays in content["tasks"].items():
        if not isinstance(arrays, dict):
            return None
        numbers = {name: numbers_of(arrays.get(name)) for name in shapes}
        if any(found is None or found.shape != shapes[name] for name, found in numbers.items()):
            return None
        tasks[task[:MAX_NAME]] = {name: np.nan_to_num(found) for name, found in numbers.items() if found is not None}
    if not tasks:
        return None
    names = tuple(str(name)[:MAX_NAME] for name in decisions), tuple(str(name)[:MAX_NAME] for name in modalities)
    return Use(about, *names, num_experts, tasks)


def numbers_of(value: Any) -> np.ndarray | None:
    """A list of (lists of) numbers as an array; None for anything else. null is no number (NaN)."""
    try:
        numbers = np.array(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    return numbers if numbers.ndim and numbers.size else None


def is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.nan
