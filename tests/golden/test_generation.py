"""Captions of the public code, word for word, over its whole vocabulary."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from data.attributes import CAPTION_TEXT, CAPTION_VISUAL
from data.batch import Sequences
from model.generate import Words, beam_search
from model.objective import Objective
from tests.golden.reference import (
    END,
    SPE,
    VOCABULARY_SIZE,
    arrays,
    batch_of,
    cases,
    described,
    load,
    tensor,
    visual,
    words,
)

CASES = ("moe_beam", "moe_beam_len_penalty", "moe_beam_video", "dense_beam", "moe_prompt_beam")


@functools.cache
def model_and_vocabulary(model: str, case: str) -> tuple[Objective, Words]:
    """`case` is that of a prompt-tuned model, empty for the plain one. The vocabulary is encoded once."""
    objective = load(model, case)
    with torch.no_grad():
        features = torch.cat(
            [objective.encode_candidates(words(ids))[0] for ids in torch.arange(VOCABULARY_SIZE).split(8192)]
        )
    return objective, Words(features, torch.arange(VOCABULARY_SIZE), "caption", END, SPE, CAPTION_TEXT, "caption")


@pytest.mark.parametrize("case", cases(*CASES))
def test_captions_are_the_same(case):
    model = case.split("_")[0]
    objective, vocabulary = model_and_vocabulary(model, f"{model}_prompt_caption" if "prompt" in case else "")
    stored, about = arrays(case), described(case)
    pixels = stored.get("in/images", stored.get("in/video"))
    prefix = Sequences(segments=(visual(pixels, CAPTION_VISUAL),))
    length, penalty = about["max_len"], about["length_penalty_exponent"]
    for beam in (1, 2, 3):
        found = beam_search(objective, prefix, vocabulary, beam, length, penalty)
        missing = length - found.tokens_BKT.shape[2]
        tokens = torch.nn.functional.pad(found.tokens_BKT, (0, missing), value=END)
        assert np.array_equal(tokens.numpy(), stored[f"beam{beam}/token_ids"]), f"beam {beam}"
        log_probs = torch.nn.functional.pad(found.log_probs_BKT, (0, missing))
        torch.testing.assert_close(log_probs, tensor(stored[f"beam{beam}/log_probs"]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", cases("moe_caption", "moe_mlm", "dense_caption", "dense_mlm"))
def test_the_whole_vocabulary(case):
    objective, vocabulary = model_and_vocabulary(case.split("_")[0], "")
    batch, stored = batch_of(case), arrays(case)
    with torch.no_grad():
        features, _ = objective.encode(batch.inputs, batch.read_Q2)
        logits = objective.logits(features, vocabulary.features_CW, batch.temperature)
    if "full_vocab/top5_token" in stored:
        assert np.array_equal(logits.topk(5, dim=1).indices.numpy(), stored["full_vocab/top5_token"])
    targets = tensor(stored["full_vocab/target_token"])
    expected = described(case)["full_vocab_cross_entropy"]
    assert torch.nn.functional.cross_entropy(logits, targets).item() == pytest.approx(expected, abs=1e-4)
