"""What a micro-batch of each task costs, by which micro-batches are dealt to ranks, and how well that goes.

Costs are nominal forward FLOPs: texts at max_text tokens, and nothing of the candidates that ranks share, which cost all of them the same.
"""

from __future__ import annotations

from data.stream.dealing import Dealing
from data.stream.schedule import Schedule
from model.config import ModelConfig
from plan.sizes import flops_of_sequences
from plan.tasks import SequenceShape, TaskLoad, shares_of, task_loads, word_candidates_of
from run.config import RunConfig

STEPS = 40
"""Simulated."""


def dealing_of(run: RunConfig, tasks: tuple[TaskLoad, ...] = ()) -> Dealing:
    """Ranks that share candidates wait for each other in every micro-step, others in their expert groups. tasks: if they are known."""
    loads = tasks or task_loads(run, word_candidates_of(run), shares_of(run)[0])
    shares = any(task.candidates == "sharded" for task in run.data.tasks)
    return Dealing(tuple(_cost(run.model, load) for load in loads), 0 if shares else run.parallel.expert)


def lock_step_efficiency(run: RunConfig, tasks: tuple[TaskLoad, ...], data_ranks: int) -> float:
    """Mean cost of a step / cost of the slowest rank, over some steps. Where micro_batches do not divide by the ranks: with one each."""
    dealing = dealing_of(run, tasks)
    micro_batches = run.micro_batches if run.micro_batches % data_ranks == 0 else data_ranks
    shares = tuple(task.share for task in tasks)
    schedule = Schedule(shares, (1,) * len(tasks), micro_batches, run.seed, run.data.draw, dealing)
    steps = [dealing.loads(schedule.tasks_of(step), data_ranks) for step in range(STEPS)]
    return sum(mean for mean, _ in steps) / sum(slowest for _, slowest in steps)


def _cost(model: ModelConfig, load: TaskLoad) -> float:
    inputs, candidates = load.sequences
    scores = 2 * inputs.reads * candidates.reads * model.space_width * (1 + load.symmetric)
    own = 0 if load.scope == "sharded" else _encoded(model, candidates)
    return _encoded(model, inputs) + own + scores


def _encoded(model: ModelConfig, sequences: SequenceShape) -> float:
    rows = sequences.rows
    if not rows:
        return 0.0
    tower = (model.text_tower_config() or model) if sequences.is_text else model
    reads = round(sequences.read_tokens / rows)
    return flops_of_sequences(tower, rows, sequences.length, sequences.visual, reads, sequences.is_target)
