"""dataset.json: what a data set folder holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pydantic

from data.shards.errors import DatasetError
from data.shards.files import INFO_FILE, replacing
from data.transport import FetchError, NotText, join, read_small, shown, text_of

MAX_INFO_BYTES = 256 << 20
TRAINING_SPLIT = "train"
Metric = Literal["f1", "matthews", "pearson", "spearman"]
"""Of classification, besides accuracy (evaluation/metrics/agreement.py)."""


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    samples: int
    shards: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What dataset.json says.

    classes    names in the order of the `cls` member, or answers; empty for kinds without classes
    synonyms   more names of each class, in the order of `classes`; empty: none has more. Training draws one at random
    metrics    figures besides accuracy in which the field reports this data set; f1 is that of class 1 of two
    token_ids  sorted CLIP ids of the class names and of the texts (captions, sentences) that training may see, and END_OF_TEXT; see
               `is_trained_on`
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid", strict=True)

    kind: Literal[
        "image_class",
        "image_caption",
        "video_class",
        "video_caption",
        "image_question",
        "video_question",
        "text_class",
        "text",
    ]
    classes: tuple[str, ...]
    token_ids: tuple[int, ...]
    splits: dict[str, SplitInfo]
    synonyms: tuple[tuple[str, ...], ...] = ()
    metrics: tuple[Metric, ...] = ()
    version: Literal[1] = 1

    def __post_init__(self) -> None:
        if self.kind.endswith(("_class", "_question")) != bool(self.classes):
            raise ValueError(f"kind {self.kind} with {len(self.classes)} classes")
        if self.synonyms and len(self.synonyms) != len(self.classes):
            raise ValueError(f"synonyms of {len(self.synonyms)} classes, but there are {len(self.classes)}")
        if "f1" in self.metrics and len(self.classes) != 2:
            raise ValueError(f"metric f1 needs two classes, but there are {len(self.classes)}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"two classes have the same name among {list(self.classes)}")


def is_trained_on(split: str, splits: Iterable[str]) -> bool:
    """Whether words of the split are words of the vocabulary. A vocabulary that knew the texts of evaluation would hide how a model
    does on new ones. A data set without a split train is trained on as a whole."""
    return split == TRAINING_SPLIT or TRAINING_SPLIT not in splits


def read_info(directory: Path | str) -> DatasetInfo:
    """dataset.json of a folder or below a URL. Raises DatasetError."""
    url = join(str(directory), INFO_FILE)
    path = shown(url)
    try:
        return pydantic.TypeAdapter(DatasetInfo).validate_json(text_of(read_small(url, MAX_INFO_BYTES), path))
    except (FetchError, NotText) as error:
        raise DatasetError(str(error)) from error
    except OSError as error:
        raise DatasetError(
            f"{path}: {error.strerror}; make data sets with `python -m data.prepare` or `data.synthetic`"
        ) from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise DatasetError(f"{path}: {where}: {first['msg']} (found {str(first['input'])[:80]!r})") from error


def write_info(directory: Path | str, info: DatasetInfo) -> None:
    """Write dataset.json, atomically; do it last."""
    text = json.dumps(dataclasses.asdict(info), ensure_ascii=False, sort_keys=True)
    with replacing(Path(directory) / INFO_FILE) as file:
        file.write(text.encode() + b"\n")


def is_complete(directory: Path | str) -> bool:
    return (Path(directory) / INFO_FILE).is_file()
