"""How many samples make a micro-batch where a number of tokens is given instead."""

from __future__ import annotations

import dataclasses

from data.config import TaskConfig
from data.shards import DatasetError


def most_tokens(task: TaskConfig, patches: int, video: bool) -> int:
    """Of one sample: its input at the longest, <SPE> included, and for retrieval the candidate that it brings.

    patches: of one image. Candidates that all samples share (classes, words) are not counted.
    """
    visual = patches * (task.num_frames if video else 1)
    return {
        "classification": 1 + visual,
        "text_classification": 1 + task.max_text,
        "masked_text": 1 + task.max_text,
        "captioning": 1 + visual + 2 * task.max_text,
        "retrieval": 1 + visual + 1 + task.max_text,
    }[task.kind]


def with_batch_size(task: TaskConfig, patches: int, video: bool) -> TaskConfig:
    """The task with the batch_size that its batch_tokens allow. Raises DatasetError if too few samples fit."""
    if not task.batch_tokens:
        return task
    tokens = most_tokens(task, patches, video)
    size, least = task.batch_tokens // tokens, 2 if task.kind == "retrieval" else 1
    if size < least:
        raise DatasetError(
            f"task {task.name}: batch_tokens={task.batch_tokens} is too little for {least} sample(s) of up to {tokens} tokens: "
            f"use at least {least * tokens}"
        )
    return dataclasses.replace(task, batch_size=size, batch_tokens=0)
