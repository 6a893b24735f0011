"""Reading and writing run configurations: strict YAML, `base:` files, key=value overrides.

Every mistake is a ConfigError of one line that names the file, the key, the value and the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml

from model.exchange.export.folder import is_export, open_export
from model.moe.config import ExpertConfig
from model.moe.presets import ROUTING
from run.config import RunConfig, neighbours
from run.errors import ConfigError
from run.places import expanded, with_expanded
from run.strict_text import TextError, read_yaml, typed, unusable

OWN_GROUPS = 4
"""Groups of tokens of a batch, at most: picture, question, words and their candidates."""

CONFIG = "config.yaml"
"""In a run's folder: its resolved configuration."""
MAX_BASES = 8
"""Files that build on one another; more is taken for a circle."""


def load_config(path: str | Path, overrides: Sequence[str] = (), is_resolved: bool = False) -> RunConfig:
    """YAML file plus `a.b=value` overrides; list elements are numbered or named (`data.tasks.shapes.batch_size=8`).

    is_resolved: the file is a run's own and says everything, so that nothing is taken from elsewhere.
    """
    path = expanded(path)
    raw = {**_read(path, MAX_BASES)}
    raw.setdefault("name", path.stem)
    for override in overrides:
        _override(raw, override)
        raw = typed(RunConfig, raw)
    if not is_resolved:
        says_tasks = isinstance(raw.get("model"), dict) and "tasks" in raw["model"]
        raw = _started_from(_with_presets(raw, str(path), overrides), says_tasks)
    try:
        return parse_config(raw, str(path), overrides)
    except ConfigError as error:
        init = raw.get("init")
        if is_resolved or not isinstance(init, str) or not init or expanded(init).exists():
            raise
        raise ConfigError(
            f"{error}; init={init} is not there, so the shape of its network is not known here"
        ) from error


def _started_from(raw: dict[str, Any], says_tasks: bool) -> dict[str, Any]:
    """What follows from the run that `init` names: the shape of its network, without what belongs to its tasks, and its vocabulary.

    Where that run is gone, what this one noted of it when it was started.
    """
    init = raw.get("init")
    if not isinstance(init, str) or not init or init.endswith(".safetensors"):
        return raw
    places = (expanded(init), expanded(str(raw.get("runs", "runs"))) / str(raw.get("name")))
    found = [place for place in places if (place / CONFIG).is_file()]
    if found:
        shape = load_config(found[0] / CONFIG, is_resolved=True).model
    elif is_export(expanded(init)):
        shape = open_export(expanded(init)).config
    else:
        return raw
    model = json.loads(json.dumps(dataclasses.asdict(shape)))
    for own in ("prompts", "head_classes"):
        model.pop(own)
    data, own_model = raw.get("data"), raw.get("model")
    if isinstance(data, dict):
        data = {"vocabulary": "init", **data}
    if not isinstance(own_model, dict):
        return raw
    # The names of the tasks are the network's shape where it has something for each.
    if shape.experts.router in ("task", "task_specific") and not says_tasks:
        own_model = {key: value for key, value in own_model.items() if key != "tasks"}
    return {**raw, "model": _merged(model, own_model), **({"data": data} if data else {})}


def _read(path: Path, bases: int) -> dict[str, Any]:
    """The file's keys over those of its `base`, a path beside it."""
    try:
        raw = typed(RunConfig, read_yaml(path.read_bytes()))
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ConfigError(
            f"{path}: {getattr(error, 'strerror', None) or error}; there are {neighbours(path)}"
        ) from error
    except TextError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: the top level must be a mapping of keys, got {type(raw).__name__}")
    base = raw.pop("base", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base must be the name of a file, got {base!r}")
    if not bases:
        raise ConfigError(
            f"{path}: more than {MAX_BASES} files build on one another through base: do they form a circle?"
        )
    below = _read(path.parent / base, bases - 1)
    below.pop("name", None)
    return _merged(below, raw)


def _merged(below: Any, above: Any) -> Any:
    """Mappings key by key, lists of named elements name by name, all else from above."""
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}
    if _is_named(below) and _is_named(above):
        changes = {item["name"]: item for item in above}
        kept = [_merged(item, changes.pop(item["name"], {})) for item in below]
        return kept + list(changes.values())
    return above


def _is_named(node: Any) -> bool:
    return isinstance(node, list) and bool(node) and all(isinstance(i, dict) and "name" in i for i in node)


