"""Which parameters a run trains."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection

from torch import nn

from model.config import ModelConfig
from parallel.config import Tune


class TuningError(ValueError):
    """The parameters that were named cannot be tuned or frozen."""


HEAD = ("head.*", "similarity_weight")
TRAINED: dict[Tune, tuple[str, ...]] = {
    "all": ("*",),
    "prompts": ("*prompts", "*.spe_bias", "*norm.*", *HEAD),
    "lora": ("*.lora.*", *HEAD),
    "head": HEAD,
}
"""Names of what each way of tuning trains, outside the routers. Prompt tuning (papers.md 1.10): prompts, the bias of <SPE>,
LayerNorms, the linear head."""
SCALES = ("log_scales.*", "logit_biases.*")
"""What each way trains besides where it is new: of a kind of task, or a loss, that the weights have not learned."""
PROMPTS = "*prompts"


def check_tune(tune: Tune, model: ModelConfig) -> None:
    """Raises TuningError where the model does not have what is to be tuned."""
    lacking = {
        "prompts": (model.prompts is None, "model.prompts, for instance {length: 10}"),
        "lora": (model.lora is None, "model.lora, for instance {rank: 8}"),
        "head": (model.head_classes == 0, "model.head_classes, the number of the task's classes"),
    }
    lacks, what = lacking.get(tune, (False, ""))
    if lacks:
        raise TuningError(f"optimizer.tune={tune} needs {what}")


def choose_trained(
    module: nn.Module, tune: Tune, frozen: tuple[str, ...] = (), new: Collection[str] = frozenset()
) -> None:
    """Freeze what is not to be trained (OptimizerConfig). new: names of what begins fresh beside weights that were loaded. Raises
    TuningError, also for new prompts that would stay random."""
    if tune != "all":
        trained = {name for pattern in TRAINED[tune] for name in _matching(module, pattern) if ".router." not in name}
        trained |= {name for pattern in SCALES for name in fnmatch.filter(new, pattern)}
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in trained)
    freeze(module, frozen)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise TuningError(f"optimizer.tune={tune} and optimizer.frozen={list(frozen)} leave nothing to train")
    idle = [name for name in fnmatch.filter(new, PROMPTS) if not module.get_parameter(name).requires_grad]
    if idle:
        raise TuningError(
            f"{idle[0]} begins at random, and optimizer.tune={tune} with optimizer.frozen={list(frozen)} does not train it: leave "
            "model.prompts out, or use optimizer.tune=prompts"
        )


def freeze(module: nn.Module, patterns: tuple[str, ...]) -> int:
    """Freeze the parameters whose names match a pattern (`tower.*`, `*.router.*`); returns how many tensors.

    Raises TuningError for a pattern that matches nothing.
    """
    named = dict(module.named_parameters())
    frozen: set[str] = set()
    for pattern in patterns:
        matching = _matching(module, pattern)
        if not matching:
            parts = sorted({".".join(name.split(".")[:2]) for name in named})
            raise TuningError(f"optimizer.frozen={pattern!r} matches no parameter; there are {', '.join(parts)}")
        frozen.update(matching)
    for name in frozen:
        named[name].requires_grad_(False)
    return len(frozen)


def _matching(module: nn.Module, pattern: str) -> list[str]:
    return fnmatch.filter((name for name, _ in module.named_parameters()), pattern)
