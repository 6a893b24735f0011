"""What a run tells about itself."""

from __future__ import annotations

import torch

from data.stream.micro_batch import MicroBatch
from data.stream.schedule import Assignment
from model.noise import derive
from parallel.engine import StepInfo
from parallel.mesh import Mesh
from parallel.norms import GradientNorms
from run.meter import Meter
from tests.helpers.batches import retrieval
from tests.helpers.models import make, tiny


def test_losses_of_routers_without_a_sparse_block_are_zero():
    model = tiny("limoe", {"placement": "none"})
    batch = retrieval()
    meter = Meter({"t": 10}, model, Mesh())
    meter.add(MicroBatch(Assignment(0, 0, 0, 0), batch, 4, 20, ()), make(model)(batch, derive(0, "noise")), 0.0)
    meter.end_step(StepInfo(GradientNorms(*torch.zeros(4).tolist()), 0.1, True))
    record = meter.record(1, 2, (4,))
    assert record["auxiliary/importance"] == 0 and record["loss/t"] > 0
