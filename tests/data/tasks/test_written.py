"""Answers that are written: what a batch holds, that a network learns them, and how texts are scored beside ranked names."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from data.batch import Visibility
from data.config import DataConfig, MixConfig, TaskConfig
from data.decode.image import encode_png
from data.shards import DatasetInfo, SplitInfo, write_info
from data.shards.writing import write_shards
from data.stream.source import Source, open_data
from data.tasks import WRITTEN, check_tasks, kind_of
from data.tasks.base import Pixels
from data.text.tokenizer import Tokenizer
from evaluation import Evaluation, evaluator_of, written
from evaluation.captioning import words_of_captions
from model.config import TextTowerConfig
from model.generate import beam_search
from tests.helpers.models import learned, make, tiny

NAMES = ("red", "light blue", "green")
TEXTS = ("a film of blood", "a film of sky", "a film of grass")
KINDS = {"classification": "image_class", "text_classification": "text_class", "vqa": "image_question"}


def sample(kind: str, number: int) -> dict:
    label = number % 3
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[..., label] = 200
    about = {"question": "which colour ?", "answers": [NAMES[label]] * 10}
    members = {
        "classification": {"png": encode_png(pixels)},
        "text_classification": {"txt": TEXTS[label]},
        "vqa": {"png": encode_png(pixels), "json": about},
    }
    return {"__key__": f"{number:03d}", "cls": label} | members[kind]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    ids = sorted({49407, *Tokenizer.load().encode(" ".join((*NAMES, *TEXTS, "which colour ?")))})
    for kind, about in KINDS.items():
        for split, count in (("train", 3), ("val", 5)):
            write_shards(folder / kind, split, (sample(kind, number) for number in range(count)))
        splits = {"train": SplitInfo(3, 1), "val": SplitInfo(5, 1)}
        info = DatasetInfo(kind=about, classes=NAMES, token_ids=tuple(ids), splits=splits)  # type: ignore[arg-type]
        write_info(folder / kind, info)
    return folder


def opened(folders, kind: str, split: str = "train", **options) -> Source:
    task = TaskConfig(
        name="image", kind=kind, path=str(folders / kind), split=split, max_text=8, **{"answer": "generate"} | options
    )
    return open_data(DataConfig(tasks=(task,), vocabulary="restricted"), Pixels(16, 8), 0).sources[0]


@pytest.mark.parametrize(("kind", "prefix"), [("classification", 4), ("text_classification", 6), ("vqa", 4 + 5)])
def test_a_batch_is_that_of_a_caption(folders, kind, prefix):
    """Four patches, the four words of a text with <spe> and end-of-text, or patches and a question of three words with the same two; then
    "red", "light blue" and "green" with end-of-text, and as many queries."""
    source = opened(folders, kind)
    task = source.task
    batch = task.batch([task.example(source.shards.read(0, n), None) for n in range(3)], None)
    *_, words, queries = batch.inputs.segments
    assert (words.visibility, queries.visibility) == (Visibility.CAUSAL, Visibility.READOUT)
    assert words.valid_BL.sum(dim=1).tolist() == [2, 3, 2] and words.attributes == queries.attributes
    first = 1 + prefix + 3
    assert batch.read_Q2.tolist() == [
        [0, first],
        [0, first + 1],
        [1, first],
        [1, first + 1],
        [1, first + 2],
        [2, first],
        [2, first + 1],
    ]
    assert batch.candidates.num_rows == task.vocabulary.num_candidates and batch.temperature == "caption"
    assert kind_of(task.config).answers == "words" and kind_of(task.config) is WRITTEN[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_learns_to_write_names_and_texts_are_scored(folders, kind):
    torch.set_num_threads(1)
    source = opened(folders, kind)
    objective = make(tiny(width=32, ffn=64, experts={"max_groups": 4}), source.task.vocabulary.size)
    batch = source.task.batch([source.task.example(source.shards.read(0, n), None) for n in range(3)], None)
    assert learned(objective, batch) == 7
    evaluation = Evaluation(objective.eval(), opened(folders, kind, "val"), batch_size=2)
    result = evaluator_of(source.task.config).evaluate(evaluation)
    figure = evaluator_of(source.task.config).figure
    assert result.metrics[figure] == 1.0 and result.metrics["samples"] == 5 and len(result.evidence_N2) == 5
    # Kept keys and values write what whole sequences write, after a text and a question as after a picture.
    task = source.task
    prefix = task.prefix([task.example(source.shards.read(0, n), None) for n in range(3)])
    words = words_of_captions(objective, task, "cpu")
    kept, whole = (
        beam_search(objective, prefix, words, 2, task.longest_name, cached=cached) for cached in (True, False)
    )
    assert torch.equal(kept.tokens_BKT, whole.tokens_BKT)
    assert torch.allclose(kept.log_probs_BKT, whole.log_probs_BKT, atol=1e-4)


def test_only_the_name_itself_is_right(folders, monkeypatch):
    texts = ["red", "light  blue", "Light Blue", "greenish", ""]
    labels = [0, 1, 1, 2, 0]
    source = opened(folders, "classification", "val")
    copied = [source.task.vocabulary.copied(text).strip() for text in texts]
    monkeypatch.setattr(
        written, "written", lambda evaluation, most, kept: [(t, (n, n)) for t, n in zip(copied, labels, strict=True)]
    )
    metrics = written.evaluate(Evaluation(make(tiny(), source.task.vocabulary.size), source)).metrics
    assert metrics["accuracy"] == pytest.approx(3 / 5) == metrics["named"]


@pytest.mark.parametrize("kind", ["classification", "vqa"])
def test_names_are_right_as_far_as_training_writes_them(folders, monkeypatch, kind):
    """With room for two tokens they are "light" and end-of-text, which is all that a network has learned to write of "light blue"."""
    source = opened(folders, kind, "val")
    monkeypatch.setattr(source.task, "names", [source.task.vocabulary.encode(name, 2) for name in NAMES])
    people = (("light blue",) * 10, "other")
    kept = {"classification": [(1, 1), (0, 0)], "vqa": [people, people]}[kind]
    monkeypatch.setattr(written, "written", lambda *others: list(zip(["light", "light blue"], kept, strict=True)))
    evaluator = evaluator_of(source.task.config)
    metrics = evaluator.evaluate(Evaluation(make(tiny(), source.task.vocabulary.size), source)).metrics
    # A text of more tokens is none that can be written; of VQA it is scored as it stands.
    assert metrics[evaluator.figure] == (1.0 if kind == "vqa" else 0.5)


def test_an_answer_is_the_class_whose_text_it_is(folders, monkeypatch):
    """The tokenizer gives "50%" back as "50 %", which is another answer to the common tool."""
    source = opened(folders, "vqa", "val")
    classes = ("50%", "50", "$5")
    info = dataclasses.replace(source.task.context.info, classes=classes)
    names = [source.task.vocabulary.encode(name, 8) for name in classes]
    monkeypatch.setattr(source.task, "names", names)
    monkeypatch.setattr(source.task, "context", dataclasses.replace(source.task.context, info=info))
    found = [("50 %", (("50%",) * 10, "")), ("50", (("50%",) * 10, ""))]
    monkeypatch.setattr(written, "written", lambda *others: found)
    metrics = written.evaluate_vqa(Evaluation(make(tiny(), source.task.vocabulary.size), source)).metrics
    assert metrics["vqa_accuracy"] == 0.5 and metrics["answerable"] == 1.0


def test_ranked_and_written_answers_of_one_network(folders):
    torch.set_num_threads(1)
    source = opened(folders, "classification", "val")
    objective = make(tiny(), source.task.vocabulary.size).eval()
    for answer, figures in (("rank", {"accuracy", "top5_accuracy"}), ("generate", {"accuracy", "named"})):
        config = dataclasses.replace(source.task.config, answer=answer)
        other = opened(folders, "classification", "val", answer=answer)
        assert figures <= evaluator_of(config).evaluate(Evaluation(objective, other, batch_size=2)).metrics.keys()


def test_a_text_tower_writes_after_texts(folders):
    source = opened(folders, "text_classification")
    config = tiny(
        width=32, ffn=64, text_tower=TextTowerConfig(width=16, depth=1, heads=2, ffn=32), output="per_modality"
    )
    objective = make(config, source.task.vocabulary.size).eval()
    task = source.task
    prefix = task.prefix([task.example(source.shards.read(0, n), None) for n in range(3)])
    words = words_of_captions(objective, task, "cpu")
    kept, whole = (beam_search(objective, prefix, words, 2, 3, cached=cached) for cached in (True, False))
    assert torch.equal(kept.tokens_BKT, whole.tokens_BKT)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"kind": "retrieval"}, "answer=generate is for classification, text_classification, vqa, not for retrieval"),
     ({"views": (3, 1)}, "which answer=generate has not"), ({"mix": {"mixup": 0.8}}, "mix blends")],
)  # fmt: skip
def test_options_that_do_not_go_with_it(changes, said):
    mix = MixConfig(**changes.pop("mix", {}))
    options = {"kind": "classification"} | changes
    with pytest.raises(ValueError, match=said):
        check_tasks(DataConfig(tasks=(TaskConfig(name="t", path="p", answer="generate", mix=mix, **options),)))
