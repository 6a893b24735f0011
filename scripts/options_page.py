"""Prints docs/options.md: every option of a configuration, from the docstrings of the options classes.

python scripts/options_page.py > docs/options.md
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.config import DataConfig, MixConfig, TaskConfig
from evaluation.config import EvaluateConfig
from model.config import LoraConfig, ModelConfig, PromptConfig, TextTowerConfig
from model.moe.config import AuxiliaryConfig, ExpertConfig
from parallel.config import OptimizerConfig, ParallelConfig
from run.config import ProfileConfig, RunConfig, TrackingConfig

SECTIONS: tuple[tuple[str, Any], ...] = (
    ("", RunConfig),
    ("data", DataConfig),
    ("data.tasks.NAME", TaskConfig),
    ("data.tasks.NAME.mix", MixConfig),
    ("model", ModelConfig),
    ("model.experts", ExpertConfig),
    ("model.experts.auxiliary", AuxiliaryConfig),
    ("model.prompts", PromptConfig),
    ("model.lora", LoraConfig),
    ("model.text_tower", TextTowerConfig),
    ("optimizer", OptimizerConfig),
    ("parallel", ParallelConfig),
    ("tracking", TrackingConfig),
    ("evaluate", EvaluateConfig),
    ("profile", ProfileConfig),
)
SECTION_KEYS = {key.removesuffix(".NAME") for key, _ in SECTIONS}
HEAD = """# Options

All keys of a configuration, with their defaults. This page is made from the docstrings of the options classes:
`python scripts/options_page.py > docs/options.md`.
[Training](training.md) says how files and overrides work. Paths are relative to the directory where you start the program.
"""


def page() -> str:
    return "\n".join([HEAD, *(line for key, section in SECTIONS for line in table(key, section))])


def table(key: str, section: Any) -> Iterator[str]:
    """A heading and a table of one options class."""
    meanings, head = described(section)
    yield f"## {f'`{key}`' if key else 'The run'}\n"
    if head:
        yield f"{escaped(head)}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        below = f"{key}.{field.name}".lstrip(".")
        meaning = meanings.get(field.name) or (f"see `{below}` below" if below in SECTION_KEYS else "")
        cells = (f"`{field.name}`", escaped(name_of(hints[field.name])), default_of(field), escaped(meaning))
        yield f"| {' | '.join(cells)} |"
    yield ""


def described(section: Any) -> tuple[dict[str, str], str]:
    """(field -> meaning, the text before the list of fields) of a docstring whose lists are `name, name   meaning`."""
    names = {field.name for field in dataclasses.fields(section)}
    meanings: dict[str, str] = {}
    head: list[str] = []
    current: tuple[str, ...] = ()
    for line in inspect.cleandoc(section.__doc__ or "").splitlines():
        match = re.match(r"(\w+(?:, \w+)*) +(.+)", line)
        found = tuple(match[1].split(", ")) if match else ()
        if match and names.issuperset(found):
            current = found
            meanings |= dict.fromkeys(found, match[2])
        elif line.startswith(" ") and current:
            meanings |= {name: f"{meanings[name]} {line.strip()}" for name in current}
        elif line.strip():
            current = ()
            head.append(line.strip())
    return meanings, " ".join(head)


def name_of(hint: Any) -> str:
    """A type as a user would say it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " / ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("none" if a is type(None) else name_of(a) for a in arguments)
    if origin is tuple:
        parts = [name_of(a) for a in arguments if a is not Ellipsis]
        return f"list of {parts[0]}" if Ellipsis in arguments else f"[{', '.join(parts)}]"
    if dataclasses.is_dataclass(hint):
        return "section"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true / false"}.get(
        hint.__name__, hint.__name__
    )


def default_of(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{json.dumps(field.default)}`" if field.default is not None else "none"
    return "see its section" if field.default_factory is not dataclasses.MISSING else "**needed**"


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(page(), end="")
