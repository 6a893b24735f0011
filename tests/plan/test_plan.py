"""Planned bytes against a few worked out by hand, and against what real runs hold, keep and send."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any, ClassVar

import pytest
import torch
from torch.profiler import record_function

import train
from benchmarks.memory import BETWEEN, held
from data.attributes import CAPTION_TEXT, CAPTION_VISUAL, NAME_TARGET, VISUAL_INPUT, WORD_TARGET
from data.batch import CandidateSet, Modality, Scope, Segment, Sequences, TaskBatch, Visibility
from data.config import DataConfig, TaskConfig
from data.shards import DatasetInfo, SplitInfo, write_info
from model.config import ModelConfig
from parallel.config import OptimizerConfig
from parallel.mesh import Mesh
from plan.activations import activations_of, exchange_buffers
from plan.memory import Amounts, Degrees, Group, Parameters, Precision, optimizer_of, parameters_of, precision_of
from plan.report import plan, render
from plan.tasks import SequenceShape, SetLoad, TaskLoad, sent_copies, shares_of, vocabulary_size_of, word_candidates_of
from plan.traffic import (
    THREE_GROUPS,
    Collective,
    candidates_traffic,
    crossover_tokens,
    dispatch_traffic,
    gradient_traffic,
    merge_traffic,
    row_gradients,
    scores_traffic,
    sent_in_all,
    tensor_traffic,
)
from run.config import RunConfig
from run.config_file import load_config
from tests.helpers.batches import VOCABULARY_SIZE, text
from tests.helpers.distributed import run_ranks
from tests.helpers.models import make, tiny
from tests.helpers.parity import ROOT

PRESETS = ROOT / "configs" / "presets"
LARGER = {"width": 96, "depth": 4, "heads": 4, "ffn": 384, "image_size": 32, "max_text": 32}
DROPLESS = {"capacity_factor": 0.0}
FLAG = 64
"""Norms and overflow flags are a few bytes; sums of gradients are more."""


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


def passed(batch: TaskBatch) -> tuple[SequenceShape, SequenceShape]:
    def of(sequences: Sequences, reads: int, is_target: bool) -> SequenceShape:
        visual = sum(s.valid_BL.shape[1] for s in sequences.segments if s.modality)
        masked = any(s.visibility for s in sequences.segments)
        return SequenceShape(sequences.num_rows, sequences.length, visual, reads, masked, is_target)

    return of(batch.inputs, len(batch.read_Q2), False), of(batch.candidates, batch.candidates.num_rows, True)


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_parameters_by_hand():
    # Width 16, FFN 32, 4 experts in block 0 of 2. A linear in -> out has in * out + out numbers.
    linears = (16 * 48 + 48) + (16 * 16 + 16) + (16 * 32 + 32) + (32 * 16 + 16)
    run = a_run(tiny("attribute"))
    whole = parameters_of(run, Degrees(1, 1, 1), VOCABULARY_SIZE)
    held = sum((group.numbers for group in whole.groups), Amounts())
    assert held.experts == 4 * linears
    assert held.routers == 2 * ((8 * 16 + 16) + 32 + 16 * 4)
    half = parameters_of(run, Degrees(1, 2, 4), VOCABULARY_SIZE)
    assert sum(group.numbers.experts for group in half.groups) == 2 * linears
    assert {group.ranks for group in half.groups if group.is_expert} == {2}
    # On two tensor ranks all of a linear is halved but the bias of a row linear (16 numbers each).
    cut = parameters_of(run, Degrees(2, 2, 2), VOCABULARY_SIZE)
    assert sum(group.numbers.experts for group in cut.groups) == 2 * (linears - 32) // 2 + 2 * 32


def test_partitions_are_padded_as_deepspeed_does():
    # 10 numbers on 4 ranks: padded to a multiple of 2 * 4 = 16, four for each; fp32 masters and two moments: 12 bytes a number.
    group = Group(Amounts(dense=7, routers=3, padding=6), ranks=4, is_expert=False)
    assert group.partition == Amounts(dense=1, routers=0, padding=3)
    parameters = Parameters((group,), Amounts())
    assert optimizer_of(parameters, Precision(stage=1)).total == 4 * 12
    assert optimizer_of(parameters, Precision(stage=0)).total == 16 * 8
    assert optimizer_of(parameters, Precision(stage=0, value=2)).total == 16 * 8


def test_bytes_sent_by_hand():
    # 12 bytes over 4 ranks; rings: 2 * 3/4, 3/4 of the input, 3 times the own part; 3 of 4 rows leave.
    assert [
        Collective("x", kind, 4, 12).sent for kind in ("all-reduce", "reduce-scatter", "all-gather", "all-to-all")
    ] == [18, 9, 36, 9]
    assert Collective("x", "all-gather", 1, 12).sent == 0


def test_crossover_at_base_size_by_hand():
    # Up to biases, counts and decisions, K G X = K T (S - 1) / S sum(I + O): 3 * 12 D^2 = 7 / 8 T (6 D + 10 D), D = 768:
    # T = 18 / 7 D = 1975.
    model = load_config(PRESETS / "uni_perceiver_moe_base.yaml").model
    layout = Degrees(1, 8, 64)
    crossover = crossover_tokens(model, layout, 4)
    assert crossover == pytest.approx(1975, rel=0.002)
    sequences = (SequenceShape(1, crossover, 1, 1, False),)
    merged = sent_in_all(merge_traffic(model, THREE_GROUPS, layout, 4))
    assert sent_in_all(dispatch_traffic(model, sequences, layout, 4)) == pytest.approx(merged, rel=1e-3)
    assert crossover_tokens(model, Degrees(1, 1, 64), 4) == 0


def test_precision_is_read_from_the_engine_file():
    zero = {"stage": 2, "reduce_bucket_size": 100, "overlap_comm": True, "offload_optimizer": {"device": "cpu"}}
    assert precision_of({"zero_optimization": zero}, "bf16") == Precision(2, 2, 200, True)
    assert precision_of({}, "fp32") == Precision(0, 4, 0, False)
    assert precision_of({}, "auto", "cpu").value == 4
    assert precision_of({}, "auto").value == 2, "a plan without a device is for GPUs"


# -- what a real run holds --------------------------------------------------------------------------------------------


def hold(rank: int, router: str, expert: int, tensor: int, stage: int, sequence: bool) -> dict[str, int]:
    """Bytes of a rank's tensors around one step, and what the step's reduction and update hand to collectives."""
    from model.initialise import initialise
    from model.objective import Objective
    from parallel.engine import Engine
    from parallel.kernels import load_kernels
    from parallel.mesh import create_mesh

    with CountedCollectives() as sent:  # DeepSpeed looks torch's functions up when it starts
        mesh = create_mesh(tensor, expert, sequence=sequence)
        kernels = load_kernels("torch")
        objective = Objective(tiny(router), VOCABULARY_SIZE, mesh, kernels)
        initialise(objective, 0)
        engine_config = json.loads((ROOT / f"ds_configs/zero{stage}.json").read_text()) | {
            "train_micro_batch_size_per_gpu": 1,
            "zero_allow_untested_optimizer": True,
        }
        engine = Engine(objective, mesh, OptimizerConfig(), engine_config, kernels)
        with engine.accumulation():
            unused = sum(scale.sum() for scale in objective.log_scales.values())  # else filled in when the block ends
            engine.backward(engine(captioning(2, 2, 4), 1).total + 0 * unused)
            sent.clear()
            gradients = stored(p.grad for p in objective.parameters() if p.grad is not None)
        reduced = stored(p.grad for p in objective.parameters() if p.grad is not None)
        engine.step(1e-3)
    zero = engine._optimizer
    masters = getattr(zero, "single_partition_of_fp32_groups", [])  # none where nobody shares
    state = [t for s in getattr(zero, "optimizer", zero).state.values() for t in s.values() if t.dim()]
    return {
        "weights": stored(objective.parameters()),
        "gradients": gradients,
        "after reduction": reduced,
        "optimizer": stored([*masters, *state]),
        "all-reduce": sum(size for name, size in sent.elements() if name == "all_reduce" and size > FLAG),
        "all-gather": sum(size for name, size in sent.elements() if name == "all_gather_into_tensor"),
    }


def stored(tensors: Any) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


class CountedCollectives:
    """A multiset of (function, bytes that this rank hands over) for all calls of torch.distributed."""

    GIVEN: ClassVar = {
        "all_reduce": (0, "tensor"),
        "all_gather_single": (1, "input_tensor"),
        "all_gather_into_tensor": (1, "input_tensor"),
        "reduce_scatter_single": (1, "input_tensor"),
        "all_to_all_single": (1, "input"),
    }

    def __enter__(self) -> Counter:
        self.seen: Counter = Counter()
        self.originals = {name: getattr(torch.distributed, name) for name in self.GIVEN}
        for name, original in self.originals.items():
            setattr(torch.distributed, name, self._counting(name, original))
        return self.seen

    def _counting(self, name: str, original: Any) -> Any:
        position, key = self.GIVEN[name]

        def counting(*args: Any, **options: Any) -> Any:
            given = args[position] if len(args) > position else options[key]
            self.seen[name, given.numel() * given.element_size()] += 1
            return original(*args, **options)

        return counting

    def __exit__(self, *error: Any) -> None:
        for name, original in self.originals.items():
            setattr(torch.distributed, name, original)


@pytest.mark.parametrize(
    ("router", "expert", "tensor", "stage", "sequence"),
    [
        ("attribute", 2, 1, 1, False),
        ("attribute", 2, 1, 2, False),
        ("token", 1, 1, 1, False),
        ("limoe", 2, 1, 2, False),
        ("attribute", 1, 2, 1, False),
        ("limoe", 1, 2, 2, False),
        ("token", 1, 2, 1, True),
    ],
)
def test_planned_memory_is_what_two_ranks_hold(router, expert, tensor, stage, sequence):
    """One data rank shares with nobody, whatever stage is asked for."""
    layout = Degrees(tensor, expert, 2 // tensor, sequence)
    used = stage if layout.data > 1 else 0
    parameters = parameters_of(a_run(tiny(router)), layout, VOCABULARY_SIZE, padded=used > 0)
    held = sum((group.numbers for group in parameters.groups), Amounts())
    for real in run_ranks(2, hold, router, expert, tensor, stage, sequence):
        assert real["weights"] == held.total * 4
        assert real["gradients"] == (held.total - held.padding) * 4
        assert real["optimizer"] == optimizer_of(parameters, Precision(used)).total
        # Under both stages: what ZeRO-2 drops, ZeRO-1 drops as well.
        assert real["after reduction"] == (0 if used else real["gradients"])
        traffic = (
            *gradient_traffic(parameters, layout, Precision(used)),
            row_gradients(tiny(router), layout),
        )
        for kind in ("all-reduce", "all-gather"):
            expected = sum(c.handed for c in traffic if c.kind == kind and (kind == "all-reduce" or c.ranks > 1))
            assert real[kind] == expected, kind


# -- what a real pass keeps -------------------------------------------------------------------------------------------


def kept_by(model: ModelConfig, batch: TaskBatch, mesh: Mesh | None = None) -> tuple[int, int]:
    """-> (bytes alive between forward and backward pass, the most at any time), the batch's pixels included, parameters and
    their gradients not."""
    objective = make(model, mesh=mesh)
    objective(batch, 5).total.backward()  # gradients are there from now on

    def run() -> None:
        total = objective(batch, 5).total
        with record_function(BETWEEN):
            pass
        total.backward()

    kept, most = held(run)
    pixels = stored(s.values for s in batch.inputs.segments if s.modality)
    return kept + pixels, most + pixels


ACTIVATIONS = {
    "dense": ("attribute", {"placement": "none"}),
    "merge": ("attribute", {}),
    "dispatch": ("token", {}),
    "context": ("context", {}),
    "ffn_linear": ("token", {"unit": "ffn_linear"}),
    "whole networks": ("limoe", DROPLESS),
}


@pytest.mark.parametrize("recompute", ["none", "block", "selective"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ACTIVATIONS)
@pytest.mark.parametrize("size", ["tiny", pytest.param("larger", marks=pytest.mark.slow)])
def test_planned_activations_are_what_a_pass_keeps(size, path, kind, recompute):
    router, experts = ACTIVATIONS[path]
    shape: dict[str, Any] = LARGER if size == "larger" else {}
    model = tiny(router, experts, activation_checkpointing=recompute, layer_scale=0.1, drop_path=0.1, **shape)
    batch = KINDS[kind](*((24, 4, 12) if size == "larger" else (6, 2, 6)))
    planned = activations_of(model, passed(batch), Degrees(1, 1, 1), 4, losses=1 + batch.symmetric)
    kept, most = kept_by(model, batch)
    assert planned.kept == pytest.approx(kept, rel=0.1)
    buffers = exchange_buffers(model, passed(batch), Degrees(1, 1, 1), 4)
    # Working memory is an estimate from above: gradients of activations come while activations go.
    assert 0.9 * most < planned.peak + buffers < 1.2 * most


class OnCopies(CountedCollectives):
    """The profiler sees only what this thread frees, and gloo's threads may be the last to let a tensor go: they get copies in
    memory that torch did not allocate."""

    def _counting(self, name: str, original: Any) -> Any:
        def on_copies(*args: Any, **options: Any) -> Any:
            copies = [torch.from_numpy(a.numpy().copy()) if isinstance(a, torch.Tensor) else a for a in args]
            if name == "reduce_scatter_single":  # gloo makes a copy of its own
                group = options["group"]
                self.originals["all_reduce"](copies[1], group=group)
                parts = copies[1].chunk(torch.distributed.get_world_size(group))
                return args[0].copy_(parts[torch.distributed.get_rank(group)])
            result = original(*copies, **options)
            args[0].copy_(copies[0])  # where all of them write
            return result

        return on_copies


def keep(rank: int, model: ModelConfig, batch: TaskBatch) -> list[int]:
    """Without and with cut rows."""
    from parallel.mesh import create_mesh

    mesh = create_mesh(2, 1)
    cut = dataclasses.replace(mesh, sequence=mesh.tensor)
    with OnCopies():
        return [kept_by(model, batch, mesh)[0] for mesh in (mesh, cut)]


@pytest.mark.parametrize(
    ("path", "recompute"),
    [
        ("dense", "none"),
        ("merge", "block"),
        ("whole networks", "selective"),
        *(
            pytest.param(path, way, marks=pytest.mark.parity)
            for path in ACTIVATIONS
            for way in ("none", "block", "selective")
        ),
    ],
)
def test_planned_activations_are_what_tensor_ranks_keep(path, recompute):
    """Where rows are cut, a rank keeps half of what is added up, normalised and scaled."""
    router, experts = ACTIVATIONS[path]
    model = tiny(router, experts, activation_checkpointing=recompute, layer_scale=0.1, **LARGER)
    batch = captioning(24, 4, 12)
    planned = [activations_of(model, passed(batch), Degrees(2, 1, 1, cut), 4).kept for cut in (False, True)]
    assert planned[1] < planned[0]
    for kept in run_ranks(2, keep, model, batch):
        assert planned == pytest.approx(kept, rel=0.1)


# -- what a real pass sends -------------------------------------------------------------------------------------------


def send(rank: int, model: ModelConfig, tensor: int, expert: int, batch: TaskBatch, sequence: bool = False) -> Counter:
    from model.initialise import initialise
    from model.objective import Objective
    from parallel.kernels import load_kernels
    from parallel.mesh import create_mesh

    mesh = create_mesh(tensor, expert, sequence=sequence)
    objective = Objective(model, VOCABULARY_SIZE, mesh, load_kernels("torch"))
    initialise(objective, 0)
    with CountedCollectives() as sent:
        objective(batch, 7).total.backward()
    totals: Counter = Counter()
    for name, size in sent.elements():
        totals[name] += size
    return totals


@pytest.mark.parametrize("recompute", ["none", "block"])
@pytest.mark.parametrize(("router", "chunks"), [("attribute", 1), ("attribute", 2), ("token", 1), ("limoe", 1)])
def test_planned_exchange_is_what_two_ranks_send(router, chunks, recompute):
    # With all experts every group needs its peer's sum, as the plan assumes.
    experts = {"limoe": DROPLESS, "attribute": {"top_k": 4}}.get(router, {})
    model = tiny(router, experts, activation_checkpointing=recompute, chunks=chunks)
    batch = captioning(4, 2, 5)
    layout = Degrees(1, 2, 2)
    merge, dispatch = (plan(model, passed(batch), layout, 4) for plan in (merge_traffic, dispatch_traffic))
    expected: Counter = Counter()
    for collective in merge if router == "attribute" else dispatch:
        kind = collective.kind.replace("exchange", "all-to-all")
        expected[kind.replace("-", "_") + "_single"] += 2 * collective.handed
    # The plan's counts are balanced: rows that one rank lacks the other has.
    assert sum(run_ranks(2, send, model, 1, 2, batch), Counter()) == expected


def test_planned_exchange_of_merging_is_the_most_that_can_be_sent():
    model = tiny("attribute", {"top_k": 1})
    batch = captioning(4, 2, 5)
    planned = sum(
        2 * c.handed for c in merge_traffic(model, passed(batch), Degrees(1, 2, 2), 4) if c.kind == "exchange"
    )
    sent = sum(run_ranks(2, send, model, 1, 2, batch), Counter())["all_to_all_single"]
    assert 0 < sent < planned  # some groups chose an expert of their own rank


RECOMPUTED = (("none", 0.0), ("block", 0.0), ("block", 0.1), ("selective", 0.1))
QUICK = {
    ("dense", "selective", 0.1),
    ("merge", "none", 0.0),
    ("dispatch", "block", 0.0),
    ("whole networks", "block", 0.1),
}


@pytest.mark.parametrize(
    ("path", "recompute", "layer_scale", "sequence"),
    [
        pytest.param(path, *how, cut, marks=() if not cut or (path, *how) in QUICK else pytest.mark.parity)
        for path in ACTIVATIONS
        for how in RECOMPUTED
        for cut in (False, True)
    ],
)
def test_planned_traffic_is_what_two_tensor_ranks_hand_over(path, recompute, layer_scale, sequence):
    """Sequences of 43 tokens and 9 words, of which one row of the last part is not there."""
    router, experts = ACTIVATIONS[path]
    model = tiny(router, experts, activation_checkpointing=recompute, layer_scale=layer_scale)
    batch, layout = captioning(3, 2, 5), Degrees(2, 1, 1, sequence)
    planned = tensor_traffic(model, passed(batch), layout, 4)
    planned += scores_traffic(model, passed(batch), layout, losses=1, symmetric=False)
    expected = handed(planned)
    for real in run_ranks(2, send, model, 2, 1, batch, sequence):
        assert {kind: real[kind] for kind in expected} == expected


def handed(planned: tuple[Collective, ...]) -> Counter:
    """Bytes by the name of torch's function."""
    total: Counter = Counter()
    for collective in planned:
        name = collective.kind.replace("-", "_")
        total[name if name == "all_reduce" else f"{name}_single"] += collective.handed
    return total


