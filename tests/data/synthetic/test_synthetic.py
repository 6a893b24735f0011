"""The made world: nothing held out is trained on, classes are balanced, captions say what is drawn."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from data.decode.image import decode_image
from data.decode.video import decode_video
from data.shards import DatasetError, ShardSet, read_info
from data.synthetic import WorldSize, scenes, world, write_demo_world
from data.synthetic.__main__ import main
from data.synthetic.scenes import COLOURS, MOTIONS, SHAPES, SIDE, Pair, Thing
from data.text.tokenizer import END_OF_TEXT, Tokenizer

SIZE = WorldSize(shapes=84, pairs=60, clips=24, clip_captions=24, sentences=120, evaluation=12)
DATASETS = {"shapes": 84, "pairs": 60, "clips": 24, "clip_captions": 24, "sentences": 120}
HELD_OUT = {(thing.colour, thing.shape) for thing in scenes.things(held_out=True)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    write_demo_world(out, 0, SIZE)
    return out


def samples(folder, name, split):
    shards = ShardSet.open(folder / name, split)
    assert shards.faults == ()
    return [shards.read(s, i) for s, size in enumerate(shards.sizes) for i in range(size)]


def objects(sample):
    return {tuple(pair) for pair in json.loads(sample["json"])["objects"]}


def texts(sample):
    return [sample["txt"].decode()] if "txt" in sample else json.loads(sample["json"]).get("captions", [])


def test_sizes_and_descriptions(folder):
    kinds = {name: read_info(folder / name).kind for name in DATASETS}
    assert kinds == {
        "shapes": "image_class",
        "pairs": "image_caption",
        "clips": "video_class",
        "clip_captions": "video_caption",
        "sentences": "text",
    }
    for name, count in DATASETS.items():
        info = read_info(folder / name)
        assert {split: s.samples for split, s in info.splits.items()} == {
            "train": count,
            "val": 12,
            "heldout": 12,
        }
        for split in info.splits:
            assert len(samples(folder, name, split)) == info.splits[split].samples
    assert read_info(folder / "shapes").classes == SHAPES
    assert read_info(folder / "clips").classes == MOTIONS


def test_held_out_things():
    train = {(thing.colour, thing.shape) for thing in scenes.things(held_out=False)}
    assert len(train) == 42 and len(HELD_OUT) == 6 and not train & HELD_OUT
    for combinations in (train, HELD_OUT):
        assert {shape for _, shape in combinations} == set(SHAPES)
    assert {colour for colour, _ in train} == set(COLOURS)


@pytest.mark.parametrize("name", DATASETS)
def test_held_out_combinations_never_occur_in_training(folder, name):
    for split in ("train", "val"):
        for sample in samples(folder, name, split):
            assert not objects(sample) & HELD_OUT
            # and not in words either
            assert not [f"{c} {s}" for c, s in HELD_OUT for text in texts(sample) if f"{c} {s}" in text]
    for sample in samples(folder, name, "heldout"):
        assert objects(sample) & HELD_OUT
        if name != "pairs" and name != "sentences":
            assert objects(sample) <= HELD_OUT


def test_classes_are_balanced(folder):
    assert Counter(int(s["cls"]) for s in samples(folder, "shapes", "train")) == dict.fromkeys(range(6), 14)
    assert Counter(int(s["cls"]) for s in samples(folder, "clips", "train")) == dict.fromkeys(range(6), 4)
    combinations = Counter(next(iter(objects(s))) for s in samples(folder, "shapes", "train"))
    assert set(combinations.values()) == {2} and len(combinations) == 42
    for split in ("val", "heldout"):
        assert set(Counter(int(s["cls"]) for s in samples(folder, "clips", split)).values()) == {2}


def test_labels_belong_to_the_objects(folder):
    for sample in samples(folder, "shapes", "train"):
        assert objects(sample).pop()[1] == SHAPES[int(sample["cls"])]


def test_pictures_can_be_decoded(folder):
    for name, split in itertools.product(("shapes", "pairs"), ("train", "val", "heldout")):
        assert {decode_image(s["png"]).shape for s in samples(folder, name, split)} == {(32, 32, 3)}
    clips = [decode_video(s["mp4"], 8) for s in samples(folder, "clips", "train")]
    assert {clip.shape for clip in clips} == {(8, 32, 32, 3)}
    # Something moves in every one of them.
    assert min(np.abs(np.diff(clip.astype(int), axis=0)).max() for clip in clips) > 30


def test_token_ids_are_those_of_training_texts(folder):
    tokenizer, everything = Tokenizer.load(), set()
    for name in DATASETS:
        info = read_info(folder / name)
        found = {END_OF_TEXT}.union(*(tokenizer.encode(text) for text in info.classes))
        for sample in samples(folder, name, "train"):
            found.update(index for text in texts(sample) for index in tokenizer.encode(text))
        assert info.token_ids == tuple(sorted(found))
        everything |= found
    assert len(everything) < 80


def test_captions_by_hand():
    pair = Pair(Thing("orange", "circle"), "left of", Thing("blue", "square"))
    assert scenes.pair_captions(pair) == [
        "an orange circle left of a blue square",
        "a blue square right of an orange circle",
        "the orange circle is left of the blue square",
        "the blue square is right of the orange circle",
        "left of the blue square is an orange circle",
    ]
    text, named = scenes.sentence(0, pair, pair.first, "growing")
    assert text == ("the orange circle is left of the blue square so the blue square is right of the orange circle .")
    assert named == [pair.first, pair.second]


@pytest.mark.parametrize("relation", scenes.OPPOSITE)
def test_the_first_stands_where_the_relation_says(relation):
    pair = Pair(Thing("red", "circle"), relation, Thing("blue", "square"))
    rng = np.random.default_rng(0)
    for _ in range(100):
        first_2, second_2 = world._pair_centres(pair, rng)
        along = (first_2 - second_2) @ np.array(scenes.DIRECTION[relation])
        across = np.abs(first_2 - second_2).min()
        assert 13 <= along <= 16 and across <= 5
        assert min(*first_2, *second_2) >= 6 and max(*first_2, *second_2) <= 26


@pytest.mark.parametrize("shape", SHAPES)
def test_things_are_drawn_in_their_colour_and_place(shape):
    frames_THWC = np.zeros((1, 32, 32, 3), np.float32)
    scenes.draw(frames_THWC, Thing("red", shape), np.array([[20.0, 10.0]]), np.array([6.0]), np.random.default_rng(1))
    red_HW = frames_THWC[0, :, :, 0]
    y, x = np.nonzero(red_HW > 150)
    assert frames_THWC[0, :, :, 2].max() < 60
    assert abs(x.mean() - 19.5) < 1.5 and abs(y.mean() - 9.5) < 1.5
    assert 20 < len(x) < 13 * 13


def test_the_world_is_a_torus():
    frames_THWC = np.zeros((1, 32, 32, 3), np.float32)
    scenes.draw(
        frames_THWC,
        Thing("white", "circle"),
        np.array([[0.0, 16.0]]),
        np.array([5.0]),
        np.random.default_rng(0),
    )
    assert frames_THWC[0, 16, [0, 31], 0].min() > 200 and frames_THWC[0, 16, 16, 0] == 0


def test_pairs_do_not_come_again_before_all_have_come():
    draws = world._pair_draws(False, 2580, np.random.default_rng(0))
    assert len(set(draws)) == 2580
    # the 60 of two held-out things are all among 256 held-out draws
    draws = world._pair_draws(True, 256, np.random.default_rng(0))
    both = [p for p in draws if {(t.colour, t.shape) for t in (p.first, p.second)} <= HELD_OUT]
    assert len(both) == 60 and len(set(draws)) == 256


def test_same_seed_same_bytes_and_another_seed_others(tmp_path):
    small = WorldSize(shapes=6, pairs=4, clips=6, clip_captions=6, sentences=6, evaluation=2)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_demo_world(tmp_path / name, seed, small)
    files = {
        name: {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.tar")}
        for name in "abc"
    }
    assert files["a"] == files["b"] and len(files["a"]) == 15
    assert all(files["a"][path] != files["c"][path] for path in files["a"])


def test_a_complete_world_is_left_alone_and_an_incomplete_one_redone(tmp_path, capsys):
    options = ["--shapes", "6", "--pairs", "4", "--clips", "6", "--clip-captions", "6", "--sentences", "6"]
    command = ["--out", str(tmp_path), *options, "--evaluation", "2"]
    assert main(command) == 0
    shard, info = tmp_path / "pairs" / "train-000000.tar", tmp_path / "pairs" / "dataset.json"
    whole, before = shard.read_bytes(), shard.stat().st_mtime_ns
    assert main(command) == 0 and shard.stat().st_mtime_ns == before
    info.unlink()
    shard.write_bytes(b"cut off")
    assert main(command) == 0 and shard.read_bytes() == whole
    assert main([*command, "--seed", "5"]) == 2
    assert "choose another folder" in capsys.readouterr().err
    with pytest.raises(DatasetError, match=r"world\.json"):
        write_demo_world(tmp_path, 0, SIZE)
    assert main([*command, "--clips", "0"]) == 2


def trajectories(motion: str, count: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """Place and size (x, y, radius) of things in every frame [N, 8, 3] of clips with this motion."""
    rng = np.random.default_rng(MOTIONS.index(motion))
    found = [world.trajectory(motion, rng) for _ in range(count)]
    return np.concatenate([np.stack([c for c, _ in found]), np.stack([r for _, r in found])[..., None]], axis=2)


def around(values: np.ndarray) -> np.ndarray:
    """On circles, as places and sizes come round: cosine and sine of each."""
    smallest, largest = world.RADII
    turns = values / np.array([SIDE, SIDE, largest - smallest]) * 2 * np.pi
    return np.concatenate([np.cos(turns), np.sin(turns)], axis=-1)


def test_no_frame_of_a_clip_tells_its_motion():
    """In each frame place and size are uniform whatever the motion: no moment differs by more than chance makes, and a linear model
    finds one of six as often as a guess."""
    paths = np.stack([trajectories(motion) for motion in MOTIONS])
    low, high = np.array([0, 0, world.RADII[0]]), np.array([SIDE, SIDE, world.RADII[1]])
    shares = (paths - low) / (high - low)
    assert shares.min() >= 0 and shares.max() < 1
    for motion, frame, axis in itertools.product(range(len(MOTIONS)), range(8), range(3)):
        # Kolmogorov's distance from the uniform distribution: above 2.3 / root(N) once in 20,000.
        ordered = np.sort(shares[motion, :, frame, axis])
        assert np.abs(ordered - (np.arange(1500) + 0.5) / 1500).max() < 2.3 / 1500**0.5, (motion, frame, axis)
    labels = np.repeat(np.arange(len(MOTIONS)), 750)
    for frame in (0, 3, 7):
        train, test = (around(paths[:, half, frame]).reshape(-1, 6) for half in (slice(0, 750), slice(750, None)))
        accuracy = LogisticRegression().fit(train, labels).score(test, labels)
        assert accuracy == pytest.approx(1 / 6, abs=0.03), frame


@pytest.mark.parametrize(("first", "second"), [(0, 1), (6, 7), (1, 3)])
def test_two_frames_in_their_order_tell_it(first, second):
    period = np.array([SIDE, SIDE, world.RADII[1] - world.RADII[0]])
    for motion in MOTIONS:
        path = trajectories(motion, 50)
        moved = (path[:, second] - path[:, first] + period / 2) % period - period / 2
        sign = {"moving left": (-1, 0, 0), "moving right": (1, 0, 0), "moving up": (0, -1, 0), "moving down": (0, 1, 0)}
        expected = sign.get(motion, (0, 0, 1 if motion == "growing" else -1))
        assert np.array_equal(np.sign(np.round(moved, 6)), np.tile(expected, (50, 1)))


def test_moving_things_look_as_they_are_told(folder):
    """From the pixels: the mean picture of what differs from the ground moves round the torus the right way."""
    for sample in samples(folder, "clips", "train"):
        motion = MOTIONS[int(sample["cls"])]
        if motion not in scenes.VELOCITY:
            continue
        clip = decode_video(sample["mp4"], 8).astype(float)
        weight = np.abs(clip - np.median(clip, axis=(1, 2), keepdims=True)).sum(axis=3) ** 2
        grid = 2j * np.pi * (np.arange(SIDE) + 0.5) / SIDE
        turns = [np.angle((weight.sum(axis=axis) * np.exp(grid)).sum(axis=1)) for axis in (1, 2)]  # of x, of y
        steps = np.array([((np.diff(turn) + np.pi) % (2 * np.pi) - np.pi).mean() for turn in turns])
        assert int(np.abs(steps).argmax()) == int(np.abs(scenes.VELOCITY[motion]).argmax())
        assert np.sign(steps @ scenes.VELOCITY[motion]) == 1, motion
