"""Rows of the residual stream cut over tensor ranks: the functions by hand, and whole steps against one process."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from model.config import PromptConfig
from tests.helpers.distributed import run_ranks
from tests.helpers.parity import ParityRun, run_job
from tests.parallel.test_parity import assert_equal_runs, reference


def functions(rank: int) -> dict[str, list]:
    """Forward and backward of each function on three rows of one number: parts of two rows, the last one filled up."""
    from parallel.mesh import create_mesh
    from parallel.sequence_parallel import cut_rows, gather_rows, join_rows, only_first, sum_rows, used_alike

    axis = create_mesh(tensor=2, sequence=True).sequence
    whole, part = [[1.0], [2.0], [3.0]], [[10.0 * rank + 1], [10.0 * rank + 2]]
    upstream = {"whole": [[1.0], [10.0], [100.0]], "part": [[rank + 1.0], [10.0 * (rank + 1)]]}
    calls = {
        "cut": (lambda x: cut_rows(x, axis), whole, "part"),
        "gather": (lambda x: gather_rows(x, 3, axis), part, "whole"),
        "join": (lambda x: join_rows(x, 3, axis), part, "whole"),
        "sum": (lambda x: sum_rows(x, axis), whole, "part"),
        "alike": (lambda x: used_alike(x, axis), whole, "whole"),
        "first": (lambda x: only_first(x, axis), whole, "whole"),
    }
    found = {}
    for name, (function, values, kind) in calls.items():
        x = torch.tensor(values).requires_grad_()
        y = function(x)
        y.backward(torch.tensor(upstream[kind]))
        found[name] = [y.flatten().tolist(), x.grad.flatten().tolist()]
    return found


def test_rows_and_their_gradients_by_hand():
    first, second = run_ranks(2, functions)
    # Gradients of parts are 1, 10 on rank 0 and 2, 20 on rank 1: the last belongs to a row that is not there.
    assert first["cut"] == [[1, 2], [1, 10, 2]]
    assert second["cut"] == [[3, 0], [1, 10, 2]]
    assert first["gather"] == [[1, 2, 11], [2, 20]]  # both ranks give 1, 10, 100
    assert second["gather"] == [[1, 2, 11], [200, 0]]
    assert first["join"] == [[1, 2, 11], [1, 10]]
    assert second["join"] == [[1, 2, 11], [100, 0]]
    assert first["sum"] == [[2, 4], [1, 10, 2]]
    assert second["sum"] == [[6, 0], [1, 10, 2]]
    for result in (first, second):
        assert result["alike"] == [[1, 2, 3], [0.5, 5, 50]]
        assert result["first"][1] == [1, 10, 100]
    assert (first["first"][0], second["first"][0]) == ([1, 2, 3], [0, 0, 0])


LAYOUTS = {
    "tensor 2": (2, {"tensor": 2}),
    "tensor 4": (4, {"tensor": 4, "heads": 4}),
    "data 2, tensor 2": (4, {"tensor": 2}),
    "tensor 2, expert 2": (4, {"tensor": 2, "expert": 2}),
    "data 2, tensor 2, expert 2": (8, {"tensor": 2, "expert": 2}),
}
ENGINES = ("zero0", "zero1", "zero2", "zero2_offload")
SOME = ("attribute", "token", "limoe")
ROUTERS = ("attribute", "token", "limoe", "context", "task")
BRANCHES = (("layer_scale", 0.5), ("drop_path", 0.2))
VARIANTS: dict[str, tuple] = {
    "plain": (),
    "branches scaled and dropped": BRANCHES,
    "block": (*BRANCHES, ("activation_checkpointing", "block")),
    "selective": (*BRANCHES, ("activation_checkpointing", "selective")),
    "chunks": (*BRANCHES, ("chunks", 2)),
    "chunks, block": (("chunks", 2), ("activation_checkpointing", "block")),
    "means": (("readout", "mean"),),
}
QUICK = {
    ("tensor 2", "attribute", "selective"),
    ("tensor 2", "token", "block"),
    ("tensor 2", "limoe", "branches scaled and dropped"),
    ("tensor 2, expert 2", "token", "plain"),
    ("tensor 2, expert 2", "attribute", "chunks"),
}
POINTS = [
    (layout, router, variant)
    for layout, router, variant in itertools.product(LAYOUTS, ROUTERS, VARIANTS)
    # All routers and layouts with the plain residual stream; all variants where both axes and unequal rows meet, and as above.
    if variant == "plain"
    or (router in SOME and layout == "tensor 2, expert 2")
    or (router == "attribute" and layout == "tensor 4")
    or (layout, router, variant) in QUICK
]
TASKS = ("caption", "text", "retrieval", "image")


def compare(layout: str, job: ParityRun) -> None:
    """With one process that keeps all activations."""
    ranks, options = LAYOUTS[layout]
    job = dataclasses.replace(job, **options)
    kept = tuple((key, value) for key, value in job.model if key != "activation_checkpointing")
    alone = dataclasses.replace(job, tensor=1, expert=1, engine="zero1", model=kept)
    assert_equal_runs(reference(alone), run_ranks(ranks, run_job, dataclasses.replace(job, sequence=True)))


@pytest.mark.parametrize(
    ("layout", "router", "variant"),
    [pytest.param(*point, marks=() if point in QUICK else pytest.mark.parity) for point in POINTS],
)
def test_gradient_steps_equal_one_process(layout, router, variant):
    """Three plain gradient steps; texts of several lengths, and sequences whose rows do not divide by the ranks."""
    compare(layout, ParityRun(router=router, tasks=TASKS, micro_batches=4, sgd=True, model=VARIANTS[variant]))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("layout", "router", "engine"),
    [
        (layout, router, engine)
        for layout, router, engine in itertools.product(LAYOUTS, SOME, ENGINES)
        if engine == "zero1" or layout == "tensor 2, expert 2"
    ],
)
def test_adam_steps_equal_one_process(layout, router, engine):
    """With clipping and weight decay."""
    compare(
        layout,
        ParityRun(router=router, engine=engine, tasks=TASKS, micro_batches=4, adam_eps=1e-2, lr=1e-3, model=BRANCHES),
    )


@pytest.mark.parity
@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompts_and_learned_scales(layout):
    """Prompts join keys and values behind the gathered rows; a frozen norm takes no part in the sum of gradients."""
    prompts = (("prompts", PromptConfig(length=3, target_length=2)), ("layer_scale", 0.5))
    compare(layout, ParityRun(tasks=TASKS, micro_batches=4, sgd=True, model=prompts, frozen=("*.blocks.0.ffn_norm.*",)))


def generate(rank: int, tensor: int, router: str) -> np.ndarray:
    from data.attributes import CAPTION_TEXT, WORD_TARGET
    from data.batch import Sequences
    from model.generate import Words, beam_search
    from model.initialise import initialise
    from model.objective import Objective
    from parallel.kernels import load_kernels
    from parallel.mesh import create_mesh
    from tests.helpers.batches import VOCABULARY_SIZE, captioning, text
    from tests.helpers.models import tiny

    mesh = create_mesh(tensor, sequence=True)
    objective = Objective(tiny(router, layer_scale=0.5), VOCABULARY_SIZE, mesh, load_kernels("torch"))
    initialise(objective, 0)
    words = Sequences(segments=(text(torch.Generator().manual_seed(0), [1] * 9, WORD_TARGET),))
    with torch.no_grad():
        features, _ = objective.encode_candidates(words)
    tokens_C = torch.arange(9)
    chosen = Words(features, tokens_C, "caption", 8, VOCABULARY_SIZE - 1, CAPTION_TEXT, "caption")
    prefix = Sequences(segments=captioning(0).inputs.segments[:1])
    return beam_search(objective, prefix, chosen, beam=2, max_tokens=4).log_probs_BKT.numpy()


@pytest.mark.parametrize("router", ["attribute", pytest.param("token", marks=pytest.mark.parity)])
def test_generation_is_that_of_one_process(router):
    """Candidates are encoded with cut rows, single new words with whole ones."""
    alone, *_ = run_ranks(1, generate, 1, router)
    for got in run_ranks(2, generate, 2, router):
        np.testing.assert_allclose(got, alone, rtol=1e-4, atol=1e-5)
