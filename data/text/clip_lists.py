"""CLIP's lists for ImageNet, class names and sentences, out of the installed open_clip wheel (Radford et al., 2021).

The file is read and not run: the package asks for libraries that nothing here needs.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path

DISTRIBUTION, FILE = "open_clip_torch", "open_clip/zero_shot_metadata.py"


def list_text(name: str) -> str:
    """What stands between the brackets of a list of that file. Raises LookupError."""
    try:
        path = Path(str(importlib.metadata.distribution(DISTRIBUTION).locate_file(FILE)))
        text = path.read_text(encoding="utf-8")
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise LookupError(
            f"CLIP's lists are read from the wheel {DISTRIBUTION}, which is not here ({error})"
        ) from error
    block = re.search(rf"^{name} = \((.*?)^\)", text, re.DOTALL | re.MULTILINE)
    if block is None:
        raise LookupError(f"{path}: no {name} in it")
    return block[1]


def imagenet_names() -> tuple[str, ...]:
    """Of ImageNet's 1,000 classes, in the order of their synsets. Two names are those of two classes each. Raises LookupError."""
    return tuple(ast.literal_eval(f"({list_text('IMAGENET_CLASSNAMES')})"))