def beside(scope: str) -> tuple[ModelConfig, TaskBatch, TaskLoad]:
    """A batch whose candidates data ranks share, or compare with all, and what a plan knows of it."""
    model, batch = tiny(experts={"placement": "none"}), retrieval(3, 2, 4)
    symmetric = scope == "global"
    batch = dataclasses.replace(batch, symmetric=symmetric)
    sets: tuple[SetLoad, ...] = ()
    if symmetric:
        batch = dataclasses.replace(batch, scope=Scope.GLOBAL)
    else:
        shared = (CandidateSet(number=0, task="t", candidates=batch.candidates),)
        batch = dataclasses.replace(batch, scope=Scope.SHARDED, shared=shared)
        sets = (SetLoad("names", passed(batch)[1], 1.0),)
    task = TaskLoad("t", 1.0, passed(batch), 1 + symmetric, True, symmetric, scope, sets)
    return model, batch, task


@pytest.mark.parametrize("scope", ["sharded", "global"])
def test_planned_candidates_are_what_two_data_ranks_send(scope):
    model, batch, task = beside(scope)
    symmetric = batch.symmetric
    planned = handed(candidates_traffic(model, task, Degrees(1, 1, 2)))
    # Sharded: 2 of 3 candidates, padded, 16 numbers each. Global: 3 candidates and 3 read-outs.
    assert planned["all_gather_single"] == (6 if symmetric else 2) * 16 * 4
    for real in run_ranks(2, send, model, 1, 1, batch):
        assert real == planned


