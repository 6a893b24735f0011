"""F1, Matthews and correlations: by hand, as scikit-learn and SciPy give them, and over the corpus on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy import stats
from sklearn import metrics as oracle

from data.config import DataConfig, TaskConfig
from data.shards import DatasetInfo, SplitInfo, write_info
from data.shards.writing import write_shards
from data.stream.source import open_data
from data.tasks.base import Pixels
from data.text.tokenizer import Tokenizer
from data.text.vocabulary import Vocabulary
from evaluation import EVALUATORS, Evaluation
from evaluation.metrics.agreement import _figure, agreement
from parallel.collectives import Axis
from tests.helpers.distributed import run_ranks
from tests.helpers.models import make, tiny

NAMES = ("f1", "matthews", "pearson", "spearman")


def test_by_hand():
    labels, told = np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 0])
    figures = agreement(("f1", "matthews"), labels, told, labels, told).figures
    # 2 right of 3 told and of 3 there: F1 is 2/3. (TP TN - FP FN) / root(3 3 2 2) = (2 - 1) / 6.
    assert figures == {"f1": pytest.approx(2 / 3), "matthews": pytest.approx(1 / 6)}
    scores, expected = np.array([0.0, 1, 2, 3]), np.array([0.0, 1, 4, 9])
    figures = agreement(("pearson", "spearman"), scores, scores, scores, expected).figures
    # Deviations -1.5 .. 1.5 and -3.5, -2.5, 0.5, 5.5: 15 / root(5 49).
    assert figures == {"pearson": pytest.approx(15 / 245**0.5), "spearman": pytest.approx(1.0)}


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_the_common_implementation(seed):
    rng = np.random.default_rng(seed)
    labels, told = rng.integers(2, size=80), rng.integers(2, size=80)
    targets, expected = rng.random(80), rng.random(80)
    figures = agreement(NAMES, labels, told, targets, expected).figures
    assert figures == {
        "f1": pytest.approx(oracle.f1_score(labels, told)),
        "matthews": pytest.approx(oracle.matthews_corrcoef(labels, told)),
        "pearson": pytest.approx(stats.pearsonr(targets, expected)[0]),
        "spearman": pytest.approx(stats.spearmanr(targets, expected)[0]),
    }


def test_a_model_that_says_always_the_same_gets_nothing():
    labels, same = np.array([1, 0, 1]), np.zeros(3)
    assert set(agreement(NAMES, labels, same, labels * 1.0, same).figures.values()) == {0.0}


def test_intervals_are_of_resamples():
    """Of 400 samples a share of .8 right: about .8 +- .04, as an accuracy's; seeded; nothing to be sure of where all are alike."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=400)
    told = np.where(rng.random(400) < 0.8, labels, 1 - labels)
    found = agreement(NAMES, labels, told, labels * 1.0, told * 1.0)
    assert found == agreement(NAMES, labels, told, labels * 1.0, told * 1.0)
    for name in NAMES:
        low, high = found.intervals[name]
        assert low < found.figures[name] < high, name
    low, high = found.intervals["f1"]
    assert 0.05 < high - low < 0.12
    same = np.ones(5)
    assert agreement(NAMES, same, same, same, same).intervals == {"f1": (1, 1)} | dict.fromkeys(NAMES[1:], (0, 0))


@pytest.mark.parametrize("name", NAMES)
def test_intervals_are_those_of_a_plain_loop(name):
    """A thousand other resamples, each with scikit-learn's or SciPy's figure; of three classes, as many as a step of a scale may have."""
    rng = np.random.default_rng(3)
    labels, told = rng.integers(3, size=60), rng.integers(3, size=60)
    told = np.where(rng.random(60) < 0.6, labels, told)
    columns = (labels, told, labels * 1.0, told + 0.1 * rng.random(60))
    figures = []
    for _ in range(300):
        places = rng.integers(60, size=60)
        figures.append(_figure(name, *(column[places] for column in columns)))
    assert agreement((name,), *columns).intervals[name] == pytest.approx(
        tuple(np.percentile(figures, [2.5, 97.5])), abs=0.06
    )


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Sentences with scores, in batches of three the last of which is filled up."""
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    samples = [
        {"__key__": f"{i:03d}", "txt": f"film number {i}", "cls": int(label), "json": {"score": label + 0.25}}
        for i, label in enumerate(rng.integers(2, size=10))
    ]
    write_shards(folder, "val", iter(samples))
    ids = tuple(sorted({49407, *Tokenizer.load().encode("film number 0 1 2 3 4 5 6 7 8 9 no yes")}))
    splits = {"val": SplitInfo(10, 1)}
    write_info(
        folder, DatasetInfo(kind="text_class", classes=("no", "yes"), metrics=NAMES, token_ids=ids, splits=splits)
    )
    return folder


def figures(rank: int, folder: str, ranks: int) -> dict:
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo")
    task = TaskConfig(name="text", kind="text_classification", path=folder, split="val", max_text=8)
    vocabulary = Vocabulary.full(Tokenizer.load())
    source = open_data(DataConfig(tasks=(task,)), Pixels(16, 8), 0, vocabulary).sources[0]
    objective = make(tiny(), vocabulary.size).eval()
    axis = Axis("data", ranks, rank, dist.group.WORLD if ranks > 1 else None)
    metrics = (
        EVALUATORS["text_classification"].evaluate(Evaluation(objective, source, batch_size=3, ranks=axis)).metrics
    )
    if ranks > 1:
        dist.destroy_process_group()
    return metrics


def test_two_ranks_give_the_corpus_figures_of_one(films):
    alone = figures(0, str(films), 1)
    assert alone["samples"] == 10 and set(NAMES) < alone.keys() and alone["pearson"] != 0
    for found in run_ranks(2, figures, str(films), 2):
        assert found == pytest.approx(alone)
