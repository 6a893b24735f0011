"""Masked text: what word frequencies alone would give, counted in the texts that the run trains on."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path

import pytest

from data.config import DataConfig, TaskConfig
from data.shards import DatasetInfo, SplitInfo, write_info, write_shards
from data.stream.evaluation import places_of
from data.text.tokenizer import END_OF_TEXT
from evaluation import Evaluation
from evaluation.masked_text import evaluate
from tests.helpers.models import make, tiny
from tests.helpers.streams import opened, tokenizer

TEXTS = ("red dog", "red cat", "blue cat", "red dog")


def evaluation_of(folder: Path, **options) -> Evaluation:
    write_shards(folder, "train", iter([{"__key__": f"{i}", "txt": text} for i, text in enumerate(TEXTS)]))
    tokens = {END_OF_TEXT, *tokenizer().encode(" ".join(TEXTS))}
    splits = {"train": SplitInfo(len(TEXTS), 1)}
    write_info(folder, DatasetInfo(kind="text", classes=(), token_ids=tuple(sorted(tokens)), splits=splits))
    task = TaskConfig(name="texts", kind="masked_text", path=str(folder), max_text=8)
    config = DataConfig(tasks=(task,), vocabulary="restricted")
    source = opened(config)
    training = opened(dataclasses.replace(config, tasks=(dataclasses.replace(task, **options),)))
    return Evaluation(make(tiny(), source.task.vocabulary.size).eval(), source, training, limit=1)


def test_end_of_text_is_no_word_of_the_frequencies(tmp_path):
    """Of eight words three are red, two dog, two cat and one is blue; of "red dog" one word is masked, and one is added to each of the
    four counts."""
    evaluation = evaluation_of(tmp_path)
    metrics = evaluate(evaluation).metrics
    ((example,), _) = next(evaluation.batches())
    masked = evaluation.source.task.vocabulary.decode(example.originals).strip()
    assert metrics["unigram_loss"] == pytest.approx(-math.log({"red": 4, "dog": 3}[masked] / 12))
    entropy = -sum(n / 8 * math.log(n / 8) for n in (3, 2, 2, 1))
    assert metrics["unigram_entropy"] == pytest.approx(entropy)


def test_a_run_on_a_part_is_compared_with_that_part(tmp_path):
    """Of four texts int(.5 4) + 1 are drawn."""
    evaluation = evaluation_of(tmp_path, fraction=0.5)
    evaluate(evaluation)
    chosen = [TEXTS[place] for place in places_of(evaluation.training)]
    vocabulary = evaluation.source.task.vocabulary
    found = {vocabulary.decode([token]).strip(): count for token, count in evaluation.word_counts["texts"].items()}
    assert len(chosen) == 3 and found == Counter(" ".join(chosen).split())


def test_the_training_split_is_read_once_for_all_evaluations_of_a_run(tmp_path, monkeypatch):
    evaluation = evaluation_of(tmp_path)
    first = evaluate(evaluation).metrics
    again = dataclasses.replace(evaluation, batch_size=3)
    monkeypatch.setattr(Evaluation, "training_examples", lambda self: pytest.fail("read once"))
    assert evaluate(again).metrics == pytest.approx(first)
