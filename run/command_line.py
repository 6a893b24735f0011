"""What train.py is told on the command line, and kinds of numbers that commands take."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal


class Several(argparse.Action):
    """Of an option with a list and a default: given again it adds to what was given, as action="extend" does, and not to the default."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        before: Sequence[Any] = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(() if before is self.default else before), *values])


def parse_arguments(argv: list[str], description: str = "") -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="run configuration (YAML), see configs/")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--describe", action="store_true", help="print layers, parameters and FLOPs of the configuration and stop"
    )
    instead.add_argument(
        "--plan", action="store_true", help="print memory and traffic of a rank on --world ranks and stop; needs no GPU"
    )
    world = parser.add_argument("--world", type=positive, metavar="N", help="ranks (default: those that were started)")
    memory = parser.add_argument("--device-memory", type=above_zero, metavar="GIB", help="of one rank (default 80)")
    per_node = parser.add_argument("--gpus-per-node", type=positive, metavar="N", help="(default 8)")
    of_plan = {world: None, memory: 80.0, per_node: 8}
    for option in of_plan:
        option.help = f"with --plan: {option.help}"
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by the launcher")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for instance model.depth=6 data.tasks.shapes.batch_size=8"
    )
    arguments = parser.parse_args(argv)
    for option, default in of_plan.items():
        if getattr(arguments, option.dest) is None:
            setattr(arguments, option.dest, default)
        elif not arguments.plan:
            parser.error(f"{option.option_strings[0]} goes with --plan")
    return arguments


def split_overrides(arguments: argparse.Namespace, *names: str) -> None:
    """Options with a list take every word behind them: those that are key=value, and no folder, go to the overrides."""
    for name in names:
        words = getattr(arguments, name) or []
        overrides = [word for word in words if _is_override(word)]
        arguments.overrides += overrides
        setattr(arguments, name, list(dict.fromkeys(word for word in words if word not in overrides)))


def _is_override(word: str) -> bool:
    key, is_one, _ = word.partition("=")
    return bool(is_one) and "/" not in key and not Path(word).exists()


def checkpoint_step(text: str) -> int | Literal["best"]:
    """A number from 0, or `best`."""
    return "best" if text == "best" else natural(text)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def at_least_two(text: str) -> int:
    """For a spread, or a comparison."""
    number = int(text)
    if number < 2:
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
