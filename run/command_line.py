"""What train.py is told on the command line, and kinds of numbers that commands take."""

from __future__ import annotations

import argparse
import math
from typing import Literal


def parse_arguments(argv: list[str], description: str = "") -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="run configuration (YAML), see configs/")
    parser.add_argument(
        "--describe", action="store_true", help="print layers, parameters and FLOPs of the configuration and stop"
    )
    parser.add_argument(
        "--plan", action="store_true", help="print memory and traffic of a rank on --world ranks and stop; needs no GPU"
    )
    parser.add_argument("--world", type=int, help="with --plan: ranks of the run (default: those that were started)")
    parser.add_argument(
        "--device-memory", type=above_zero, default=80.0, metavar="GIB", help="with --plan: of one rank"
    )
    parser.add_argument("--gpus-per-node", type=positive, default=8, metavar="N", help="with --plan (default 8)")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by the launcher")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for instance model.depth=6 data.tasks.shapes.batch_size=8"
    )
    return parser.parse_args(argv)


def checkpoint_step(text: str) -> int | Literal["best"]:
    """A number from 0, or `best`."""
    return "best" if text == "best" else natural(text)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def above_zero(text: str) -> float:
    """Above zero."""
    number = finite(text)
    if number <= 0:
        raise ValueError
    return number


def crops_and_clips(text: str) -> tuple[int, int]:
    """3x4 is (3, 4)."""
    crops, clips = text.split("x")
    return positive(crops), positive(clips)
