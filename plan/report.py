"""`train.py --config X --plan --world 64`: what a rank holds and sends, what does not fit, and what would help.

Nothing is allocated and no rank is asked: plan/memory.py counts parameters, plan/activations.py what autograd keeps,
plan/traffic.py what collectives carry. Sizes are bytes; a pass is one micro-batch, inputs and candidates together.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from parallel.engine import for_ranks
from plan.activations import Activations, activations_of, exchange_buffers
from plan.dealing import lock_step_efficiency
from plan.memory import FP32, Amounts, Degrees, Precision, optimizer_of, parameters_of, precision_of, reduction_of
from plan.notes import GIB, notes_of
from plan.tasks import TaskLoad, shares_of, task_loads, vocabulary_size_of, word_candidates_of
from plan.traffic import (
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
from run.config import RunConfig, check_layout
from run.engine_file import read_engine_file
from run.errors import ConfigError

SIMULATED = (8, 56, 256, 1024)
"""Data ranks."""
Change = Callable[[RunConfig, Precision], tuple[RunConfig, Precision]]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one rank. gradients: whole, as they are until a step's reduction. activations, exchange: of the
    largest task's pass. copies: of weights in the numbers of products, for a pass. reduction: buffers of gradient reduction
    and update, when activations are gone. host: of the optimizer where it is offloaded."""

    weights: Amounts
    gradients: Amounts
    optimizer: Amounts
    activations: Activations
    exchange: int
    copies: int
    reduction: int
    offloaded: bool
    largest_task: str

    @property
    def total(self) -> int:
        """The larger of a pass and an update, on the device."""
        held = self.weights.total + self.gradients.total + (0 if self.offloaded else self.optimizer.total)
        return held + max(self.activations.peak + self.exchange + self.copies, self.reduction)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """A step's collectives of one rank. merge and dispatch: the expert exchange, had the run the one or the other; merge is
    None for whole networks as experts. crossover: tokens of a rank's pass from which merging sends fewer bytes."""

    step: tuple[Collective, ...]
    tensor: tuple[Collective, ...]
    candidates: tuple[Collective, ...]
    merge: tuple[Collective, ...] | None
    dispatch: tuple[Collective, ...]
    tokens: int
    crossover: int


@dataclasses.dataclass(frozen=True)
class Plan:
    name: str
    layout: Degrees
    precision: Precision
    micro_batches: int
    merges: bool | None
    memory: Memory
    traffic: Traffic
    device_memory: int
    remedies: tuple[str, ...]
    notes: tuple[str, ...]
    lock_step: dict[int, float]


def plan(run: RunConfig, world: int, device_memory_gib: float = 80.0, gpus_per_node: int = 8) -> Plan:
    """Raises ConfigError for a layout that cannot be."""
    if world < 1:
        raise ConfigError(f"--world={world}: must be at least 1")
    check_layout(run, world)
    layout = layout_of(run, world)
    precision = precision_of(for_ranks(read_engine_file(run), layout.data), run.parallel.precision)
    vocabulary_size, note = vocabulary_size_of(run)
    shares, shares_note = shares_of(run)
    tasks = task_loads(run, word_candidates_of(run), shares)
    memory = memory_of(run, layout, precision, tasks, vocabulary_size)
    by_length = run.data.vocabulary == "full" or bool(note)
    uncounted = [task.name for task in tasks if not task.counted]
    further = notes_of(run, layout, precision, memory.gradients, memory.optimizer, uncounted, by_length, gpus_per_node)
    notes = (*(text for text in (note, shares_note) if text), *further)
    device_memory = round(device_memory_gib * GIB)
    sparse = run.model.num_decisions > 0
    return Plan(
        name=run.name,
        layout=layout,
        precision=precision,
        micro_batches=run.micro_batches // layout.data,
        merges=not run.model.experts.decides_per_token if sparse else None,
        memory=memory,
        traffic=traffic_of(run, layout, precision, tasks, vocabulary_size),
        device_memory=device_memory,
        remedies=tuple(_remedies(run, world, precision, tasks, vocabulary_size, device_memory)),
        notes=notes,
        lock_step={
            ranks: lock_step_efficiency(run, tasks, ranks)
            for ranks in sorted({*SIMULATED, layout.data})
            if ranks % layout.expert == 0
        },
    )


