"""BLEU, ROUGE-L and CIDEr-D are those of the field's implementation, on equal words; and by hand."""

from __future__ import annotations

import contextlib
import io
import math
import random

import pytest

from evaluation.metrics.caption_scores import bleu, rouge_l
from evaluation.metrics.cider import cider_d


def test_bleu_by_hand():
    caption, reference = ["the", "the", "the", "cat"], ["the", "cat", "sat", "the", "mat"]
    one, two, *_ = bleu([caption], [[reference]])
    # Two of three "the" are clipped to two, "cat" counts: 3 of 4; of the pairs (the the)x2, (the cat) one is right. 4 words for 5.
    brevity = math.exp(1 - 5 / 4)
    assert one == pytest.approx(3 / 4 * brevity) and two == pytest.approx(math.sqrt(3 / 4 * 1 / 3) * brevity)


def test_bleu_is_no_mean_of_images():
    captions, references = [["a", "b", "c"], ["x"]], [[["a", "b", "c"]], [["y"]]]
    assert bleu(captions, references)[0] == pytest.approx(3 / 4)


def test_rouge_by_hand():
    # Common subsequence "a c": precision 2 of 3, recall 2 of 4.
    score = (1 + 1.44) * (2 / 3) * 0.5 / (0.5 + 1.44 * 2 / 3)
    assert rouge_l([["a", "b", "c"]], [[["a", "x", "c", "d"]]]) == pytest.approx(score)
    assert rouge_l([[]], [[["a"]]]) == rouge_l([["b"]], [[["a"]]]) == 0


def corpus(seed: int, images: int = 60) -> tuple[list[str], list[list[str]]]:
    """Captions of plain words, near their references to different degrees; words are then the same to every tokenizer."""
    rng = random.Random(seed)
    words = [
        "a",
        "red",
        "blue",
        "dog",
        "cat",
        "runs",
        "sits",
        "on",
        "the",
        "grass",
        "near",
        "two",
        "men",
        "child",
        "ball",
    ]
    references = [
        [" ".join(rng.choices(words, k=rng.randint(3, 14))) for _ in range(rng.randint(1, 5))] for _ in range(images)
    ]
    captions = []
    for refs in references:
        caption = rng.choice(refs).split()
        for _ in range(rng.randint(0, 4)):
            caption[rng.randrange(len(caption))] = rng.choice(words)
        captions.append(" ".join(caption[: rng.randint(1, 14)]))
    return captions, references


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_the_common_implementation(seed):
    oracle = pytest.importorskip("pycocoevalcap.bleu.bleu", reason="pycocoevalcap is not installed").Bleu
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider
    captions, references = corpus(seed)
    found, truth = ({i: [c] for i, c in enumerate(captions)}, dict(enumerate(references)))
    words, reference_words = [c.split() for c in captions], [[r.split() for r in refs] for refs in references]
    with contextlib.redirect_stdout(io.StringIO()):
        expected, _ = oracle(4).compute_score(truth, found)
        expected_rouge, _ = rouge().compute_score(truth, found)
        expected_cider, _ = cider().compute_score(truth, found)
    assert bleu(words, reference_words) == pytest.approx(expected, abs=1e-9)
    assert rouge_l(words, reference_words) == pytest.approx(expected_rouge, abs=1e-9)
    assert cider_d(captions, references) == pytest.approx(expected_cider, abs=1e-6)
