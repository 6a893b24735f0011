"""Low-rank updates of dense linears and of banks."""

from __future__ import annotations

import pytest
import torch

from model.config import LoraConfig
from model.tuning.lora import LowRankUpdate
from parallel.collectives import Axis
from parallel.placement import Placement
from tests.helpers.batches import BATCHES
from tests.helpers.distributed import run_ranks
from tests.helpers.models import make, tiny
from tests.helpers.parity import ParityRun, run_job
from tests.parallel.test_parity import assert_equal_runs

LORA = LoraConfig(rank=2, alpha=4.0)


def test_the_update_is_added_to_the_weight():
    update = LowRankUpdate(LORA, Placement((3, 2)), Axis("tensor"))
    with torch.no_grad():
        update.down.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        update.up.copy_(torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 0.0]]))
    assert update(torch.ones(3, 2)).tolist() == [[3.0, 5.0], [1.0, 1.0], [7.0, 1.0]]  # alpha / rank = 2


@pytest.mark.parametrize("router", ["attribute", "token", "limoe"])
def test_fresh_updates_change_nothing_and_merged_ones_are_the_same(router):
    """An update equals its weight with the product added, in dense layers and whichever way experts are used."""
    plain, updated = make(tiny(router)).eval(), make(tiny(router, lora=LORA)).eval()
    batch = BATCHES["image"](0)
    assert torch.equal(plain(batch).loss, updated(batch).loss)
    own, generator = dict(updated.named_parameters()), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in [name for name in own if name.endswith(".lora.up")]:
            own[name].normal_(0.0, 0.1, generator=generator)
            stem = name.removesuffix(".lora.up")
            weight = stem + (".weight" if stem + ".weight" in own else ".linear.weight")
            merged = dict(plain.named_parameters())[weight]
            merged += LORA.alpha / LORA.rank * own[name] @ own[stem + ".lora.down"]
    loss = updated(batch).loss
    assert loss.item() == pytest.approx(plain(batch).loss.item(), abs=1e-6)
    assert loss.item() != pytest.approx(make(tiny(router)).eval()(batch).loss.item(), abs=1e-4)


@pytest.mark.parametrize("layout", [{"tensor": 2}, {"expert": 2}, {"tensor": 2, "sequence": True}], ids=str)
def test_training_is_the_same_on_two_ranks(layout):
    job = {"sgd": True, "lr": 0.05, "model": (("lora", LORA),)}
    expected, got = run_ranks(1, run_job, ParityRun(**job)), run_ranks(2, run_job, ParityRun(**job, **layout))
    assert_equal_runs(expected, got, rtol=3e-5)  # a weight is a sum of two, so it rounds more often