def layout_of(run: RunConfig, world: int) -> Degrees:
    return Degrees(run.parallel.tensor, run.parallel.expert, world // run.parallel.tensor, run.parallel.sequence)


def memory_of(
    run: RunConfig, layout: Degrees, precision: Precision, tasks: tuple[TaskLoad, ...], vocabulary_size: int
) -> Memory:
    value = precision.value
    parameters = parameters_of(run, layout, vocabulary_size, padded=precision.stage > 0)
    peaks = [
        (
            activations_of(run.model, task.passes(layout.data), layout, value, task.losses),
            exchange_buffers(run.model, task.passes(layout.data), layout, value),
            task.name,
        )
        for task in tasks
    ]
    activations, exchange, largest_task = max(peaks, key=lambda found: found[0].peak + found[1])
    held = sum((group.numbers for group in parameters.groups), Amounts())
    return Memory(
        weights=(held + parameters.frozen).times(FP32),
        gradients=dataclasses.replace(held, padding=0).times(FP32),
        optimizer=optimizer_of(parameters, precision, run.optimizer.ema > 0),
        activations=activations,
        exchange=exchange,
        copies=(held + parameters.frozen).total * value if value < FP32 else 0,
        reduction=reduction_of(parameters, precision),
        offloaded=precision.offloads,
        largest_task=largest_task,
    )


def traffic_of(
    run: RunConfig, layout: Degrees, precision: Precision, tasks: tuple[TaskLoad, ...], vocabulary_size: int
) -> Traffic:
    """A step: its micro-batches are a mean over tasks by their share."""
    model, value = run.model, precision.value
    micro_batches = run.micro_batches // layout.data
    parameters = parameters_of(run, layout, vocabulary_size)

    def averaged(passes: Sequence[tuple[Collective, ...]]) -> tuple[Collective, ...]:
        shares = [task.share * micro_batches for task in tasks]
        return tuple(
            dataclasses.replace(of_one[0], handed=round(sum(w * c.handed for w, c in zip(shares, of_one, strict=True))))
            for of_one in zip(*passes, strict=True)
        )

    passes = [task.passes(layout.data, mean=True) for task in tasks]
    tensor = [
        (
            *tensor_traffic(model, mine, layout, value),
            *scores_traffic(model, mine, layout, task.losses, task.symmetric),
        )
        for task, mine in zip(tasks, passes, strict=True)
    ]
    merged = [merge_traffic(model, mine, layout, value) for mine in passes]
    return Traffic(
        step=(*gradient_traffic(parameters, layout, precision), row_gradients(model, layout)),
        tensor=averaged(tensor),
        candidates=averaged([candidates_traffic(model, task, layout) for task in tasks]),
        merge=None if model.experts.unit == "mlp" else averaged(merged),
        dispatch=averaged([dispatch_traffic(model, mine, layout, value) for mine in passes]),
        tokens=round(sum(task.share * s.tokens for task, mine in zip(tasks, passes, strict=True) for s in mine)),
        crossover=crossover_tokens(model, layout, value),
    )


def _remedies(
    run: RunConfig,
    world: int,
    precision: Precision,
    tasks: tuple[TaskLoad, ...],
    vocabulary_size: int,
    device_memory: int,
) -> Iterator[str]:
    """One line a change, each on top of those before that helped, until the run fits."""
    before = memory_of(run, layout_of(run, world), precision, tasks, vocabulary_size).total
    if before <= device_memory:
        return
    for text, change in _changes(run, world, precision):
        changed, sharper = change(run, precision)
        try:
            check_layout(changed, world)
        except ConfigError:
            continue
        after = memory_of(changed, layout_of(changed, world), sharper, tasks, vocabulary_size).total
        if after >= before:
            whole = sharper.stage > precision.stage
            reason = ": gradients are whole until a step's one reduction, under stages 1 and 2 alike" if whole else ""
            yield f"{text} saves nothing{reason}"
            continue
        run, precision, before = changed, sharper, after
        yield f"{text} -> {after / GIB:.3f} GiB" + (", fits" if after <= device_memory else "")
        if after <= device_memory:
            return
    yield f"still {before / GIB:.3f} GiB: lower batch_size of the largest task, or raise model.chunks"


def _changes(run: RunConfig, world: int, precision: Precision) -> Iterator[tuple[str, Change]]:
    if precision.stage < 2:
        yield "ZeRO-2 (parallel.deepspeed=zero2)", lambda r, p: (r, dataclasses.replace(p, stage=2))
    if run.model.num_decisions:
        for expert in range(run.parallel.expert + 1, run.model.experts.num_experts + 1):
            yield f"parallel.expert={expert}", functools.partial(_with_parallel, "expert", expert)
    if run.model.activation_checkpointing == "none" and run.model.chunks == 1:
        yield "model.activation_checkpointing=selective", functools.partial(_recomputing, "selective")
    if run.model.activation_checkpointing != "block":
        yield "model.activation_checkpointing=block", functools.partial(_recomputing, "block")
    if run.parallel.tensor > 1 and not run.parallel.sequence:
        yield "parallel.sequence=true", functools.partial(_with_parallel, "sequence", True)
    for tensor in range(run.parallel.tensor + 1, min(world, run.model.heads) + 1):
        yield f"parallel.tensor={tensor}", functools.partial(_with_parallel, "tensor", tensor)


def _with_parallel(key: str, size: int, run: RunConfig, precision: Precision) -> tuple[RunConfig, Precision]:
    sizes: dict[str, Any] = {key: size}
    return dataclasses.replace(run, parallel=dataclasses.replace(run.parallel, **sizes)), precision


def _recomputing(how: Any, run: RunConfig, precision: Precision) -> tuple[RunConfig, Precision]:
    return dataclasses.replace(run, model=dataclasses.replace(run.model, activation_checkpointing=how)), precision


def render(plan: Plan) -> str:
    """A page about the plan."""
    layout, memory, traffic = plan.layout, plan.memory, plan.traffic
    unit, name = (GIB, "GiB") if memory.total >= 4 * GIB else (1 << 20, "MiB")
    kinds = {4: "fp32", 2: "bf16 or fp16"}[plan.precision.value]
    lines = [
        f"{plan.name}: {layout.tensor * layout.data} ranks = tensor {layout.tensor} x data {layout.data}, expert {layout.expert} "
        f"(each held {layout.expert_data} times); ZeRO-{plan.precision.stage}, {kinds}, {plan.micro_batches} micro-batch(es) per step",
        f"memory per rank, {name}      {'dense':>9}{'experts':>9}{'routers':>9}{'padding':>9}{'total':>9}",
    ]
    where = "optimizer, on the host" if memory.offloaded else "optimizer (fp32 + 2)"
    for title, split in (("weights", memory.weights), ("gradients", memory.gradients), (where, memory.optimizer)):
        parts = (*dataclasses.astuple(split), split.total)
        lines.append(f"  {title:<25}" + "".join(f"{part / unit:9.3f}" for part in parts))
    acts = memory.activations
    for title, size, remark in (
        (
            "activations",
            acts.peak,
            f"{memory.largest_task}: kept {acts.kept / unit:.3f}, one block again {acts.block / unit:.3f}",
        ),
        ("exchange buffers", memory.exchange, "for a moment of a pass"),
        ("weights for products", memory.copies, "bf16 or fp16, while there is a pass"),
        ("reduction buffers", memory.reduction, "after the passes, when activations are gone"),
    ):
        lines.append(f"  {title:<25}{size / unit:45.3f}   {remark}")
    fits = "fits in" if memory.total <= plan.device_memory else "DOES NOT FIT in"
    lines.append(f"  {'peak':<25}{memory.total / unit:45.3f}   {fits} {plan.device_memory / GIB:g} GiB")
    lines += [f"    {remedy}" for remedy in plan.remedies]
    lines.append(f"sent per rank and step, {name}")
    sent = (*traffic.step, *traffic.tensor, *traffic.candidates)
    lines += [_line(collective, unit) for collective in sent if collective.handed]
    if plan.merges is not None:
        lines.append(f"expert exchange in a step of {traffic.tokens:,} tokens per pass (mean over tasks), {name}")
        for title, path, used in (
            ("merge", traffic.merge, plan.merges),
            ("dispatch", traffic.dispatch, not plan.merges),
        ):
            note = "  <- this run" if used else ""
            total = f"{sent_in_all(path) / unit:10.3f}{note}" if path else "  not possible: experts are whole networks"
            lines.append(f"  {title:<52}{total}")
            lines += [f"  {_line(collective, unit)}" for collective in path or ()]
        if traffic.crossover:
            lines.append(f"  equal at {traffic.crossover:,} tokens of a rank's pass; merging sends less above")
    found = ", ".join(f"{share:.2f} at {ranks:,}" for ranks, share in plan.lock_step.items())
    lines.append(f"mean cost of a step / that of the slowest rank: {found} data ranks")
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join(lines)


def _line(collective: Collective, unit: int) -> str:
    title = f"{collective.what} ({collective.kind} over {collective.ranks})"
    return f"  {title:<52}{collective.sent / unit:10.3f}"
