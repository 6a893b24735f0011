"""What must hold after a fault; each check returns what is wrong, or nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from scripts.faults.faults import STEPS

TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Compared:
    """difference: the largest relative one of a loss or a gradient norm; wrong: empty if all is well."""

    difference: float
    wrong: str = ""


def read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def losses(run: Path) -> dict[int, dict[str, float]]:
    """Losses, gradient norms and figures of evaluations, by step."""
    wanted = ("loss/", "val/", "grad_norm")
    records = read_lines(run / "metrics.jsonl")
    return {record["step"]: {k: v for k, v in record.items() if k.startswith(wanted)} for record in records}


def compare(found: dict[int, dict[str, float]], wanted: dict[int, dict[str, float]]) -> Compared:
    if sorted(found) != list(range(1, STEPS + 1)):
        return Compared(float("inf"), f"the steps of the records are {sorted(found)}")
    worst, where = 0.0, ""
    for step, values in wanted.items():
        if values.keys() != found[step].keys():
            return Compared(
                float("inf"), f"step {step} has {sorted(values.keys() ^ found[step].keys())} in one of both"
            )
        for key, value in values.items():
            difference = abs(found[step][key] - value) / max(abs(value), 1e-12)
            if difference > worst:
                worst, where = difference, f"{key} of step {step}: {found[step][key]!r}, undisturbed {value!r}"
    return Compared(worst, where if worst > TOLERANCE else "")


def resumed_at(run: Path) -> int:
    """The step at which the last start went on; 0 from the beginning."""
    starts = [event for event in read_lines(run / "events.jsonl") if event["kind"] in ("start", "resume")]
    return starts[-1]["step"] if starts else 0


def shared_memory() -> set[str]:
    try:
        return {path.name for path in Path("/dev/shm").iterdir()}
    except OSError:
        return set()
