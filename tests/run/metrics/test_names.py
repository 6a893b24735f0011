"""The list of figures: every key of a record has its line, and names are as Prometheus wants them."""

from __future__ import annotations

import re

import pytest

from run.metrics.names import EVALUATION, METRICS, OF_PROMETHEUS, Metric, metric_of

EVERY = (*METRICS, *OF_PROMETHEUS)


def test_keys_and_names_stand_once():
    assert len({metric.key for metric in METRICS}) == len(METRICS)
    assert len({metric.name for metric in EVERY}) == len(EVERY)


@pytest.mark.parametrize("metric", EVERY, ids=lambda metric: metric.name)
def test_names_are_as_prometheus_wants_them(metric: Metric):
    """https://prometheus.io/docs/practices/naming: counters alone end in _total, units are base units and stand last."""
    assert re.fullmatch(r"sparse_generalists_[a-z][a-z_]*[a-z]", metric.full_name)
    assert metric.name.endswith("_total") == metric.is_sum
    assert all(re.fullmatch(r"[a-z]+", label) for label in metric.labels) and metric.about
    assert not {"job", "run"} & set(metric.labels), "every metric has these already"
    ends = {
        "s": "_seconds",
        "share": "_ratio",
        "nats": "_nats",
        "GiB": "_bytes",
        "bytes": "_bytes",
        "1/s": "_per_second",
    }
    assert metric.name.endswith(ends.get(metric.unit, ""))
    assert metric.factor == {"GiB": 2**30, "1e12/s": 1e12}.get(metric.unit, 1)


@pytest.mark.parametrize(
    ("key", "name", "values"),
    [
        ("step", "steps_done", ()),
        ("loss/shapes", "loss_nats", ("shapes",)),
        ("loss/a/b", "loss_nats", ("a/b",)),
        ("grad_norm", "gradient_norm", ()),
        ("grad_norm/dense", "family_gradient_norm", ("dense",)),
        ("tokens/shapes", "task_tokens_total", ("shapes",)),
        ("tokens_per_s/text", "modality_tokens_per_second", ("text",)),
        ("success_by_decision/text", "decision_success_ratio", ("text",)),
        ("memory/peak_gib", "memory_peak_bytes", ()),
        ("val/shapes/accuracy", "evaluation", ("val", "shapes", "accuracy")),
    ],
)
def test_a_key_is_found_with_what_stands_for_its_capital_words(key, name, values):
    found = metric_of(key)
    assert found is not None and (found[0].name, found[1]) == (name, values)
    assert len(found[1]) == len(found[0].labels) - len(found[0].axes)


def test_a_key_of_nothing_is_none():
    assert metric_of("lrs") is None and metric_of("memory/peakXgib") is None


def test_labels_are_the_words_of_the_key_and_the_axes():
    (by_decision,) = [metric for metric in METRICS if metric.key.startswith("success_by_decision")]
    assert by_decision.labels == ("modality", "decision") and EVALUATION.labels == ("split", "task", "figure")
