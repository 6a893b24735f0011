"""Clips in evaluation whose frames are shuffled or frozen: which frames, that all who read a sample agree, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from data.config import DataConfig, TaskConfig
from data.decode.image import encode_png
from data.decode.video import encode_mp4
from data.stream.source import Source, open_data
from data.tasks.base import Pixels
from data.tasks.frames import rearranged
from data.visual.transform import unpatchify
from evaluation import EVALUATORS, Evaluation
from evaluation.kept import options_of
from tests.helpers.models import make, tiny
from tests.helpers.sets import write_classes


@pytest.mark.parametrize(("count", "middle"), [(1, 0), (2, 1), (4, 2), (5, 2)])
def test_the_middle_frame_throughout(count, middle):
    frames = np.arange(count)[:, None, None, None]
    assert rearranged(frames, "frozen", np.random.default_rng(0)).ravel().tolist() == [middle] * count


def test_never_their_own_order_and_all_others():
    frames, generator = np.arange(3)[:, None, None, None], np.random.default_rng(0)
    orders = {tuple(rearranged(frames, "shuffled", generator).ravel().tolist()) for _ in range(60)}
    assert len(orders) == 5 and (0, 1, 2) not in orders
    assert rearranged(frames[:2], "shuffled", generator).ravel().tolist() == [1, 0]
    assert rearranged(frames[:1], "shuffled", generator).ravel().tolist() == [0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips of 8 frames that grow brighter by 20 a frame, and an image."""
    folder = tmp_path_factory.mktemp("ordered")
    for kind, samples in {
        "video": [{"mp4": encode_mp4(_brighter(n), fps=8), "cls": n % 2} for n in range(6)],
        "image": [{"png": encode_png(np.full((16, 16, 3), 90, np.uint8)), "cls": 0}],
    }.items():
        write_classes(folder / kind, f"{kind}_class", samples)
    return folder


def _brighter(number: int) -> np.ndarray:
    frames = 20 * np.arange(8)[:, None, None, None] + 40 + 3 * number
    return np.broadcast_to(frames, (8, 16, 16, 3)).astype(np.uint8)


def opened(folder, frames: str, kind: str = "video", views=(1, 1)) -> Source:
    task = TaskConfig(name=kind, kind="classification", path=str(folder / kind), split="val", num_frames=4, views=views)
    data = DataConfig(tasks=(task,), vocabulary="restricted")
    return open_data(data, Pixels(16, 8), 0, None, frames).sources[0]  # type: ignore[arg-type]


def greys(source: Source, index: int = 0) -> list[list[float]]:
    """Of each view, the mean of each frame."""
    example = source.task.example(source.shards.read(0, index), None)
    views = (example.visual, *example.others)
    return [unpatchify(v.patches, v.positions, 8).mean(axis=(1, 2, 3)).round().tolist() for v in views]


def test_frames_of_a_clip(folder):
    (plain,), (shuffled,), (frozen,) = (greys(opened(folder, frames)) for frames in ("as-is", "shuffled", "frozen"))
    assert plain == sorted(plain) and plain[-1] - plain[0] > 80
    assert sorted(shuffled) == plain and shuffled != plain
    assert frozen == [plain[2]] * 4
    source = opened(folder, "shuffled")
    assert greys(source) == [shuffled]  # again
    orders = {tuple(np.argsort(greys(source, index)[0])) for index in range(6)}
    assert len(orders) > 1  # each sample has its own


def test_each_clip_of_several_views_and_images(folder):
    plain, frozen, shuffled = (greys(opened(folder, way, views=(2, 2))) for way in ("as-is", "frozen", "shuffled"))
    assert [len(set(view)) for view in frozen] == [1] * 4 and [view[2] for view in plain] == [v[0] for v in frozen]
    # Crops of one clip have the same order.
    assert np.argsort(shuffled[0]).tolist() == np.argsort(shuffled[1]).tolist()
    assert [sorted(view) for view in shuffled] == plain
    assert greys(opened(folder, "shuffled", "image")) == greys(opened(folder, "as-is", "image"))


def test_it_is_an_option_of_the_result_and_the_batch_size_changes_nothing(folder):
    source = opened(folder, "shuffled")
    objective = make(tiny(), source.task.vocabulary.size)
    found = [
        EVALUATORS["classification"].evaluate(Evaluation(objective.eval(), source, batch_size=size)) for size in (2, 6)
    ]
    assert np.array_equal(found[0].evidence_N2, found[1].evidence_N2)
    plain = options_of(Evaluation(objective, opened(folder, "as-is")))
    assert "frames" not in plain and options_of(Evaluation(objective, source)) == plain | {"frames": "shuffled"}
