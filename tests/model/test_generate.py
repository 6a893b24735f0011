"""Beam search: cached equals whole, a beam as wide as everything is exhaustive, the end costs nothing, lengths only reorder."""

from __future__ import annotations

import itertools

import pytest
import torch

from data.attributes import CAPTION_TEXT, CAPTION_VISUAL
from data.batch import Sequences
from model.config import PromptConfig
from model.generate import Words, beam_search, can_cache
from model.moe.experts import start_merges
from model.objective import Objective
from tests.helpers.batches import VOCABULARY_SIZE, visual
from tests.helpers.models import make, tiny

END, SPE = VOCABULARY_SIZE - 4, VOCABULARY_SIZE - 1
TOKENS = torch.tensor([3, 7, 11, 20, END])


def scattered(router: str = "attribute", prompts: PromptConfig | None = None, **experts) -> Objective:
    """Random everywhere, so that nothing is lost unseen."""
    objective = make(tiny(router, experts, prompts=prompts))
    for name, parameter in objective.named_parameters():
        generator = torch.Generator().manual_seed(len(name) + parameter.numel())
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return objective


def inputs(objective: Objective, images: int = 3) -> tuple[Sequences, Words]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(len(TOKENS), 16, generator=generator)
    words = Words(features, TOKENS, "caption", END, SPE, CAPTION_TEXT, "caption")
    return Sequences(segments=(visual(generator, images, 2, CAPTION_VISUAL),)), words


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize(
    ("router", "options"),
    [
        ("attribute", {}),
        ("attribute", {"placement": "none"}),
        ("attribute", {"prompts": PromptConfig(length=2)}),
        ("task", {}),
        ("token", {}),
        ("token", {"unit": "mlp", "prompts": PromptConfig(length=2)}),
    ],
)
def test_cached_equals_whole(router, options, beam):
    objective = scattered(router, **options)
    prefix, words = inputs(objective)
    assert can_cache(objective)
    whole, cached = (beam_search(objective, prefix, words, beam, 5, cached=c) for c in (False, True))
    assert torch.equal(whole.tokens_BKT, cached.tokens_BKT)
    torch.testing.assert_close(whole.log_probs_BKT, cached.log_probs_BKT, rtol=1e-4, atol=1e-5)
    assert whole.log_probs_BKT.any()


def test_experts_are_merged_once_for_the_picture_and_once_for_all_words(monkeypatch):
    merged = []

    def counted(*call):
        merged.append(call)
        return start_merges(*call)

    monkeypatch.setattr("model.moe.layer.start_merges", counted)
    objective = scattered("attribute")
    prefix, words = inputs(objective)
    found = beam_search(objective, prefix, words, 1, 5)
    assert found.tokens_BKT.shape[2] > 2 and objective.config.num_decisions == 2
    assert len(merged) == 2 * 2


@pytest.mark.parametrize(("router", "options"), [("context", {}), ("token", {"capacity_factor": 1.0})])
def test_what_depends_on_later_tokens_is_not_cached(router, options):
    objective = scattered(router, **options)
    assert not can_cache(objective)
    prefix, words = inputs(objective)
    assert beam_search(objective, prefix, words, 2, 3).tokens_BKT.shape[:2] == (3, 2)


def test_a_beam_as_wide_as_everything_is_exhaustive():
    objective = scattered()
    prefix, words = inputs(objective, images=1)
    found = beam_search(objective, prefix, words, beam=25, max_tokens=2)
    scores = {
        tuple(t.tolist()): s.item() for t, s in zip(found.tokens_BKT[0], found.log_probs_BKT[0].sum(1), strict=True)
    }

    def log_prob(text: tuple[int, ...], word: int) -> float:
        """From a beam search that is forced: all continuations of one text, each by itself."""
        from model.generate import _WholeScorer

        scorer = _WholeScorer(objective, prefix, words)
        step = scorer.log_probs(torch.tensor([text], dtype=torch.long), torch.tensor([0]))
        return step[0, TOKENS.tolist().index(word)].item()

    expected = {}
    for first, second in itertools.product(TOKENS.tolist(), TOKENS.tolist()):
        if first == END:
            expected[END, END] = log_prob((), END)
        else:
            expected[first, second] = log_prob((), first) + log_prob((first,), second)
    finite = {text: score for text, score in scores.items() if score > -1e9}
    assert finite.keys() == expected.keys()
    for text, score in expected.items():
        assert finite[text] == pytest.approx(score, abs=1e-4), text
    assert list(finite) == sorted(expected, key=expected.__getitem__, reverse=True)


def test_the_end_is_final_and_free():
    objective = scattered()
    prefix, words = inputs(objective)
    found = beam_search(objective, prefix, words, beam=25, max_tokens=4)
    ended = (found.tokens_BKT == END).cummax(dim=2).values
    after = ended & torch.nn.functional.pad(ended[..., :-1], (1, 0))
    assert after.any()
    assert (found.tokens_BKT[after] == END).all() and not found.log_probs_BKT[after].any()
    for row, best in zip(found.tokens_BKT[:, 0].tolist(), found.best(END), strict=True):
        assert best == row[: row.index(END)] if END in row else best == row


def test_length_penalty_only_orders_the_list():
    objective = scattered()
    prefix, words = inputs(objective)
    plain, penalised = (beam_search(objective, prefix, words, 4, 6, length_penalty=p) for p in (0.0, 3.0))
    for row in range(3):
        texts = [sorted(map(tuple, found.tokens_BKT[row].tolist())) for found in (plain, penalised)]
        assert texts[0] == texts[1]
        lengths = (penalised.tokens_BKT[row] != END).sum(dim=1) + 1.0
        ranked = penalised.log_probs_BKT[row].sum(dim=1) / lengths**3
        assert (ranked.diff() <= 1e-6).all()


def test_greedy_takes_the_likeliest_word():
    objective = scattered()
    prefix, words = inputs(objective)
    found = beam_search(objective, prefix, words, 1, 1)
    wide = beam_search(objective, prefix, words, 5, 1)
    assert torch.equal(found.tokens_BKT[:, 0], wide.tokens_BKT[:, 0])
    assert (wide.log_probs_BKT.exp().sum(dim=1) - 1).abs().max() < 1e-5
    with pytest.raises(ValueError, match="beam=0"):
        beam_search(objective, prefix, words, 0, 1)
