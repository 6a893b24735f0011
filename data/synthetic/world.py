"""The five data sets of the made world.

    shapes         image_class    one object; the class is its shape
    pairs          image_caption  two objects, three to five captions
    clips          video_class    one object; the class is its motion
    clip_captions  video_caption  the same with captions
    sentences      text           sentences that say things twice

Splits: `train`; `val`, new draws of what training shows; `heldout`, combinations of colour and shape that
occur in no training sample of any data set. Every sample has `json` with "objects": [[colour, shape], ...].
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.decode.image import encode_png
from data.decode.video import encode_mp4
from data.shards import (
    DatasetError,
    DatasetInfo,
    SplitInfo,
    clear_dataset,
    is_complete,
    is_trained_on,
    write_info,
    write_shards,
)
from data.shards.lock import only_writer
from data.synthetic import scenes
from data.synthetic.scenes import MOTIONS, SHAPES, SIDE, Pair, Thing
from data.text.tokenizer import END_OF_TEXT, Tokenizer

NUM_FRAMES, FPS = 8, 8
RADII = (4.0, 10.0)
"""Of things in clips, in pixels."""
SPLITS = ("train", "val", "heldout")
Sample = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class WorldSize:
    """Training samples of each data set, and samples of each of their other two splits."""

    shapes: int = 6000
    pairs: int = 4000
    clips: int = 1500
    clip_captions: int = 800
    sentences: int = 6000
    evaluation: int = 256

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"every size must be at least 1: {self}")

    def samples(self, dataset: str, split: str) -> int:
        return getattr(self, dataset) if split == "train" else self.evaluation


def write_demo_world(out: Path | str, seed: int, size: WorldSize) -> None:
    """Write the five data sets as folders of `out`; the same seed and size give the same bytes.

    Data sets that are complete are left alone. Raises DatasetError if `out` holds a world of another seed or
    size, or a folder holds other files.
    """
    out = Path(out)
    with only_writer(out):
        _claim(out, {"version": 2, "seed": seed, **dataclasses.asdict(size)})
        tokenizer = Tokenizer.load()
        for number, (name, make) in enumerate(_MAKERS.items()):
            folder = out / name
            if is_complete(folder):
                continue
            clear_dataset(folder)
            texts: set[str] = set()
            splits = {}
            for split_number, split in enumerate(SPLITS):
                count = size.samples(name, split)
                samples = make(split == "heldout", count, np.random.default_rng([seed, number, split_number]))
                # The vocabulary is that of training; the other splits are there to show what is made of new samples.
                kept = texts if is_trained_on(split, SPLITS) else set()
                shards = write_shards(folder, split, _numbered(samples, kept))
                splits[split] = SplitInfo(samples=count, shards=len(shards))
            kind, classes = _KINDS[name]
            ids = {END_OF_TEXT}.union(*(tokenizer.encode(text) for text in [*texts, *classes]))
            write_info(folder, DatasetInfo(kind=kind, classes=classes, token_ids=tuple(sorted(ids)), splits=splits))


def _claim(out: Path, wanted: dict[str, int]) -> None:
    """Note beside the data sets what they were made from, or compare with the note that is there."""
    note = out / "world.json"
    if note.is_file():
        try:
            found = json.loads(note.read_bytes())
        except ValueError as error:
            raise DatasetError(f"{note}: {error}; remove it") from error
        if found != wanted:
            raise DatasetError(f"{note} says {found}, wanted {wanted}: remove {out} or choose another folder")
        return
    out.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(wanted) + "\n", encoding="utf-8")


def _numbered(samples: Iterator[Sample], texts: set[str]) -> Iterator[Sample]:
    """Give keys, and note the texts on the way."""
    for index, sample in enumerate(samples):
        texts.update(sample["json"].get("captions", []))
        texts.update([sample["txt"]] if "txt" in sample else [])
        yield {"__key__": f"{index:06d}", **sample}


def _shapes(held_out: bool, count: int, rng: np.random.Generator) -> Iterator[Sample]:
    for thing, _ in _balanced(list(SHAPES), held_out, count, rng, of=lambda thing: thing.shape):
        frames_THWC = scenes.background(rng)[None]
        radius = rng.uniform(8, 12)
        centre_2 = rng.uniform(radius + 1, SIDE - radius - 1, size=2)
        scenes.draw(frames_THWC, thing, centre_2[None], np.array([radius]), rng)
        yield {"png": _png(frames_THWC), "cls": SHAPES.index(thing.shape), "json": _record(thing)}


def _pairs(held_out: bool, count: int, rng: np.random.Generator) -> Iterator[Sample]:
    for pair in _pair_draws(held_out, count, rng):
        frames_THWC = scenes.background(rng)[None]
        for thing, centre_2 in zip((pair.first, pair.second), _pair_centres(pair, rng), strict=True):
            scenes.draw(frames_THWC, thing, centre_2[None], rng.uniform(4, 5.5, size=1), rng)
        captions = rng.permutation(scenes.pair_captions(pair))[: rng.integers(3, 6)].tolist()
        yield {"png": _png(frames_THWC), "json": _record(pair.first, pair.second) | {"captions": captions}}


def _clips(held_out: bool, count: int, rng: np.random.Generator) -> Iterator[Sample]:
    for thing, motion in _balanced(list(MOTIONS), held_out, count, rng):
        yield {"mp4": _clip(thing, motion, rng), "cls": MOTIONS.index(motion), "json": _record(thing)}


def _clip_captions(held_out: bool, count: int, rng: np.random.Generator) -> Iterator[Sample]:
    for thing, motion in _balanced(list(MOTIONS), held_out, count, rng):
        captions = rng.permutation(scenes.motion_captions(thing, motion)).tolist()
        yield {"mp4": _clip(thing, motion, rng), "json": _record(thing) | {"captions": captions}}


def _sentences(held_out: bool, count: int, rng: np.random.Generator) -> Iterator[Sample]:
    allowed = scenes.things(held_out)
    for index, drawn in enumerate(_pair_draws(held_out, count, rng)):
        pair = drawn if rng.random() < 0.5 else drawn.reversed()
        mover = pair.first if pair.first in allowed else pair.second
        motion = MOTIONS[rng.integers(len(MOTIONS))]
        text, named = scenes.sentence(index % scenes.NUM_SENTENCES, pair, mover, motion)
        yield {"txt": text, "json": _record(*named)}


_MAKERS: dict[str, Callable[[bool, int, np.random.Generator], Iterator[Sample]]] = {
    "shapes": _shapes,
    "pairs": _pairs,
    "clips": _clips,
    "clip_captions": _clip_captions,
    "sentences": _sentences,
}
_KINDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "shapes": ("image_class", SHAPES),
    "pairs": ("image_caption", ()),
    "clips": ("video_class", MOTIONS),
    "clip_captions": ("video_caption", ()),
    "sentences": ("text", ()),
}


def _balanced(
    classes: list[str],
    held_out: bool,
    count: int,
    rng: np.random.Generator,
    of: Callable[[Thing], str] | None = None,
) -> list[tuple[Thing, str]]:
    """`count` things with a class each, in random order; classes come equally often, and so do things.

    of  the class of a thing; without it every thing goes with every class
    """
    things = scenes.things(held_out)
    draws = []
    for index in range(count):
        turn, number = divmod(index, len(classes))
        members = [thing for thing in things if of is None or of(thing) == classes[number]]
        draws.append((members[turn % len(members)], classes[number]))
    return [draws[index] for index in rng.permutation(count)]


def _pair_draws(held_out: bool, count: int, rng: np.random.Generator) -> list[Pair]:
    """`count` pairs in random order, no pair again before all have come.

    Held out: first those of two things held out, which are 60, then those of one.
    """
    new, old = scenes.things(held_out=True), scenes.things(held_out=False)
    groups = [scenes.pairs(new, new), scenes.pairs(new, old)] if held_out else [scenes.pairs(old, old)]
    draws: list[Pair] = []
    while len(draws) < count:
        for group in groups:
            draws += [group[index] for index in rng.permutation(len(group))]
    return [draws[index] for index in rng.permutation(count)]


def _pair_centres(pair: Pair, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Where the two stand, in the frame: 13 to 16 pixels apart along the relation, at most 5 across it."""
    along_2 = np.array(scenes.DIRECTION[pair.relation], dtype=float)
    across_2 = along_2[::-1]
    apart, offset = rng.uniform(13, 16), rng.uniform(-2.5, 2.5)
    middle_2 = SIDE / 2 + along_2 * rng.uniform(-1.5, 1.5) + across_2 * rng.uniform(-6, 6)
    step_2 = along_2 * apart / 2 + across_2 * offset
    return middle_2 + step_2, middle_2 - step_2


