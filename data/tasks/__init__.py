"""The table of tasks: a new one is a class and a line here."""

from __future__ import annotations

from data.shards import DatasetError
from data.sources import shown
from data.tasks.base import Task, TaskContext
from data.tasks.captioning import Captioning
from data.tasks.classification import Classification
from data.tasks.masked_text import MaskedText
from data.tasks.retrieval import Retrieval
from data.tasks.text_classification import TextClassification

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "text_classification": TextClassification,
    "masked_text": MaskedText,
    "captioning": Captioning,
    "retrieval": Retrieval,
}
NEEDS: dict[str, tuple[str, ...]] = {
    "classification": ("image_class", "video_class"),
    "text_classification": ("text_class",),
    "masked_text": ("text", "image_caption", "video_caption"),
    "captioning": ("image_caption", "video_caption"),
    "retrieval": ("image_caption", "video_caption"),
}
"""Kinds of data sets that each task can read."""


def make_task(context: TaskContext) -> Task:
    """Raises DatasetError if the data set is of a kind that the task cannot read."""
    config, kind = context.config, context.info.kind
    if kind not in NEEDS[config.kind]:
        kinds = " or ".join(NEEDS[config.kind])
        raise DatasetError(
            f"task {config.name}: {config.kind} reads data sets of kind {kinds}, but {shown(config.path)} is {kind}"
        )
    return TASKS[config.kind](context)
