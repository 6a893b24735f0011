"""The board's curves as a report in wandb: python -m clusters.dashboards.wandb_report --entity TEAM --project sparse-generalists

Needs pip install -e '.[wandb-report]', and WANDB_API_KEY or `wandb login`: a report lives on wandb's server alone. Running it again makes
another draft. `--show` prints what would be saved and asks nobody.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from run.errors import EXIT_USER

EXIT_FAILED = 1
STEP = "step"


@dataclasses.dataclass(frozen=True)
class Curve:
    """keys: of metrics.jsonl; pattern: of keys, where they vary, in place of them."""

    title: str
    keys: tuple[str, ...] = ()
    pattern: str = ""
    log_y: bool = False


SECTIONS = {
    "Learning": (
        Curve("Loss by task", pattern="^loss/.*"),
        Curve("Accuracy by task", pattern="^accuracy/.*"),
        Curve("Evaluation on the split val", pattern="^val/.*"),
        Curve("Gradient", pattern="^grad_norm.*", log_y=True),
        Curve("Learning rate", ("lr",)),
        Curve("Epochs", pattern="^epoch/.*"),
    ),
    "Speed": (
        Curve("Tokens per second", pattern="^tokens_per_s.*"),
        Curve("Time of a step by phase", pattern="^time/.*"),
        Curve("Waits for data", ("data_wait",)),
        Curve("Utilisation and padding", ("mfu", "padding")),
        Curve("Peak memory, GiB", ("memory/peak_gib",)),
        Curve("Sent in a step, GiB", pattern="^sent_gib/.*"),
    ),
    "Experts": (
        Curve("Busiest expert of all", ("expert_load_max",)),
        Curve("Choices that found a place", pattern="^success/.*"),
        Curve("Dead experts", ("dead_experts",)),
        Curve("Auxiliary losses", pattern="^auxiliary/.*"),
    ),
    "Faults": (
        Curve("Samples that had to be replaced", pattern="^faults.*"),
        Curve("Skipped updates", ("skipped_steps",)),
    ),
}
IMAGES = ("maps/expert_load",)
"""The heat map that the sink draws: a decision a row, an expert a column."""


def report(entity: str, project: str) -> Any:
    """A draft; nothing is sent."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [
        wr.P("Runs of sparse-generalists. What each figure means: the page on tracking."),
        wr.TableOfContents(),
    ]
    for name, curves in SECTIONS.items():
        panels: list[Any] = [
            wr.LinePlot(
                title=curve.title,
                x=STEP,
                y=list(curve.keys),
                metric_regex=curve.pattern or None,
                log_y=curve.log_y or None,
                layout=wr.Layout(x=8 * (index % 3), y=6 * (index // 3), w=8, h=6),
            )
            for index, curve in enumerate(curves)
        ]
        if name == "Experts":
            panels.append(wr.MediaBrowser(media_keys=list(IMAGES), layout=wr.Layout(x=8, y=6, w=16, h=6)))
        runs = wr.Runset(entity=entity, project=project)
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(
        entity=entity,
        project=project,
        title="Training",
        description="Loss, speed, experts, faults",
        width="fluid",
        blocks=blocks,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m clusters.dashboards.wandb_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--entity", help="user or team in wandb")
    parser.add_argument("--project", default="sparse-generalists", help="tracking.project of the runs (%(default)s)")
    parser.add_argument("--show", action="store_true", help="print the curves; send nothing")
    arguments = parser.parse_args(argv)
    if arguments.show:
        for name, curves in SECTIONS.items():
            print(name)
            for curve in curves:
                print(f"  {curve.title}: {curve.pattern or ', '.join(curve.keys)}")
        return 0
    if not arguments.entity:
        parser.error("--entity is needed: the user or team in wandb whose report it will be")
    try:
        made = report(arguments.entity, arguments.project)
        made.save(draft=True)
    except ModuleNotFoundError as error:
        print(f"error: {error}: pip install -e '.[wandb-report]'", file=sys.stderr)
        return EXIT_USER
    except Exception as error:  # whatever the server or the way to it has
        print(f"error: the report was not saved: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return EXIT_FAILED
    print(made.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
