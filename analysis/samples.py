"""What a run says of a few pictures: `python -m analysis.samples --run R` writes captions and retrievals for the report.

Keeps RUN/analysis/samples.json: captions of samples of a split beside what people said of them, and the pictures that the run finds for
their captions among --pool others. Samples lie evenly over the split. Kinds of tasks that the run has not are left out.
Legend: N pictures, Q queries, D width.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import io
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from analysis.command import keeping, parser_of, run_command, write_json
from data.decode.image import decode_image
from data.decode.video import decode_video
from data.shards import BadSample, BadShard, DatasetError
from data.stream.source import Source, open_data
from data.tasks.base import Captioned
from data.tasks.members import IMAGE_KEYS, VIDEO_KEYS, member
from prediction import Medium, Predictor, load
from prediction.nearest import nearest
from run.command_line import positive
from run.errors import ConfigError
from run.folder import read_run
from run.places import expanded
from run.weights.best import chosen_step

FILE = "samples.json"
SIDE, QUALITY = 160, 75
"""Of the pictures that are kept: pixels of the longer side at most, and JPEG's quality."""
KINDS = ("captioning", "retrieval")


@dataclasses.dataclass(frozen=True)
class Shown:
    """A sample: its medium, its captions, and a small picture of it as a data URL."""

    medium: Medium
    references: tuple[str, ...]
    image: str


def make_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--split", default="val", metavar="NAME", help="whose samples (default: val)")
    parser.add_argument(
        "--captions", type=positive, default=12, metavar="N", help="pictures of each captioning task (default: 12)"
    )
    parser.add_argument(
        "--queries", type=positive, default=6, metavar="N", help="captions of each retrieval task (default: 6)"
    )
    parser.add_argument(
        "--pool", type=positive, default=200, metavar="N", help="pictures to find them among (default: 200)"
    )
    parser.add_argument(
        "--top", type=positive, default=5, metavar="N", help="pictures that are shown of each query (default: 5)"
    )
    parser.add_argument("--beam", type=positive, default=2, help="hypotheses of a caption; 1 is greedy (default: 2)")
    return parser


def find(arguments: argparse.Namespace) -> None:
    if arguments.tensor != 1 or arguments.expert != 1:
        raise ConfigError("--tensor and --expert: captions and retrievals are made on one rank; leave them out")
    folder = expanded(arguments.run)
    config, vocabulary = read_run(folder, arguments.overrides)
    tasks = tuple(task for task in config.data.tasks if task.kind in KINDS)
    if arguments.tasks:
        names = {task.name for task in tasks}
        unknown = next((name for name in arguments.tasks if name not in names), None)
        if unknown is not None:
            raise ConfigError(
                f"--tasks {unknown}: tasks of {folder} with captions are {', '.join(sorted(names)) or 'none'}"
            )
        tasks = tuple(task for task in tasks if task.name in arguments.tasks)
    if not tasks:
        raise ConfigError(f"{folder} has no task of captions or retrieval, so there is nothing to show")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = load(arguments.run, chosen_step(folder, arguments.step))
    whole = tuple(task.whole(arguments.split) for task in tasks)
    sources = open_data(dataclasses.replace(config.data, tasks=whole), model.pixels, config.seed, vocabulary).sources
    content: dict[str, Any] = {"step": model.step, "split": arguments.split, "captions": [], "retrievals": []}
    for source in tqdm(sources, unit=" tasks", disable=None):
        if source.task.config.kind == "captioning":
            content["captions"] += captions(model, source, arguments.captions, arguments.beam)
        else:
            content["retrievals"] += retrievals(model, source, arguments.queries, arguments.pool, arguments.top)
    with keeping(folder) as place:
        path = place / FILE
        write_json(path, content)
    print(f"{path}: {len(content['captions'])} captions, {len(content['retrievals'])} queries")


def captions(model: Predictor, source: Source, count: int, beam: int) -> list[dict[str, Any]]:
    shown = list(samples_of(source, count))
    written = model.caption([sample.medium for sample in shown], beam, task=source.name)
    return [
        {
            "image": sample.image,
            "alt": f"Sample of {source.name}: {sample.references[0]}",
            "caption": caption,
            "references": list(sample.references),
        }
        for sample, (_, caption) in zip(shown, written, strict=True)
        if caption is not None
    ]


def retrievals(model: Predictor, source: Source, queries: int, pool: int, top: int) -> list[dict[str, Any]]:
    """The first captions of evenly chosen samples of the pool, and the pictures nearest to each. Right is a picture with that caption;
    rank: of the first right one among all of the pool, from 1."""
    shown = list(samples_of(source, pool))
    vectors = list(model.embed([sample.medium for sample in shown], source.name))
    pairs = [(sample, vector.numpy()) for sample, (_, vector) in zip(shown, vectors, strict=True) if vector is not None]
    if not pairs:
        raise DatasetError(f"task {source.name}: none of {len(shown)} samples can be read")
    found, vectors_ND = [sample for sample, _ in pairs], np.stack([vector for _, vector in pairs])
    asked = [found[place].references[0] for place in _evenly(len(found), queries)]
    queries_QD = model.embed_texts(asked, source.name, of_clips=found[0].medium.is_clip).numpy()
    rows = []
    for query, best in zip(asked, nearest(vectors_ND, queries_QD, len(found)), strict=True):
        right = [query in found[place].references for place, _ in best]
        results = [
            {
                "image": found[place].image,
                "alt": f"Sample of {source.name}: {found[place].references[0]}",
                "score": similarity,
                "right": is_right,
            }
            for (place, similarity), is_right in zip(best[:top], right, strict=False)
        ]
        rows.append({"query": query, "rank": right.index(True) + 1, "pool": len(found), "results": results})
    return rows


def samples_of(source: Source, count: int) -> Iterator[Shown]:
    """At most `count`, evenly over the split; those that cannot be read are left out. Raises DatasetError where none can."""
    ends = np.cumsum(source.shards.sizes)
    number, last = 0, ""
    for place in _evenly(len(source.shards), count):
        shard = int(np.searchsorted(ends, place, side="right"))
        index = place - int(ends[shard - 1] if shard else 0)
        try:
            sample = source.shards.read(shard, index)
            example = source.task.example(sample, None)
            assert isinstance(example, Captioned)
            kind = next(key for key in (*IMAGE_KEYS, *VIDEO_KEYS) if key in sample)
            medium = Medium(str(sample.get("__key__", place)), kind, member(sample, (kind,)))
            shown = Shown(medium, tuple(example.references), small(medium))
        except (BadSample, BadShard) as error:
            last = error.reason
            continue
        number += 1
        yield shown
    if not number:
        raise DatasetError(f"task {source.name}: no sample of {source.task.config.split} can be read; the last: {last}")


def small(medium: Medium) -> str:
    """A picture of the medium, of a clip its middle, as a small JPEG in a data URL. Raises BadSample."""
    image_HWC = decode_video(medium.content, 1)[0] if medium.is_clip else decode_image(medium.content)
    image = Image.fromarray(image_HWC)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _evenly(total: int, count: int) -> list[int]:
    """At most `count` different places in [0, total)."""
    count = min(total, count)
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(find, make_parser(), sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
