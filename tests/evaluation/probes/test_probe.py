"""A probe from shards to figures: what it reads, how it averages, and that ranks change nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist

from data.shards import DatasetError
from data.shards.writing import write_shards
from data.stream.evaluation import spread
from data.stream.source import open_data
from data.tasks.base import Pixels
from evaluation import Evaluation
from evaluation.probes import Probe, evaluate
from evaluation.probes.features import features_of, training_labels
from model.initialise import initialise
from model.objective import Objective
from parallel.collectives import Axis
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from run.config_file import load_config
from tests.helpers.distributed import run_ranks

PROBES = (Probe("ridge", shots=2, trials=3), Probe("knn"), Probe("linear", fraction=0.3, trials=2))


def probed(config: str, task: str, axis: Axis, limit: int | None = 13) -> Evaluation:
    run = load_config(config)
    own = next(t for t in run.data.tasks if t.name == task)
    pixels = Pixels(run.model.image_size, run.model.patch)
    data = open_data(run.data, pixels, run.seed)
    sources = [
        open_data(
            dataclasses.replace(run.data, tasks=(dataclasses.replace(own, split=split),)), pixels, 0, data.vocabulary
        ).sources[0]
        for split in ("heldout", "train")
    ]
    objective = Objective(run.model, data.vocabulary.size, Mesh(), load_kernels("torch"))
    initialise(objective, run.seed)
    return Evaluation(objective.eval(), sources[0], sources[1], "cpu", 4, limit, ranks=axis)


def figures(rank: int, config: str, ranks: int) -> list[tuple[dict, list]]:
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo")
    axis = Axis("data", ranks, rank, dist.group.WORLD if ranks > 1 else None)
    found = []
    for task in ("shapes", "clips"):
        for probe in PROBES:
            result = evaluate(probed(config, task, axis), probe)
            found.append((result.metrics, result.evidence_N2.tolist()))
    if ranks > 1:
        dist.destroy_process_group()
    return found


def test_two_ranks_give_the_figures_of_one(config):
    alone = figures(0, str(config), 1)
    metrics, evidence = alone[0]
    assert metrics["samples"] == len(evidence) == 13 and metrics["trials"] == 3
    assert metrics["training_samples"] == 12 and metrics["chance"] == pytest.approx(1 / 6)
    assert metrics["chance"] <= metrics["majority"] < 1
    assert alone[1][0]["training_samples"] == 48 and alone[1][0]["trials"] == 1
    assert metrics["accuracy"] == pytest.approx(np.mean([right for right, _ in evidence]))
    for found in run_ranks(2, figures, str(config), 2):
        assert found == alone


def labels_of_rank(rank: int, config: str) -> list[int]:
    """The second rank cannot read one of the labels."""
    from evaluation.probes import features

    dist.init_process_group("gloo")
    read = features.labels_of
    features.labels_of = lambda info, shards: np.where(np.arange(48) == 5 * rank - 1, -1, read(info, shards))
    found = training_labels(probed(config, "shapes", Axis("data", 2, rank, dist.group.WORLD))).tolist()
    dist.destroy_process_group()
    return found


def test_ranks_choose_by_the_same_labels(config):
    alone = training_labels(probed(str(config), "shapes", Axis("data"))).tolist()
    assert -1 not in alone and run_ranks(2, labels_of_rank, str(config)) == [alone, alone]


def test_features_stand_before_the_projection_and_training_is_not_augmented(config):
    evaluation = probed(str(config), "shapes", Axis("data"))
    features = features_of(evaluation, evaluation.passed())
    batch = evaluation.source.task.batch([example for e, _ in evaluation.batches() for example in e][:13], None)
    with torch.no_grad():
        projected, _ = evaluation.objective.encode(batch.inputs, batch.read_Q2, task="shapes")
        output = evaluation.objective.tower.output
        again = next(iter(output.values()))(torch.from_numpy(features.features_ND))
    assert features.features_ND.shape == (13, evaluation.objective.config.width)
    assert features.places_N.tolist() == spread(16, 13).tolist()
    assert torch.allclose(again, projected, atol=1e-5)
    first, second = (
        features_of(evaluation, evaluation.training_passed(evaluation.training, np.arange(5))) for _ in "ab"
    )
    assert np.array_equal(first.features_ND, second.features_ND)


def test_labels_are_read_without_decoding(config, monkeypatch):
    evaluation = probed(str(config), "shapes", Axis("data"))
    monkeypatch.setattr("data.tasks.base.decode_image", None)
    labels = training_labels(evaluation)
    assert np.bincount(labels).tolist() == [8] * 6


def test_texts_and_damaged_training_samples(tmp_path, config):
    """Texts that name their class: even an encoder that has learned nothing keeps that apart. One label cannot be read."""
    from data.config import TaskConfig
    from data.shards import DatasetInfo, SplitInfo, write_info
    from data.text.tokenizer import Tokenizer
    from data.text.vocabulary import Vocabulary

    texts = ("a dull film", "great fun")
    for split, count in (("train", 8), ("val", 6)):
        samples = [{"__key__": f"{i:04d}", "txt": texts[i % 2], "cls": i % 2} for i in range(count)]
        if split == "train":
            samples[2]["cls"] = "none"
        write_shards(tmp_path / "set", split, iter(samples))
    ids = sorted({49407, *Tokenizer.load().encode("a dull film great fun terrible")})
    splits = {"train": SplitInfo(8, 1), "val": SplitInfo(6, 1)}
    write_info(
        tmp_path / "set",
        DatasetInfo(kind="text_class", classes=("terrible", "great"), token_ids=tuple(ids), splits=splits),
    )
    like = probed(str(config), "shapes", Axis("data"))
    vocabulary = Vocabulary.full(Tokenizer.load())
    run = load_config(str(config))
    task = TaskConfig(name="films", kind="text_classification", path=str(tmp_path / "set"), max_text=8)
    sources = [
        open_data(
            dataclasses.replace(run.data, tasks=(dataclasses.replace(task, split=split),)), Pixels(32, 8), 0, vocabulary
        ).sources[0]
        for split in ("val", "train")
    ]
    objective = Objective(run.model, vocabulary.size, Mesh(), load_kernels("torch"))
    initialise(objective, 0)
    evaluation = dataclasses.replace(
        like, objective=objective.eval(), source=sources[0], training=sources[1], limit=None, max_bad_fraction=0.2
    )
    assert training_labels(evaluation).tolist() == [0, 1, -1, 1, 0, 1, 0, 1]
    for probe in (Probe("ridge", shots=3, trials=2), Probe("knn"), Probe("linear")):
        metrics = evaluate(evaluation, probe).metrics
        assert metrics["accuracy"] == 1.0 and metrics["training_samples"] == (6 if probe.is_part else 7)
    strict = dataclasses.replace(evaluation, max_bad_fraction=0.1)
    for probe in (Probe("ridge", shots=3, trials=2), Probe("knn")):
        with pytest.raises(
            DatasetError, match=r"task films: 1 of 8 training samples cannot be read, the first .* sample 2.*class"
        ):
            evaluate(strict, probe)


def test_probes_are_named_and_checked():
    assert [probe.name for probe in PROBES] == ["ridge probe, 2 shots", "knn probe", "linear probe, 30 %"]
    with pytest.raises(ValueError, match="must be one of linear, ridge, knn"):
        Probe("svm")
    with pytest.raises(ValueError, match="one of them be given"):
        Probe("knn", fraction=2.0)


def test_one_class_alone_cannot_be_probed(config):
    evaluation = probed(str(config), "shapes", Axis("data"))
    labels = training_labels(evaluation)
    one, only = Probe("knn", shots=8), np.flatnonzero(labels == 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Probe, "parts", lambda self, labels_N: [only])
        with pytest.raises(
            DatasetError, match=r"task shapes: a probe needs readable training samples of two classes.*lint"
        ):
            evaluate(evaluation, one)


@pytest.mark.parametrize("probe", [Probe("knn", shots=8), Probe("ridge", fraction=0.5)])
def test_labels_none_of_which_can_be_read_cannot_be_probed(config, monkeypatch, probe):
    monkeypatch.setattr("evaluation.probes.features.labels_of", lambda info, shards: np.full(48, -1))
    with pytest.raises(DatasetError, match="task shapes: a probe needs readable training samples of two classes"):
        evaluate(probed(str(config), "shapes", Axis("data")), probe)
