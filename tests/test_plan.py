"""Planned bytes against a few worked out by hand, and against what real runs hold, keep and send."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

import train
from config import RunConfig
from config_file import load_config
from data.attributes import CAPTION_TEXT, CAPTION_VISUAL, NAME_TARGET, VISUAL_INPUT, WORD_TARGET
from data.batch import Modality, Segment, Sequences, TaskBatch, Visibility
from data.config import DataConfig, TaskConfig
from model.config import ModelConfig
from parallel.config import OptimizerConfig
from plan import plan, render
from plan_activations import activations_of, exchange_buffers
from plan_memory import Layout, Precision, Split, optimizer_of, parameters_of, precision_of
from plan_tasks import Passed, sent_copies
from plan_traffic import (
    Collective,
    crossover_tokens,
    dispatch_traffic,
    gradient_traffic,
    merge_traffic,
    sent_in_all,
    tensor_traffic,
)
from tests.helpers.batches import VOCABULARY_SIZE, text
from tests.helpers.distributed import run_ranks
from tests.helpers.models import make, tiny
from tests.helpers.parity import ROOT

PRESETS = ROOT / "configs" / "presets"
LARGER = {"width": 96, "depth": 4, "heads": 4, "ffn": 384, "image_size": 32, "max_text": 32}
DROPLESS = {"capacity_factor": 0.0, "eval_capacity_factor": None}


def a_run(model: ModelConfig, **options: Any) -> RunConfig:
    task = TaskConfig(name="t", kind="retrieval", path="nowhere", batch_size=2, max_text=8)
    return RunConfig(name="r", data=DataConfig(tasks=(task,)), model=model, **options)


# -- batches whose texts are all equally long, so that tokens and positions are the same number -----------------------


def images(rows: int, side: int, attributes) -> Segment:
    grid = torch.cartesian_prod(torch.arange(1), torch.arange(side), torch.arange(side))
    count = side * side
    return Segment(
        modality=Modality.IMAGE,
        values=torch.randn(rows, count, 3 * 8 * 8, generator=torch.Generator().manual_seed(0)),
        positions=grid.expand(rows, count, 3),
        valid_BL=torch.ones(rows, count, dtype=torch.bool),
        visibility=Visibility.PREFIX,
        attributes=attributes,
    )


def retrieval(rows: int, side: int, length: int) -> TaskBatch:
    names = text(torch.Generator().manual_seed(0), [length] * rows, NAME_TARGET)
    return TaskBatch(
        task="retrieval",
        inputs=Sequences(segments=(images(rows, side, VISUAL_INPUT),)),
        read_Q2=torch.stack([torch.arange(rows), torch.zeros(rows, dtype=torch.long)], dim=1),
        candidates=Sequences(segments=(names,)),
        labels_Q=torch.arange(rows),
        temperature="retrieval",
        symmetric=True,
    )


def captioning(rows: int, side: int, length: int) -> TaskBatch:
    g = torch.Generator().manual_seed(0)
    image = images(rows, side, CAPTION_VISUAL)
    words = text(g, [length] * rows, CAPTION_TEXT, Visibility.CAUSAL)
    queries = text(g, [length] * rows, CAPTION_TEXT, Visibility.READOUT)
    read_Q2 = queries.valid_BL.nonzero() + torch.tensor([0, 1 + side * side + length])
    return TaskBatch(
        task="caption",
        inputs=Sequences(segments=(image, words, queries)),
        read_Q2=read_Q2,
        candidates=Sequences(segments=(text(g, [1] * 9, WORD_TARGET),)),
        labels_Q=torch.randint(0, 9, (len(read_Q2),), generator=g),
        temperature="caption",
    )


KINDS = {"retrieval": retrieval, "captioning": captioning}


def passed(batch: TaskBatch) -> tuple[Passed, Passed]:
    def of(sequences: Sequences, reads: int) -> Passed:
        visual = sum(s.valid_BL.shape[1] for s in sequences.segments if s.modality)
        masked = any(s.visibility for s in sequences.segments)
        return Passed(sequences.num_rows, sequences.length, visual, reads, masked)

    return of(batch.inputs, len(batch.read_Q2)), of(batch.candidates, batch.candidates.num_rows)


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_parameters_by_hand():
    # Width 16, FFN 32, 4 experts in block 0 of 2. A linear in -> out has in * out + out numbers.
    linears = (16 * 48 + 48) + (16 * 16 + 16) + (16 * 32 + 32) + (32 * 16 + 16)
    run = a_run(tiny("attribute"))
    whole = parameters_of(run, Layout(1, 1, 1), VOCABULARY_SIZE)
    held = sum((group.numbers for group in whole.groups), Split())
    assert held.experts == 4 * linears
    assert held.routers == 2 * ((8 * 16 + 16) + 32 + 16 * 4)
    half = parameters_of(run, Layout(1, 2, 4), VOCABULARY_SIZE)
    assert sum(group.numbers.experts for group in half.groups) == 2 * linears
    assert {group.ranks for group in half.groups if group.is_expert} == {2}
    # On two tensor ranks all of a linear is halved but the bias of a row linear (16 numbers each).
    cut = parameters_of(run, Layout(2, 2, 2), VOCABULARY_SIZE)
    assert sum(group.numbers.experts for group in cut.groups) == 2 * (linears - 32) // 2 + 2 * 32


def test_partitions_are_padded_as_deepspeed_does():
    # 10 numbers on 4 ranks: padded to a multiple of 2 * 4 = 16, four for each; fp32 masters and two moments: 12 bytes a number.
    from plan_memory import Group, Parameters

    group = Group(Split(dense=7, routers=3, padding=6), ranks=4, is_expert=False)
    assert group.partition == Split(dense=1, routers=0, padding=3)
    parameters = Parameters((group,), Split())
    assert optimizer_of(parameters, Precision(stage=1)).total == 4 * 12
    assert optimizer_of(parameters, Precision(stage=0)).total == 16 * 8
    assert optimizer_of(parameters, Precision(stage=0, value=2)).total == 16 * 12


def test_bytes_sent_by_hand():
    # 12 bytes over 4 ranks; rings: 2 * 3/4, 3/4 of the input, 3 times the own part; 3 of 4 rows leave.
    assert [
        Collective("x", kind, 4, 12).sent for kind in ("all-reduce", "reduce-scatter", "all-gather", "all-to-all")
    ] == [18, 9, 36, 9]
    assert Collective("x", "all-gather", 1, 12).sent == 0


def test_crossover_at_base_size_by_hand():
    # S G X = K T sum(I + O), up to biases, counts and decisions: 8 * 4 * 12 D^2 / (2 * (6 D + 10 D)), D = 768: T = 12 D = 9216.
    model = load_config(PRESETS / "uni_perceiver_moe_base.yaml").model
    layout = Layout(1, 8, 64)
    crossover = crossover_tokens(model, layout, 4)
    assert crossover == pytest.approx(9216, rel=0.002)
    sequences = (Passed(1, crossover, 1, 1, False),)
    merged = sent_in_all(merge_traffic(model, layout, 4))
    assert sent_in_all(dispatch_traffic(model, sequences, layout, 4)) == pytest.approx(merged, rel=1e-3)
    assert crossover_tokens(model, Layout(1, 1, 64), 4) == 0


def test_precision_is_read_from_the_engine_file():
    zero = {"stage": 2, "reduce_bucket_size": 100, "overlap_comm": True, "offload_optimizer": {"device": "cpu"}}
    assert precision_of({"zero_optimization": zero, "bf16": {"enabled": True}}) == Precision(2, 2, 200, True)
    assert precision_of({"fp16": {"enabled": False}}) == Precision(0, 4, 0, False)


# -- what a real run holds --------------------------------------------------------------------------------------------


def hold(rank: int, router: str, expert: int, tensor: int, stage: int) -> dict[str, int]:
    """Bytes of a rank's tensors after one step, and of whole gradients before their reduction."""
    from model.initialise import initialise
    from model.objective import Objective
    from parallel.engine import Engine
    from parallel.kernels import load_kernels
    from parallel.mesh import create_mesh

    mesh = create_mesh(tensor, expert)
    kernels = load_kernels("torch")
    objective = Objective(tiny(router), VOCABULARY_SIZE, mesh, kernels)
    initialise(objective, 0)
    engine_config = json.loads((ROOT / f"ds_configs/zero{stage}.json").read_text()) | {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
    }
    engine = Engine(objective, mesh, OptimizerConfig(), engine_config, kernels)
    batch = captioning(2, 2, 4)
    with count_collectives() as sent:
        with engine.accumulation():
            engine.backward(engine(batch, 1).total)
            sent.clear()
            gradients = stored(p.grad for p in objective.parameters() if p.grad is not None)
        reduced = stored(p.grad for p in objective.parameters() if p.grad is not None)
        engine.step(1e-3)
    zero = engine._zero
    state = [t for s in zero.optimizer.state.values() for t in s.values() if t.dim()]
    return {
        "weights": stored(objective.parameters()),
        "gradients": gradients,
        "after reduction": reduced,
        "optimizer": stored([*zero.single_partition_of_fp32_groups, *state]),
        # Norms and flags are single numbers.
        "all-reduce": sum(size for name, size in sent.elements() if name == "all_reduce" and size > 64),
        "all-gather": sum(size for name, size in sent.elements() if name == "all_gather_into_tensor"),
    }


