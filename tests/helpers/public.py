"""Miniature public data sets, and what `data.prepare` makes of them."""

from __future__ import annotations

import functools
import io
import json
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from data.decode.video import encode_mp4
from data.prepare.__main__ import main
from data.shards import ShardSet
from data.text.tokenizer import END_OF_TEXT, Tokenizer


def jpeg(grey=100, size=(8, 6), kind="JPEG"):
    buffer = io.BytesIO()
    Image.new("L", size, grey).save(buffer, kind)
    return buffer.getvalue()


@functools.cache
def clip(grey=0, frames=4, size=(16, 16), fps=4):
    """An mp4 that becomes brighter from frame to frame."""
    width, height = size
    levels = np.arange(grey, grey + 8 * frames, 8, dtype=np.uint8)
    return encode_mp4(np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)), fps=fps)


def pack(path, entries, mode="w:gz"):
    """A tar of (name, content); a TarInfo in place of a name is taken as it is."""
    with tarfile.open(path, mode) as tar:
        for name, content in entries:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def pack_zip(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return str(path)


def folder(root: Path, entries: Iterable[tuple[str, bytes | str]]):
    for name, content in entries:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(root)


def written(path: Path, content):
    """A text as it is, anything else as JSON."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def lines(path, records):
    return written(path, "".join(json.dumps(record) + "\n" for record in records))


def prepare(*arguments, workers=1) -> int:
    return main([*map(str, arguments), "--workers", str(workers)])


def samples(out, split="train"):
    shards = ShardSet.open(out, split)
    return [shards.read(s, i) for s, size in enumerate(shards.sizes) for i in range(size)]


def failures(out, split="train"):
    """Reason -> (count, first names)."""
    found = json.loads((Path(out) / "summary.json").read_text())["splits"][split]["failures"]
    return {reason: (entry["count"], entry["examples"]) for reason, entry in found.items()}


def captions(out, split="train"):
    return [json.loads(sample["json"])["captions"] for sample in samples(out, split)]


def content(out: Path) -> dict[str, object]:
    """All files of a folder, the summary without the time it took."""
    files: dict[str, object] = {path.name: path.read_bytes() for path in sorted(out.iterdir())}
    if "summary.json" in files:
        files["summary.json"] = json.loads(files["summary.json"]) | {"seconds": 0}  # type: ignore[arg-type]
    return files


def token_ids(*texts):
    tokenizer = Tokenizer.load()
    return tuple(sorted({END_OF_TEXT}.union(*(tokenizer.encode(text) for text in texts))))
