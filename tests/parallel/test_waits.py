"""How often the host waits for a device in a pass of expert ranks, forward and backward, and what a block launches."""

from __future__ import annotations

from typing import Any

import pytest

from model.config import ModelConfig
from tests.helpers.batches import BATCHES, VOCABULARY_SIZE
from tests.helpers.distributed import run_ranks
from tests.helpers.hot_path import Launches, Waits
from tests.helpers.models import tiny


def counted(counter: type[Waits] | type[Launches], config: ModelConfig, task: str) -> dict[str, int]:
    """With the branches of a GPU."""
    from benchmarks.gpu_branches import branches_of_a_gpu
    from model.initialise import initialise
    from model.objective import Objective
    from parallel.kernels import load_kernels
    from parallel.mesh import create_mesh

    objective = Objective(config, VOCABULARY_SIZE, create_mesh(expert=2), load_kernels("torch"))
    initialise(objective, 0)
    batch = BATCHES[task]().located()
    with branches_of_a_gpu():
        objective(batch, 1)  # tables that are made once
        with counter() as forward:
            losses = objective(batch, 2)
        with counter() as backward:
            losses.total.backward()
    return {"forward": forward.seen.total(), "backward": backward.seen.total()}


def waits_of_a_pass(rank: int, router: str, experts: dict[str, Any]) -> dict[str, int]:
    return counted(Waits, tiny(router, {"placement": "all", **experts}, activation_checkpointing="block"), "retrieval")


def launches_of_a_pass(rank: int, depth: int) -> dict[str, int]:
    config = tiny("attribute", {"placement": "all"}, depth=depth, layer_scale=1e-3, drop_path=0.1)
    return counted(Launches, config, "caption")


def test_launches_of_a_merged_block_between_expert_ranks():
    """Of two ranks; one has 41 and 106 (tests/model/test_hot_path.py). However many sums arrive for however many groups."""
    shallow, deep = (run_ranks(2, launches_of_a_pass, depth) for depth in (1, 2))
    for one, two in zip(shallow, deep, strict=True):
        found = (two["forward"] - one["forward"], two["backward"] - one["backward"])
        assert found[0] <= 62 and found[1] <= 138, found


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
