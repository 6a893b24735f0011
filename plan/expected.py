"""What a run is expected to hold and to send, for the run itself to set beside what it sees."""

from __future__ import annotations

from parallel.engine import for_ranks
from parallel.mesh import Mesh
from parallel.norms import FAMILIES
from plan.memory import Precision, parameters_of, precision_of
from plan.report import layout_of, memory_of
from plan.tasks import shares_of, task_loads, vocabulary_size_of, word_candidates_of
from plan.traffic import gradient_traffic, sent_in_all
from run.config import RunConfig
from run.engine_file import read_engine_file
from run.metrics.memory import Expected


def expected(run: RunConfig, mesh: Mesh) -> Expected:
    """Of a rank of the run's mesh."""
    layout, precision = layout_of(run, mesh.data.size * mesh.tensor.size), _precision_of(run, mesh)
    vocabulary_size, _ = vocabulary_size_of(run)
    shares, _ = shares_of(run)
    memory = memory_of(run, layout, precision, task_loads(run, word_candidates_of(run), shares), vocabulary_size)
    parameters = parameters_of(run, layout, vocabulary_size, padded=precision.stage > 0)
    return Expected(
        memory={
            "weights": memory.weights.total,
            "gradients": memory.gradients.total,
            "optimizer": memory.optimizer.total,
            "activations": memory.activations.peak + memory.exchange + memory.copies,
            "total": memory.total,
        },
        families={
            name: {family: getattr(amounts, family) for family in FAMILIES}
            for name, amounts in (
                ("weights", memory.weights),
                ("gradients", memory.gradients),
                ("optimizer", memory.optimizer),
            )
        },
        reduction=sent_in_all(gradient_traffic(parameters, layout, precision)),
    )


def _precision_of(run: RunConfig, mesh: Mesh) -> Precision:
    return precision_of(for_ranks(read_engine_file(run), mesh.data.size), run.parallel.precision, mesh.device)