def test_scores_of_a_symmetric_loss_are_what_two_tensor_ranks_hand_over():
    model, batch = tiny(experts={"placement": "none"}), retrieval(3, 2, 4)
    layout = Degrees(2, 1, 1)
    planned = scores_traffic(model, passed(batch), layout, 2, True) + tensor_traffic(model, passed(batch), layout, 4)
    for real in run_ranks(2, send, model, 2, 1, batch):
        assert real == +handed(planned)


def test_slots_bound_what_is_sent():
    model = tiny("limoe", {"capacity_factor": 0.5, "top_k": 1})
    assert sent_copies(model, 7) == 4
    assert sent_copies(tiny("token"), 7) == 14


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_names_what_does_not_fit_and_what_helps():
    overrides = ("micro_batches=64", "parallel.expert=2", "model.activation_checkpointing=none")
    run = load_config(PRESETS / "uni_perceiver_moe_base.yaml", overrides)
    page = render(plan(run, 64, device_memory_gib=4.0))
    for part in ("DOES NOT FIT in 4 GiB", "ZeRO-2", "saves nothing", "parallel.expert=4 ->", "parallel.tensor=2 ->"):
        assert part in page, page
    assert page.index("parallel.expert=4") < page.index("activation_checkpointing") < page.index("parallel.tensor=2")
    assert "candidates not counted, their data sets are not there: imagenet22k, kinetics700, moments" in page
    roomy = plan(run, 64, device_memory_gib=500.0)
    assert not roomy.remedies
    assert roomy.memory.total < 500 << 30


