"""A text file for the textfile collector of Prometheus' node exporter: the last record of a run, replaced as a whole.

Figures of what has not come again (a task that was not drawn) keep their last value; numbers since the last record become counters from the
start of the program. run/metrics/names.py has the names.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from run.config import RunConfig
from run.errors import ConfigError
from run.metrics.expert_use import decision_names
from run.metrics.meter import Record
from run.metrics.names import LAST_RECORD, METRICS, OF_PROMETHEUS, PLANNED, RUNNING, STEP, Metric, metric_of
from run.places import expanded


class Prometheus:
    """Every metric has the labels job (tracking.project) and run, then its own."""

    def __init__(self, config: RunConfig, start_step: int) -> None:
        """Raises ConfigError where the file cannot be written."""
        self._path = expanded(config.tracking.prometheus)
        self._own = (config.tracking.project, config.name)
        self._decisions = decision_names(config.model)
        self._values: dict[Metric, dict[tuple[str, ...], float]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._values[PLANNED] = {(): config.steps}
        self._values[RUNNING] = {(): 1}
        self._values[STEP] = {(): start_step}
        # Rates and alerts see what a counter gains, so not a first value: what seldom happens begins at 0.
        names = [task.name for task in config.data.tasks]
        for metric in METRICS:
            if metric.is_sum and (metric.key != "alarms" or self._decisions) and metric.labels in ((), ("task",)):
                self._values[metric] = dict.fromkeys([(name,) for name in names] if metric.labels else [()], 0.0)
        try:
            self._publish()
        except OSError as error:
            raise ConfigError(
                f"tracking.prometheus={config.tracking.prometheus}: {error.strerror}; name a .prom file in the folder that node exporter "
                "reads (--collector.textfile.directory)"
            ) from error

    def write(self, record: Record) -> None:
        for key, value in record.items():
            found = metric_of(key)
            if found:
                metric, labels = found
                values = self._values.setdefault(metric, {})
                for more, number in self._numbers(value, metric.axes):
                    place = (*labels, *more)
                    values[place] = number * metric.factor + (values.get(place, 0.0) if metric.is_sum else 0.0)
        self._publish()

    def close(self) -> None:
        """The time of the last record stays."""
        self._values[RUNNING] = {(): 0}
        write_to_textfile(str(self._path), self._registry)

    def _publish(self) -> None:
        self._values[LAST_RECORD] = {(): time.time()}
        write_to_textfile(str(self._path), self._registry)

    def _numbers(self, value: Any, axes: Sequence[str]) -> Iterator[tuple[tuple[str, ...], float]]:
        """(labels, number) of each place of a list with these axes; of a list of sentences their number."""
        if not axes:
            yield (), float(len(value) if isinstance(value, list) else value)
            return
        for place, item in enumerate(value):
            label = self._decisions[place] if axes[0] == "decision" else str(place)
            for labels, number in self._numbers(item, axes[1:]):
                yield (label, *labels), number

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """As the client library asks for it."""
        for metric in (*OF_PROMETHEUS, *METRICS):
            values = self._values.get(metric)
            if values:
                yield self._family(metric, list(values.items()))

    def _family(
        self, metric: Metric, values: Sequence[tuple[tuple[str, ...], float]]
    ) -> GaugeMetricFamily | CounterMetricFamily:
        kind = CounterMetricFamily if metric.is_sum else GaugeMetricFamily
        family = kind(metric.full_name, metric.about, labels=("job", "run", *metric.labels))
        for labels, value in values:
            family.add_metric((*self._own, *labels), value)
        return family
