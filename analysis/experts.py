"""Which experts serve which task and modality: `python -m analysis.experts --run R`, over a split of the run's data.

Keeps RUN/analysis/experts.json and pictures beside it: shares of experts by task and modality, and the share of image tokens of each
expert (LIMoE's figure, papers.md 4.6). `--compare R2 ...` draws the routers of several runs side by side (papers.md 2.10).
Legend: N decisions, M modalities, E experts, X packed figures of a modality (model/moe/use.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from analysis.charts import heat_map, save, side_by_side, stacked_shares
from analysis.command import FOLDER, keeping, parser_of, run_command, write_json
from analysis.opened import OpenRun, open_run
from data.batch import Modality, Scope, TaskBatch
from data.stream.evaluation import evaluation_pass
from data.stream.share import Share
from data.stream.source import Source
from model.moe.use import packed_width, unpacked
from parallel.collectives import total
from run.command_line import positive
from run.errors import ConfigError
from run.metrics.alarms import DEAD
from run.metrics.expert_use import decision_names, figures, rounded, table
from run.places import expanded

FILE = "experts.json"


def measure(run: OpenRun, limit: int | None, batch_size: int) -> dict[str, Tensor]:
    """Collective. By task, packed [N, M, X] over the samples of all ranks, each counted once."""
    return {source.name: _use_of(run, source, limit, batch_size) for source in run.sources}


def batches_of(run: OpenRun, source: Source, limit: int | None, batch_size: int) -> Iterator[TaskBatch]:
    """This rank's part of the samples, unmodified, compared within their batch."""
    share = Share(run.mesh.expert_data.rank, run.mesh.expert_data.size)
    for passed in evaluation_pass(source, batch_size, limit, share):
        examples = list(itertools.compress(passed.examples, passed.valid))
        if examples:
            yield dataclasses.replace(source.task.batch(examples, None), scope=Scope.LOCAL).to(run.mesh.device)


@torch.no_grad()
def _use_of(run: OpenRun, source: Source, limit: int | None, batch_size: int) -> Tensor:
    model = run.config.model
    sums = torch.zeros(len(decision_names(model)), len(Modality), packed_width(model.experts.num_experts))
    sums = sums.double().to(run.mesh.device)
    hidden = not (run.mesh.is_first and sys.stderr.isatty())
    for batch in tqdm(
        batches_of(run, source, limit, batch_size), source.name, unit="batch", leave=False, disable=hidden
    ):
        use = run.objective(batch).use
        if len(sums):
            sums += use.packed()
    return total(sums, run.mesh.expert_data).cpu()


def content_of(run: OpenRun, split: str, by_task: dict[str, Tensor]) -> dict[str, Any]:
    """What is kept."""
    use = unpacked(torch.stack(list(by_task.values())).sum(dim=0))
    image_NE = use.taken_ME[:, Modality.IMAGE] + use.taken_ME[:, Modality.VIDEO]
    share_NE = image_NE / use.taken_ME.sum(dim=1).clamp(min=1)
    about = {"step": run.step, "split": split, "router": run.config.model.experts.router}
    return about | table(decision_names(run.config.model), by_task) | figures(use) | {"image_share": rounded(share_NE)}


def lines_of(content: dict[str, Any]) -> list[str]:
    """A table for the console: of each decision, how evenly it spreads, what its experts are for, and which are dead."""
    lines = [f"{'decision':<16} {'busiest':>8} {'entropy':>8}  image share of each expert (- where it is dead)"]
    rows = zip(*(content[key] for key in ("decisions", "expert_load", "router_entropy", "image_share")), strict=True)
    for name, load, entropy, image in rows:
        dead = DEAD / len(load) * sum(load)
        parts = [f"{share:4.0%}" if taken > dead else "   -" for share, taken in zip(image, load, strict=True)]
        lines.append(f"{name:<16} {max(load):8.1%} {entropy:8.3f}  {' '.join(parts)}")
    return lines


def pictures_of(content: dict[str, Any]) -> dict[str, Any]:
    """Specifications of charts by name of file."""
    experts = [str(expert) for expert in range(content["experts"])]
    rows, values = shares_by_group(content)
    names = content["decisions"]
    charts = {
        f"experts_{name.replace(' ', '_')}": heat_map(of_one, rows, experts, f"Share of gate weights by expert, {name}")
        for name, of_one in zip(names, values.tolist(), strict=True)
    }
    charts["experts_image_share"] = stacked_shares(
        content["image_share"], names, experts, "Share of image tokens of each expert", ("image", "text")
    )
    return charts


def shares_by_group(content: dict[str, Any]) -> tuple[list[str], np.ndarray]:
    """-> (names of task and modality, share of each expert in the group's gate weights [N, groups, E])."""
    rows, parts = [], []
    for task, use in content["tasks"].items():
        weight_NME = np.asarray(use["weight"], dtype=float)
        for number, modality in enumerate(content["modalities"]):
            if weight_NME[:, number].any():
                rows.append(f"{task}, {modality}")
                parts.append(weight_NME[:, number] / np.maximum(weight_NME[:, number].sum(axis=1, keepdims=True), 1e-9))
    return rows, np.stack(parts, axis=1)


def compared(runs: Sequence[Path]) -> dict[str, Any]:
    """The last decision of each run, side by side. Raises ConfigError."""
    charts = []
    for folder in runs:
        content = read_kept(folder)
        rows, values = shares_by_group(content)
        experts = [str(expert) for expert in range(content["experts"])]
        title = f"{folder.name}: {content['router']} router, {content['decisions'][-1]}"
        charts.append(heat_map(values[-1].tolist(), rows, experts, title))
    return side_by_side(charts)


def read_kept(folder: Path) -> dict[str, Any]:
    """Raises ConfigError where the run has not been looked at."""
    try:
        content = json.loads((folder / FOLDER / FILE).read_text(encoding="utf-8"))
        shares_by_group(content)
        return content
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} has no analysis/{FILE}: run python -m analysis.experts --run {folder} first"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder}/analysis/{FILE} is damaged ({error}): make it again") from error


def experts(arguments: argparse.Namespace) -> None:
    run = open_run(arguments, arguments.split)
    if not decision_names(run.config.model):
        raise ConfigError(f"{run.folder} has no experts: model.experts.placement={run.config.model.experts.placement}")
    by_task = measure(run, arguments.limit, arguments.batch_size)
    if not run.mesh.is_first:
        return
    if not any(packed.any() for packed in by_task.values()):
        raise ConfigError(f"{run.folder}: no sample of {', '.join(by_task)} on split {arguments.split} was routed")
    content = content_of(run, arguments.split, by_task)
    print(*lines_of(content), sep="\n")
    with keeping(run.folder) as folder:
        write_json(folder / FILE, content)
        for name, spec in pictures_of(content).items():
            save(spec, folder / f"{name}.svg")
        if arguments.compare:
            save(compared([run.folder, *map(expanded, arguments.compare)]), folder / "routers.svg")
    print(f"kept in {folder}")


def main(argv: list[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--split", default="val", help="of the data sets (default: val)")
    parser.add_argument("--limit", type=positive, metavar="N", help="samples of each task at most")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="slots are shared within a batch")
    parser.add_argument(
        "--compare", nargs="+", action="extend", default=[], metavar="RUN", help="runs that were looked at before"
    )
    return run_command(experts, parser, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
