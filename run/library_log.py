"""Messages of the libraries: into a file of the run folder, since nobody who trains a model can use them.

logs/rank_00000.log    warnings of Python and what DeepSpeed, megatron-core and others log, rank by rank
"""

from __future__ import annotations

import logging
from pathlib import Path

LIBRARIES = ("DeepSpeed",)
"""Loggers with handlers of their own, which write to the console."""


def keep_library_messages(folder: Path, rank: int) -> Path:
    """From here on this process's log messages and warnings go to the returned file, and errors to the console as well."""
    path = folder / "logs" / f"rank_{rank:05d}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    console = logging.StreamHandler()
    console.setLevel(logging.ERROR)
    logging.captureWarnings(True)
    for logger in (logging.getLogger(), *map(logging.getLogger, LIBRARIES)):
        logger.handlers = [file, console]
    return path
