"""Copies that differ are found and named, on every kind of axis."""

from __future__ import annotations

import pytest

from tests.helpers.distributed import run_ranks

TUNED = "tower.encoder.blocks.0.attention_norm.bias"
EXPERT = "tower.encoder.blocks.0.ffn.up.bank.weight"
CUT = "tower.encoder.blocks.1.ffn.up.linear.weight"


def damaged(rank: int, tensor: int, expert: int, name: str, on_rank: int) -> str:
    """One bit of one element of `name` flipped on a rank; what the check says, empty if nothing."""
    import torch

    from model.initialise import initialise
    from model.objective import Objective
    from parallel.health.replicas import ReplicaError, check_replicas
    from parallel.kernels import load_kernels
    from parallel.mesh import create_mesh
    from tests.helpers.batches import VOCABULARY_SIZE
    from tests.helpers.models import tiny

    mesh = create_mesh(tensor, expert)
    objective = Objective(tiny(), VOCABULARY_SIZE, mesh, load_kernels("torch"))
    initialise(objective, 0)
    check_replicas(objective, mesh)
    if rank == on_rank:
        parameter = objective.get_parameter(name).data.view(-1)
        parameter[1:2].view(torch.int32).bitwise_xor_(1)
    try:
        check_replicas(objective, mesh)
    except ReplicaError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("layout", "name", "finders"),
    [
        ((1, 1), TUNED, {0, 1}),
        ((1, 1), EXPERT, {0, 1}),  # experts are whole on both: copies like all else
        ((1, 2), TUNED, {0, 1}),
        ((2, 1), TUNED, {0, 1}),
    ],
)
def test_a_flipped_bit_is_named(layout, name, finders):
    said = run_ranks(2, damaged, *layout, name, 1)
    assert {rank for rank, text in enumerate(said) if name in text} == finders, said


@pytest.mark.parametrize(("layout", "name"), [((1, 2), EXPERT), ((2, 1), CUT)])
def test_parts_are_no_copies(layout, name):
    assert run_ranks(2, damaged, *layout, name, 1) == ["", ""]


def test_experts_are_compared_with_those_of_the_same_number():
    """Four ranks, EP = 2: ranks 1 and 3 hold the same experts."""
    said = run_ranks(4, damaged, 1, 2, EXPERT, 3)
    assert [EXPERT in text for text in said] == [False, True, False, True], said


def different_batches(rank: int) -> str:
    import torch

    from parallel.health.replicas import ReplicaError, check_batch
    from parallel.mesh import create_mesh

    mesh = create_mesh(2, 1)
    same, other = torch.arange(4), torch.tensor([1, 2, 3, 4]) if rank else torch.tensor([1, 3, 2, 4])
    check_batch([("labels", same)], mesh)
    try:
        check_batch([("labels", same), ("read-outs", other)], mesh)
    except ReplicaError as error:
        return str(error)
    return ""


def test_tensor_ranks_with_different_batches_are_told():
    assert run_ranks(2, different_batches) == ["tensor ranks read different batches: read-outs differ"] * 2
