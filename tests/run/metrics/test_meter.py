"""Every figure of a log record by hand, from two made steps of two tasks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

import run.metrics.meter
from data.batch import Modality, Scope, TokenCounts
from data.stream.faults import Fault, Loss
from data.stream.micro_batch import MicroBatch
from data.stream.schedule import Assignment
from model.config import ModelConfig
from model.flops import Work, forward_flops, passes_of
from model.moe.config import AuxiliaryConfig, ExpertConfig
from model.moe.use import ExpertUse
from model.noise import derive
from model.objective import Losses
from parallel.collectives import Axis
from parallel.engine import StepInfo
from parallel.mesh import Mesh
from parallel.norms import GradientNorms
from run.metrics.efficiency import Efficiency
from run.metrics.meter import Meter
from tests.helpers.batches import retrieval
from tests.helpers.distributed import run_ranks
from tests.helpers.hot_path import Waits
from tests.helpers.models import make, tiny

MODEL = ModelConfig(
    depth=2,
    experts=ExpertConfig(num_experts=2, placement="odd", router="token", auxiliary=AuxiliaryConfig(importance=1.0)),
)
DECISIONS = MODEL.num_decisions
GONE = Fault("words", "train-000007.tar", None, None, "the file is empty")
NOTHING = TokenCounts(0, (0, 0, 0), Modality.TEXT, 0, 0)
PARTS = forward_flops(MODEL, (Work(),))
LOSSES = {"pictures": Loss(0, 0, 100, (), True), "words": Loss(5, 600, 40, (GONE,), False)}


def fault(sample: int | None, shard: str = "train-000000.tar") -> Fault:
    return Fault("pictures", shard, sample, None, "damaged")


def micro(task: int, samples: int, tokens: int, reads: int, faults: tuple[Fault, ...] = ()) -> MicroBatch:
    """Pictures of task 0, texts of task 1; 16 pads, and no candidates."""
    batch: Any = SimpleNamespace(
        labels_Q=torch.zeros(reads, dtype=torch.long),
        read_Q2=torch.zeros(reads, 2, dtype=torch.long),
        scope=Scope.LOCAL,
        symmetric=False,
    )
    words, patches = (tokens - samples, 0) if task else (0, tokens - samples)
    first = Modality.TEXT if task else Modality.IMAGE
    inputs = TokenCounts(samples, (words, patches, 0), first, places=tokens + 16, squares=0)
    return MicroBatch(Assignment(0, 0, task, 0), batch, samples, inputs, NOTHING, faults)


def meter_of(mesh: Mesh) -> Meter:
    return Meter(LOSSES, MODEL, mesh, Efficiency(MODEL, dict.fromkeys(PARTS, 3.0), mesh))


def losses(loss: float, correct: int, accepted: dict[Modality, list[float]], asked: dict[Modality, float], aux: float):
    taken_NME, asked_NM = torch.zeros(DECISIONS, len(Modality), 2), torch.zeros(DECISIONS, len(Modality))
    for modality, pairs in accepted.items():
        taken_NME[0, modality] = torch.tensor(pairs)
        asked_NM[0, modality] = asked[modality]
    value = torch.tensor(loss)
    use = ExpertUse(taken_NME, taken_NME / 2, asked_NM, torch.zeros_like(asked_NM), asked_NM / 4)
    return Losses(value, value, torch.tensor(correct), use, {"importance": torch.tensor(aux)})


def two_steps(meter: Meter) -> None:
    """Step 1: 8 pictures. Step 2: 6 pictures with two bad samples and a bad shard, and 4 texts; its update is left out."""
    meter.add(micro(0, 8, 80, reads=8), losses(2.0, 2, {Modality.IMAGE: [30, 10]}, {Modality.IMAGE: 40}, 0.5))
    meter.end_step(StepInfo(GradientNorms(9.0, 9.0, 9.0, 9.0), 0.3, True))
    bad = (fault(3), fault(4), fault(None, "train-000001.tar"))
    meter.add(micro(0, 6, 60, 6, bad), losses(1.0, 5, {Modality.IMAGE: [10, 0]}, {Modality.IMAGE: 40}, 0.25))
    meter.add(micro(1, 4, 44, reads=10), losses(3.0, 4, {Modality.TEXT: [5, 15]}, {Modality.TEXT: 20}, 0.0))
    meter.end_step(StepInfo(GradientNorms(5.0, 3.0, 4.0, 0.5), 0.1, False))


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told."""
    now = SimpleNamespace(value=100.0)
    monkeypatch.setattr(run.metrics.meter.time, "perf_counter", lambda: now.value)
    return now


