"""Bytes and waits of collectives: by hand for each, and for whole passes on two ranks against the plan."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from data.batch import TaskBatch
from model.config import ModelConfig
from parallel.collectives import Axis
from parallel.traffic import Traffic, sent_by_exchange
from plan.memory import Degrees
from plan.traffic import (
    candidates_traffic,
    dispatch_traffic,
    merge_traffic,
    scores_traffic,
    sent_in_all,
    tensor_traffic,
)
from tests.helpers.batches import VOCABULARY_SIZE
from tests.helpers.distributed import run_ranks
from tests.helpers.models import tiny
from tests.plan.test_plan import DROPLESS, beside, captioning, passed


def every_collective(rank: int) -> dict[str, int]:
    """On rows of three numbers; rank 0 sends one row of all-to-alls to itself and three to the other."""
    from parallel.collectives import (
        Flight,
        all_gather,
        all_to_all,
        copy_to_axis,
        gathered,
        maximum,
        reduce_from_axis,
        scattered_sum,
        total,
    )
    from parallel.mesh import create_mesh

    axis = create_mesh().data
    traffic, sent = axis.traffic, {}
    assert traffic is not None
    x_RI = torch.ones(4, 3, requires_grad=True)
    send, receive = ([1, 3], [1, 2]) if rank == 0 else ([2, 2], [3, 2])
    flight = Flight(send, receive, axis)

    def landed() -> torch.Tensor:
        return flight.land(flight.depart(x_RI))

    calls = {
        "copy_to_axis": lambda: copy_to_axis(x_RI, axis),
        "reduce_from_axis": lambda: reduce_from_axis(x_RI, axis),
        "all_gather": lambda: all_gather(x_RI, axis),
        "all_to_all": lambda: all_to_all(x_RI, send, receive, axis),
        "flight": landed,
        "gathered": lambda: gathered(x_RI.detach(), axis),
        "scattered_sum": lambda: scattered_sum(x_RI.detach().view(2, 2, 3), axis),
        "total": lambda: total(x_RI, axis),
        "maximum": lambda: maximum(x_RI, axis),
    }
    calls["total"]()
    assert traffic.taken() == (0, 0.0)  # nobody has asked
    traffic.counts = traffic.times = True
    for name, call in calls.items():
        y = call()
        sent[name] = traffic.taken()[0]
        if y.requires_grad:
            y.sum().backward()
            sent[f"{name}, backward"] = traffic.taken()[0]
    return sent


def test_bytes_of_every_collective_by_hand():
    """4 rows of 3 numbers are 48 bytes; two ranks all-reduce them by sending half twice."""
    first, second = run_ranks(2, every_collective)
    both = {
        "copy_to_axis": 0, "copy_to_axis, backward": 48, "reduce_from_axis": 48, "reduce_from_axis, backward": 0,
        "all_gather": 48, "all_gather, backward": 48, "gathered": 48, "scattered_sum": 24, "total": 48, "maximum": 48,
    }  # fmt: skip
    rows = {"all_to_all": (3, 2), "all_to_all, backward": (2, 3), "flight": (3, 2), "flight, backward": (2, 3)}
    assert first == both | {name: 12 * there for name, (there, _) in rows.items()}
    assert second == both | {name: 12 * there for name, (_, there) in rows.items()}
    assert sent_by_exchange(torch.zeros(0, 3), [0, 0], 0) == 0


def of_a_pass(
    rank: int, model: ModelConfig, tensor: int, expert: int, batch: TaskBatch, sequence: bool
) -> dict[str, int]:
    from model.initialise import initialise
    from model.objective import Objective
    from parallel.kernels import load_kernels
    from parallel.mesh import create_mesh

    mesh = create_mesh(tensor, expert, sequence=sequence)
    objective = Objective(model, VOCABULARY_SIZE, mesh, load_kernels("torch"))
    initialise(objective, 0)
    axes = {"tensor": mesh.tensor, "expert": mesh.expert, "data": mesh.data}
    counted = {name: axis.traffic for name, axis in axes.items() if axis.traffic is not None}
    for traffic in counted.values():
        traffic.counts = True
    objective(batch, 7).total.backward()
    return {name: traffic.taken()[0] for name, traffic in counted.items()}


@pytest.mark.parametrize(
    ("router", "placement", "recompute", "sequence"),
    [
        ("attribute", "none", "none", False),
        ("attribute", "none", "block", False),
        ("attribute", "odd", "none", True),
        ("token", "odd", "block", False),
        pytest.param("attribute", "odd", "block", False, marks=pytest.mark.parity),
        pytest.param("token", "odd", "selective", True, marks=pytest.mark.parity),
        pytest.param("limoe", "odd", "selective", False, marks=pytest.mark.parity),
    ],
)
def test_two_tensor_ranks_send_what_is_planned(router, placement, recompute, sequence):
    """megatron-core's sums too, and no byte on the other axes."""
    experts = {"placement": placement} | (DROPLESS if router == "limoe" else {})
    model = tiny(router, experts, activation_checkpointing=recompute)
    batch, layout = captioning(3, 2, 5), Degrees(2, 1, 1, sequence)
    planned = tensor_traffic(model, passed(batch), layout, 4)
    planned += scores_traffic(model, passed(batch), layout, losses=1, symmetric=False)
    for sent in run_ranks(2, of_a_pass, model, 2, 1, batch, sequence):
        assert sent == {"tensor": sent_in_all(planned), "expert": 0, "data": 0}


