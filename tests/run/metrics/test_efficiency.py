"""Rates, shares and bytes of made intervals by hand; the same work on one rank and on two."""

from __future__ import annotations

import dataclasses
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from data.batch import TaskBatch
from data.stream.micro_batch import MicroBatch
from data.stream.schedule import Assignment
from model.config import ModelConfig
from model.flops import choice_flops, forward_flops, work_of
from parallel.collectives import Axis, total
from parallel.mesh import Mesh
from parallel.traffic import Traffic
from run.config import TrackingConfig
from run.metrics.efficiency import Efficiency, Machine
from run.metrics.memory import Expected
from tests.helpers.batches import BATCHES, captioning, classification, masked_text
from tests.helpers.distributed import run_ranks
from tests.helpers.models import make, tiny

DENSE = tiny(experts={"placement": "none"})
GIB = 1 << 30


def efficiency_of(model: ModelConfig = DENSE, mesh: Mesh | None = None, **machine: Any) -> Efficiency:
    parts = forward_flops(
        model, work_of(model, masked_text(), masked_text().inputs.counts, masked_text().inputs.counts)
    )
    return Efficiency(model, dict.fromkeys(parts, 3.0), mesh or Mesh(), Machine(**machine))


def micro(batch: TaskBatch) -> MicroBatch:
    return MicroBatch(Assignment(0, 0, 0, 0), batch, 4, batch.inputs.counts, batch.candidates.counts, ())


def flops(model: ModelConfig, batch: TaskBatch) -> float:
    works = work_of(model, batch, batch.inputs.counts, batch.candidates.counts)
    return 3 * sum(forward_flops(model, works).values())


def figures(efficiency: Efficiency, seconds: float, dropped: list[float] | None = None) -> dict[str, Any]:
    return efficiency.figures(efficiency.sums(), torch.tensor(dropped or []).double(), seconds)


def test_figures_of_two_steps_by_hand():
    efficiency = efficiency_of(peak=1e9)
    for batch in (classification(), captioning(frames=2)):
        efficiency.add(micro(batch))
        efficiency.end_step()
    record = figures(efficiency, 2.0)
    # 4 pictures of 4 patches and names of 2, 3 and 1 words; 2 clips of 8 patches, 3 and 4 words twice, 9 candidates of one word:
    # each sequence has a <SPE>, which counts where the sequence begins.
    assert record["tokens_per_s/image"] == 4 * 5 / 2
    assert record["tokens_per_s/text"] == (6 + 3 + 14 + 9 + 9) / 2
    assert record["tokens_per_s/video"] == 2 * 9 / 2
    valid, pads = (
        20 + 9 + 2 * 9 + 14 + 18,
        3 + 2,
    )  # the names are padded to 3 words, the shorter caption's words twice to 4
    assert record["padding"] == pytest.approx(pads / (valid + pads))
    done = flops(DENSE, classification()) + flops(DENSE, captioning(frames=2))
    assert record["model_tflops_per_s"] == pytest.approx(done / 2 / 1e12)
    assert record["mfu"] == pytest.approx(done / 2 / 1e9)
    assert record["memory/peak_gib"] > 0 and not [key for key in record if key.startswith("sent_gib")]
    efficiency.add(micro(masked_text()))
    efficiency.end_step()
    record = figures(efficiency, 1.0)
    assert record["model_tflops_per_s"] == pytest.approx(flops(DENSE, masked_text()) / 1e12)
    assert "tokens_per_s/image" not in record and "time/exchange" not in record


def test_without_a_known_peak_there_is_no_utilisation():
    efficiency = efficiency_of()
    efficiency.add(micro(classification()))
    efficiency.end_step()
    record = figures(efficiency, 1.0)
    assert "mfu" not in record and record["model_tflops_per_s"] > 0


def test_choices_that_found_no_slot_are_no_work():
    """10 and 4 choices of the two decisions of a block; a choice is one expert's linears."""
    model = tiny("token")
    rates = []
    for dropped in ([0.0, 0.0], [10.0, 4.0]):
        efficiency = efficiency_of(model)
        efficiency.add(micro(classification()))
        efficiency.end_step()
        rates.append(figures(efficiency, 1.0, dropped)["model_tflops_per_s"] * 1e12)
    (_, attention), (_, feed_forward) = choice_flops(model)
    assert rates[0] - rates[1] == pytest.approx(3 * (10 * attention + 4 * feed_forward))


def of_ranks(rank: int, ranks: int) -> dict[str, Any]:
    """All tasks' batches, shared out to the ranks."""
    dist.init_process_group("gloo")
    axis = Axis("data", ranks, rank, dist.group.WORLD, Traffic())
    efficiency = efficiency_of(mesh=Mesh(data=axis))
    for task in [*BATCHES, "image"][rank::ranks]:
        efficiency.add(micro(BATCHES[task]()))
    efficiency.end_step()
    record = efficiency.figures(total(efficiency.sums(), axis), torch.zeros(0), 1.0)
    dist.destroy_process_group()
    return record


