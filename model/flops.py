"""The arithmetic that a batch asks of the network: FLOPs from its valid tokens, for model FLOPs utilisation (PaLM, arXiv 2204.02311, B).

    counts of a batch --work_of--> Work of each tower --forward_flops--> FLOPs by part, times --passes_of--> of a training step

A multiplication and an addition are two FLOPs, and matrix products alone are counted: linears and gates by the tokens that meet them
(each of the chosen experts; one linear where experts are merged; behind the attention of the last block the tokens that are read,
ModelConfig.reads_early), attention by all pairs of a sequence's tokens, whatever its mask hides. What the program does besides is no
FLOP of the model: products with pads, what is computed again for the backward pass, and what does not depend on tokens: merging experts
(sum_e g_e W_e), low-rank updates of weights, the gates of groups.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from data.batch import Scope, TaskBatch, TokenCounts
from model.config import ModelConfig

MATRIX = re.compile(r"\.patches\.weight$|\.(qkv|out|up|down)\.((linear|bank)\.)?weight$|\.output\.\w+\.weight$")
"""Parameters by which the tokens of a part are multiplied; gates are small and left out."""


class Work(NamedTuple):
    """What goes through a tower; numbers that can be added up.

    tokens    valid, <SPE> included; visual: of these, patches
    prompts   vectors that are joined to keys and values, the same in all rows
    pairs     of a query and a key, for each head
    reads     places that are read out
    compared  pairs of a read-out and a candidate
    headed    read-outs that the linear head sees, where there is one
    """

    tokens: float = 0
    visual: float = 0
    prompts: float = 0
    pairs: float = 0
    reads: float = 0
    compared: float = 0
    headed: float = 0


def work_of(
    model: ModelConfig,
    batch: TaskBatch,
    inputs: TokenCounts,
    candidates: TokenCounts,
    data_ranks: int = 1,
    shared: Sequence[TokenCounts] = (),
) -> tuple[Work, ...]:
    """Of each tower. Nothing of the batch is read but shapes, so it may lie on any device. shared: of candidate sets that data ranks
    encode together, which count by the part that each encodes."""
    reads, number = batch.read_Q2.shape[0], candidates.rows
    others = data_ranks if batch.scope == Scope.GLOBAL else 1
    directions = 2 if batch.symmetric and not batch.pairwise else 1
    first = sequence_work(model, inputs, reads)
    first = first._replace(compared=directions * reads * number * others, headed=reads)
    all_works = [(inputs, first)]
    if batch.scope != Scope.SHARDED:
        all_works.append((candidates, sequence_work(model, candidates, number, is_target=True)))
    for counts in shared:
        whole = sequence_work(model, counts, counts.rows, is_target=True)
        all_works.append((counts, Work(*(amount / data_ranks for amount in whole))))
    towers = [Work()] * (2 if model.text_tower else 1)
    for counts, work in all_works:
        index = len(towers) - 1 if counts.is_text else 0
        towers[index] = added(towers[index], work)
    return tuple(towers)


def sequence_work(model: ModelConfig, counts: TokenCounts, reads: int, is_target: bool = False) -> Work:
    prompts = 0
    if model.prompts:
        prompts = (is_target and model.prompts.target_length) or model.prompts.length
    return Work(
        tokens=counts.tokens,
        visual=counts.visual,
        prompts=prompts,
        pairs=counts.squares + counts.tokens * prompts,
        reads=reads,
    )


def added(first: Work, second: Work) -> Work:
    return Work(*(a + b for a, b in zip(first, second, strict=True)))


def towers_of(model: ModelConfig) -> list[tuple[str, ModelConfig]]:
    """By the names of their modules."""
    text = model.text_tower_config()
    return [("tower", model)] + ([("text_tower", text)] if text else [])


def forward_flops(model: ModelConfig, works: Sequence[Work]) -> dict[str, float]:
    """By the names of the network's parts, of the works of all towers."""
    parts: dict[str, float] = {}
    for (name, tower), work in zip(towers_of(model), works, strict=True):
        parts[f"{name}.embedding"] = 2 * work.visual * tower.patch_values * tower.width
        for layer in range(tower.depth):
            parts[f"{name}.encoder.blocks.{layer}"] = _block(tower, layer, work)
        parts[f"{name}.output"] = 2 * work.reads * tower.width * tower.space_width
    parts["head"] = 2 * sum(work.headed for work in works) * model.space_width * model.head_classes
    parts["scores"] = 2 * sum(work.compared for work in works) * model.space_width
    return parts