def parse_config(raw: dict[str, Any], file: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Strict: no unknown key, no wrong type, no conversion but int to float. file, overrides: where it came from, for messages."""
    found = unusable(raw)
    if found:
        key = _dotted(raw, found[0])
        raise ConfigError(f"{_origin(raw, key, file, overrides)}: {key} {found[1]}")
    raw = _with_presets(raw, file, overrides)
    unknown = next(_unknown_keys(RunConfig, raw, ()), None)
    if unknown:
        parts, near = unknown
        key, other = (_dotted(raw, (*parts[:-1], name)) for name in (parts[-1], near))
        raise ConfigError(f"{_origin(raw, key, file, overrides)}: unknown key {key}; did you mean {other}?")
    try:
        return with_expanded(pydantic.TypeAdapter(RunConfig).validate_json(json.dumps(raw), strict=True))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = _dotted(raw, first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] in ("value_error", "missing") else f", got {first['input']!r}"
        origin = _origin(raw, where, file, overrides)
        raise ConfigError(f"{origin}: {where + ': ' if where else ''}{message}{given}") from error


def _dotted(raw: Any, parts: Sequence[str | int]) -> str:
    """The key as a user writes it: elements of lists by their names, where they have one."""
    names, node = [], raw
    for part in parts:
        if isinstance(node, list) and str(part).isdigit() and int(part) < len(node):
            node = node[int(part)]
            names.append(str(node.get("name", part) if isinstance(node, dict) else part))
        elif isinstance(node, list):
            node = next((item for item in node if isinstance(item, dict) and item.get("name") == part), None)
            names.append(str(part))
        else:
            node = node.get(part) if isinstance(node, dict) else None
            names.append(str(part))
    return ".".join(names)


def _origin(raw: Any, key: str, file: str, overrides: Sequence[str]) -> str:
    """Who said it: the command line where an override set the key, the file with the overrides below the key, or the file."""
    keys = {override: _dotted(raw, override.partition("=")[0].split(".")) for override in overrides}
    setting = [override for override, own in keys.items() if f"{key}.".startswith(f"{own}.")]
    if setting:
        return f"command line, {setting[-1]}"
    below = [override for override, own in keys.items() if not key or own.startswith(f"{key}.")]
    return f"{file} with {' '.join(below)}" if below else file


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(config))), sort_keys=False)


def _with_presets(raw: dict[str, Any], file: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Fill in what follows from other keys: routing presets below explicit keys, names of tasks for the task routers and room for their
    groups, biases for sigmoid losses."""
    model = raw.get("model") or {}
    if not isinstance(model, dict):
        return raw
    experts = model.get("experts")
    if isinstance(experts, dict) and "preset" in experts:
        name = experts["preset"]
        if name not in ROUTING:
            near = difflib.get_close_matches(str(name), ROUTING, n=1, cutoff=0.0)
            origin = _origin(raw, "model.experts.preset", file, overrides)
            raise ConfigError(f"{origin}: unknown model.experts.preset={name!r}; did you mean {near[0]}?")
        explicit = {key: value for key, value in experts.items() if key != "preset"}
        model = {**model, "experts": _merged(ROUTING[name], explicit)}
    tasks = raw["data"].get("tasks") if isinstance(raw.get("data"), dict) else None
    if isinstance(tasks, list) and all(isinstance(task, dict) for task in tasks):
        biased = [task.get("temperature") or "retrieval" for task in tasks if task.get("loss") == "sigmoid"]
        model = {**({"logit_biases": sorted(set(biased))} if biased else {}), **model}
        model = {"tasks": [task.get("name") for task in tasks], **model}
        model = _with_groups(model, tasks)
    return {**raw, "model": model}


def _with_groups(model: dict[str, Any], tasks: list[dict[str, Any]]) -> dict[str, Any]:
    """Where data ranks encode candidates together, those of every task are groups of their own to a task router, beside the groups of a
    batch, four at most."""
    experts = model.get("experts")
    if not isinstance(experts, dict) or experts.get("router") not in ("task", "task_specific"):
        return model
    needed = OWN_GROUPS + sum(task.get("candidates") == "sharded" for task in tasks)
    if needed <= ExpertConfig.max_groups:
        return model
    return {**model, "experts": {"max_groups": needed, **experts}}


def _unknown_keys(kind: Any, raw: Any, parents: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """(key, the nearest name beside it) of every key that its options class does not have."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        for option in typing.get_args(kind):
            yield from _unknown_keys(option, raw, parents)
    elif origin is tuple and isinstance(raw, list):
        for index, item in enumerate(raw):
            yield from _unknown_keys(typing.get_args(kind)[0], item, (*parents, index))
    elif dataclasses.is_dataclass(kind) and isinstance(raw, dict):
        hints = typing.get_type_hints(kind)
        for key, value in raw.items():
            if key not in hints:
                near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)
                yield (*parents, key), near[0]
            else:
                yield from _unknown_keys(hints[key], value, (*parents, key))


def _override(raw: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"override {override!r} must read key=value, for instance model.depth=6")
    try:
        value = read_yaml(text)
    except TextError as error:
        raise ConfigError(f"override {override!r}: {error}") from error
    *parents, last = key.split(".")
    node: Any = raw
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, list):
        raise ConfigError(f"override {override!r} must name a key of a list element, for instance {key}.batch_size")
    if not isinstance(node, dict):
        raise _below_a_value(override, last)
    node[last] = value


def _below_a_value(override: str, part: str) -> ConfigError:
    return ConfigError(f"override {override!r}: {part!r} lies below a value, not below a group of keys")


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        names = [item.get("name") for item in node if isinstance(item, dict)]
        if part in names:
            return node[names.index(part)]
        if part.isdigit() and int(part) < len(node):
            return node[int(part)]
        raise ConfigError(f"override {override!r}: no list element {part!r}; there are {names}")
    if not isinstance(node, dict):
        raise _below_a_value(override, part)
    child = node.setdefault(part, {})
    if child is None:
        child = node[part] = {}
    return child
