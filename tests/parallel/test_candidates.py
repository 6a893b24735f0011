"""Candidates of several data ranks, and scores cut over tensor ranks, equal one process."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from data.attributes import NAME_TARGET
from data.batch import CandidateSet, Scope, Sequences
from model.config import TextTowerConfig
from model.shared_candidates import MAX_ROWS, shared_parts
from parallel.collectives import Axis
from tests.helpers.batches import BATCHES, text
from tests.helpers.distributed import run_ranks
from tests.helpers.models import tiny
from tests.helpers.parity import ParityRun, logical_gradients, logical_weights, merged_losses, run_job
from tests.parallel.test_parity import PAIRS, assert_close, assert_equal_runs, reference

NOISY = (("drop_path", 0.3), ("layer_scale", 0.5))
"""Branches are dropped by row, and routers draw noise anyway: candidates that ranks share must draw what one process draws."""
TEXT = TextTowerConfig(width=8, depth=2, heads=2, ffn=16)
LAYOUTS = {
    "data 2": (2, {}),
    "expert 2": (2, {"expert": 2}),
    "data 2, tensor 2": (4, {"tensor": 2}),
}
CASES = [pytest.param(name, marks=[pytest.mark.parity] if ranks > 2 else []) for name, (ranks, _) in LAYOUTS.items()]


@pytest.mark.parametrize("router", ["attribute", pytest.param("token", marks=pytest.mark.parity)])
@pytest.mark.parametrize("task", ["image", "text", "caption"])
@pytest.mark.parametrize("layout", CASES)
def test_sharded_candidates_equal_one_process(layout, task, router):
    """3, 7 and 9 candidates on two ranks: the last rank's part is padded."""
    ranks, options = LAYOUTS[layout]
    job = ParityRun(router=router, scope="sharded", tasks=(task,), sgd=True, lr=1e-3, model=NOISY)
    assert_equal_runs(reference(job), run_ranks(ranks, run_job, dataclasses.replace(job, **options)))


MIXED = {
    **LAYOUTS,
    "data 4": (4, {}),
    "expert 4": (4, {"expert": 4}),
    "data 2, expert 2": (4, {"expert": 2}),
    "tensor 2, rows cut": (4, {"tensor": 2, "sequence": True}),
    "tensor 2, expert 2": (4, {"tensor": 2, "expert": 2}),
}
KINDS: dict[str, dict[str, Any]] = {
    "dense": {"router": "dense", "model": NOISY},
    **{router: {"router": router, "model": NOISY} for router in ("attribute", "modality", "task", "token", "context")},
    "two towers": {"model": (*NOISY, ("text_tower", TEXT), ("output", "per_modality"))},
    "chunks": {"model": (*NOISY, ("chunks", 2))},
    "recomputed": {"router": "token", "model": (*NOISY, ("activation_checkpointing", "block"))},
}
TASKS = (
    "caption",
    "retrieval",
    "image",
    "text",
    "retrieval",
    "retrieval",
    "video",
    "image",
    "text",
    "text",
    "video",
    "caption",
)
"""Four a step: on two ranks one step has a micro-step without anything to share, on four all have several sets."""
QUICK = {
    ("data 2", "dense"),
    ("data 2", "two towers"),
    ("expert 2", "attribute"),
    ("expert 2", "token"),
    ("data 2", "chunks"),
    ("tensor 2, expert 2", "token"),
}
POINTS = [
    (layout, kind)
    for layout, kind in itertools.product(MIXED, KINDS)
    # Without experts there is nothing to share out, and run/config.py refuses texts alone where ranks of two towers exchange experts.
    if not (kind in ("dense", "two towers") and "expert" in MIXED[layout][1])
]