def stored(tensors: Any) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


class count_collectives:
    """A multiset of (function, bytes that this rank hands over) for all calls of torch.distributed."""

    POSITION = {
        "all_reduce": 0,
        "all_gather_single": 1,
        "all_gather_into_tensor": 1,
        "reduce_scatter_single": 1,
        "all_to_all_single": 1,
    }

    def __enter__(self) -> Counter:
        import torch.distributed as dist

        self.seen: Counter = Counter()
        self.originals = {name: getattr(dist, name) for name in self.POSITION}
        for name, original in self.originals.items():
            setattr(dist, name, self._counting(name, original))
        return self.seen

    def _counting(self, name: str, original: Any) -> Any:
        def counting(*args: Any, **options: Any) -> Any:
            given = args[self.POSITION[name]] if len(args) > self.POSITION[name] else options["input_tensor"]
            self.seen[name, given.numel() * given.element_size()] += 1
            return original(*args, **options)

        return counting

    def __exit__(self, *error: Any) -> None:
        import torch.distributed as dist

        for name, original in self.originals.items():
            setattr(dist, name, original)


@pytest.mark.parametrize(
    ("router", "expert", "tensor", "stage"),
    [("attribute", 2, 1, 1), ("token", 2, 1, 2), ("attribute", 1, 1, 1), ("limoe", 1, 1, 2), ("attribute", 1, 2, 1)],
)
def test_planned_memory_is_what_two_ranks_hold(router, expert, tensor, stage):
    layout = Layout(tensor, expert, 2 // tensor)
    parameters = parameters_of(a_run(tiny(router)), layout, VOCABULARY_SIZE)
    held = sum((group.numbers for group in parameters.groups), Split())
    for real in run_ranks(2, hold, router, expert, tensor, stage):
        assert real["weights"] == held.total * 4
        assert real["gradients"] == (held.total - held.padding) * 4
        assert real["optimizer"] == optimizer_of(parameters, Precision(stage)).total
        assert real["after reduction"] == 0  # under both stages: what ZeRO-2 drops, ZeRO-1 drops as well