def test_experts_that_are_held_once_are_named():
    page = render(plan(load_config(ROOT / "configs" / "demo.yaml"), 2))
    assert "ZeRO saves nothing on experts" in page
    assert "offload_optimizer" in page
    assert "merge" in page
    assert "dispatch" in page


def test_expert_ranks_on_several_nodes_are_named():
    """Two tensor ranks and eight expert ranks are 16 GPUs."""
    overrides = ("micro_batches=64", "parallel.expert=8", "parallel.tensor=2")
    run = load_config(PRESETS / "uni_perceiver_moe_base.yaml", overrides)
    said = "the 8 ranks that share experts stand on 2 nodes of 8 GPUs"
    page = render(plan(run, 64))
    assert said in page and "parallel.expert=4 keeps it inside a node" in page
    assert said not in render(plan(run, 64, gpus_per_node=16))
    assert "parallel.tensor=2 is more than a node's 1 GPUs" in render(plan(run, 64, gpus_per_node=1))


def test_shares_by_sizes_are_those_of_the_data_sets(tmp_path):
    run = a_run(tiny())
    tasks = tuple(dataclasses.replace(run.data.tasks[0], name=n, path=str(tmp_path / n)) for n in ("small", "large"))
    run = dataclasses.replace(
        run, data=dataclasses.replace(run.data, tasks=tasks, mixture="sizes", mixture_temperature=2)
    )
    even, note = shares_of(run)
    assert even == (0.5, 0.5) and "mixture=sizes" in note
    for name, samples in (("small", 100), ("large", 900)):
        (tmp_path / name).mkdir()
        info = DatasetInfo(kind="text", classes=(), token_ids=(49407,), splits={"train": SplitInfo(samples, 1)})
        write_info(tmp_path / name, info)
    shares, note = shares_of(run)
    assert shares == pytest.approx((0.25, 0.75)) and not note


