"""Evaluators' arithmetic by hand."""

from __future__ import annotations

import math

import pytest
import torch

from evaluation import retrieval
from evaluation.metrics.cider import cider_d
from evaluation.retrieval import recalls


def test_recalls_by_hand():
    # Three images; captions 0 and 1 belong to image 0, caption 2 to image 1, caption 3 to image 2. Features whose cosines are these:
    similarity = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.3, 0.2, 0.4, 0.8], [0.5, 0.3, 0.6, 0.7]])
    images, texts = features_of(similarity)
    got, first_N, _ = recalls(images, texts, torch.tensor([0, 0, 1, 2]))
    # Image queries: 0 finds caption 0 first; 1 finds caption 3 first, its own second; 2 finds caption 3, its own.
    assert got["image_to_text_r1"] == pytest.approx(2 / 3) and got["image_to_text_r5"] == 1.0
    assert first_N.tolist() == [0, 1, 0] and got["image_to_text_median_rank"] == 1
    # Text queries, rank of the own image: 0 -> first; 1 -> third; 2 (0.4 behind 0.5 and 0.6) -> third; 3 (0.7 behind 0.8) -> second.
    assert got["text_to_image_r1"] == pytest.approx(1 / 4) and got["text_to_image_r5"] == 1.0
    assert got["text_to_image_median_rank"] == 2.5
    assert got["image_to_text_chance"] == pytest.approx((2 / 4 + 1 / 4 + 1 / 4) / 3)
    assert got["text_to_image_chance"] == pytest.approx(1 / 3)


def features_of(similarity_NM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors with these cosines, times a factor: images on axes of their own, texts with a last axis that fills up."""
    scaled_NM = similarity_NM.double() / 2
    texts_MD = torch.cat([scaled_NM.T, (1 - scaled_NM.square().sum(dim=0, keepdim=True).T).sqrt()], dim=1)
    images_ND = torch.eye(len(similarity_NM), len(similarity_NM) + 1, dtype=torch.float64)
    return images_ND, texts_MD


def ranks_by_sorting(queries, answers, owner_q, owner_a):
    """Of the first own answer in a stable order."""
    order = (queries @ answers.T).float().argsort(dim=1, descending=True, stable=True)
    return (owner_a[order] == owner_q[:, None]).int().argmax(dim=1)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_a_few_queries_at_a_time_give_what_all_at_once_do(monkeypatch, rows):
    monkeypatch.setattr(retrieval, "ROWS", rows)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(-2, 3, (40, 8), generator=generator).double()
    images[:, 0] = 3  # small integers: cosines tie often, and exactly where vectors are equal
    owner = torch.arange(40).repeat_interleave(5)
    texts = images[owner].clone()
    texts[::3] = images[torch.randperm(40, generator=generator)].repeat(2, 1)[: len(texts[::3])]
    got, first, _ = recalls(images, texts, owner)
    unit = torch.nn.functional.normalize
    images, texts = unit(images, dim=-1), unit(texts, dim=-1)
    assert torch.equal(first, ranks_by_sorting(images, texts, torch.arange(40), owner))
    rank = ranks_by_sorting(texts, images, owner, torch.arange(40))
    for k in (1, 5, 10):
        assert got[f"image_to_text_r{k}"] == pytest.approx((first < k).double().mean().item())
        assert got[f"text_to_image_r{k}"] == pytest.approx((rank < k).double().mean().item())


def test_recalls_are_those_of_the_public_benchmark():
    """Without ties, whose order it leaves open."""
    oracle = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval", reason="clip_benchmark is not installed")
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(30, 16, generator=generator)
    owner = torch.arange(30).repeat_interleave(3)
    texts = images[owner] + 2 * torch.randn(90, 16, generator=generator)
    got, *_ = recalls(images, texts, owner)
    scores = torch.nn.functional.normalize(texts, dim=-1) @ torch.nn.functional.normalize(images, dim=-1).T
    positive = owner[:, None] == torch.arange(30)[None, :]
    for k in (1, 5, 10):
        t2i = (oracle.batchify(oracle.recall_at_k, scores, positive, 8, "cpu", k=k) > 0).float().mean().item()
        i2t = (oracle.batchify(oracle.recall_at_k, scores.T, positive.T, 8, "cpu", k=k) > 0).float().mean().item()
        assert got[f"text_to_image_r{k}"] == pytest.approx(t2i, abs=1e-6)
        assert got[f"image_to_text_r{k}"] == pytest.approx(i2t, abs=1e-6)


def test_cider_of_perfect_and_foreign_captions():
    references = [["a red circle left of a square"], ["the green star moves up"]]
    same = [r[0] for r in references]
    assert cider_d(same, references) == pytest.approx(10.0)
    assert cider_d(same[::-1], references) == pytest.approx(0.0)


def test_cider_by_hand():
    # Two images, one-word captions: only 1-grams exist, so the score is 10 / 4 times their cosine.
    # "red" is in one of two documents: weight log 2; candidate "red red" has length 2 against 1: exp(-1/72).
    score = cider_d(["red red", "blue"], [["red"], ["blue"]])
    clipped = math.exp(-1 / 72) * (math.log(2) * math.log(2)) / (2 * math.log(2) * math.log(2))
    assert score == pytest.approx((2.5 * clipped + 2.5) / 2)


@pytest.mark.parametrize(
    "captions",
    [
        ["\u4e00\u53ea\u72d7\u5728\u8349\u5730\u4e0a", "\u4e24\u4e2a\u5b69\u5b50"],
        [
            "\u0441\u043e\u0431\u0430\u043a\u0430 \u0431\u0435\u0436\u0438\u0442 \u043f\u043e \u0442\u0440\u0430\u0432\u0435",
            "\u0434\u0432\u043e\u0435 \u0434\u0435\u0442\u0435\u0439",
        ],
        ["\u0643\u0644\u0628 \u064a\u062c\u0631\u064a \u0639\u0644\u0649 \u0627\u0644\u0639\u0634\u0628", "\u0637\u0641\u0644\u0627\u0646"],
        ["ein M\u00e4dchen l\u00e4uft schnell", "zwei Kinder"],
        ["28 dogs, it's a light-up T-shirt", "two boys"],
    ],
    ids=["Chinese", "Russian", "Arabic", "German", "English"],
)  # fmt: skip
def test_cider_tells_captions_of_any_script_apart(captions):
    references = [[caption] for caption in captions]
    right, wrong = cider_d(captions, references), cider_d(captions[::-1], references)
    assert right > 4 and wrong < 0.5


def test_captions_and_references_are_not_as_many():
    with pytest.raises(ValueError, match="1 candidates for 2"):
        cider_d(["x"], [["x"], ["y"]])


def test_a_model_that_tells_nothing_apart_has_recalls_at_chance():
    got, *_ = recalls(torch.ones(20, 3), torch.ones(20, 3), torch.arange(20))
    # All are equally near, so every query gets the same order, and one in 20 finds its own first.
    assert got["text_to_image_r1"] == got["image_to_text_r1"] == pytest.approx(1 / 20)
