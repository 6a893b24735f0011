"""Class names in sentences ("a photo of a {}."), whose features are averaged (Radford et al., 2021, section 3.1.4; papers.md 4).

Uni-Perceiver compares with the bare name, so no template is the default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from data.shards import DatasetError
from data.tasks.candidates import class_names
from data.text.clip_lists import list_text
from data.text.names import alike
from data.text.vocabulary import Vocabulary
from data.transport import NotText, text_of
from evaluation.encoding import encode_rows
from model.objective import Objective

LISTS = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
"""Names of lists of the wheel: CLIP's 80 sentences for ImageNet, and the 7 that do nearly as well."""


def read_templates(name: str) -> tuple[str, ...]:
    """none, openai, simple, or @FILE with a sentence per line that has {} for the name. Raises DatasetError."""
    if name == "none":
        return ()
    if name.startswith("@"):
        return _of_file(Path(os.path.expanduser(name[1:])))
    if name not in LISTS:
        raise DatasetError(f"templates {name!r}: say none, {', '.join(LISTS)}, or @FILE")
    try:
        found = re.findall(r"lambda c: f(['\"])(.*?)\1,", list_text(LISTS[name]))
    except LookupError as error:
        raise DatasetError(f"templates {name!r}: {error}; give your own by @FILE") from error
    return tuple(sentence.replace("{c}", "{}") for _, sentence in found)


def _of_file(path: Path) -> tuple[str, ...]:
    try:
        lines = [line.strip() for line in text_of(path.read_bytes(), str(path)).splitlines()]
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from error
    except NotText as error:
        raise DatasetError(str(error)) from error
    found = tuple(line for line in lines if line)
    wrong = next((line for line in found if line.count("{}") != 1), None)
    if wrong is not None or not found:
        raise DatasetError(f"{path}: {wrong or 'no line'!r}: a template has {{}} for the name, once")
    return found


@torch.no_grad()
def encode_names(
    objective: Objective, names: Sequence[str], templates: Sequence[str], vocabulary: Vocabulary, task: str, device: str
) -> Tensor:
    """Features [C, W]: of each name the mean of the unit vectors of its sentences. They may be as long as the network reads. Raises
    DatasetError where that cuts off what tells two names apart."""
    max_text = (objective.config.text_tower_config() or objective.config).max_text
    total_CD = torch.zeros(())
    for template in templates:
        _check_distinct(names, template, vocabulary, max_text, task)
        rows = class_names([template.replace("{}", name) for name in names], vocabulary, max_text)
        total_CD = total_CD.to(device) + normalize(encode_rows(objective, rows, task, device), dim=-1)
    return total_CD / len(templates)


def _check_distinct(names: Sequence[str], template: str, vocabulary: Vocabulary, max_text: int, task: str) -> None:
    for one, other in alike(names, lambda name: vocabulary.encode(template.replace("{}", name), max_text)):
        raise DatasetError(
            f"task {task}: template {template!r} makes classes {one!r} and {other!r} one to the model, which reads {max_text} tokens of a "
            "sentence: shorten it, or leave it out"
        )
