"""Do all machines run the same source? Each has a copy of its own where there is no common file system, and copies grow apart."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from parallel.health.same_inputs import DisagreementError, digest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    *("train.py", "evaluate.py", "predict.py"),
    *("data", "model", "parallel", "plan", "run", "evaluation", "prediction", "analysis", "clusters", "ds_configs"),
)
"""What decides how a run computes. Tests and documentation may differ; configurations are compared by what they say."""
SUFFIXES = {".py", ".json"}
NAMED = 3


def source_digests(root: Path = ROOT) -> dict[str, str]:
    """A few characters for each source file, by its path below the root."""
    return {path.relative_to(root).as_posix(): digest(path.read_bytes()) for path in _files(root)}


def code_digest(root: Path = ROOT) -> str:
    """A few characters that follow from all source files. Raises OSError."""
    content = "".join(f"{name} {value}\n" for name, value in source_digests(root).items())
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def check_same_code(root: Path = ROOT) -> None:
    """Collective. Raises DisagreementError on all ranks where the source of some differs; it names files and machines."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    everyone: list[Any] = [(socket.gethostname(), code_digest(root))] * dist.get_world_size()
    dist.all_gather_object(everyone, everyone[0])
    if len({code for _, code in everyone}) == 1:
        return
    trees: list[Any] = [None] * len(everyone)
    dist.all_gather_object(trees, source_digests(root))
    files = different_files(trees)
    hosts: dict[str, list[str]] = {}
    for host, code in everyone:
        if host not in hosts.setdefault(code, []):
            hosts[code].append(host)
    named = ", ".join(files[:NAMED]) + f" and {len(files) - NAMED} more" * (len(files) > NAMED)
    raise DisagreementError(
        f"machines run different code: {'; '.join(f'{code} on {_some(names)}' for code, names in hosts.items())}. {named} "
        "differ: bring all to one state (git pull, rsync) and start again"
    )


def different_files(trees: list[dict[str, str]]) -> list[str]:
    """Paths that not all trees have alike, sorted."""
    names = sorted(set().union(*trees))
    return [name for name in names if len({tree.get(name) for tree in trees}) > 1]


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + " ..." * (len(names) > 4)


def _files(root: Path) -> Iterator[Path]:
    for source in SOURCES:
        place = root / source
        if place.is_file():
            yield place
        # Caches and hidden folders hold nothing with these endings that is imported.
        yield from sorted(path for path in place.rglob("*") if path.suffix in SUFFIXES and path.is_file())
