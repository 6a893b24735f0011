"""FLOPs of a batch against torch's own counter, forward and backward, and the parts of it by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data.batch import CandidateSet, Scope, Sequences, TaskBatch
from model.config import LoraConfig, ModelConfig, PromptConfig, TextTowerConfig
from model.flops import Work, choice_flops, forward_flops, passes_of, work_of
from model.objective import Losses
from model.tuning.trained import choose_trained
from tests.helpers.batches import BATCHES, captioning, classification, masked_text, retrieval
from tests.helpers.models import make, tiny

WIDTH, FFN, EXPERTS = 16, 32, 4
TEXT = TextTowerConfig(width=8, depth=1, heads=2, ffn=24)
ALL = {"placement": "all"}
KINDS: dict[str, ModelConfig] = {
    "dense": tiny(experts={"placement": "none"}),
    "merge": tiny("attribute", ALL),
    "merge, feed-forward alone": tiny("attribute", ALL | {"unit": "ffn_linear"}),
    "dispatch": tiny("token", ALL),
    "dispatch to one": tiny("token", ALL | {"top_k": 1}),
    "dispatch, context": tiny("context", ALL | {"pooling": "attention"}),
    "dispatch, mean context": tiny("context", ALL | {"unit": "ffn_linear"}),
    "dispatch to whole networks with few slots": tiny("limoe", {"capacity_factor": 0.5}),
    "two towers": tiny(experts={"placement": "none"}, text_tower=TEXT),
    "prompts": tiny(prompts=PromptConfig(length=3, target_length=2)),
    "head": tiny(head_classes=3),
}


def full(batch: TaskBatch) -> TaskBatch:
    """Without pads, which torch would count."""

    def filled(sequences: Sequences) -> Sequences:
        segments = tuple(dataclasses.replace(s, valid_BL=torch.ones_like(s.valid_BL)) for s in sequences.segments)
        return Sequences(segments=segments)

    return dataclasses.replace(batch, inputs=filled(batch.inputs), candidates=filled(batch.candidates))


def works(config: ModelConfig, batch: TaskBatch, ranks: int = 1) -> tuple[Work, ...]:
    return work_of(config, batch, batch.inputs.counts, batch.candidates.counts, ranks)


def gates(config: ModelConfig, batch: TaskBatch) -> tuple[int, int]:
    """FLOPs of an attribute router's (embedding, gate), which depend on no token: 8 bits -> width, width -> experts, for each group."""
    if config.num_decisions == 0 or config.experts.decides_per_token:
        return 0, 0
    groups = sum(
        len({(s.attributes, s.modality) for s in sequences.segments}) for sequences in (batch.inputs, batch.candidates)
    )
    rows = 2 * groups * config.num_decisions
    return rows * 8 * WIDTH, rows * WIDTH * EXPERTS


def dropped(losses: Losses) -> list[float]:
    return (losses.use.pairs_M.sum(1) - losses.use.taken_ME.sum((1, 2))).tolist()


def bias_gradients(config: ModelConfig, losses: Losses) -> float:
    """Gradients of biases are sums, but those of experts that are sent tokens and widen are weighed sums of the rows that
    they took: products."""
    if not config.experts.decides_per_token:
        return 0
    outputs = {"linear": (3 * WIDTH, FFN), "ffn_linear": (FFN,), "mlp": (0,)}[config.experts.unit]
    taken_N = losses.use.taken_ME.sum((1, 2)).tolist()
    return sum(2 * taken * outputs[index % len(outputs)] for index, taken in enumerate(taken_N))


