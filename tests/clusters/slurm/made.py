"""Files for sbatch, made as the command makes them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from clusters import slurm
from clusters.slurm.job import job_of
from clusters.slurm.script import render


def made(words: Sequence[str]) -> str:
    """What `python -m clusters slurm WORDS` prints. Raises what it raises."""
    parser = argparse.ArgumentParser()
    slurm.add_command(parser.add_subparsers())
    return render(job_of(parser.parse_args(["slurm", *words])))
