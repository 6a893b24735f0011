"""YAML and JSON as options are written: what a value means follows from the option's type, and what could be read in two ways is
refused.

PyYAML alone takes the last of two equal keys, reads 2024-05-01 as a date, 010 as 8, 1:30 as 90 and 1e-3 as a word.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Hashable, Iterator
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_VALUES, MAX_DEPTH = 20_000, 40
"""Of one file once its aliases (*name) stand for what they name. The largest configuration of this program has some 300 values."""
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


Place = tuple[str | int, ...]
"""Keys from the top."""


class TextError(Exception):
    """Not what this program takes; one line."""


@dataclasses.dataclass(frozen=True)
class Plain:
    """A scalar without quotes that is more than a word: what YAML makes of it, and how it is written."""

    value: Any
    text: str


def read_yaml(content: str | bytes) -> Any:
    """Mappings, lists, texts and `Plain`. Raises TextError."""
    try:
        tree = yaml.load(_decoded(content) if isinstance(content, bytes) else content, _Loader)
    except yaml.YAMLError as error:
        raise TextError(f"not YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:  # a number that Python does not take
        raise TextError(f"not YAML: {error}") from error
    except RecursionError as error:
        raise TextError(f"nested deeper than {MAX_DEPTH} levels") from error
    for count, _ in enumerate(leaves(tree)):
        if count > MAX_VALUES:
            raise TextError(f"more than {MAX_VALUES:,} values once aliases are followed")
    return tree


def read_json(content: bytes) -> Any:
    """Raises TextError, also where a key stands twice or a number is none."""
    try:
        return json.loads(_decoded(content), object_pairs_hook=_once, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise TextError(f"line {error.lineno}: not JSON: {error.msg}") from error
    except ValueError as error:  # a number that Python does not take
        raise TextError(f"not JSON: {error}") from error
    except RecursionError as error:
        raise TextError("not JSON: nested too deep") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
    if twice is not None:
        raise TextError(f"key {twice} stands twice: remove one")
    return dict(pairs)


def _no_number(word: str) -> None:
    raise TextError(f"not JSON: {word} is no number")


def leaves(tree: Any, parts: Place = ()) -> Iterator[tuple[Place, Any]]:
    """(its keys from the top, value) of everything that is no mapping and no list. Raises TextError below MAX_DEPTH levels."""
    if len(parts) > MAX_DEPTH:
        raise TextError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(tree, dict | list):
        yield parts, None
        for key, item in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(item, (*parts, key))
    else:
        yield parts, tree


def unusable(tree: Any) -> tuple[Place, str] | None:
    """(where, what is wanted) of the first number that is infinite or none, or text that no path can have."""
    for parts, value in leaves(tree):
        if isinstance(value, float) and not math.isfinite(value):
            return parts, "must be a finite number"
        if isinstance(value, str) and "\0" in value:
            return parts, "must have no NUL character"
    return None


def typed(kind: Any, tree: Any) -> Any:
    """The tree with each `Plain` as the option at its place takes it: its text for a name or a path, else its value."""
    if isinstance(tree, Plain):
        return tree.text if tree.value is not None and _is_text(kind) else tree.value
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        wanted = dataclasses.is_dataclass if isinstance(tree, dict) else lambda o: typing.get_origin(o) is tuple
        kind = next(filter(wanted, options), None)
    if isinstance(tree, dict):
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        return {key: typed(hints.get(key), value) for key, value in tree.items()}
    if isinstance(tree, list):
        kinds = typing.get_args(kind) if typing.get_origin(kind) is tuple else ()
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            kinds = kinds[:1] * len(tree)
        return [typed(kinds[index] if index < len(kinds) else None, item) for index, item in enumerate(tree)]
    return tree


def _is_text(kind: Any) -> bool:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return all(_is_text(option) for option in typing.get_args(kind) if option is not types.NoneType)
    if typing.get_origin(kind) is typing.Literal:
        return all(isinstance(choice, str) for choice in typing.get_args(kind))
    return kind is str


def _decoded(content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise TextError(f"larger than {MAX_BYTES:,} bytes: no configuration of this program")
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TextError(f"line {line} is not UTF-8 text: save the file as UTF-8") from error


class _Loader(yaml.SafeLoader):
    """Without dates, base 8 by a leading zero, base 60; with 1e-3 as a number; keys are texts and stand once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise TextError(f"line {line}: a key must be a word")
            if key.value in seen:
                raise TextError(f"key {key.value} stands twice, in lines {seen[key.value]} and {line}: remove one")
            seen[key.value] = line
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}

    def construct_plain(self, node: yaml.ScalarNode) -> Any:
        value = getattr(self, f"construct_yaml_{node.tag.rpartition(':')[2]}")(node)
        return Plain(value, node.value) if node.style is None else value

    def construct_unknown(self, node: yaml.Node) -> Any:
        raise TextError(f"line {node.start_mark.line + 1}: {node.tag} is not used in configurations")


_PREFIX = "tag:yaml.org,2002:"
_NUMBERS = {
    "int": r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$",
    "float": r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$"
    r"|\.(?:nan|NaN|NAN)$",
}
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_PREFIX) not in ("int", "float", "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_PREFIX + _name, re.compile(_pattern), list("-+.0123456789"))
for _name in ("int", "float", "bool", "null"):
    _Loader.add_constructor(_PREFIX + _name, _Loader.construct_plain)
for _name in ("binary", "timestamp", "omap", "pairs", "set"):
    _Loader.add_constructor(_PREFIX + _name, _Loader.construct_unknown)
