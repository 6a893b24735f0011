"""Optimizer steps and data-parallel averages of the public code; positions of its fixed table."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from data.batch import TaskBatch
from model.embedding import sine_cosine
from model.exchange.public import load_logical, to_ours, to_public
from model.objective import Objective
from parallel.engine import decays
from tests.golden.reference import HEADS, arrays, batch_of, cases, described, load, public_state, tensor


def public_gradients(objective: Objective) -> dict[str, torch.Tensor]:
    """By public name; an expert that was not chosen has none, as in the public code."""
    ours = {name: parameter.grad for name, parameter in objective.named_parameters() if parameter.grad is not None}
    public = to_public(ours, HEADS)
    return {name: grad for name, grad in public.items() if ".experts." not in name or grad.any()}


@pytest.mark.parametrize("case", cases("moe_train_steps", "dense_train_steps"))
def test_six_optimizer_steps(case):
    model, about = case.split("_")[0], described(case)
    options = about["hyper_parameters"]
    objective = load(model)
    state = public_state(model)
    trained = {name: torch.nn.Parameter(state[name].clone()) for name in about["delta_norm"]}
    decay = about["weight_decay_per_parameter"]
    groups = [
        {"params": [p for n, p in trained.items() if decay[n] == value], "weight_decay": value} for value in (0.0, 0.05)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=tuple(options["betas"]), eps=options["eps"])
    for number, step in enumerate(about["steps"]):
        now = state | {name: parameter.detach() for name, parameter in trained.items()}
        now |= {copy: now[name] for copy, name in SHARED.items()}
        load_logical(objective, to_ours(now, HEADS, learned_positions=True))
        objective.zero_grad(set_to_none=True)
        losses = objective(batch_of(f"{model}_{step['task']}"))
        assert losses.total.item() == pytest.approx(step["loss"], abs=2e-4), f"step {number}"
        losses.total.backward()
        gradients = public_gradients(objective)
        for name, parameter in trained.items():
            gradient = gradients.get(name)
            if gradient is not None and gradient.shape != parameter.shape:  # the second token type is never used
                gradient = torch.cat([gradient, torch.zeros_like(parameter[1:])])
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), options["clip"])
        assert norm.item() == pytest.approx(step["grad_norm_before_clip"], rel=1e-3), f"step {number}"
        for group in optimizer.param_groups:
            group["lr"] = step["lr"]
        optimizer.step()
    stored = arrays(case)
    for name, parameter in trained.items():
        delta = (parameter - state[name]).detach()
        assert delta.norm().item() == pytest.approx(about["delta_norm"][name], rel=2e-3, abs=2e-4), name
        if f"delta/{name}" in stored:
            expected = tensor(stored[f"delta/{name}"]).reshape(delta.shape)
            torch.testing.assert_close(delta, expected, rtol=0, atol=2e-5, msg=lambda t, name=name: f"{name}: {t}")


SHARED = {
    "video_embed.embeddings_norm.weight": "token_embed.embeddings_norm.weight",
    "video_embed.embeddings_norm.bias": "token_embed.embeddings_norm.bias",
}


@pytest.mark.parametrize("case", cases("moe_train_steps", "dense_train_steps"))
def test_the_same_parameters_decay(case):
    stored = described(case)["weight_decay_per_parameter"]
    objective = load(case.split("_")[0])
    marks = {
        name: torch.full_like(parameter, float(decays(name, parameter)))
        for name, parameter in objective.named_parameters()
    }
    public = to_public(marks, HEADS)
    compared = {name for name in stored if name in public}
    unused_gates = {name for name in stored if re.search(r"(dense|linear2)\.gate\.", name)}
    assert stored.keys() - compared <= unused_gates | {"video_embed.embeddings_type.weight"}
    for name in compared:
        assert bool(stored[name]) == bool(public[name].flatten()[0]), name


def part_of(batch: TaskBatch, rank: int) -> TaskBatch:
    """Samples 2r and 2r + 1, and their texts where these are the candidates."""
    rows = slice(2 * rank, 2 * rank + 2)
    changes = {"candidates": batch.candidates.rows(rows)} if batch.symmetric else {"labels_Q": batch.labels_Q[rows]}
    if batch.symmetric:
        changes["labels_Q"] = batch.labels_Q[:2]
    return dataclasses.replace(batch, inputs=batch.inputs.rows(rows), read_Q2=batch.read_Q2[:2], **changes)


@pytest.mark.parametrize("part", ["retrieval_local", "image_cls_sharded"])
@pytest.mark.parametrize("case", cases("moe_two_ranks"))
def test_the_mean_over_two_ranks(part, case):
    expected_of = described(case)["parts"][part]
    objective = load(case.split("_")[0])
    batch = batch_of(case.replace("two_ranks", part.rpartition("_")[0]))
    for rank in range(2):
        losses = objective(part_of(batch, rank))
        expected = sum(v for k, v in expected_of["ranks"][rank]["losses"].items() if k.startswith("LabelSmoothing"))
        assert (batch.weight * losses.loss).item() == pytest.approx(expected, abs=1e-4)
        (losses.total / 2).backward()
    compare_norms(objective, expected_of["avg_grad_norm"], 1.0)


@pytest.mark.parametrize("case", cases("moe_two_ranks"))
def test_gathered_retrieval_has_the_true_gradient(case):
    """The public code's is smaller by the number of ranks, as features of other ranks are constants there."""
    expected_of = described(case)["parts"]["retrieval_gathered"]
    objective = load(case.split("_")[0])
    objective(batch_of(case.replace("two_ranks", "retrieval"))).total.backward()
    compare_norms(objective, expected_of["avg_grad_norm"], 0.5)


def compare_norms(objective: Objective, expected: dict[str, float], factor: float) -> None:
    gradients = public_gradients(objective)
    compared = [name for name in expected if name in gradients and "logit_scale" not in name]
    assert len(compared) > 60
    for name in compared:
        assert factor * gradients[name].norm().item() == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize(
    "name", ["grid4_width64_scale1.000000", "grid3_width16_scale1.000000", "grid4_width24_scale0.500000"]
)
def test_fixed_positions(name):
    expected = tensor(arrays("compact/sincos_positions")[name])
    side, width, scale = re.fullmatch(r"grid(\d+)_width(\d+)_scale(.+)", name).groups()
    grid = torch.cartesian_prod(torch.arange(int(side)), torch.arange(int(side)))
    torch.testing.assert_close(sine_cosine(grid[None], int(width), float(scale))[0], expected, rtol=0, atol=1e-6)
