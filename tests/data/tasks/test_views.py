"""Several views of a clip or image in evaluation: which they are, and that one view is the plain evaluation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from data.config import DataConfig, TaskConfig
from data.decode.image import encode_png
from data.decode.video import decode_video, encode_mp4, positions
from data.shards import DatasetError
from data.stream.source import Source, open_data
from data.tasks import kind_of
from data.tasks.base import Pixels
from data.visual.transform import unpatchify
from evaluation import EVALUATORS, Evaluation
from run.command_line import crops_and_clips
from tests.helpers.models import make, tiny
from tests.helpers.sets import write_classes


def clip(seed: int) -> bytes:
    """16 frames of 16 x 32: grey grows with time from left to right."""
    grey_T = (8 * np.arange(16) + 40 + 5 * seed)[:, None, None, None]
    return encode_mp4(np.broadcast_to(grey_T + 2 * np.arange(32)[:, None], (16, 16, 32, 3)).astype(np.uint8), fps=8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("viewed")
    for kind, samples in {
        "video": [{"mp4": clip(n), "cls": n % 2} for n in range(5)],
        "image": [{"png": encode_png(np.arange(16 * 32 * 3).reshape(16, 32, 3).astype(np.uint8)), "cls": 0}],
    }.items():
        write_classes(folder / kind, f"{kind}_class", samples)
    return folder


def opened(folders, kind: str = "video", **options) -> Source:
    task = TaskConfig(name=kind, kind="classification", path=str(folders / kind), split="val", num_frames=2, **options)
    return open_data(DataConfig(tasks=(task,), vocabulary="restricted"), Pixels(16, 8), 0).sources[0]


def greys(task, sample) -> list[list[float]]:
    """Of each view, the mean of each frame."""
    example = task.example(sample, None)
    views = (example.visual, *example.others)
    return [unpatchify(v.patches, v.positions, 8).mean(axis=(1, 2, 3)).round(1).tolist() for v in views]


def test_times_of_clips():
    """In four segments the first of two clips takes their first quarters; a window of half the clip starts at a quarter and three
    quarters of the free time."""
    assert positions(2, "segment", 0, None, 0.25).tolist() == [0.125, 0.625]
    assert positions(2, "segment", 0, None, 0.75).tolist() == [0.375, 0.875]
    assert positions(2, "stride", 0.25, None, 0.25).tolist() == pytest.approx([0.25, 0.5])
    frames = decode_video(clip(0), 2, clips=2)
    later = [decode_video(clip(0), 8)[[number, number + 4]] for number in (0, 2)]  # 8 segments: frames 1, 3, 5, ...
    assert len(frames) == 4 and abs(frames.astype(int) - np.concatenate(later).astype(int)).max() <= 12
    for jump in (True, False):
        assert np.array_equal(decode_video(clip(0), 2, clips=2, jump=jump), frames)
    assert np.array_equal(decode_video(clip(0), 3, clips=1), decode_video(clip(0), 3))


def test_views_are_crops_of_clips_and_the_middle_one_is_the_plain_one(folders):
    sample = opened(folders).shards.read(0, 0)
    plain = greys(opened(folders).task, sample)
    assert len(plain) == 1 and greys(opened(folders, views=(1, 1)).task, sample) == plain
    left, middle, right = greys(opened(folders, views=(3, 1)).task, sample)
    assert [middle] == plain and left[0] < middle[0] < right[0] and left[1] < right[1]
    early, late = greys(opened(folders, views=(1, 2)).task, sample)
    assert early[0] < plain[0][0] < late[0] < early[1] < late[1]
    assert len(greys(opened(folders, views=(3, 4)).task, sample)) == 12
    assert (
        greys(opened(folders, "image", views=(3, 1)).task, opened(folders, "image").shards.read(0, 0))[1]
        == greys(opened(folders, "image").task, opened(folders, "image").shards.read(0, 0))[0]
    )


def test_similarities_are_averaged_and_one_view_changes_nothing(folders):
    torch.set_num_threads(1)
    objective = make(tiny(), opened(folders).task.vocabulary.size).eval()
    results = {}
    for views in ((1, 1), (3, 2)):
        results[views] = EVALUATORS["classification"].evaluate(
            Evaluation(objective, opened(folders, views=views), batch_size=2)
        )
    assert np.array_equal(
        results[1, 1].evidence_N2,
        EVALUATORS["classification"].evaluate(Evaluation(objective, opened(folders), batch_size=2)).evidence_N2,
    )
    task = opened(folders, views=(3, 2)).task
    examples = [task.example(opened(folders).shards.read(0, n), None) for n in range(5)]
    total = torch.zeros(5, 2)
    with torch.no_grad():
        names, _ = objective.encode_candidates(task.candidates, task="video")
        for view in task.by_view(examples):
            batch = task.batch(view, None)
            total += (
                objective.logits(objective.encode(batch.inputs, batch.read_Q2, task="video")[0], names, "video") / 6
            )
    right = total.argmax(dim=1) == torch.tensor([0, 1, 0, 1, 0])
    assert results[3, 2].evidence_N2[:, 0].tolist() == right.double().tolist()


def test_training_has_one_view(folders):
    task = opened(folders, views=(3, 4)).task
    assert task.example(opened(folders).shards.read(0, 0), np.random.default_rng(0)).others == ()


def test_views_that_mean_nothing(folders):
    for text in ("3", "3x0", "0x1", "x", "3x4x5", "axb"):
        with pytest.raises(ValueError):
            crops_and_clips(text)
    assert crops_and_clips("3x4") == (3, 4)
    with pytest.raises(DatasetError, match="images have one clip"):
        opened(folders, "image", views=(1, 2))
    with pytest.raises(ValueError, match="at least 1 of each"):
        opened(folders, views=(0, 1))
    config = dataclasses.replace(opened(folders).task.config, kind="retrieval", views=(3, 1))
    with pytest.raises(ValueError, match="views are those of classification"):
        kind_of(config).check(config)
