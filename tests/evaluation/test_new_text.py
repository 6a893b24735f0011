"""Texts that training has never seen: every evaluator scores them, and nothing said of known text depends on them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from data.config import DataConfig, TaskConfig
from data.decode.image import encode_png
from data.shards import DatasetInfo, SplitInfo, write_info, write_shards
from data.stream.source import open_data
from data.tasks.base import Pixels
from data.text.tokenizer import END_OF_TEXT
from data.text.vocabulary import Vocabulary
from evaluation import EVALUATORS, Evaluation, captioning
from tests.helpers.models import make, tiny
from tests.helpers.streams import tokenizer

KNOWN = ["a red dog runs", "a blue cat sits", "the red cat sits", "a dog runs"]
NEW = {
    "English": "a zebra gallops",
    "German": "ein M\u00e4dchen l\u00e4uft",
    "Chinese": "\u4e00\u53ea\u72d7\u5728\u8dd1",
    "Thai": "\u0e2a\u0e38\u0e19\u0e31\u0e02\u0e27\u0e34\u0e48\u0e07",
    "Arabic": "\u0643\u0644\u0628 \u064a\u062c\u0631\u064a",
    "emoji": "\U0001f600 \U0001f415",
    "signs": "28 %?! #@",
}
PIXELS = Pixels(16, 8)


def write(folder, splits: dict[str, list[str]]):
    counts = {}
    for split, texts in splits.items():
        samples = [
            {"__key__": f"{split}{i}", "png": encode_png(np.full((16, 16, 3), 9 * i, np.uint8)), "json": {"captions": [text]}}
            for i, text in enumerate(texts)
        ]  # fmt: skip
        write_shards(folder, split, samples, 100)
        counts[split] = SplitInfo(len(texts), 1)
    ids = {END_OF_TEXT}.union(*(tokenizer().encode(text) for text in splits["train"]))
    write_info(folder, DatasetInfo(kind="image_caption", classes=(), token_ids=tuple(sorted(ids)), splits=counts))


def evaluated(folder, kind: str, split: str, batch_size: int = 2) -> dict[str, float]:
    longest = 5 if kind == "captioning" else 24  # each word of a caption takes a pass
    task = TaskConfig(name="captioning", kind=kind, path=str(folder), batch_size=2, max_text=longest)
    data = DataConfig(tasks=(task,), vocabulary="restricted")
    opened = open_data(data, PIXELS, 0)
    other = dataclasses.replace(data, tasks=(dataclasses.replace(task, split=split),))
    source = open_data(other, PIXELS, 0, opened.vocabulary).sources[0]
    objective = make(tiny(max_text=32), opened.vocabulary.size).eval()
    training = opened.sources[0] if kind == "masked_text" else None
    return EVALUATORS[kind].evaluate(Evaluation(objective, source, training, batch_size=batch_size)).metrics


@pytest.mark.parametrize(
    ("kind", "text"),
    [(kind, text) for kind in ("masked_text", "retrieval") for text in NEW.values()] + [("captioning", NEW["Chinese"])],
)
def test_every_evaluator_scores_text_that_training_lacks(tmp_path, kind, text):
    write(tmp_path, {"train": KNOWN, "val": [KNOWN[0], text, KNOWN[1]]})
    metrics = evaluated(tmp_path, kind, "val")
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics[{"masked_text": "tokens", "captioning": "samples", "retrieval": "texts"}[kind]] >= 3


def test_scores_of_known_text_do_not_depend_on_what_else_is_there(tmp_path):
    """Each text has one masked token or word: sums over a set are the sums over its parts."""
    sets = {"known": KNOWN[:2], "new": list(NEW.values())}
    found = {}
    for name, texts in {**sets, "both": [*sets["known"], *sets["new"]]}.items():
        write(tmp_path / name, {"train": KNOWN, "val": texts})
        found[name] = evaluated(tmp_path / name, "masked_text", "val", batch_size=3)
    known, new, both = (found[name] for name in ("known", "new", "both"))
    assert known["spelled_tokens"] == 0 and new["spelled_tokens"] > 0
    # Words of training and end-of-text, as if there were no bytes.
    assert known["chance"] == both["chance"] == pytest.approx(1 / (len({*" ".join(KNOWN).split()}) + 1))
    for figure in ("loss", "unigram_loss", "accuracy"):
        sums = known[figure] * known["tokens"] + new[figure] * new["tokens"]
        assert both[figure] * both["tokens"] == pytest.approx(sums, rel=1e-5)


@pytest.mark.parametrize("kind", ["masked_text", "captioning", "retrieval"])
def test_training_goes_on_at_a_word_that_dataset_json_lacks(tmp_path, kind):
    write(tmp_path, {"train": KNOWN, "more": [*NEW.values()]})
    task = TaskConfig(name="captioning", kind=kind, path=str(tmp_path), split="more", batch_size=7, max_text=24)
    source = open_data(DataConfig(tasks=(task,), vocabulary="restricted"), PIXELS, 0).sources[0]
    generator = np.random.default_rng(0)
    examples = [source.task.example(source.shards.read(0, i), generator) for i in range(7)]
    batch = source.task.batch(examples, generator)
    objective = make(tiny(max_text=32), source.task.vocabulary.size)
    features_QD, _ = objective.encode(batch.inputs, batch.read_Q2, task="captioning")
    assert int(batch.labels_Q.max()) < batch.candidates.num_rows and features_QD.isfinite().all()


@pytest.mark.parametrize("text", [*NEW.values(), *KNOWN, "it's a light-up T-shirt, isn't it? 28!", "o'donnell's 2, 3 dogs - 4x4",
                                  "\u0939\u093f\u0928\u094d\u0926\u0940 \u0915\u093f\u0924\u093e\u092c", "...!"])  # fmt: skip
def test_a_perfect_copy_is_exact_and_another_caption_is_not(monkeypatch, text):
    full = Vocabulary.full(tokenizer())
    texts = [text, "something else entirely"]
    copies = [full.decode(full.encode(one, 1 << 10)).strip() for one in texts]
    found = {}
    for name, captions in {"right": copies, "wrong": copies[::-1], "none": ["", ""]}.items():
        monkeypatch.setattr(captioning, "generate", lambda _, captions=captions: (captions, [[one] for one in texts]))
        source = SimpleNamespace(task=SimpleNamespace(vocabulary=full))
        found[name] = captioning.evaluate(SimpleNamespace(source=source, meteor=False)).metrics  # type: ignore[arg-type]
    assert [found[name]["exact"] for name in ("right", "wrong", "none")] == [1.0, 0.0, 0.0]
    assert found["right"]["cider"] > 1 and found["wrong"]["cider"] == found["none"]["cider"] == 0
