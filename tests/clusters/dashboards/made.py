"""What the Prometheus sink writes when a run has every figure that there is, and what expressions ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import promql_parser as promql
from prometheus_client.parser import text_string_to_metric_families

from run.config import RunConfig
from run.metrics.expert_use import decision_names
from run.metrics.names import METRICS
from run.sinks.prometheus import Prometheus

ADDED = {"instance"}
"""By Prometheus, to all that it scrapes."""


def whole_record(run: RunConfig) -> dict[str, object]:
    rows, experts = len(decision_names(run.model)), run.model.experts.num_experts
    values = {(): 1.0, ("decision",): [1.0] * rows, ("decision", "expert"): [[1.0] * experts] * rows}
    return {metric.key.lower(): values[metric.axes] for metric in METRICS} | {"alarms": ["a sentence"]}


def written(run: RunConfig) -> dict[str, set[str]]:
    """Labels by metric name, read back by Prometheus' own parser."""
    sink = Prometheus(run, 0)
    sink.write(whole_record(run))
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(Path(run.tracking.prometheus).read_text()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def parsed(expression: str) -> promql.Expr:
    return promql.parse(expression.replace("$__rate_interval", "5m").replace("$job", "a").replace("$run", "b"))


def parts(expression: promql.Expr) -> Iterator[promql.Expr]:
    """All of an expression, itself first."""
    yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if (child := getattr(expression, name, None)) is not None:
            yield from parts(child)
    for child in getattr(expression, "args", None) or ():
        yield from parts(child)


def selectors(expression: promql.Expr) -> Iterator[tuple[str, set[str]]]:
    """(metric, labels that its selector names)."""
    for part in parts(expression):
        if isinstance(part, promql.VectorSelector):
            yield part.name, {matcher.name for matcher in part.matchers.matchers}


def labels_left(expression: promql.Expr, known: dict[str, set[str]]) -> set[str]:
    """What a legend may name: the labels of the result, at most."""
    if isinstance(expression, promql.AggregateExpr):
        assert expression.modifier is not None
        return set(expression.modifier.labels)
    if isinstance(expression, promql.VectorSelector):
        return known[expression.name] | ADDED
    children = [getattr(expression, name, None) for name in ("expr", "lhs", "vector_selector")]
    children += list(getattr(expression, "args", None) or ())
    left = [labels_left(child, known) for child in children if child is not None and not _is_bare(child)]
    if not left and getattr(expression, "rhs", None) is not None:  # as time() - metric
        left = [labels_left(expression.rhs, known)]
    return set().union(*left)


def _is_bare(expression: promql.Expr) -> bool:
    return not any(isinstance(part, promql.VectorSelector) for part in parts(expression))