@pytest.mark.parametrize(
    ("layout", "kind"), [pytest.param(*point, marks=() if point in QUICK else pytest.mark.parity) for point in POINTS]
)
def test_candidates_shared_by_ranks_with_different_tasks_equal_one_process(layout, kind):
    """Three plain gradient steps with dropped branches and noisy routers: every loss and every gradient."""
    ranks, options = MIXED[layout]
    job = ParityRun(scope="sharded", tasks=TASKS, micro_batches=4, sgd=True, lr=1e-3, **KINDS[kind])
    assert_equal_runs(reference(job), run_ranks(ranks, run_job, dataclasses.replace(job, **options)))


EVERY_PAIR = [("expert 2", router) for router in ("attribute", "task", "token", "context")]
EVERY_PAIR += [(layout, router) for layout in MIXED if layout != "expert 2" for router in ("attribute", "token")]


@pytest.mark.parametrize(
    ("layout", "router"),
    [pytest.param(*point, marks=[] if point == EVERY_PAIR[0] else pytest.mark.parity) for point in EVERY_PAIR],
)
def test_every_pair_of_tasks_shares_candidates(layout, router):
    """All ordered pairs: one a step on two data ranks, two on four."""
    ranks, options = MIXED[layout]
    micro_batches = ranks // options.get("tensor", 1)
    job = ParityRun(
        router=router, scope="sharded", micro_batches=micro_batches, steps=len(PAIRS) // micro_batches, tasks=PAIRS, sgd=True, lr=1e-3,
        model=NOISY,
    )  # fmt: skip
    assert_equal_runs(reference(job), run_ranks(ranks, run_job, dataclasses.replace(job, **options)))


def test_one_rank_encodes_a_set_as_it_is():
    """Without a copy; with fewer rows than chunks the last one is repeated. Of two ranks each has a part."""
    names = Sequences(segments=(text(torch.Generator().manual_seed(0), [3, 1, 2], NAME_TARGET),)).located()
    sets = (CandidateSet(number=4, task="image", candidates=names),)
    (alone,) = shared_parts(sets, Axis("data"), lambda task: 0, least=1).readings
    assert alone.sequences is names and alone.rows_B.tolist() == [4 * MAX_ROWS + row for row in range(3)]
    (padded,) = shared_parts(sets, Axis("data"), lambda task: 0, least=4).readings
    rows_BL = names.segments[0].values
    assert torch.equal(padded.sequences.segments[0].values, torch.cat([rows_BL, rows_BL[-1:]]))
    (second,) = shared_parts(sets, Axis("data", 2, 1, group=object()), lambda task: 0, least=1).readings
    assert torch.equal(second.sequences.segments[0].values, rows_BL[[2, 2]])


def flops_of(rank: int, task: str, sets: int) -> int:
    """Of a forward and a backward pass of this rank's batch beside so many shared sets of eight names, by torch's own count."""
    from torch.utils.flop_counter import FlopCounterMode

    from parallel.mesh import create_mesh
    from tests.helpers.models import make

    objective = make(tiny("dense"), mesh=create_mesh())
    names = Sequences(segments=(text(torch.Generator().manual_seed(0), [3] * 8, NAME_TARGET),))
    shared = tuple(CandidateSet(number=number, task=task, candidates=names) for number in range(sets))
    batch = BATCHES[task](rank)
    if task == "image":
        batch = dataclasses.replace(batch, candidates=names, scope=Scope.SHARDED, shared=shared)
    else:
        batch = dataclasses.replace(batch, shared=shared)
    with FlopCounterMode(display=False) as counter:
        objective(batch).total.backward()
    return counter.get_total_flops()


