"""What a run tells about itself, when things around it fail."""

from __future__ import annotations

import pytest
import torch

from config_file import load_config
from data.schedule import Slot
from data.stream import MicroBatch
from metrics import Meter, Wandb
from model.noise import derive
from parallel.engine import StepInfo
from parallel.mesh import Mesh
from parallel.norms import GradientNorms
from tests.helpers.batches import retrieval
from tests.helpers.models import make, tiny


class Broken:
    def log(self, record):
        raise ConnectionResetError("its helper is gone")

    def finish(self):
        raise ConnectionResetError("its helper is gone")

    def define_metric(self, *names, **options): ...


@pytest.mark.parametrize("breaks", ["start", "write", "close"])
def test_wandb_never_stops_the_training(breaks, config, tmp_path, monkeypatch, capsys):
    import wandb

    def init(**options):
        if breaks == "start":
            raise wandb.UsageError("no key\nmore of it")
        return Broken()

    monkeypatch.setattr(wandb, "init", init)
    sink = Wandb(load_config(config), tmp_path)
    if breaks == "write":
        sink.write({"step": 1})
    sink.close()
    sink.close()
    said = capsys.readouterr().err
    assert said.count("warning: no wandb from here on (") == 1 and "more of it" not in said


def test_losses_of_routers_without_a_sparse_block_are_zero():
    model = tiny("limoe", {"placement": "none"})
    batch = retrieval()
    meter = Meter({"t": 10}, model, Mesh())
    meter.add(MicroBatch(Slot(0, 0, 0, 0), batch, 4, 20, ()), make(model)(batch, derive(0, "noise")), 0.0)
    meter.end_step(StepInfo(GradientNorms(*torch.zeros(4).tolist()), 0.1, True))
    record = meter.record(1, 2, (4,))
    assert record["auxiliary/importance"] == 0 and record["loss/t"] > 0
