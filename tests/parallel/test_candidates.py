"""Candidates of several data ranks, and scores cut over tensor ranks, equal one process."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.helpers.distributed import run_ranks
from tests.helpers.parity import ParityRun, logical_gradients, logical_weights, merged_losses, run_job
from tests.parallel.test_parity import assert_close, assert_equal_runs, reference

LAYOUTS = {
    "data 2": (2, {}),
    "expert 2": (2, {"expert": 2}),
    "data 2, tensor 2": (4, {"tensor": 2}),
}
CASES = [pytest.param(name, marks=[pytest.mark.parity] if ranks > 2 else []) for name, (ranks, _) in LAYOUTS.items()]


@pytest.mark.parametrize("router", ["attribute", "token"])
@pytest.mark.parametrize("task", ["image", "text", "caption"])
@pytest.mark.parametrize("layout", CASES)
def test_sharded_candidates_equal_one_process(layout, task, router):
    """3, 7 and 9 candidates on two ranks: the last rank's part is padded."""
    ranks, options = LAYOUTS[layout]
    job = ParityRun(router=router, scope="sharded", tasks=(task,), sgd=True, lr=1e-3)
    assert_equal_runs(reference(job), run_ranks(ranks, run_job, dataclasses.replace(job, **options)))


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


def scored(rank: int, ranks: int, candidates: int) -> dict[str, np.ndarray]:
    """Loss, likeliest candidates and gradients with scores cut over `ranks` tensor ranks."""
    from model.scores import compare
    from parallel.mesh import create_mesh

    mesh = create_mesh(tensor=ranks)
    g = torch.Generator().manual_seed(0)
    features_QW = torch.randn(5, 8, generator=g).requires_grad_()
    candidates_CW = torch.randn(candidates, 8, generator=g).requires_grad_()
    scale, addend_C = torch.tensor([9.0], requires_grad=True), torch.randn(candidates, generator=g).requires_grad_()
    labels_Q = torch.randint(0, candidates, (5,), generator=g)
    scores = compare(features_QW, candidates_CW, scale, mesh.tensor).plus(addend_C)
    loss = scores.cross_entropy(labels_Q, smoothing=0.1)
    loss.backward()
    results = {"loss": loss, "best": scores.best_Q()}
    if ranks == 1:
        torch.testing.assert_close(loss, cross_entropy(scores.logits_Qc, labels_Q, label_smoothing=0.1))
    tensors = {"features": features_QW, "candidates": candidates_CW, "scale": scale, "addend": addend_C}
    results |= {name: tensor.grad for name, tensor in tensors.items()}
    return {name: value.detach().numpy().copy() for name, value in results.items()}


@pytest.mark.parametrize("candidates", [1, 2, 7])
def test_scores_cut_over_tensor_ranks_equal_whole_ones(candidates):
    (expected,) = run_ranks(1, scored, 1, candidates)
    for got in run_ranks(2, scored, 2, candidates):
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def best_of_equal(rank: int) -> list[int]:
    from model.scores import Scores
    from parallel.mesh import create_mesh

    axis = create_mesh(tensor=2).tensor
    logits_QC = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, 1.0, 2.0, 2.0]])
    return Scores(logits_QC[:, 2 * rank : 2 * rank + 2], 2 * rank, 4, axis).best_Q().tolist()


def test_the_first_of_equal_candidates_is_the_best():
    assert run_ranks(2, best_of_equal) == [[1, 0, 2]] * 2