def choice_flops(model: ModelConfig) -> list[tuple[str, float]]:
    """(part, forward FLOPs of one token at one expert) of every decision, in the order of the decisions: what `forward_flops` counts too
    much for a choice that found no slot. 0 where experts are merged."""
    found: list[tuple[str, float]] = []
    for name, tower in towers_of(model):
        experts = tower.experts
        for layer in range(tower.depth):
            if experts.is_sparse(layer, tower.depth):
                linears = [2 * 2 * tower.width * tower.ffn]
                if experts.unit == "linear":
                    linears.insert(0, 2 * 4 * tower.width**2)
                part = f"{name}.encoder.blocks.{layer}"
                found += [(part, flops if experts.decides_per_token else 0) for flops in linears]
    return found


def passes_of(objective: nn.Module) -> dict[str, float]:
    """How many times its forward FLOPs each part of the network costs in training: 1 for the forward pass, 1 for the gradient of what goes
    into it, where something is trained there or before, and for the gradient of its weights the share of them that is trained (of a last
    block trained in part an estimate, as its weights do not meet equally many tokens). 3 where all is trained, as is usual in the field,
    also for patches, whose pixels need no gradient."""
    named = dict(objective.named_parameters())
    passes: dict[str, float] = {}
    any_reached = False
    for tower in ("tower", "text_tower"):
        reached = False
        layers = {int(match[1]) for name in named if (match := re.match(rf"{tower}\.encoder\.blocks\.(\d+)\.", name))}
        for part in ("embedding", *(f"encoder.blocks.{layer}" for layer in sorted(layers)), "output"):
            own = {name: p for name, p in named.items() if re.match(rf"{tower}\.{re.escape(part)}[._]", name)}
            if own:
                reached = reached or any(p.requires_grad for p in own.values())
                passes[f"{tower}.{part}"] = 1 + reached + _trained_share(own)
        any_reached = any_reached or reached
    head = {name: p for name, p in named.items() if name.startswith("head.")}
    passes["head"] = 1 + any_reached + any(p.requires_grad for p in head.values())
    passes["scores"] = 1 + 2 * any_reached
    return passes


def _trained_share(named: dict[str, nn.Parameter]) -> float:
    sizes = [(p.numel(), p.requires_grad) for name, p in named.items() if MATRIX.search(name)]
    return sum(size for size, trains in sizes if trains) / max(1, sum(size for size, _ in sizes))


def _block(model: ModelConfig, layer: int, work: Work) -> float:
    experts, width = model.experts, model.width
    sent = experts.is_sparse(layer, model.depth) and experts.decides_per_token
    choices = experts.top_k if sent else 1
    attention_choices = choices if experts.unit == "linear" else 1
    read = work.reads if model.reads_early(layer) else work.tokens
    incoming = 3 * width**2 * attention_choices
    outgoing = width**2 * attention_choices + 2 * width * model.ffn * choices
    flops = 2 * (work.tokens * incoming + read * outgoing) + 2 * work.prompts * 3 * width**2 + 4 * work.pairs * width
    if sent:
        features = 2 * width if experts.router == "context" else width
        pooled = 0
        if experts.router == "context":
            pooled = width * (2 if experts.pooling == "attention" else 1)
        decisions = 2 if experts.unit == "linear" else 1
        flops += decisions * 2 * work.tokens * (features * experts.num_experts + pooled)
    return flops