# A head has one classification task.
@pytest.mark.parametrize(("kind", "task"), [(k, t) for k in KINDS for t in BATCHES if k != "head" or t == "image"])
def test_a_training_step_has_the_flops_that_torch_counts(kind, task):
    config = KINDS[kind]
    objective, batch = make(config), full(BATCHES[task]())
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # it counts products, no fused kernels
        losses = objective(batch)
        forward = counter.get_total_flops()
        losses.total.backward()
    parts = forward_flops(config, works(config, batch))
    missing = list(zip(choice_flops(config), dropped(losses), strict=False))
    if config.experts.capacity_factor:
        assert sum(number for _, number in missing) > 0, "all found a slot"
    embeddings, logits = gates(config, batch)
    assert forward == sum(parts.values()) - sum(f * n for (_, f), n in missing) + embeddings + logits
    passes = passes_of(objective)
    assert {passes[part] for part, flops in parts.items() if flops} == {3} and passes.keys() == parts.keys()
    expected = sum(passes[part] * flops for part, flops in parts.items())
    expected -= sum(passes[part] * flops * number for (part, flops), number in missing)
    # The usual 3 passes count a gradient of pixels, which nobody asks for; nor of the bits of attributes.
    expected -= sum(flops for part, flops in parts.items() if part.endswith(".embedding"))
    if kind == "dispatch, mean context":  # the shares of a mean are no result of anything, so they have no gradient
        expected -= config.num_decisions * 2 * sum(s.num_tokens for s in (batch.inputs, batch.candidates)) * WIDTH
    expected += 2 * embeddings + 3 * logits + bias_gradients(config, losses)
    assert counter.get_total_flops() == expected


def test_pads_are_no_work():
    """Texts of 5, 3 and 6 tokens and a <SPE> each: 17 tokens and 6^2 + 4^2 + 7^2 pairs; seven words of two tokens."""
    batch = masked_text()
    work = Work(tokens=17 + 14, visual=0, prompts=0, pairs=36 + 16 + 49 + 7 * 4, reads=3 + 7, compared=3 * 7, headed=3)
    assert works(tiny(), batch) == (work,)
    counts = batch.inputs.counts
    assert (counts.rows, counts.tokens_M, counts.places, counts.squares) == (3, (14, 0, 0), 21, 101)
    # Two dense blocks of a width of 16 and 32 within: 2 * 31 * (4 * 16^2 + 2 * 16 * 32) + 4 * 129 * 16 the first; of the second, what
    # follows attention sees the ten tokens that are read.
    parts = forward_flops(tiny(experts={"placement": "none"}), (work,))
    assert parts == {
        "tower.embedding": 0,
        "tower.encoder.blocks.0": 2 * 31 * 2048 + 4 * 129 * 16,
        "tower.encoder.blocks.1": 2 * (31 * 768 + 10 * 1280) + 4 * 129 * 16,
        "tower.output": 2 * 10 * 16 * 16,
        "head": 0,
        "scores": 2 * 21 * 16,
    }


def test_a_caption_counts_its_words_twice_and_its_patches_once():
    """Two images of four patches; texts of 3 and 4 words as words and as places to read, 4 of both for the longer one."""
    counts = captioning().inputs.counts
    assert (counts.tokens_M, counts.rows, counts.visual, counts.places) == ((14, 8, 0), 2, 8, 2 * 13)
    assert counts.squares == (1 + 4 + 6) ** 2 + (1 + 4 + 8) ** 2
    assert captioning(frames=2).inputs.counts.tokens_M == (14, 0, 16)


@pytest.mark.parametrize(("experts", "choices"), [("dense", 1), ("merge", 1), ("dispatch", 2)])
def test_a_merged_linear_is_one_and_sent_tokens_meet_their_choices(experts, choices):
    parts = forward_flops(KINDS[experts], (Work(tokens=10),))
    gate = 2 * 2 * 10 * WIDTH * EXPERTS if experts == "dispatch" else 0
    assert parts["tower.encoder.blocks.0"] == choices * 2 * 10 * (4 * WIDTH**2 + 2 * WIDTH * FFN) + gate


def test_each_tower_has_its_own_sequences():
    config = KINDS["two towers"]
    batch = classification()
    visual, text = works(config, batch)
    # Four images of four patches, three names of 2, 3 and 1 tokens.
    assert visual == Work(tokens=20, visual=16, pairs=4 * 25, reads=4, compared=12, headed=4)
    assert text == Work(tokens=9, pairs=9 + 16 + 4, reads=3)
    parts = forward_flops(config, (visual, text))
    assert parts["text_tower.encoder.blocks.0"] == 2 * (9 * 3 * 8 * 8 + 3 * (8 * 8 + 2 * 8 * 24)) + 4 * 29 * 8
    assert parts["text_tower.output"] == 2 * 3 * 8 * 16


