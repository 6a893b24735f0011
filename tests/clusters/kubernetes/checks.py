"""What Kubernetes' own schemas and the API models of the projects say of a manifest. No cluster is asked."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import kubernetes_validate

VERSION = "1.37"
FREE = {"labels", "matchLabels", "data", "selector", "requests", "limits"}
"""Mappings whose keys are the user's own."""
CUSTOM = {
    "JobSet": "JobsetV1alpha2JobSet",
    "TrainingRuntime": "TrainerV1alpha1TrainingRuntime",
    "TrainJob": "TrainerV1alpha1TrainJob",
}
"""Kinds of other projects, and their models in Kubeflow's package."""


def schema_problem(manifest: dict[str, Any]) -> str | None:
    """Of a kind of Kubernetes itself, by its published schema: unknown keys, wrong types, missing keys."""
    try:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return None


def model_problem(manifest: dict[str, Any]) -> str | None:
    """What is lost or refused on the way through the API's own classes."""
    try:
        known = _custom(manifest) if manifest["kind"] in CUSTOM else _core(manifest)
    except (ValueError, TypeError, KeyError) as error:
        return str(error)
    return next(_lost(manifest, known, ()), None)


@functools.cache
def _client() -> Any:
    from kubernetes.client import ApiClient

    return ApiClient()


def _core(manifest: dict[str, Any]) -> Any:
    answer = SimpleNamespace(data=json.dumps(manifest))
    return _client().sanitize_for_serialization(_client().deserialize(answer, f"V1{manifest['kind']}"))


def _custom(manifest: dict[str, Any]) -> Any:
    models = importlib.import_module("kubeflow_trainer_api.models")
    return json.loads(getattr(models, CUSTOM[manifest["kind"]]).from_dict(manifest).to_json())


def _lost(mine: Any, known: Any, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(mine, dict) and isinstance(known, dict):
        for key, value in mine.items():
            if key not in known:
                yield f"{'.'.join((*path, key))}: unknown key"
            elif key in known:
                yield from _lost(value, known[key], (*path, key))
    elif isinstance(mine, list) and isinstance(known, list) and len(mine) == len(known):
        for number, (one, other) in enumerate(zip(mine, known, strict=True)):
            yield from _lost(one, other, (*path, str(number)))
    elif mine != known:
        yield f"{'.'.join(path)}: {mine!r} became {known!r}"


def keys(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths to all keys that are not free."""
    if isinstance(tree, list):
        for number, item in enumerate(tree):
            yield from keys(item, (*path, number))
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield (*path, key)
            if key not in FREE or (key == "selector" and "matchLabels" in value):
                yield from keys(value, (*path, key))


def misspelt(manifest: dict[str, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
    """A copy with one letter more at the end of one key."""
    copy: Any = json.loads(json.dumps(manifest))
    place: Any = functools.reduce(lambda tree, part: tree[part], path[:-1], copy)
    place[f"{path[-1]}s"] = place.pop(path[-1])
    found: dict[str, Any] = copy
    return found
