"""What may change between two starts of a run. docs/training.md shows the table to users."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator
from typing import Any, Literal

from data.transport import shown
from run.config import RunConfig
from run.errors import ConfigError
from run.places import with_absolute

Rule = Literal["refused", "told", "free"]
RULES: tuple[tuple[str, Rule], ...] = (
    # Places. Whether the same samples lie there is told by the digests in the checkpoint.
    ("name", "free"),
    ("runs", "free"),
    ("data.tasks.*.path", "free"),
    ("data.tasks.*.shards", "free"),
    # What evaluation alone reads.
    ("data.tasks.*.views", "free"),
    # Which samples come, and what they are to the model.
    ("data.workers", "free"),
    ("data.cache_*", "free"),
    ("data.allow_pipe", "free"),
    ("data.max_bad_fraction", "free"),
    ("data.*", "refused"),
    ("seed", "refused"),
    ("micro_batches", "refused"),
    # What the weights are.
    ("model.activation_checkpointing", "free"),
    ("model.chunks", "free"),
    ("model.experts.backend", "told"),
    ("model.experts.exchange*", "free"),
    ("model.experts.max_groups", "free"),
    ("model.*", "refused"),
    # How they go on.
    ("steps", "told"),
    ("optimizer.*", "told"),
    ("parallel.deepspeed", "told"),
    ("parallel.precision", "told"),
    ("kernels", "told"),
    ("init*", "told"),
    # How the same is computed, and what is told of it.
    ("parallel.*", "free"),
    ("threads", "free"),
    ("compile", "free"),
    ("attention", "free"),
    ("log_every", "free"),
    ("save_*", "free"),
    ("keep_checkpoints", "free"),
    ("max_skipped_steps", "free"),
    ("check_every", "free"),
    # Which checkpoint is the best.
    ("evaluate.keep_best", "told"),
    ("evaluate.split", "told"),
    ("evaluate.suite", "told"),
    ("evaluate.*", "free"),
    ("tracking.*", "free"),
    ("profile*", "free"),
)
"""The first pattern that fits an option's name; every option has one."""


def rule_of(key: str) -> Rule:
    return next(rule for pattern, rule in RULES if fnmatch.fnmatchcase(key, pattern))


def check_changes(old: RunConfig, new: RunConfig) -> None:
    """Raises ConfigError, which names the first option that must not change."""
    for key, before, now in _differences(old, new):
        if rule_of(key) == "refused":
            raise ConfigError(
                f"{new.folder} was started with {key}={before}, now {now}: choose another name=, with init={new.folder} "
                "to begin from its weights, or put it back"
            )


def told_changes(old: RunConfig, new: RunConfig, step: int) -> list[str]:
    """Lines about what goes on otherwise than it was; step: that the run goes on from."""
    found = [(key, before, now) for key, before, now in _differences(old, new) if rule_of(key) == "told"]
    lines = [f"changed: {key} was {before}, now {now}{_effect(key, old)}" for key, before, now in found]
    rates = [run.optimizer.learning_rate(step, run.steps) for run in (old, new)]
    if rates[0] != rates[1]:
        lines.append(
            f"changed: the learning rate goes on from step {step:,} with {rates[1]:.3g}, and not with {rates[0]:.3g}"
        )
    return lines


def _effect(key: str, old: RunConfig) -> str:
    """Of a change, where it is not what one may think."""
    if key.startswith("init"):
        return ", without effect after the start"
    if key.startswith("evaluate.") and old.evaluate.keep_best:
        return "; the best checkpoint so far stays until another one is found"
    return ""


def _differences(old: RunConfig, new: RunConfig) -> Iterator[tuple[str, str, str]]:
    """(option, what it was, what it is), as a person may read them."""
    before, now = (dict(options(dataclasses.asdict(with_absolute(run)))) for run in (old, new))
    for key in dict.fromkeys((*before, *now)):
        if before.get(key) != now.get(key):
            yield key, _shown(before.get(key)), _shown(now.get(key))


def options(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of all options below a key; of a list of named elements by their names, after the list of names."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from options(value, f"{key}.{name}" if key else name)
    elif isinstance(tree, list | tuple) and tree and all(isinstance(item, dict) and "name" in item for item in tree):
        yield key, tuple(item["name"] for item in tree)
        for item in tree:
            yield from options(item, f"{key}.{item['name']}")
    else:
        yield key, tuple(tree) if isinstance(tree, list) else tree


def _shown(value: Any) -> str:
    """A signature of a URL may change, and must not be printed."""
    if isinstance(value, tuple):
        return repr([shown(item) if isinstance(item, str) else item for item in value])
    return repr(shown(value) if isinstance(value, str) else value)
