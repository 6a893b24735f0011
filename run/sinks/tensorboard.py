"""TensorBoard's files in RUN/tensorboard: a number a chart, lists as histograms and, by decision and expert, as heat maps.

On resume, points after the checkpoint's step are purged, so that each step stands once. Numbers are fp32, as TensorBoard has them.
"""

from __future__ import annotations

from torch.utils.tensorboard import SummaryWriter

from run.config import RunConfig
from run.metrics.expert_use import decision_names
from run.metrics.meter import Record
from run.sinks.drawing import finite, heat_map, is_drawn

FOLDER = "tensorboard"


class TensorBoard:
    def __init__(self, config: RunConfig, start_step: int) -> None:
        self._config = config
        self._writer = SummaryWriter(str(config.folder / FOLDER), purge_step=start_step + 1)

    def write(self, record: Record) -> None:
        step = record["step"]
        for key, value in record.items():
            if key == "alarms":
                self._writer.add_text(key, "\n\n".join(value), step)
            elif isinstance(value, list):
                if is_drawn(step, self._config) and finite(value).size:
                    self._draw(key, value, step)
            elif key != "step":
                self._writer.add_scalar(key, value, step)
        self._writer.flush()  # a run that is killed must not lose points before its checkpoint

    def close(self) -> None:
        self._writer.close()

    def _draw(self, key: str, value: list, step: int) -> None:
        self._writer.add_histogram(key, finite(value), step)
        if isinstance(value[0], list):
            picture = heat_map(value, decision_names(self._config.model))
            self._writer.add_image(key, picture, step, dataformats="HWC")
