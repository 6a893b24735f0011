"""Manifests as text: one stream for kubectl, or a folder for kustomize."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from clusters.kubernetes.pod import Manifest
from run.errors import OutputError


class _Readable(yaml.SafeDumper):
    """Texts of several lines as blocks, and no references between parts that are equal."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)


def as_yaml(manifest: Manifest) -> str:
    return yaml.dump(manifest, Dumper=_Readable, sort_keys=False, width=120)


def one_text(manifests: Sequence[Manifest]) -> str:
    return "---\n".join(map(as_yaml, manifests))


def file_of(manifest: Manifest) -> str:
    """NetworkPolicy -> network-policy.yaml."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", manifest["kind"]).lower() + ".yaml"


def write_folder(folder: Path, manifests: Sequence[Manifest]) -> None:
    """A kustomize folder; files of these names are replaced. Raises OutputError."""
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [file_of(manifest) for manifest in manifests],
    }
    files = {file_of(manifest): manifest for manifest in manifests} | {"kustomization.yaml": kustomization}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(as_yaml(content), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--out {folder}: {error.strerror}") from error
