"""Disturbs a small training at random places and starts the same command again, which has to end with the same losses.

Results are lines of OUT/results.jsonl; repeated, the command goes on after the last one. As root on Linux it works in mounts of its own,
with a /dev/shm of its own. Exit codes: 0 all faults were survived, 1 some were not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

from scripts.faults.checks import losses
from scripts.faults.faults import PHASES, Fault, draw
from scripts.faults.report import summary, table
from scripts.faults.table import missing
from scripts.faults.trial import Reference, Result, attempt, undisturbed, write_config

OWN = "FAULTS_OWN_MOUNTS"
LIMIT_S = 600.0


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100, help="faults (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="number of the first fault (default 0)")
    parser.add_argument(
        "--only", action="append", metavar="KIND", choices=tuple(PHASES), help="this kind alone; may be repeated"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/faults"), help="default outputs/faults")
    parser.add_argument(
        "--slack",
        type=float,
        default=1.0,
        help="factor of the times allowed, where the machine does other work (default 1)",
    )
    parser.add_argument("--again", action="store_true", help="try those again that were not survived")
    parser.add_argument("--keep", action="store_true", help="keep the folders of faults that were survived, too")
    parser.add_argument("--list", action="store_true", help="print what is drawn, and what is left out here, and stop")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    kinds = tuple(kind for kind in arguments.only or PHASES if not missing(kind))
    for kind in arguments.only or PHASES:
        if missing(kind):
            print(f"left out: {kind}: {missing(kind)}")
    if not kinds:
        print("error: nothing is left", file=sys.stderr)
        return 1
    faults = [
        draw(arguments.seed, number, kinds) for number in range(arguments.start, arguments.start + arguments.count)
    ]
    if arguments.list:
        for fault in faults:
            print(json.dumps(dataclasses.asdict(fault)))
        return 0
    if not os.geteuid() and shutil.which("unshare") and not os.environ.get(OWN):
        _in_own_mounts(sys.argv[1:] if argv is None else argv)
    for number in (signal.SIGTERM, signal.SIGINT):  # trials end what they have started
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    known = _results(out / "results.jsonl", arguments.seed, faults, arguments.again)
    waiting = [fault for fault in faults if fault.number not in known]
    if waiting:
        config = write_config(out)
        reference = _reference(config, out)
        print(
            f"undisturbed: {reference.whole_s:.0f} s, of which {reference.start_s:.0f} s until the first step",
            flush=True,
        )
        for fault in waiting:
            result = attempt(fault, config, out, reference, arguments.slack, arguments.keep)
            known[fault.number] = result
            with (out / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"seed": arguments.seed} | dataclasses.asdict(result)) + "\n")
            print(_line(fault, result, len(known), len(faults)), flush=True)
    results = [known[fault.number] for fault in faults]
    print(f"\n{table(results)}\n\n{summary(results)}")
    return int(any(result.wrong for result in results))


def _in_own_mounts(argv: list[str]) -> NoReturn:
    """The same command where mounts, and what lies in /dev/shm, are this command's alone."""
    script = 'mount -t tmpfs -o size=2g none /dev/shm && exec "$@"'
    command = ["unshare", "--mount", "bash", "-c", script, "bash", sys.executable, "-m", "scripts.faults", *argv]
    os.execvpe(command[0], command, os.environ | {OWN: "1"})


def _results(path: Path, seed: int, faults: list[Fault], again: bool) -> dict[int, Result]:
    """Of earlier starts, as far as they are of these faults; the last of each counts. again: without those that were not survived."""
    kinds = {fault.number: fault.kind for fault in faults}
    found: dict[int, Result] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            result = Result(**{key: value for key, value in values.items() if key != "seed"})
            if values["seed"] == seed and kinds.get(result.number) == result.kind:
                found[result.number] = result
    return {number: result for number, result in found.items() if not (again and result.wrong)}


def _reference(config: Path, out: Path) -> Reference:
    """Computed once, and kept."""
    path, folder = out / "reference.json", out / "undisturbed"
    if path.exists():
        times = json.loads(path.read_text(encoding="utf-8"))
        return Reference(losses(folder / "runs" / "run"), times["start_s"], times["whole_s"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    reference = undisturbed(config, folder, LIMIT_S)
    path.write_text(json.dumps({"start_s": reference.start_s, "whole_s": reference.whole_s}), encoding="utf-8")
    return reference


def _line(fault: Fault, result: Result, done: int, count: int) -> str:
    place = f"{fault.phase}" + (f" of step {fault.step}" if fault.step else "")
    verdict = result.wrong or f"ended {result.code} after {result.ended_s:.0f} s, resumed from {result.resumed}"
    told = "FAILED" if result.wrong else "ok"
    return f"{done}/{count} {told}  {fault.kind}, rank {fault.rank}, {place}: {verdict} ({result.seconds:.0f} s)"


if __name__ == "__main__":
    sys.exit(main())
