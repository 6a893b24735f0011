"""What a run is told of its plan is what the plan says."""

from __future__ import annotations

from parallel.collectives import Axis
from parallel.mesh import Mesh
from plan import expected, plan
from plan.traffic import sent_in_all
from run.config_file import load_config
from tests.helpers.places import ROOT


def test_a_run_expects_what_the_plan_says():
    run = load_config(ROOT / "configs" / "demo.yaml", ["parallel.precision=bf16"])
    group = object()
    found = expected(run, Mesh(data=Axis("data", 2, 0, group), expert=Axis("expert", 2, 0, group)))
    planned = plan(run, 2)
    memory = planned.memory
    assert found.memory == {
        "weights": memory.weights.total,
        "gradients": memory.gradients.total,
        "optimizer": memory.optimizer.total,
        "activations": memory.activations.peak + memory.exchange + memory.copies,
        "total": memory.total,
    }
    assert found.families["optimizer"]["experts"] == memory.optimizer.experts > 0
    assert found.reduction == sent_in_all(planned.traffic.step) > 0  # no rows are cut, so all of it is DeepSpeed's
    alone = expected(load_config(ROOT / "configs" / "demo.yaml", ["parallel.expert=1"]), Mesh())
    assert alone.reduction == 0 and alone.memory["weights"] > found.memory["weights"]
