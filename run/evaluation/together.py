"""Ranks that evaluate together end together: when one fails, the others are told, and leave with its exit code and one line."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from parallel.checkpoints.together import on_first_rank
from parallel.health.failures import RankGuard
from parallel.launch import launched_rank, launched_world_size
from run.errors import USER_ERRORS, exit_code

FOLDER = "evaluations"
"""Of the results, too (evaluation/kept.py)."""


@contextlib.contextmanager
def together(run: Path, stall_s: float) -> Iterator[Callable[[], object]]:
    """Collective. Gives what is to be called after each batch. The run's own notes are those of a training that may go on beside, so these
    lie in a folder of their own, which stays where a rank has failed."""
    if launched_world_size() == 1:
        yield lambda: None
        return
    notes = on_first_rank(lambda: _new_folder(run))
    with RankGuard(USER_ERRORS, exit_code) as guard:
        watchdog = guard.start(notes, stall_s)
        watchdog.phase("evaluate")
        yield lambda: watchdog.phase("evaluate")
    if launched_rank() == 0:
        shutil.rmtree(notes, ignore_errors=True)


def _new_folder(run: Path) -> Path:
    """The run's may be read-only; ranks of one machine share the system's."""
    try:
        (run / FOLDER).mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="ranks_", dir=run / FOLDER))
    except OSError:
        return Path(tempfile.mkdtemp(prefix="ranks_"))