def test_bytes_of_a_restricted_vocabulary_are_rows_and_no_candidates(tmp_path):
    run = a_run(tiny())
    task = dataclasses.replace(run.data.tasks[0], path=str(tmp_path))
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, tasks=(task,), vocabulary="restricted"))
    info = DatasetInfo(kind="text", classes=(), token_ids=(736, 1746, 49407), splits={"train": SplitInfo(9, 1)})
    write_info(tmp_path, info)
    # Two words and end-of-text; 512 bytes and five specials besides.
    assert word_candidates_of(run) == 3 and vocabulary_size_of(run) == (2 + 512 + 5, "")


def test_a_save_beside_the_training_takes_host_memory():
    run = a_run(tiny())
    assert "save_async" not in render(plan(run, 1))
    assert "save_async: while a checkpoint is written" in render(plan(dataclasses.replace(run, save_async=True), 1))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--world", "4"], "--world goes with --plan"),
        (["--describe", "--device-memory", "80"], "--device-memory goes with --plan"),
        (["--gpus-per-node", "8"], "--gpus-per-node goes with --plan"),
        (["--plan", "--describe"], "not allowed with argument --plan"),
        (["--plan", "--world", "0"], "argument --world: invalid positive value: '0'"),
        (["--plan", "--device-memory", "0"], "argument --device-memory: invalid above_zero value: '0'"),
    ],
)
def test_what_would_change_nothing_is_refused(capsys, words, expected):
    with pytest.raises(SystemExit) as caught:
        train.main(["--config", "configs/demo.yaml", *words])
    assert caught.value.code == 2 and expected in capsys.readouterr().err


def test_impossible_layouts_end_with_two(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["--config", str(PRESETS / "uni_perceiver_moe_base.yaml"), "--plan", "--world"]
    assert train.main([*words, "64", "micro_batches=64", "parallel.expert=7"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "parallel.expert=7 does not divide the 64 data ranks" in error
    assert train.main([*words, "56"]) == 0
    assert "expert 8 (each held 7 times)" in capsys.readouterr().out
