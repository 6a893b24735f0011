"""A real S3 server of its own, folders that look like runs, and the command."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch

from clusters.ranks import free_port
from clusters.store import add_command
from clusters.store.place import Place, StoreError
from data.transport import FetchOptions
from parallel.checkpoints.files import write_tensors
from parallel.checkpoints.manifest import MANIFEST, Base, RankPart, StoredFragment, StoredTensor, dump, merge
from run.errors import EXIT_USER, USER_ERRORS

KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTING",
    "AWS_SECRET_ACCESS_KEY": "hunter2hunter2",
    "AWS_DEFAULT_REGION": "us-east-1",
}
QUICK = FetchOptions(attempts=2, backoff_s=0.01)
BUCKET = "bucket"
ELEMENTS = 40_000


class Server:
    """moto's server in a process of its own, with one bucket. What it held is gone when it ends."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            try:
                request = urllib.request.Request(f"{self.url}/{BUCKET}", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline and self._process.poll() is None, "moto's server does not start"
                time.sleep(0.1)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    server = Server(free_port())
    try:
        yield server
    finally:
        server.close()


def environment(server: Server) -> dict[str, str]:
    return KEYS | {"AWS_ENDPOINT_URL": server.url, "AWS_EC2_METADATA_DISABLED": "true"}


def made_run(folder: Path, steps: tuple[int, ...], seed: int = 0, best: int | None = None) -> Path:
    """A run's folder with real checkpoints of one small tensor."""
    (folder / "evaluations").mkdir(parents=True)
    (folder / "health").mkdir()
    (folder / "config.yaml").write_text("name: made\n")
    (folder / "events.jsonl").write_text(json.dumps({"step": 0, "kind": "start", "seed": seed}) + "\n")
    (folder / "metrics.jsonl").write_text("")
    (folder / "evaluations" / "val.json").write_text("{}")
    (folder / "health" / "rank_00000.json").write_text("{}")
    (folder / ".unfinished").write_text("")
    for step in steps:
        add_step(folder, step, seed, best)
    return folder


def add_step(run: Path, step: int, seed: int = 0, best: int | None = None, base: Base | None = None) -> Path:
    """A complete checkpoint of two ranks, and the record of its step."""
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step}) + "\n")
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    weight = torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(1000 * seed + step))
    parts = []
    for rank, half in enumerate(weight.chunk(2)):
        name = f"rank_{rank:05d}.safetensors"
        fragment = StoredFragment((), name, rank * ELEMENTS // 2, ELEMENTS // 2)
        stored = write_tensors(folder / name, deque([("weight/w", half)]))
        parts.append(RankPart(name, stored, {"w": StoredTensor((ELEMENTS,), ("weight",), (fragment,))}))
    state = {"best": {"step": best, "value": 1.0}} if best is not None else {}
    (folder / MANIFEST).write_bytes(dump(merge(parts, step, state, base)))
    (run / "checkpoints" / "latest").write_text(folder.name)
    return folder


def command(*words: object) -> int:
    """As `python -m clusters store ...`; what a user can cause is told and ends with 2."""
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    arguments = parser.parse_args(["store", *map(str, words)])
    try:
        return int(arguments.main(arguments))
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER


def program(*words: object) -> list[str]:
    """The command for a process of its own."""
    code = "import sys; from tests.clusters.store.made import command; sys.exit(command(*sys.argv[1:]))"
    return [sys.executable, "-c", code, *map(str, words)]


class Watched(Place):
    """A place in a folder that keeps count of what is asked of it, and can be told to fail."""

    def __init__(self, url: str) -> None:
        super().__init__(url, QUICK)
        self.sent: list[str] = []
        self.written: list[str] = []
        self.fetched: dict[str, int] = {}
        self.send_fails: str | None = None
        self.finds_fail = 0

    def find(self, folder: str = "") -> dict[str, int]:
        if self.finds_fail:
            self.finds_fail -= 1
            raise StoreError("the store is dead")
        return super().find(folder)

    def send(self, name: str, path: Path, size: int) -> str:
        if self.send_fails and name.endswith(self.send_fails):
            raise StoreError("cut off")
        self.sent.append(name)
        return super().send(name, path, size)

    def write(self, name: str, content: bytes) -> None:
        self.written.append(name)
        super().write(name, content)

    def fetch(self, name: str, file: BinaryIO, limit_bytes: int) -> None:
        before = file.seek(0, 2)
        super().fetch(name, file, limit_bytes)
        self.fetched[name] = file.seek(0, 2) - before


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and os.path.basename(path) != "in_use.json"
    }
