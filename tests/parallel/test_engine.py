"""Which parameters the optimizer has, which decay, and that a step reaches all of them."""

from __future__ import annotations

import collections
import contextlib
import dataclasses

import numpy as np
import pytest

from model.config import TextTowerConfig
from parallel.config import OptimizerConfig
from parallel.engine import decays, parameter_groups
from parallel.mesh import Mesh
from run.config_file import load_config
from run.engine_file import read_engine_file
from tests.helpers.batches import BATCHES
from tests.helpers.distributed import run_ranks
from tests.helpers.models import make, tiny
from tests.helpers.parity import ParityRun, logical_gradients, logical_weights, run_job
from tests.helpers.places import ROOT


def test_matrices_of_linears_and_experts_decay_and_nothing_else():
    objective = make()
    decaying = {name for name, parameter in objective.named_parameters() if decays(name, parameter)}
    linears = [f"{part}.weight" for part in ("attention.qkv", "attention.out", "ffn.up", "ffn.down")]
    expected = {"tower.embedding.patches.weight", "tower.output.shared.weight"}
    for block, kind in ((0, "bank"), (1, "linear")):
        expected |= {f"tower.encoder.blocks.{block}.{part[: -len('.weight')]}.{kind}.weight" for part in linears}
    assert decaying == expected


def test_groups_hold_every_parameter_once():
    objective = make(tiny("token", text_tower=TextTowerConfig(width=8, depth=1, heads=2, ffn=8)))
    groups = parameter_groups(objective, OptimizerConfig(weight_decay=0.1), Mesh())
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in objective.parameters())
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}


def launches_of_an_update(rank: int, depth: int) -> int:
    from parallel.engine import Engine
    from parallel.kernels import load_kernels
    from parallel.mesh import create_mesh
    from tests.helpers.hot_path import Launches

    mesh, kernels = create_mesh(), load_kernels("torch")
    objective = make(tiny(depth=depth), mesh=mesh)
    config = {"train_micro_batch_size_per_gpu": 1, "zero_allow_untested_optimizer": True}
    engine = Engine(objective, mesh, OptimizerConfig(ema=0.9), config, kernels)
    for _ in range(2):  # the first makes moments and averages
        with contextlib.ExitStack() as stack:
            stack.enter_context(engine.accumulation())
            engine.backward(engine(BATCHES["caption"]().located(), 1).total)
            with Launches() as launches:
                stack.close()
                assert engine.step(1e-3).applied
    return launches.launches


def test_an_update_launches_few_kernels_whatever_the_depth():
    """What sums gradients up at the end of backward passes, norms of three families, clipping, Adam for each group of parameters,
    averages."""
    (shallow,), (deep,) = (run_ranks(1, launches_of_an_update, depth) for depth in (1, 6))
    assert deep == shallow <= 50, (shallow, deep)


def waits_and_lists(rank: int) -> tuple[int, int, dict[str, int]]:
    """Of five updates: how often DeepSpeed waits for all that the device does, what the optimizer holds is listed, and a value of the
    device is asked for."""
    from deepspeed.accelerator import get_accelerator

    from parallel.engine import Engine
    from parallel.kernels import load_kernels
    from parallel.mesh import create_mesh
    from tests.helpers.hot_path import Waits

    waits, lists, asked = [], [], collections.Counter[str]()
    mesh, kernels = create_mesh(), load_kernels("torch")
    config = read_engine_file(load_config(ROOT / "configs" / "demo.yaml"))
    engine = Engine(make(mesh=mesh), mesh, OptimizerConfig(), config, kernels)
    get_accelerator().synchronize = lambda *call: waits.append(call)
    pieces = engine._state.pieces
    engine._state.pieces = lambda: lists.append(None) or pieces()
    for _ in range(5):  # its timers begin with the third
        with contextlib.ExitStack() as stack:
            stack.enter_context(engine.accumulation())
            for noise in range(2):
                engine.backward(engine(BATCHES["caption"]().located(), noise).total)
            with Waits() as of_update:
                stack.close()
                assert engine.step(1e-3).applied
        asked += of_update.seen
    return len(waits), len(lists), dict(asked)


@pytest.mark.parametrize("ranks", [1, 2])
def test_updates_wait_for_no_device_and_list_pieces_once(ranks):
    """Without ZeRO and with it. A wait would be for all that is queued, before each micro-batch and after each update. The norm that
    gradients are clipped by is asked for once an update; ZeRO finds out by itself whether they are finite."""
    of_zero = {"bool": 5, "a tensor of numbers of the host": 10} if ranks > 1 else {}
    assert run_ranks(ranks, waits_and_lists) == [(0, 5, {"tolist": 5} | of_zero)] * ranks


def test_a_step_reaches_every_parameter():
    """With all tasks in one step nothing stays as it was, but for what had no gradient and no decay."""
    job = ParityRun(tasks=tuple(BATCHES), micro_batches=len(BATCHES), steps=1, router="token")
    (before,), (after,) = (run_ranks(1, run_job, dataclasses.replace(job, steps=steps)) for steps in (0, 1))
    gradients = logical_gradients([after], 0)
    old, new = logical_weights([before]), logical_weights([after])
    assert new.keys() == old.keys() == gradients.keys()
    still = {name for name in new if np.array_equal(old[name], new[name])}
    assert not {name for name in still if gradients[name].any()}
    assert still <= {f"log_scales.{name}" for name in BATCHES} | {name for name in new if "frames" in name}
