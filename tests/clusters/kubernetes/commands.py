"""The command as a user types it."""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from typing import Any

import yaml

from clusters import kubernetes
from run.errors import USER_ERRORS
from tests.helpers.places import ROOT

DEMO = ("--config", str(ROOT / "configs" / "demo.yaml"), "--nodes", "2")
CPU = ("--gpus-per-node", "0", "--image", "sparse-generalists:cpu", "--data-claim", "data")


def call(*words: str) -> tuple[int, str]:
    """Exit code, and what was printed, errors included; as clusters/__main__.py ends on errors of the user. Where the demo's data are not
    at hand: its memory is estimated from them where they are."""
    parser = argparse.ArgumentParser()
    kubernetes.add_command(parser.add_subparsers())
    out = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as empty,
        contextlib.chdir(empty),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
    ):
        arguments = parser.parse_args(["kubernetes", *words])
        try:
            code = arguments.main(arguments)
        except USER_ERRORS as error:
            return 2, f"{out.getvalue()}error: {error}"
    return code, out.getvalue()


def printed(*words: str) -> list[dict[str, Any]]:
    code, out = call(*words)
    assert code == 0, out
    return list(yaml.safe_load_all(out))


def kind(manifests: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    (found,) = [manifest for manifest in manifests if manifest["kind"] == wanted]
    return found