def test_candidates_that_ranks_share_out_count_by_their_part():
    """Four pairs on two ranks. SHARDED: half of the names, all compared. GLOBAL: own names, twice as many compared, both ways."""
    batch = retrieval()
    alone = works(tiny(), batch)[0]
    of_names = works(
        tiny(), dataclasses.replace(batch, read_Q2=batch.read_Q2[:0], labels_Q=batch.labels_Q[:0], symmetric=False)
    )[0]
    assert alone.compared == 2 * 4 * 4 and works(tiny(), dataclasses.replace(batch, pairwise=True))[0].compared == 16
    sets = (CandidateSet(number=0, task="t", candidates=batch.candidates),)
    sharded = dataclasses.replace(batch, scope=Scope.SHARDED, shared=sets, symmetric=False)
    counts = batch.candidates.counts
    shared = work_of(tiny(), sharded, batch.inputs.counts, counts, 2, (counts,))[0]
    assert shared.compared == 16 and alone.tokens - shared.tokens == (4 + 14) / 2 and of_names.visual == shared.visual
    beside = work_of(tiny(), dataclasses.replace(batch, shared=sets), batch.inputs.counts, counts, 2, (counts,))[0]
    assert beside.compared == alone.compared and beside.tokens - alone.tokens == (4 + 14) / 2
    together = works(tiny(), dataclasses.replace(batch, scope=Scope.GLOBAL), ranks=2)[0]
    assert together == alone._replace(compared=2 * 4 * 8)


def test_choices_by_decision():
    assert choice_flops(tiny("attribute", ALL)) == [(f"tower.encoder.blocks.{layer}", 0) for layer in (0, 0, 1, 1)]
    pairs = [2 * 4 * WIDTH**2, 2 * 2 * WIDTH * FFN]
    assert choice_flops(tiny("token")) == [("tower.encoder.blocks.0", flops) for flops in pairs]
    assert choice_flops(tiny("token", text_tower=TEXT, experts={"unit": "ffn_linear"})) == [
        ("tower.encoder.blocks.0", pairs[1]),
        ("text_tower.encoder.blocks.0", 2 * 2 * 8 * 24),
    ]


def tuned(tune: Any, frozen: tuple[str, ...] = (), **options: Any) -> dict[str, float]:
    objective = make(tiny(**options))
    choose_trained(objective, tune, frozen)
    return {part.removeprefix("tower."): passes for part, passes in passes_of(objective).items()}


def test_what_is_not_trained_costs_fewer_passes():
    blocks = ("encoder.blocks.0", "encoder.blocks.1")
    # A frozen beginning is passed forward alone; what follows the first trained part needs its inputs' gradients.
    first = tuned("all", ("tower.embedding.*", "tower.encoder.blocks.0.*"))
    assert first == {"embedding": 1, blocks[0]: 1, blocks[1]: 3, "output": 3, "head": 2, "scores": 3}
    # Updates of low rank: gradients pass through all blocks, and none of their weights has one.
    lora = tuned("lora", lora=LoraConfig(rank=2))
    assert [lora[part] for part in blocks] == [2, 2] and lora["embedding"] == 1
    assert tuned("all", ("tower.*",), text_tower=TEXT) == {
        "embedding": 1, **dict.fromkeys(blocks, 1), "output": 1,
        "text_tower.embedding": 3, "text_tower.encoder.blocks.0": 3, "text_tower.output": 3, "head": 2, "scores": 3,
    }  # fmt: skip
    head = tuned("head", head_classes=3)
    assert (
        {head[part] for part in ("embedding", *blocks, "output")} == {1} and head["head"] == 2 and head["scores"] == 1
    )
    # Half of a block: qkv and out are 4 * 16^2 of 4 * 16^2 + 2 * 16 * 32 numbers.
    assert tuned("all", ("tower.encoder.blocks.1.ffn.*",))[blocks[1]] == 2.5