def test_every_figure_by_hand(clock):
    meter = meter_of(Mesh())
    two_steps(meter)
    phase = meter._efficiency.phase
    for name, seconds in (("data", 1.0), ("forward", 0.5), ("backward", 1.5), ("evaluate", 3.0), ("report", 1.0)):
        phase(name)
        clock.value += seconds
    record = meter.record(7, 17, (150, 4), paused_s=3.0)
    assert {key: record.pop(key) for key in [*record] if key.startswith("time/") and record[key]} == {
        "time/data": 0.5, "time/forward": 0.25, "time/backward": 0.75, "time/evaluate": 1.5, "time/report": 0.5,
    }  # fmt: skip
    assert not sum(record.pop(key) for key in [*record] if key.startswith("time/"))
    assert record.pop("memory/peak_gib") > 0 and record.pop("model_tflops_per_s") > 0
    assert record.pop("expert_use")["step"] == 7
    assert record.pop("expert_load") == [[45 / 100, 25 / 100], *[[0.0, 0.0]] * (DECISIONS - 1)]
    assert record.pop("router_entropy") == [0.25, *[0.0] * (DECISIONS - 1)]
    # Taken of asked: images 50 of 80, text 20 of 20, each in the first decision alone.
    assert record.pop("success_by_decision/image") == [0.625, *[0.0] * (DECISIONS - 1)]
    assert record.pop("success_by_decision/text") == [1.0, *[0.0] * (DECISIONS - 1)]
    assert record == pytest.approx(
        {
            "step": 7, "lr": 0.1, "skipped_steps": 1,
            "grad_norm": 5.0, "grad_norm/dense": 3.0, "grad_norm/experts": 4.0, "grad_norm/routers": 0.5,
            "samples": 18, "samples_per_s": 18 / 4, "tokens_per_s": (80 + 60 + 44) / 4,
            "step_s": 4 / 2, "eta_s": (17 - 7) * 2.0, "data_wait": 1.0 / 4,
            "tokens_per_s/image": (80 + 60) / 4, "tokens_per_s/text": 44 / 4, "padding": 3 * 16 / (184 + 3 * 16),
            "faults": 3, "faults/pictures": 3, "bad_shards": 2, "lost_samples": 5, "lost_bytes": 600,
            "loss/pictures": (2.0 + 1.0) / 2, "loss/words": 3.0,
            "accuracy/pictures": (2 + 5) / (8 + 6), "accuracy/words": 4 / 10,
            "epoch/pictures": 1.5, "epoch/words": 0.1, "tokens/pictures": 140, "tokens/words": 44,
            "auxiliary/importance": (0.5 + 0.25 + 0.0) / 3,
            "expert_load_max": 0.45, "success/image": 0.625, "success/text": 1.0,
        }
    )  # fmt: skip


def test_a_record_starts_anew_but_bad_shards_are_counted_since_the_start(clock):
    meter = meter_of(Mesh())
    two_steps(meter)
    clock.value += 4.0
    meter.record(2, 17, (14, 4))
    meter.add(micro(1, 2, 10, reads=2), losses(7.0, 1, {}, {}, 0.0))
    meter.end_step(StepInfo(GradientNorms(1.0, 1.0, 1.0, 1.0), 0.2, True))
    clock.value += 1.0
    record = meter.record(3, 17, (14, 6))
    assert (record["samples_per_s"], record["tokens_per_s"], record["step_s"]) == (2.0, 10.0, 1.0)
    assert (record["loss/words"], record["accuracy/words"], record["faults"], record["skipped_steps"]) == (7, 0.5, 0, 0)
    assert record["bad_shards"] == 2 and "loss/pictures" not in record and "faults/pictures" not in record
    assert "success/image" not in record and record["expert_load_max"] == 0


def of_rank(rank: int) -> dict[str, Any]:
    dist.init_process_group("gloo")
    meter = meter_of(Mesh(data=Axis("data", 2, rank, dist.group.WORLD)))
    if rank == 0:
        two_steps(meter)
    else:
        meter.add(micro(1, 2, 16, reads=10), losses(1.0, 8, {}, {}, 0.75))
        meter.end_step(StepInfo(GradientNorms(5.0, 3.0, 4.0, 0.5), 0.1, False))
    record = meter.record(2, 4, (14, 6))
    dist.destroy_process_group()
    return record


def test_ranks_add_up_and_bad_shards_are_not_counted_twice():
    first, second = run_ranks(2, of_rank)
    for record in (first, second):
        assert (record["samples"], record["faults"], record["bad_shards"]) == (20, 3, 2)
        assert record["loss/words"] == pytest.approx(2.0) and record["accuracy/words"] == pytest.approx(12 / 20)
        assert record["auxiliary/importance"] == pytest.approx((0.5 + 0.25 + 0.0 + 0.75) / 4)
        assert record["padding"] == pytest.approx(4 * 16 / (184 + 16 + 4 * 16))


def test_an_epoch_of_a_part_of_a_data_set_has_its_samples(clock):
    """20 of 100, seen two and a half times."""
    meter = Meter(
        {"t": Loss(0, 0, 100, (), True, part=20)}, MODEL, Mesh(), Efficiency(MODEL, dict.fromkeys(PARTS, 3.0), Mesh())
    )
    meter.add(micro(0, 2, 10, reads=2), losses(7.0, 1, {}, {}, 0.0))
    meter.end_step(StepInfo(GradientNorms(1.0, 1.0, 1.0, 1.0), 0.1, True))
    clock.value += 1.0
    assert meter.record(1, 2, (50,))["epoch/t"] == 2.5


def test_losses_of_routers_without_a_sparse_block_are_none():
    model = tiny("limoe", {"placement": "none"})
    batch = retrieval()
    objective = make(model)
    efficiency = Efficiency(model, passes_of(objective), Mesh())
    meter = Meter({"t": Loss(0, 0, 10, (), True)}, model, Mesh(), efficiency)
    counted = MicroBatch(Assignment(0, 0, 0, 0), batch, 4, batch.inputs.counts, batch.candidates.counts, ())
    meter.add(counted, objective(batch, derive(0, "noise")))
    meter.end_step(StepInfo(GradientNorms(*torch.zeros(4).tolist()), 0.1, True))
    record = meter.record(1, 2, (4,))
    assert not [key for key in record if key.startswith("auxiliary/")] and record["loss/t"] > 0


def test_counting_a_micro_batch_asks_the_device_for_nothing():
    """`torch.tensor` makes the host's own counts, which never leave it."""
    meter = meter_of(Mesh())
    with Waits() as waits:
        two_steps(meter)
    assert set(waits.seen) <= {"a tensor of numbers of the host"}
