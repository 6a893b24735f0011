"""`python -m data.synthetic --out DIR`: write the made world."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

from data.shards import DatasetError
from data.shards.printing import print_any_name
from data.synthetic import WorldSize, write_demo_world


def main(argv: list[str] | None = None) -> int:
    print_any_name()
    parser = argparse.ArgumentParser(prog="python -m data.synthetic", description="Write the made world.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the five data sets")
    parser.add_argument("--seed", type=int, default=0)
    sizes = parser.add_argument_group("samples", "training samples of each data set, and of each other split")
    for field in dataclasses.fields(WorldSize):
        sizes.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    arguments = vars(parser.parse_args(argv))
    out, seed = arguments.pop("out"), arguments.pop("seed")
    start = time.perf_counter()
    try:
        write_demo_world(out, seed, WorldSize(**arguments))
    except (DatasetError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: ready after {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
