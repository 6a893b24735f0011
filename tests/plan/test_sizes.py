"""Parameter counts against those that the papers and the public code state, FLOPs of a sequence by hand."""

from __future__ import annotations

import pytest

from model.config import TextTowerConfig
from plan.sizes import count_parameters, describe, flops_of_sequences
from run.config_file import load_config
from tests.helpers.batches import VOCABULARY_SIZE
from tests.helpers.models import tiny
from tests.helpers.places import ROOT

PRESETS = ROOT / "configs" / "presets"


@pytest.mark.parametrize(
    ("preset", "figure", "millions", "tolerance"),
    [
        ("uni_perceiver_base", "held", 124, 0.01),
        ("uni_perceiver_large", "held", 354, 0.01),
        ("uni_perceiver_moe_base", "deployed", 167, 0.01),
        ("uni_perceiver_moe_large", "deployed", 505, 0.01),
        ("limoe_h14", "held", 5600, 0.05),
        ("limoe_h14", "per_token", 675, 0.05),
    ],
)
def test_stated_parameter_counts(preset, figure, millions, tolerance):
    count = count_parameters(load_config(PRESETS / f"{preset}.yaml").model)
    assert getattr(count, figure) / 1e6 == pytest.approx(millions, rel=tolerance)


def test_limoe_with_its_own_vocabulary_is_nearer():
    count = count_parameters(load_config(PRESETS / "limoe_h14.yaml").model, vocabulary_size=32_000)
    assert count.per_token / 1e6 == pytest.approx(675, rel=0.01)


def test_counts_of_a_small_model_by_hand():
    # Width 16, FFN 32, 4 experts in block 0. A linear in -> out has in * out + out numbers.
    linears = (16 * 48 + 48) + (16 * 16 + 16) + (16 * 32 + 32) + (32 * 16 + 16)
    count = count_parameters(tiny("attribute"), VOCABULARY_SIZE)
    assert count.experts == 4 * linears
    assert count.per_token == count.held - 3 * linears
    router = 2 * ((8 * 16 + 16) + 32 + 16 * 4)  # embed, norm, gate; attention pair and FFN pair
    assert count.deployed == count.held - 2 * linears - router
    token = count_parameters(tiny("token"), VOCABULARY_SIZE)
    assert token.per_token == token.held - 2 * linears  # top 2 of 4
    assert token.deployed == token.held


def test_a_sequence_costs_what_its_tokens_cost():
    """Two images of nine patches and five words: fifteen tokens with <SPE>, in two dense blocks of a width of 16 and 32 within."""
    config = tiny(experts={"placement": "none"}, text_tower=TextTowerConfig(width=8, depth=1, heads=2, ffn=24))
    first = 2 * 15 * (4 * 16 * 16 + 2 * 16 * 32) + 4 * 15 * 15 * 16
    last = 2 * (15 * 3 * 16 * 16 + 3 * (16 * 16 + 2 * 16 * 32)) + 4 * 15 * 15 * 16  # three places are read
    assert flops_of_sequences(config, 2, 15, 9, 3) == 2 * (2 * 9 * 192 * 16 + first + last + 2 * 3 * 16 * 16)
    text = config.text_tower_config()
    assert text and flops_of_sequences(text, 1, 4, 0, 1) == 2 * (4 * 3 * 64 + 64 + 2 * 8 * 24) + 4 * 16 * 8 + 2 * 8 * 16


def test_the_page_names_what_matters(capsys):
    page = describe(load_config(PRESETS / "limoe_h14.yaml"))
    for part in ("32 experts (FFN), router token, top 1: 9, 11", "dense: 0-8, 10", "5.576 B", "697.56 M", "pairs"):
        assert part in page, page


def test_a_token_meets_the_tower_of_its_own_sequence_alone():
    run = load_config(PRESETS / "clip_b32.yaml")
    count = count_parameters(run.model)
    scales = 5
    assert count.per_token == 85_054_464 + 40_416_768 + 393_728 + 1_536 + scales
    assert count.per_text_token == 37_828_608 + 26_944_512 + 262_656 + 1_024 + scales
    assert count.per_token + count.per_text_token == count.held + scales
    assert (
        "met by one token         125.87 M   of pictures\n                            65.04 M   of texts"
        in describe(run)
    )
    one = count_parameters(load_config(PRESETS / "one_tower_b16.yaml").model)
    assert one.per_token == one.per_text_token == one.held
