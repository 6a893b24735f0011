"""What a plan cannot count or should be told: lines below its tables."""

from __future__ import annotations

from collections.abc import Iterator

from plan.memory import Amounts, Degrees, Precision
from run.config import RunConfig

GIB = 1 << 30


def notes_of(
    run: RunConfig,
    layout: Degrees,
    precision: Precision,
    gradients: Amounts,
    optimizer: Amounts,
    uncounted: list[str],
    by_length: bool,
    gpus_per_node: int,
) -> Iterator[str]:
    """gradients, optimizer: bytes of a rank. uncounted: tasks whose data sets are not there. by_length: texts are taken at the most they
    may have."""
    experts = run.model.experts
    if uncounted:
        yield f"candidates not counted, their data sets are not there: {', '.join(uncounted)}"
    if by_length:
        yield "texts are taken at max_text tokens"
    if run.save_async:
        yield f"save_async: while a checkpoint is written, host memory holds about {optimizer.total / GIB:.2f} GiB more"
    if run.model.num_decisions and experts.backend == "deepspeed":
        alike = "" if experts.capacity_factor else " and experts that are used alike"
        yield (
            "experts.backend=deepspeed: slots are held, computed and sent filled or not, as many as the fullest rank of an expert group "
            f"needs; counted are ranks with equal passes{alike}, which is the least that can be"
        )
    if gradients.experts and layout.expert > 1 and layout.expert_data == 1 and not precision.offloads:
        more = experts.num_experts > layout.expert
        raised = "start more ranks and raise parallel.expert, or " if more else ""
        yield (
            "ZeRO saves nothing on experts: each is held once (edp = data / expert = 1); "
            f"{raised}offload the optimizer in {run.parallel.deepspeed}: zero_optimization.offload_optimizer={{device: cpu}} and "
            "zero_force_ds_cpu_optimizer=false"
        )
    if layout.tensor > gpus_per_node:
        yield f"parallel.tensor={layout.tensor} is more than a node's {gpus_per_node} GPUs: every block would wait for the network"
    elif layout.expert > 1 and layout.tensor * layout.expert > gpus_per_node:
        inside = max(e for e in range(1, gpus_per_node // layout.tensor + 1) if experts.num_experts % e == 0)
        nodes = -(-layout.tensor * layout.expert // gpus_per_node)
        yield (
            f"the {layout.expert} ranks that share experts stand on {nodes} nodes of {gpus_per_node} GPUs, so their exchange goes over the "
            f"network between nodes; parallel.expert={inside} keeps it inside a node, where its memory fits"
        )