@pytest.mark.parametrize("recompute", ["none", "block"])
def test_two_ranks_that_merge_send_what_is_planned(recompute):
    """With all experts every group needs its peer's sum, as the plan assumes."""
    model = tiny("attribute", {"top_k": 4}, activation_checkpointing=recompute)
    batch = captioning(4, 2, 5)
    planned = sent_in_all(merge_traffic(model, passed(batch), Degrees(1, 2, 2), 4))
    for sent in run_ranks(2, of_a_pass, model, 1, 2, batch, False):
        assert sent == {"tensor": 0, "expert": planned, "data": 0}


@pytest.mark.parametrize("parts", [1, 3])
def test_tokens_that_stay_are_not_sent(parts):
    """Two ranks with the same tokens and experts 0, 1 and 2, 3: what one sends away, the other keeps. Both together send each row once."""
    model = tiny("token", {"top_k": 1, "unit": "ffn_linear", "exchange_parts": parts})
    batch = captioning(4, 2, 5)
    tokens = batch.inputs.num_tokens + batch.candidates.num_tokens
    found = run_ranks(2, of_a_pass, model, 1, 2, batch, False)
    # Rows of 16 numbers there and back with a weight, and the same backward; four counts of 8 bytes for each part, of which two leave.
    assert sum(sent["expert"] for sent in found) == 2 * tokens * (16 + 16 + 1) * 4 + parts * 2 * 2 * 8
    assert all(sent["expert"] % 4 == 0 and sent["tensor"] == sent["data"] == 0 for sent in found)


@pytest.mark.parametrize("recompute", ["none", "block"])
def test_slots_are_sent_filled_or_not(recompute):
    """As many on both ranks, so each sends what is planned."""
    model = tiny("limoe", {"exchange": "slots"}, activation_checkpointing=recompute)
    batch, layout = captioning(4, 2, 5), Degrees(1, 2, 2)
    planned = sent_in_all(dispatch_traffic(model, passed(batch), layout, 4))
    for sent in run_ranks(2, of_a_pass, model, 1, 2, batch, False):
        assert sent == {"tensor": 0, "expert": planned, "data": 0}


@pytest.mark.parametrize("scope", ["sharded", "global"])
def test_two_data_ranks_send_their_candidates(scope):
    model, batch, task = beside(scope)
    planned = sent_in_all(candidates_traffic(model, task, Degrees(1, 1, 2)))
    assert planned > 0
    for sent in run_ranks(2, of_a_pass, model, 1, 1, batch, False):
        assert sent == {"tensor": 0, "expert": 0, "data": planned}


def test_waits_are_timed_where_they_are_asked_for(monkeypatch):
    now = SimpleNamespace(value=5.0)
    monkeypatch.setattr(time, "perf_counter", lambda: now.value)
    traffic = Traffic()
    axis = Axis("data", traffic=traffic)
    for timed in (False, True):
        traffic.counts, traffic.times = True, timed
        with axis.sends(8):
            now.value += 0.02
        assert traffic.taken() == (8, pytest.approx(0.02) if timed else 0)
    assert traffic.taken() == (0, 0.0)


def test_a_device_is_waited_for_at_the_end_alone(monkeypatch):
    """Two waits, between events at 1 and 3 ms, and at 4 and 9 ms of its stream."""
    times, done = iter((1.0, 3.0, 4.0, 9.0)), []

    def event(enable_timing: bool) -> SimpleNamespace:
        made = SimpleNamespace(at=0.0)
        made.record = lambda: setattr(made, "at", next(times))
        made.synchronize = lambda: done.append(made.at)
        made.elapsed_time = lambda other: other.at - made.at
        return made

    monkeypatch.setattr(torch.cuda, "Event", event)
    traffic = Traffic("cuda:0")
    traffic.times = True
    for _ in range(2):
        with traffic.waiting():
            pass
    assert not done
    assert traffic.taken() == (0, pytest.approx(0.007)) and done == [3.0, 9.0]
