"""How often the host waits for a device in a pass of expert ranks, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.batches import BATCHES, VOCABULARY_SIZE
from tests.helpers.distributed import run_ranks
from tests.helpers.hot_path import Waits
from tests.helpers.models import tiny


def waits_of_a_pass(rank: int, router: str, experts: dict[str, Any]) -> dict[str, int]:
    """With the branches of a GPU."""
    from model.initialise import initialise
    from model.moe import grouped, merge
    from model.objective import Objective
    from parallel.kernels import load_kernels
    from parallel.mesh import create_mesh

    grouped.has_grouped_products = lambda x: True
    merge.mixes_all = lambda gate: True
    config = tiny(router, {"placement": "all", **experts}, activation_checkpointing="block")
    objective = Objective(config, VOCABULARY_SIZE, create_mesh(expert=2), load_kernels("torch"))
    initialise(objective, 0)
    batch = BATCHES["retrieval"]().located()
    objective(batch, 1)  # tables that are made once
    with Waits() as forward:
        losses = objective(batch, 2)
    with Waits() as backward:
        losses.total.backward()
    return {"forward": forward.seen.total(), "backward": backward.seen.total()}


@pytest.mark.parametrize(
    ("router", "experts", "forward", "backward"),
    [
        ("attribute", {}, 1, 0),  # who sends what to whom, once a pass
        ("token", {}, 4, 4),  # two decisions of each block, which is computed again
        ("token", {"exchange_parts": 2}, 4, 4),
        ("limoe", {}, 2, 2),
        ("limoe", {"exchange": "slots"}, 1, 0),  # how many slots each rank has
    ],
)
def test_waits_between_expert_ranks(router, experts, forward, backward):
    for found in run_ranks(2, waits_of_a_pass, router, experts):
        assert found == {"forward": forward, "backward": backward}
