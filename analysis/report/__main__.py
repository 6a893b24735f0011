"""Writes the report of a run, or of several side by side: one HTML file that opens anywhere and loads nothing.

  python -m analysis.report --run runs/demo
  python -m analysis.report --run runs/dense --run runs/moe --out both.html
  python -m analysis.report --run runs/demo --follow                          again every 30 s until the run ends

It reads the files of the run folder and no checkpoint, so it works while the run trains. What other commands of analysis/ have found is
shown where it is there; where it is not, the page names the command.

Exit codes: 0 done, 2 a folder holds no run, or the file cannot be written.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from analysis.command import FOLDER, check_place
from analysis.report.page import page_of
from analysis.report.reading import check_run, read_files
from parallel.checkpoints import write_atomically
from run.command_line import positive
from run.errors import EXIT_USER, USER_ERRORS, OutputError
from run.places import expanded

SECONDS = 30


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run",
        required=True,
        action="append",
        dest="runs",
        metavar="FOLDER",
        help="a run; again for each that is to be compared",
    )
    parser.add_argument("--out", metavar="FILE", help="by default analysis/report.html in the first run's folder")
    parser.add_argument(
        "--follow",
        nargs="?",
        type=positive,
        const=SECONDS,
        default=0,
        metavar="SECONDS",
        help=f"write it again every so many seconds (default: {SECONDS}) until all runs have ended, or Ctrl-C; the page loads itself again",
    )
    return parser.parse_args(argv)


def write(folders: Sequence[Path], out: Path, follow: int) -> bool:
    """-> whether all runs have ended, in which case the page does not load itself again. Raises ConfigError, OutputError."""
    runs = [read_files(folder) for folder in folders]
    has_ended = all(run.has_ended for run in runs)
    page = page_of(runs, 0 if has_ended else follow)
    try:
        if out.exists() and not out.is_file():  # a pipe or device, which nothing may replace
            out.write_text(page, encoding="utf-8")
        else:
            write_atomically(out.resolve(), page)
    except OSError as error:
        raise OutputError(f"{out}: {error.strerror}") from error
    return has_ended


def follow(folders: Sequence[Path], out: Path, seconds: int) -> None:
    """Until all runs have ended or Ctrl-C, after which the page stands still."""
    try:
        while True:
            time.sleep(seconds)
            if write(folders, out, seconds):
                return
    except KeyboardInterrupt:
        write(folders, out, 0)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    try:
        folders = [expanded(run) for run in arguments.runs]
        for folder in folders:
            check_run(folder)
        if not arguments.out:
            check_place(folders[0])
        out = expanded(arguments.out) if arguments.out else folders[0] / FOLDER / "report.html"
        has_ended = write(folders, out, arguments.follow)
        print(out, flush=True)
        if arguments.follow and not has_ended:
            follow(folders, out, arguments.follow)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    return 0


if __name__ == "__main__":
    sys.exit(main())
