"""What evaluating costs besides the network: images per second against the forward pass alone, captions with and without kept keys and
values, memory of retrieval at COCO's size.

`python -m benchmarks.evaluation` prints a line for each. The ways that are compared take turns in one process, so that noise hits both;
times of different runs do not compare, ratios do. Made data and random weights: figures say nothing, costs do.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing as mp
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.attributes import CAPTION_TEXT, CAPTION_VISUAL
from data.batch import Modality, Sequences
from data.config import DataConfig, TaskConfig
from data.decode.image import encode_png
from data.shards import DatasetInfo, SplitInfo, write_info, write_shards
from data.stream.source import Source, open_data
from data.tasks.base import Pixels
from data.tasks.candidates import WordCandidates
from data.tasks.segments import visual_segment
from data.text.tokenizer import END_OF_TEXT, Tokenizer
from data.text.vocabulary import Vocabulary
from evaluation import EVALUATORS, Evaluation
from evaluation.encoding import encode_rows
from evaluation.retrieval import recalls
from model.config import ModelConfig
from model.generate import Words, beam_search
from model.initialise import initialise
from model.objective import Objective
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from run.command_line import Several

CLASSES = ("red", "blue", "green", "yellow", "orange", "purple", "pink", "white", "black", "grey")


@dataclasses.dataclass(frozen=True)
class Size:
    """side: pixels of an image, in patches of 16."""

    width: int
    depth: int
    side: int
    rounds: int


def make_objective(size: Size, vocabulary_size: int) -> Objective:
    heads = max(1, size.width // 64)
    config = ModelConfig(
        width=size.width, depth=size.depth, heads=heads, ffn=4 * size.width, image_size=size.side, patch=16, max_text=32
    )
    objective = Objective(config, vocabulary_size, Mesh(), load_kernels("torch"))
    initialise(objective, seed=0)
    return objective.eval()


def seconds_of(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# ------------------------------------------------------------------------------------------ zero-shot classification


def made_images(folder: Path, count: int, side: int) -> Source:
    rng = np.random.default_rng(0)
    samples = (
        {
            "__key__": f"{n:06d}",
            "png": encode_png(rng.integers(256, size=(side, side, 3), dtype=np.uint8)),
            "cls": n % 10,
        }
        for n in range(count)
    )
    write_shards(folder, "val", samples)
    ids = tuple(sorted({END_OF_TEXT, *Tokenizer.load().encode(" ".join(CLASSES))}))
    splits = {"val": SplitInfo(count, 1)}
    write_info(folder, DatasetInfo(kind="image_class", classes=CLASSES, token_ids=ids, splits=splits))
    task = TaskConfig(name="made", kind="classification", path=str(folder), split="val", max_text=4)
    return open_data(DataConfig(tasks=(task,), vocabulary="restricted"), Pixels(side, 16), 0).sources[0]


@torch.no_grad()
def classification(size: Size, images: int, batch_size: int, workers: int) -> str:
    """From shards to figures against the forward passes on batches that are ready."""
    with tempfile.TemporaryDirectory() as folder:
        source = made_images(Path(folder), images, size.side)
        objective = make_objective(size, source.task.vocabulary.size)
        evaluation = Evaluation(objective, source, batch_size=batch_size, workers=workers)
        batches = [source.task.batch(examples, None) for examples, _ in evaluation.batches()]

        def forward() -> None:
            for batch in batches:
                objective.encode(batch.inputs, batch.read_Q2)

        times = [
            (seconds_of(lambda: EVALUATORS["classification"].evaluate(evaluation)), seconds_of(forward))
            for _ in range(size.rounds + 1)
        ][1:]
    whole, alone = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(one / other for other, one in times)
    return (
        f"classification: {images / whole:.1f} images/s, forward pass alone {images / alone:.1f}, ratio {ratio:.2f} "
        f"({min(one / other for other, one in times):.2f} - {max(one / other for other, one in times):.2f})"
    )


# ---------------------------------------------------------------------------------------------------------- captions


@torch.no_grad()
def captions(size: Size, images: int, words: int, beam: int) -> str:
    """Keys and values kept, against whole sequences encoded at each step."""
    # Of some hundred words, one of which is end-of-text: to random weights it is as likely as any other.
    vocabulary = Vocabulary.restricted(Tokenizer.load(), range(1000, 1500))
    objective = make_objective(size, vocabulary.size)
    candidates = WordCandidates(vocabulary).all
    tokens_C = torch.tensor([vocabulary.candidate_token(c) for c in range(vocabulary.num_candidates)])
    made = Words(
        encode_rows(objective, candidates, "made", "cpu"),
        tokens_C,
        "caption",
        vocabulary.end,
        vocabulary.spe,
        CAPTION_TEXT,
        "made",
    )
    rows = size.side // 16
    positions_L3 = np.stack(np.unravel_index(np.arange(rows * rows), (1, rows, rows)), axis=1).astype(np.int64)
    rng = np.random.default_rng(0)
    patches = [rng.integers(256, size=(rows * rows, 768), dtype=np.uint8) for _ in range(images)]
    prefix = Sequences(segments=(visual_segment(patches, [positions_L3] * images, Modality.IMAGE, CAPTION_VISUAL),))
    lengths: list[int] = []

    def write(cached: bool) -> None:
        found = beam_search(objective, prefix, made, beam, words, cached=cached)
        lengths.append(found.tokens_BKT.shape[2])

    times = [(seconds_of(lambda: write(True)), seconds_of(lambda: write(False))) for _ in range(size.rounds + 1)][1:]
    kept, whole = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(slow / fast for fast, slow in times)
    return (
        f"captions of {max(lengths)} words, beam {beam}: {images / kept:.2f} a second with kept keys and values, "
        f"{images / whole:.2f} with whole sequences, ratio {ratio:.1f}"
    )


# --------------------------------------------------------------------------------------------------------- retrieval


def _recalls(images: int, texts: int, width: int, queue: Any) -> None:
    """In a process of its own: its peak memory is that of retrieval."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(count, width, generator=generator) for count in (images, texts)]
    before = peak_gib()
    start = time.perf_counter()
    recalls(*features, torch.arange(texts) % images)
    queue.put((before, peak_gib(), time.perf_counter() - start))


def peak_gib() -> float:
    """The most resident memory that this process has had."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def retrieval(images: int, texts: int, width: int) -> str:
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_recalls, args=(images, texts, width, queue))
    process.start()
    before, peak, seconds = queue.get()
    process.join()
    return (
        f"retrieval, {images:,} images and {texts:,} texts of width {width}: peak {peak:.2f} GiB resident, {before:.2f} of it before, "
        f"{seconds:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {
        "width": 384, "depth": 6, "side": 128, "rounds": 3, "threads": 1, "images": 64, "batch-size": 32, "workers": 0,
        "captions": 4, "words": 20, "beam": 2, "retrieved": 5000, "texts": 25000, "features": 768,
    }  # fmt: skip
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--parts", nargs="+", action=Several, default=["classification", "captions", "retrieval"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = Size(options.width, options.depth, options.side, options.rounds)
    print(
        f"width {size.width}, depth {size.depth}, images of {size.side} pixels, {options.threads} thread(s), median of {size.rounds}"
    )
    if "classification" in options.parts:
        print(classification(size, options.images, options.batch_size, options.workers), flush=True)
    if "captions" in options.parts:
        print(captions(size, options.captions, options.words, options.beam), flush=True)
    if "retrieval" in options.parts:
        print(retrieval(options.retrieved, options.texts, options.features), flush=True)


if __name__ == "__main__":
    main()
