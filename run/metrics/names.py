"""All figures that a run can write: keys of its records, units and meanings, and what the same is called in Prometheus.

Words in capitals stand for what varies: `loss/TASK` is `loss/shapes`. Sinks, documentation and dashboards read this list alone.
"""

from __future__ import annotations

import dataclasses
import functools
import re

PREFIX = "sparse_generalists_"
GIB = float(2**30)


@dataclasses.dataclass(frozen=True)
class Metric:
    """One figure, or one of each task, modality and so on.

    key      in a record; "" of what Prometheus alone has
    unit     of the record; "" for a bare number
    about    what it is
    name     in Prometheus, after PREFIX; its unit is a base unit, `factor` of which are one unit of the record
    axes     of a list, the outermost first
    is_sum   number since the last record, and so a counter in Prometheus: its name ends in _total
    """

    key: str
    unit: str
    about: str
    name: str
    axes: tuple[str, ...] = ()
    factor: float = 1.0
    is_sum: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """What tells its values apart: the capital words of the key, then the axes."""
        return (*(word.lower() for word in re.findall(r"[A-Z]+", self.key)), *self.axes)

    @property
    def full_name(self) -> str:
        return PREFIX + self.name


STEP = Metric("step", "", "finished steps", "steps_done")
EVALUATION = Metric("SPLIT/TASK/FIGURE", "", "figure of an evaluation while training", "evaluation")
METRICS = (
    STEP,
    Metric("lr", "", "learning rate of the last step", "learning_rate"),
    Metric("loss/TASK", "nats", "mean loss since the last record", "loss_nats"),
    Metric("accuracy/TASK", "share", "read-outs whose best candidate is the right one", "accuracy_ratio"),
    Metric("epoch/TASK", "", "samples of the task so far, over the size of its data set", "epochs"),
    Metric("auxiliary/NAME", "", "auxiliary loss of the routers, unweighted", "auxiliary_loss"),
    Metric("grad_norm", "", "L2 norm of the gradient before clipping", "gradient_norm"),
    Metric(
        "grad_norm/FAMILY", "", "L2 norm of the gradient before clipping, by family of weights", "family_gradient_norm"
    ),
    Metric(
        "skipped_steps", "", "updates left out for a gradient that is not finite", "skipped_steps_total", is_sum=True
    ),
    Metric("samples", "", "samples trained on, all ranks together", "samples_total", is_sum=True),
    Metric("tokens/TASK", "", "tokens trained on, all ranks together", "task_tokens_total", is_sum=True),
    Metric("samples_per_s", "1/s", "samples per second, all ranks together", "samples_per_second"),
    Metric("tokens_per_s", "1/s", "tokens per second, all ranks together", "tokens_per_second"),
    Metric(
        "tokens_per_s/MODALITY",
        "1/s",
        "tokens per second of one modality, all ranks together",
        "modality_tokens_per_second",
    ),
    Metric("padding", "share", "token places that are pads", "padding_ratio"),
    Metric("step_s", "s", "mean time of a step", "step_seconds"),
    Metric(
        "time/PHASE", "s", "time of a step by phase; all but exchange and evaluate add up to the step", "phase_seconds"
    ),
    Metric("data_wait", "share", "time in which the loop waited for data", "data_wait_ratio"),
    Metric("eta_s", "s", "time until the last step, at this pace", "remaining_seconds"),
    Metric("mfu", "share", "model FLOPs utilisation", "model_flops_utilisation_ratio"),
    Metric("model_tflops_per_s", "1e12/s", "FLOPs of the model, all ranks", "model_flops_per_second", factor=1e12),
    Metric("memory/peak_gib", "GiB", "peak memory of the device, largest of ranks", "memory_peak_bytes", factor=GIB),
    Metric(
        "sent_gib/AXIS",
        "GiB",
        "bytes that a rank sends in a step over an axis of the mesh, largest of ranks",
        "step_sent_bytes",
        factor=GIB,
    ),
    Metric("faults", "", "samples that had to be replaced", "faults_total", is_sum=True),
    Metric("faults/TASK", "", "samples of one task that had to be replaced", "task_faults_total", is_sum=True),
    Metric("bad_shards", "", "unusable shards since the start", "bad_shards"),
    Metric("lost_samples", "", "samples missing from the shards at the start", "lost_samples"),
    Metric("lost_bytes", "bytes", "bytes missing from the shards at the start", "lost_bytes"),
    Metric("expert_load", "share", "choices that each expert took", "expert_load_ratio", ("decision", "expert")),
    Metric("expert_load_max", "share", "choices of the busiest expert of all", "expert_load_max_ratio"),
    Metric(
        "router_entropy",
        "nats",
        "entropy of the router's distribution, mean over tokens",
        "router_entropy_nats",
        ("decision",),
    ),
    Metric("success/MODALITY", "share", "choices that found a place", "success_ratio"),
    Metric(
        "success_by_decision/MODALITY",
        "share",
        "choices that found a place, by decision",
        "decision_success_ratio",
        ("decision",),
    ),
    Metric("dead_experts", "", "experts that nearly nobody chooses, over all decisions", "dead_experts"),
    Metric(
        "alarms",
        "",
        "sentences on routing that has gone wrong; in Prometheus their number",
        "alarms_total",
        is_sum=True,
    ),
    Metric("evaluation_s", "s", "time of the evaluation", "evaluation_seconds"),
    EVALUATION,
)
"""The first key that fits counts."""
PLANNED = Metric("", "", "steps of the whole run", "steps_planned")
RUNNING = Metric("", "", "1 from the start on, 0 after the end; a run that was killed stays 1", "running")
LAST_RECORD = Metric(
    "", "s", "Unix time of the last record; before the first one, of the start", "last_record_timestamp_seconds"
)
OF_PROMETHEUS = (PLANNED, RUNNING, LAST_RECORD)
"""What no record has. Together they show a run that is stale: running, and its last record long ago."""


def metric_of(key: str) -> tuple[Metric, tuple[str, ...]] | None:
    """The figure that a record's key is of, and what stands for its capital words; None for a key of no figure."""
    for pattern, metric in _patterns():
        if found := pattern.fullmatch(key):
            return metric, found.groups()
    return None


@functools.cache
def _patterns() -> tuple[tuple[re.Pattern[str], Metric], ...]:
    return tuple((re.compile(re.sub(r"[A-Z]+", "(.+)", re.escape(metric.key))), metric) for metric in METRICS)
