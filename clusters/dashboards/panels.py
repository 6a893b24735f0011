"""What the board shows, row by row. Names are those of run/metrics/names.py; a name that it does not have fails at import."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from run.metrics.names import METRICS, OF_PROMETHEUS

NAMES = {metric.name: metric.full_name for metric in (*OF_PROMETHEUS, *METRICS)}
CHOSEN = 'job=~"$job", run=~"$run"'
"""The board's variables."""
DECISION = "by (job, run, decision)"


@dataclasses.dataclass(frozen=True)
class Panel:
    """curves: legend by expression; unit: as Grafana calls it; kind: timeseries or stat; width: of 24; at_most: the axis ends there."""

    title: str
    about: str
    curves: Mapping[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    at_most: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


def chosen(expression: str) -> str:
    """With full names, each narrowed to the runs that the board's variables name: `@loss_nats` and `@phase_seconds{phase="data"}`."""

    def selector(found: re.Match[str]) -> str:
        more = f", {found[2]}" if found[2] else ""
        return f"{NAMES[found[1]]}{{{CHOSEN}{more}}}"

    return re.sub(r"@(\w+)(?:\{([^}]*)\})?", selector, expression)


def _panel(title: str, about: str, curves: Mapping[str, str], unit: str = "short", **more: object) -> Panel:
    return Panel(title, about, {chosen(expression): legend for expression, legend in curves.items()}, unit, **more)  # type: ignore[arg-type]


def _stat(title: str, about: str, expression: str, unit: str = "short") -> Panel:
    return _panel(title, about, {expression: "{{run}}"}, unit, kind="stat", width=4)


ROWS = (
    Row(
        "Now",
        (
            _stat("Done", "Steps done, of all", "@steps_done / @steps_planned", "percentunit"),
            _stat("Remaining", "At the pace of the last record", "@remaining_seconds", "s"),
            _stat(
                "Last record",
                "Age. Only of runs that have not ended: a killed one stays here",
                "time() - @last_record_timestamp_seconds and @running == 1",
                "s",
            ),
            _stat("Utilisation", "Model FLOPs utilisation", "@model_flops_utilisation_ratio", "percentunit"),
            _stat("Alarms", "Of routing, since the start of the program", "@alarms_total"),
            _stat("Dead experts", "Experts that nearly nobody chooses", "@dead_experts"),
        ),
    ),
    Row(
        "Learning",
        (
            _panel("Loss by task", "Mean since the last record", {"@loss_nats": "{{run}} {{task}}"}),
            _panel(
                "Accuracy by task",
                "Read-outs whose best candidate is the right one",
                {"@accuracy_ratio": "{{run}} {{task}}"},
                "percentunit",
            ),
            _panel(
                "Evaluation",
                "Figures of evaluations while training",
                {"@evaluation": "{{run}} {{split}} {{task}} {{figure}}"},
            ),
            _panel(
                "Gradient",
                "L2 norm before clipping, whole and by family of weights",
                {"@gradient_norm": "{{run}} all", "@family_gradient_norm": "{{run}} {{family}}"},
            ),
            _panel("Learning rate", "Of the last step", {"@learning_rate": "{{run}}"}),
            _panel(
                "Epochs", "Samples of each task so far, over the size of its data set", {"@epochs": "{{run}} {{task}}"}
            ),
        ),
    ),
    Row(
        "Speed",
        (
            _panel(
                "Tokens per second",
                "All ranks together",
                {"@tokens_per_second": "{{run}} all", "@modality_tokens_per_second": "{{run}} {{modality}}"},
            ),
            _panel("Samples per second", "All ranks together", {"@samples_per_second": "{{run}}"}),
            _panel("Model FLOPs", "All ranks together", {"@model_flops_per_second": "{{run}}"}, "flops"),
            _panel(
                "Time of a step by phase",
                "They add up to the step; evaluations have a chart of their own",
                {'@phase_seconds{phase!~"exchange|evaluate"}': "{{run}} {{phase}}"},
                "s",
                stacked=True,
            ),
            _panel(
                "Waits",
                "Shares of the time: for data, and for other ranks in exchanges",
                {
                    "@data_wait_ratio": "{{run}} data",
                    '@phase_seconds{phase="exchange"} / on (job, run, instance) group_left () @step_seconds': "{{run}} exchange",
                },
                "percentunit",
            ),
            _panel(
                "Utilisation and padding",
                "Model FLOPs utilisation; token places that are pads",
                {"@model_flops_utilisation_ratio": "{{run}} utilisation", "@padding_ratio": "{{run}} padding"},
                "percentunit",
            ),
            _panel("Peak memory", "Of the device, largest of ranks", {"@memory_peak_bytes": "{{run}}"}, "bytes"),
            _panel(
                "Sent in a step",
                "By axis of the mesh, largest of ranks",
                {"@step_sent_bytes": "{{run}} {{axis}}"},
                "bytes",
            ),
            _panel("Evaluation time", "Of one evaluation", {"@evaluation_seconds": "{{run}}"}, "s"),
        ),
    ),
    Row(
        "Experts",
        (
            _panel(
                "Busiest expert over an equal share",
                "By decision; 1 is balance",
                {f"max {DECISION} (@expert_load_ratio) / avg {DECISION} (@expert_load_ratio)": "{{run}} {{decision}}"},
            ),
            _panel(
                "Laziest expert over an equal share",
                "By decision; below 0.01 it counts as dead",
                {f"min {DECISION} (@expert_load_ratio) / avg {DECISION} (@expert_load_ratio)": "{{run}} {{decision}}"},
            ),
            _panel(
                "Busiest expert of all", "Its share of choices", {"@expert_load_max_ratio": "{{run}}"}, "percentunit"
            ),
            _panel("Entropy of the router", "Mean over tokens", {"@router_entropy_nats": "{{run}} {{decision}}"}),
            _panel(
                "Choices that found a place",
                "By modality",
                {"@success_ratio": "{{run}} {{modality}}"},
                "percentunit",
                at_most=1.0,
            ),
            _panel(
                "Decision with the fewest places",
                "Choices that found one, by modality",
                {"min by (job, run, modality) (@decision_success_ratio)": "{{run}} {{modality}}"},
                "percentunit",
                at_most=1.0,
            ),
            _panel("Dead experts", "Over all decisions", {"@dead_experts": "{{run}}"}),
            _panel("Auxiliary losses", "Unweighted", {"@auxiliary_loss": "{{run}} {{name}}"}),
            _panel("Alarms", "Of the last hour", {"increase(@alarms_total[1h])": "{{run}}"}),
        ),
    ),
    Row(
        "Data and faults",
        (
            _panel(
                "Tokens by task",
                "Per second of the clock, pauses included",
                {"rate(@task_tokens_total[$__rate_interval])": "{{run}} {{task}}"},
            ),
            _panel(
                "Samples that had to be replaced",
                "Of the last hour",
                {"increase(@faults_total[1h])": "{{run}} all", "increase(@task_faults_total[1h])": "{{run}} {{task}}"},
            ),
            _panel(
                "Missing from the shards",
                "Since the start",
                {"@lost_samples": "{{run}} samples", "@bad_shards": "{{run}} unusable shards"},
            ),
            _panel("Lost bytes", "Missing from the shards since the start", {"@lost_bytes": "{{run}}"}, "bytes"),
            _panel(
                "Skipped updates",
                "Gradients not finite, of the last hour",
                {"increase(@skipped_steps_total[1h])": "{{run}}"},
            ),
            _panel("Samples", "Since the start of the program", {"@samples_total": "{{run}}"}),
        ),
    ),
)
