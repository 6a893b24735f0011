"""The checkpoints that lie in a store. One counts when its manifest is there and all files have the sizes that it names."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property

from clusters.store.names import CHECKPOINTS, manifest_name, step_and_file
from clusters.store.place import Place, StoreError
from parallel.checkpoints import CheckpointError
from parallel.checkpoints.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, parse


@dataclasses.dataclass(frozen=True)
class Stored:
    """sizes: of what lies in its folder, by name; text: of the manifest, if it is there; problem: why it does not count, or empty."""

    step: int
    sizes: dict[str, int]
    text: bytes | None
    manifest: Manifest | None
    problem: str

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())

    @cached_property
    def best_step(self) -> int | None:
        """Which checkpoint the run held for its best one when it wrote this."""
        best = self.manifest.state.get("best") if self.manifest else None
        step = best.get("step") if isinstance(best, dict) else None
        return step if isinstance(step, int) and not isinstance(step, bool) else None


def sizes_by_step(place: Place) -> dict[int, dict[str, int]]:
    """Of all files of checkpoints by their names, newest step first, complete or not."""
    found: dict[int, dict[str, int]] = {}
    for name, size in place.find(CHECKPOINTS).items():
        where = step_and_file(name)
        if where is not None:
            found.setdefault(where[0], {})[where[1]] = size
    return dict(sorted(found.items(), reverse=True))


def look(place: Place, step: int, sizes: dict[str, int]) -> Stored:
    """Reads the manifest alone."""
    if MANIFEST not in sizes:
        return Stored(step, sizes, None, None, f"no {MANIFEST}: its upload has not ended")
    text, manifest, problem = None, None, ""
    try:
        text = place.read(manifest_name(step), MAX_MANIFEST_BYTES)
        manifest = parse(text) if text is not None else None
        problem = _problem(step, sizes, manifest)
    except (CheckpointError, StoreError) as error:
        problem = f"{MANIFEST}: {error}"
    return Stored(step, sizes, text, manifest, problem)


def _problem(step: int, sizes: dict[str, int], manifest: Manifest | None) -> str:
    if manifest is None:
        return f"{MANIFEST} was removed while it was read"
    if manifest.step != step:
        return f"{MANIFEST} is of step {manifest.step}"
    for name, file in manifest.files.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != file.bytes:
            return f"{name} has {sizes[name]} bytes, {MANIFEST} says {file.bytes}"
    return ""


def all_stored(place: Place) -> list[Stored]:
    """Newest first."""
    return [look(place, step, sizes) for step, sizes in sizes_by_step(place).items()]


def rows(place: Place) -> list[dict[str, object]]:
    """What `store list` tells, newest first. Raises StoreError where the place holds no checkpoint."""
    found = all_stored(place)
    if not found:
        raise StoreError(f"{place.url} holds no checkpoint: is it the place of one run?")
    complete = [stored for stored in found if not stored.problem]
    best = complete[0].best_step if complete else None
    return [
        {
            "step": stored.step,
            "bytes": stored.bytes,
            "files": len(stored.sizes),
            "manifest_sha256": hashlib.sha256(stored.text).hexdigest() if stored.text is not None else None,
            "complete": not stored.problem,
            "best": stored.step == best,
            "problem": stored.problem,
        }
        for stored in found
    ]


def table(found: Sequence[dict[str, object]], as_json: bool) -> list[str]:
    """Lines to print."""
    if as_json:
        return [json.dumps(row) for row in found]
    lines = [f"{'step':>10}  {'bytes':>16}  {'files':>5}  state"]
    for row in found:
        state = "complete" if row["complete"] else f"does not count: {row['problem']}"
        lines.append(
            f"{row['step']:>10,}  {row['bytes']:>16,}  {row['files']:>5,}  {state}{', best' if row['best'] else ''}"
        )
    return lines