def test_ranks_do_together_what_one_does_alone():
    (alone,) = run_ranks(1, of_ranks, 1)
    for record in run_ranks(2, of_ranks, 2):
        for key in ("padding", "model_tflops_per_s", *(f"tokens_per_s/{name}" for name in ("text", "image", "video"))):
            assert record[key] == pytest.approx(alone[key], rel=1e-12), key
    assert not [key for key in alone if key.startswith(("sent_gib", "time/exchange"))]


def of_two(rank: int) -> tuple[dict[str, float], dict[str, float]]:
    """Rank 1 comes to the sum of a backward pass 40 ms later, and both wait a second for the sums of other phases; by a clock of ours.

    Two steps a record, each a sum of 64 bytes in its backward pass, one before its update and one in its report."""
    dist.init_process_group("gloo")
    axis = Axis("data", 2, rank, dist.group.WORLD, Traffic())
    now, late_s, all_reduce = 0.0, 0.0, dist.all_reduce

    def waits(*args: Any, **options: Any) -> None:
        nonlocal now
        all_reduce(*args, **options)
        now += late_s

    time.perf_counter, dist.all_reduce = lambda: now, waits
    efficiency = efficiency_of(mesh=Mesh(data=axis), reduction=1000)
    found = []
    for _ in range(2):
        for _ in range(2):
            efficiency.phase("forward", 1)
            efficiency.add(micro(classification()))
            efficiency.phase("backward")
            now, late_s = now + 0.04 * rank, 0.04 * (1 - rank)
            total(torch.zeros(16), axis)
            late_s = 1.0
            efficiency.phase("reduce")
            total(torch.zeros(16), axis)
            efficiency.phase("report")
            total(torch.zeros(100), axis)
            efficiency.end_step()
        found.append(efficiency.figures(total(efficiency.sums(), axis), torch.zeros(0), 1.0))
    dist.destroy_process_group()
    return found[0], found[1]


def test_what_is_sent_and_waited_for_is_that_of_a_step():
    for records in run_ranks(2, of_two):
        for record in records:
            # 64 bytes twice, of which two ranks send half twice, and what DeepSpeed is said to send.
            assert record["sent_gib/data"] == pytest.approx((2 * 64 + 1000) / GIB)
            assert record["memory/peak_gib"] > 0 and "sent_gib/tensor" not in record
            assert record["time/exchange"] == pytest.approx(0.02)  # one of two ranks waits for 40 ms
            assert (record["time/forward"], record["time/backward"], record["time/reduce"]) == pytest.approx(
                (0, 0.04, 1)
            )


def test_a_device_is_timed_in_one_step_of_an_interval():
    traffic = Traffic()
    efficiency = efficiency_of(mesh=Mesh(data=Axis("data", 2, 0, object(), traffic)))
    efficiency.mesh = dataclasses.replace(efficiency.mesh, device="cuda:0")
    seen = []
    for _ in range(2):
        for phase in ("data", "forward", "reduce", "evaluate"):
            efficiency._choose_counted(phase, None)
            seen.append((traffic.counts, traffic.times))
        efficiency.end_step()
    nothing, bytes_alone, both = (False, False), (True, False), (True, True)
    assert seen == [nothing, both, bytes_alone, nothing, nothing, bytes_alone, bytes_alone, nothing]
    assert efficiency._timed_steps == 1


def test_waits_inside_of_other_libraries_are_not_told_as_if_they_were_all():
    for sequence, told in ((1, False), (2, True)):
        mesh = Mesh(
            tensor=Axis("tensor", 2, 0, object(), Traffic()), sequence=Axis("sequence", sequence, 0, object(), None)
        )
        efficiency = efficiency_of(mesh=mesh)
        efficiency._of_ranks = dict  # type: ignore[method-assign]
        efficiency.add(micro(classification()))
        efficiency.end_step()
        assert ("time/exchange" in figures(efficiency, 1.0)) == told


@pytest.mark.parametrize(
    ("peak", "lines", "flops_per_s"),
    [
        ("known", ["MFU n/a: no known peak for CPU in float32; set tracking.peak=measured"], 0.0),
        (2.5, [], 2.5e12),
    ],
)
def test_a_run_opens_it_with_its_options(tmp_path, peak, lines, flops_per_s):
    objective = make(DENSE)
    run: Any = SimpleNamespace(tracking=TrackingConfig(peak=peak), model=DENSE, folder=tmp_path, profile=None)
    engine: Any = SimpleNamespace(mesh=Mesh(), fragments=list, dtype=torch.float32)
    told: list[str] = []
    heard: list[str] = []
    efficiency = Efficiency.open(
        run, objective, engine, Expected({"total": GIB}, {}, 7), lambda name, step: heard.append(name), told.append
    )
    assert told == lines and efficiency.machine == Machine(flops_per_s, 7)
    efficiency.phase("data", 1)
    efficiency.add(micro(classification()))
    efficiency.end_step()
    assert set(efficiency.passes.values()) == {2, 3} and heard == ["data"]  # 2: there is no head
    figures(efficiency, 1.0)
    assert (tmp_path / "memory.json").exists()
