"""The table of tasks: a new kind is a class, a line here, and an evaluator (evaluation/)."""

from __future__ import annotations

import difflib

from data.config import DataConfig, TaskConfig
from data.shards import DatasetError
from data.tasks.base import Task, TaskContext
from data.tasks.captioning import Captioning
from data.tasks.classification import Classification
from data.tasks.masked_text import MaskedText
from data.tasks.retrieval import Retrieval
from data.tasks.text_classification import TextClassification
from data.tasks.vqa import VisualQuestionAnswering
from data.tasks.written import WrittenClassification, WrittenTextClassification, WrittenVisualQuestionAnswering
from data.transport import shown

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "text_classification": TextClassification,
    "masked_text": MaskedText,
    "captioning": Captioning,
    "retrieval": Retrieval,
    "vqa": VisualQuestionAnswering,
}
WRITTEN: dict[str, type[Task]] = {
    "classification": WrittenClassification,
    "text_classification": WrittenTextClassification,
    "vqa": WrittenVisualQuestionAnswering,
}
"""The same kinds with `answer: generate`."""


def kind_of(config: TaskConfig) -> type[Task]:
    """The class of the task's kind and way to answer. Raises ValueError for an unknown one."""
    if config.kind not in TASKS:
        near = difflib.get_close_matches(config.kind, TASKS, n=1, cutoff=0.0)
        raise ValueError(
            f"task {config.name}: unknown kind={config.kind!r}; did you mean {near[0]}? There are {', '.join(TASKS)}"
        )
    if config.answer == "rank":
        return TASKS[config.kind]
    if config.kind not in WRITTEN:
        raise ValueError(
            f"task {config.name}: answer={config.answer} is for {', '.join(WRITTEN)}, not for {config.kind}"
        )
    return WRITTEN[config.kind]


def check_tasks(data: DataConfig) -> None:
    """What follows from the kinds of the tasks. Raises ValueError."""
    for task in data.tasks:
        kind = kind_of(task)
        kind.check(task)
        if not data.vocabulary_sample or kind.answers != "words":
            continue
        if task.candidates == "sharded":
            raise ValueError(
                f"task {task.name}: candidates=sharded needs the whole vocabulary: set vocabulary_sample=0 or candidates=local"
            )
        if task.label_smoothing:
            raise ValueError(
                f"task {task.name}: label_smoothing needs the whole vocabulary: set vocabulary_sample=0 or label_smoothing=0"
            )


def make_task(context: TaskContext) -> Task:
    """Raises DatasetError if the data set is of a kind that the task cannot read."""
    config, kind = context.config, context.info.kind
    task = kind_of(config)
    if kind not in task.reads:
        raise DatasetError(
            f"task {config.name}: {config.kind} reads data sets of kind {' or '.join(task.reads)}, but {shown(config.path)} is {kind}"
        )
    return task(context)