def _clip(thing: Thing, motion: str, rng: np.random.Generator) -> bytes:
    """A clip in mp4."""
    centres_T2, radii_T = trajectory(motion, rng)
    frames_THWC = np.repeat(scenes.background(rng)[None], NUM_FRAMES, axis=0)
    scenes.draw(frames_THWC, thing, centres_T2, radii_T, rng)
    return encode_mp4(_pixels(frames_THWC), FPS)


def trajectory(motion: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(centres_T2, radii_T) in pixels. No frame by itself says anything of the motion, any two neighbours do.

    The thing starts anywhere on the torus with any size, and sizes come round as places do: what grows past the largest is smallest again.
    Place and size in a frame are then equally likely to be anything, whatever the motion is.
    """
    steps_T = np.arange(NUM_FRAMES)
    velocity_2 = np.array(scenes.VELOCITY.get(motion, (0, 0))) * rng.uniform(2.2, 2.8)
    growth = {"growing": 1, "shrinking": -1}.get(motion, 0) * rng.uniform(0.7, 0.85)
    centres_T2 = (rng.uniform(0, SIDE, size=2) + steps_T[:, None] * velocity_2) % SIDE
    smallest, largest = RADII
    sizes_T = (rng.uniform(0, largest - smallest) + steps_T * growth) % (largest - smallest)
    return centres_T2, smallest + sizes_T


def _png(frames_THWC: np.ndarray) -> bytes:
    return encode_png(_pixels(frames_THWC)[0])


def _pixels(frames_THWC: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(frames_THWC), 0, 255).astype(np.uint8)


def _record(*things: Thing) -> dict[str, Any]:
    return {"objects": [[thing.colour, thing.shape] for thing in things]}