def test_flops_for_shared_candidates_fall_with_the_ranks():
    """To 1/N exactly, whether a rank's batch asks for a set or not; what the batch needs besides stays."""
    (without,) = run_ranks(1, flops_of, "retrieval", 0)
    (alone,) = run_ranks(1, flops_of, "retrieval", 3)
    (of_image,) = run_ranks(1, flops_of, "image", 3)
    assert alone - without > without
    for ranks in (2, 4):
        assert set(run_ranks(ranks, flops_of, "retrieval", 3)) == {without + (alone - without) // ranks}
        assert set(run_ranks(ranks, flops_of, "image", 3)) == {of_image - (alone - without) * (ranks - 1) // ranks}


@pytest.mark.parametrize(("router", "loss"), [("attribute", "softmax"), ("token", "softmax"), ("attribute", "sigmoid")])
@pytest.mark.parametrize("layout", CASES)
def test_global_negatives_equal_one_large_batch(layout, router, loss):
    ranks, options = LAYOUTS[layout]
    model = (("logit_biases", ("retrieval",)),) if loss == "sigmoid" else ()
    job = ParityRun(router=router, scope="global", sgd=True, lr=1e-3, model=model, pairwise=loss == "sigmoid")
    (expected,) = reference(dataclasses.replace(job, scope="joined", micro_batches=1))
    got = run_ranks(ranks, run_job, dataclasses.replace(job, **options))
    losses, whole = merged_losses(got), merged_losses([expected])
    for step in range(job.steps):
        assert (losses[step, 0] + losses[step, 1]) / 2 == pytest.approx(whole[step, 0], rel=1e-5)
        assert_close(
            logical_gradients([expected], step), logical_gradients(got, step), 1e-5, f"gradient of step {step}"
        )
    assert_close(logical_weights([expected]), logical_weights(got), 1e-5, "weight")


def scored(rank: int, ranks: int, candidates: int, in_chunks: bool = False) -> dict[str, np.ndarray]:
    """Loss, likeliest candidates and gradients with scores cut over `ranks` tensor ranks. in_chunks: of two read-outs, and nothing is
    added to the scores."""
    from model.scoring.scores import compare
    from model.scoring.vocabulary import vocabulary_loss
    from parallel.mesh import create_mesh

    mesh = create_mesh(tensor=ranks)
    g = torch.Generator().manual_seed(0)
    features_QW = torch.randn(5, 8, generator=g).requires_grad_()
    candidates_CW = torch.randn(candidates, 8, generator=g).requires_grad_()
    scale, addend_C = torch.tensor([9.0], requires_grad=True), torch.randn(candidates, generator=g).requires_grad_()
    labels_Q = torch.randint(0, candidates, (5,), generator=g)
    if in_chunks:
        chunk = 2 * -(-candidates // ranks) + 1  # enough for three read-outs of the smaller part
        loss, best = vocabulary_loss(features_QW, candidates_CW, labels_Q, scale, mesh.tensor, 0.1, most=chunk)
        addend_C.grad = torch.zeros_like(addend_C)
    else:
        scores = compare(features_QW, candidates_CW, scale, mesh.tensor).plus(addend_C)
        loss, best = scores.cross_entropy(labels_Q, smoothing=0.1), scores.best_Q()
    loss.backward()
    results = {"loss": loss, "best": best}
    if ranks == 1 and not in_chunks:
        torch.testing.assert_close(loss, cross_entropy(scores.logits_Qc, labels_Q, label_smoothing=0.1))
    tensors = {"features": features_QW, "candidates": candidates_CW, "scale": scale, "addend": addend_C}
    results |= {name: tensor.grad for name, tensor in tensors.items()}
    return {name: value.detach().numpy().copy() for name, value in results.items()}


@pytest.mark.parametrize(("candidates", "in_chunks"), [(1, False), (2, False), (7, False), (1, True), (7, True)])
def test_scores_cut_over_tensor_ranks_equal_whole_ones(candidates, in_chunks):
    (expected,) = run_ranks(1, scored, 1, candidates, in_chunks)
    for got in run_ranks(2, scored, 2, candidates, in_chunks):
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def best_of_equal(rank: int) -> list[int]:
    from model.scoring.scores import Scores
    from parallel.mesh import create_mesh

    axis = create_mesh(tensor=2).tensor
    logits_QC = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, 1.0, 2.0, 2.0]])
    return Scores(logits_QC[:, 2 * rank : 2 * rank + 2], 2 * rank, 4, axis).best_Q().tolist()


def test_the_first_of_equal_candidates_is_the_best():
    assert run_ranks(2, best_of_equal) == [[1, 0, 2]] * 2
