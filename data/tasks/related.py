"""Options of a trained task for questions of another kind, where a run has none of that kind: a contrastive model classifies."""

from __future__ import annotations

import dataclasses

from data.config import MixConfig, TaskConfig


def as_kind(config: TaskConfig, kind: str, medium: str) -> TaskConfig:
    """The options without what belongs to training, and without what its own kind alone may have. Similarities keep the logit scale that
    was trained.

    medium: of the data that it was trained on: image, video or text; empty where that is not known.
    """
    plain = dataclasses.replace(
        config,
        kind=kind,
        label_smoothing=0.0,
        loss="softmax",
        candidates="local",
        mix=MixConfig(),
        batch_size=TaskConfig.batch_size,
        batch_tokens=0,
    )
    if kind == config.kind:
        return plain
    return dataclasses.replace(plain, answer="rank", views=(1, 1), temperature=trained_temperature(config, medium))


def trained_temperature(config: TaskConfig, medium: str) -> str:
    """Name of the logit scale that the task was trained with, as its own kind chooses it (data/tasks/*.py). medium: see `as_kind`; where
    it is not known, that of classification is empty."""
    if config.temperature:
        return config.temperature
    if config.answer == "generate":
        return "caption"
    return {"classification": medium, "captioning": "caption", "retrieval": "retrieval"}.get(config.kind, "text")
