"""What the commands of analysis/ have in common: options, exit codes, and the folder that keeps what they find."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from parallel.checkpoints import write_atomically
from parallel.launch import check_launch, is_first_on_machine, launched_world_size
from parallel.mesh import destroy_mesh
from run.command_line import checkpoint_step, natural, positive, split_overrides
from run.errors import USER_ERRORS, OutputError, exit_code, is_told_here
from run.folder import CONFIG
from run.places import expanded
from run.sinks.json_lines import json_line

FOLDER = "analysis"
LISTS = ("tasks", "layers", "linears", "over", "decisions", "compare")
"""Options of one command or another that take several words."""


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """With the options of a command that opens a run's checkpoint and data."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, metavar="FOLDER", help="a run")
    parser.add_argument("--step", type=checkpoint_step, metavar="N|best", help="of a checkpoint; by default the newest")
    parser.add_argument(
        "--tasks", nargs="+", action="extend", default=[], metavar="NAME", help="by default all tasks of the run"
    )
    parser.add_argument(
        "--tensor", type=positive, default=1, metavar="N", help="cut the network over so many ranks (parallel.tensor)"
    )
    parser.add_argument(
        "--expert", type=positive, default=1, metavar="N", help="share experts out over so many (parallel.expert)"
    )
    parser.add_argument(
        "--threads", type=natural, default=0, metavar="N", help="CPU threads of a rank; 0 leaves the choice to torch"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="where data lie today: data.tasks.NAME.path=PLACE"
    )
    return parser


def run_command(
    command: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, argv: Sequence[str]
) -> int:
    """-> the exit code: 0 done, 2 the run, its folder, checkpoint or data cannot be used."""
    try:
        check_launch()
        arguments = parser.parse_args(argv)
        split_overrides(arguments, *(name for name in LISTS if hasattr(arguments, name)))
        if (
            is_first_on_machine() and (expanded(arguments.run) / CONFIG).is_file()
        ):  # if not, the command says what is wrong
            check_place(arguments.run)
        command(arguments)
        if launched_world_size() > 1:
            destroy_mesh()
    except USER_ERRORS as error:
        if is_told_here(error, is_first_on_machine()):
            print(f"error: {error}", file=sys.stderr)
        return exit_code(error)
    return 0


def check_place(run: str | Path) -> None:
    """Raises OutputError where a run's folder could not keep what is found: better now than after hours of work."""
    with keeping(run) as folder:
        if not os.access(folder, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


@contextlib.contextmanager
def keeping(run: str | Path) -> Iterator[Path]:
    """The folder of a run that keeps what was found, made where it is not there. Raises OutputError for errors of writing within it."""
    folder = expanded(str(run)) / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        yield folder
    except OSError as error:
        raise OutputError(f"{error.filename or folder} cannot be written: {error.strerror or error}") from error


def write_json(path: Path, content: dict) -> None:
    """Numbers that are not finite become null."""
    write_atomically(path, json_line(content) + "\n")
