"""Bytes that one rank sends in a step, by collective.

    once per step:      gradients (dense over data ranks, experts over the ranks that hold the same), ZeRO's weights
    each micro-batch: tensor ranks' exchange of rows or sums of them, candidates of all data ranks, and the expert exchange: weights
                      (merge) or tokens (dispatch)

Single numbers (norms, overflow flags) and the guards' checks are left out. Legend: S expert ranks, G condition groups,
E experts, T tokens of a pass, K choices.
"""

from __future__ import annotations

import dataclasses

from model.config import ModelConfig
from plan.memory import FP32, INDEX, Degrees, Parameters, Precision, sparse_linears
from plan.tasks import SequenceShape, TaskLoad, chosen_peers, expert_rows, groups_of, sent_copies, towers_of


@dataclasses.dataclass(frozen=True)
class Collective:
    """handed: bytes that a rank hands to the collective in a step. what: whose they are. ranks: size of the group.
    kind "exchange": an all-to-all of which no rank keeps a part."""

    what: str
    kind: str
    ranks: int
    handed: int

    @property
    def sent(self) -> int:
        """Bytes that leave the rank: a ring for reductions and gathers, balanced counts for all-to-alls."""
        others = self.ranks - 1
        if self.kind == "exchange":
            return self.handed
        if self.kind == "all-gather":
            return self.handed * others
        return self.handed * others * (2 if self.kind == "all-reduce" else 1) // self.ranks


THREE_GROUPS = (SequenceShape(1, 3, 1, 1, True), SequenceShape(1, 2, 0, 1, False))
"""A caption: its picture, its words, and the words to choose from."""


def sent_in_all(collectives: tuple[Collective, ...]) -> int:
    return sum(collective.sent for collective in collectives)


def gradient_traffic(parameters: Parameters, layout: Degrees, precision: Precision) -> tuple[Collective, ...]:
    """Once per step. DeepSpeed all-reduces its buckets under stages 1 and 2 alike and lets each rank keep its part. One data rank reduces
    nothing; of several each reduces its experts, too, where it alone has them."""
    if layout.data == 1:
        return ()
    found = []
    for what, is_expert, ranks in (("dense", False, layout.data), ("experts", True, layout.expert_data)):
        groups = [group for group in parameters.groups if group.is_expert == is_expert]
        tuned = sum(group.numbers.total - group.numbers.padding for group in groups)
        if tuned:
            found.append(Collective(f"gradients, {what}", "all-reduce", ranks, tuned * FP32))
        if tuned and precision.stage:
            own = sum(group.partition.total for group in groups)
            found.append(Collective(f"updated weights, {what}", "all-gather", ranks, own * FP32))
    return tuple(found)


def forwards_of(model: ModelConfig) -> int:
    """Forward passes of a block for one micro-batch: recomputation repeats its collectives."""
    return 1 + (model.activation_checkpointing == "block") + (model.chunks > 1)


def stops_early(model: ModelConfig) -> bool:
    """Recomputing a block ends with the last tensor that is kept, the input of its last linear: what follows is not repeated,
    unless the branch is kept to be scaled."""
    return model.activation_checkpointing == "block" and not model.layer_scale


def tensor_traffic(
    model: ModelConfig, sequences: tuple[SequenceShape, ...], layout: Degrees, value: int
) -> tuple[Collective, ...]:
    """One micro-batch. All-reduces: two results a block forward, two gradients of inputs backward; looked-up words; gradients
    of the gates' weights. Where rows are cut, an all-gather before and a reduce-scatter after each branch of a block stand
    in for the results' all-reduces, and the same backward; at the encoder's ends rows are joined."""
    ranks = layout.tensor
    reduced = 0 if ranks == 1 else _all_reduced(model, sequences, layout, value)
    gathers, scatters = _row_exchanges(model, sequences, layout) if layout.cuts_rows else (0, 0)
    return (
        Collective("activations", "all-reduce", ranks, reduced),
        Collective("rows of activations", "all-gather", ranks, gathers // ranks * value),
        Collective("sums of rows", "reduce-scatter", ranks, scatters * value),
    )


def row_gradients(model: ModelConfig, layout: Degrees) -> Collective:
    """Once per step: the gradients of what acts on a part of the rows (norms, LayerScale, prompts)."""
    prompts = model.prompts.length + model.prompts.target_length if model.prompts else 0
    towers = [tower for tower in (model, model.text_tower_config()) if tower]
    numbers = sum(t.depth * t.width * (4 + (2 if t.layer_scale else 0) + prompts) for t in towers)
    return Collective("gradients of norms", "all-reduce", layout.tensor, numbers * FP32 * layout.cuts_rows)


def _row_exchanges(model: ModelConfig, sequences: tuple[SequenceShape, ...], layout: Degrees) -> tuple[int, int]:
    """-> numbers that all ranks together give to all-gathers, and that one rank gives to reduce-scatters."""
    gathers = scatters = 0
    for tower, mine in towers_of(model, sequences):
        parts = [
            s.rows * (i + 1) // model.chunks - s.rows * i // model.chunks for s in mine for i in range(model.chunks)
        ]
        lengths = [s.length for s in mine for _ in range(model.chunks)]
        rows = sum(-(-n * length // layout.tensor) * layout.tensor for n, length in zip(parts, lengths, strict=True))
        forwards, branches = forwards_of(tower), 2 * tower.depth
        # The branches', both ways; forward at the encoder's end, backward at its entry. Of a recomputed block the last sum is
        # not needed, of a recomputed pass the end is.
        gathered = branches * (forwards + 1) + 2 + (model.chunks > 1)
        summed = branches * (forwards + 1) - tower.depth * stops_early(tower)
        if model.activation_checkpointing == "selective":
            gathered += sum(_gathers_again(tower, layer) for layer in range(tower.depth))
        gathers += gathered * rows * tower.width
        scatters += summed * rows * tower.width
    return gathers, scatters


def _gathers_again(model: ModelConfig, layer: int) -> int:
    """Branches of a block whose normalised rows somebody has saved: linears and routers that read them as they are. Rows that are sent
    to experts, or joined to prompts or to a context, are copies."""
    experts = model.experts
    sent = experts.is_sparse(layer, model.depth) and experts.decides_per_token
    sends_attention = sent and experts.unit == "linear"
    router_reads = experts.router == "token" or experts.pooling == "attention"
    attention = router_reads if sends_attention else model.prompts is None
    return attention + (router_reads if sent else True)


def _all_reduced(model: ModelConfig, sequences: tuple[SequenceShape, ...], layout: Degrees, value: int) -> int:
    total = 0
    for tower, mine in towers_of(model, sequences):
        tokens = sum(s.tokens for s in mine)
        total += sum(s.tokens - s.rows * s.visual for s in mine) * tower.width * value * (1 + (model.chunks > 1))
        for layer in range(tower.depth):
            sent = tower.experts.is_sparse(layer, tower.depth) and tower.experts.decides_per_token
            copies = sent_copies(tower, tokens)
            wanted = sum(s.read_tokens for s in mine) if tower.reads_early(layer) else tokens
            ffn = copies if sent else wanted
            entering, leaving = (copies, copies) if sent and tower.experts.unit == "linear" else (tokens, wanted)
            if not layout.cuts_rows:  # gradients of what enters a branch, sums of what leaves it
                forwards = forwards_of(model)
                rows = entering + ffn + forwards * (leaving + ffn) - (ffn if stops_early(tower) else 0)
                total += rows * tower.width * value
            if tower.experts.is_sparse(layer, tower.depth):
                groups = tower.experts.max_groups if layout.expert > 1 else groups_of(mine)  # gates travel padded
                total += _gate_gradients(tower, tokens, groups, layout)
    return total


def scores_traffic(
    model: ModelConfig, sequences: tuple[SequenceShape, ...], layout: Degrees, losses: int, symmetric: bool
) -> tuple[Collective, ...]:
    """One micro-batch's scores, where tensor ranks share the candidates: three numbers of each read-out and cross-entropy, gradients
    of the compared features and of the scale; the likeliest candidate of each rank, for reports."""
    inputs, candidates, *_ = sequences
    cut = layout.tensor > 1 and candidates.reads >= layout.tensor
    compared = (inputs.reads + candidates.reads) * model.space_width + 1
    reduced = 3 * losses * inputs.reads + (1 + symmetric) * compared
    return (
        Collective("scores", "all-reduce", layout.tensor, cut * reduced * FP32),
        Collective("likeliest candidates", "all-gather", layout.tensor, cut * inputs.reads * (FP32 + INDEX)),
    )


def candidates_traffic(model: ModelConfig, task: TaskLoad, layout: Degrees) -> tuple[Collective, ...]:
    """One micro-batch beside which data ranks share candidates: features forward, their gradients backward."""
    reads = task.sequences[0].reads if task.symmetric and task.scope == "global" else 0
    features = (task.gathered(layout.data, mean=True) + reads) * model.space_width * FP32
    return (
        Collective("candidates", "all-gather", layout.data, features),
        Collective("candidates' gradients", "reduce-scatter", layout.data, layout.data * features),
    )


def _gate_gradients(model: ModelConfig, tokens: int, groups: int, layout: Degrees) -> int:
    """Every tensor rank sees a part of the matrices, so the gradients of the weights that gates give are partial sums."""
    pairs = sparse_linears(model, layout.tensor)
    if model.experts.decides_per_token:
        linears = 1 if model.experts.unit == "mlp" else sum(len(pair) for pair in pairs)
        return linears * sent_copies(model, tokens) * FP32
    if model.experts.router == "task_specific":
        return 0
    return sum(len(pair) for pair in pairs) * groups * model.experts.num_experts * FP32


def merge_traffic(
    model: ModelConfig, sequences: tuple[SequenceShape, ...], layout: Degrees, value: int
) -> tuple[Collective, ...]:
    """One micro-batch, whatever its tokens: merged weights forward, their gradients backward, decisions. Each group gets its
    matrix from the ranks of its experts, at most as many as it chose."""
    ranks = layout.expert
    merged = decisions = 0
    for tower, mine in towers_of(model, sequences):
        sparse = sum(tower.experts.is_sparse(layer, tower.depth) for layer in range(tower.depth))
        pairs = sparse_linears(tower, layout.tensor)
        sums = groups_of(mine) * chosen_peers(tower, ranks)
        merged += sparse * sums * sum(linear.numbers for pair in pairs for linear in pair) * value
        decisions += sparse * len(pairs) * tower.experts.max_groups * model.experts.num_experts * FP32
    forwards = 1 + (model.chunks > 1)  # before a block, whose recomputation does not repeat them
    merged, decisions = merged * model.chunks, decisions * model.chunks
    return (
        Collective("merged weights", "exchange", ranks, merged * forwards),
        Collective("merged weights' gradients", "exchange", ranks, merged),
        Collective("decisions", "all-gather", ranks, decisions * forwards),
        Collective("decisions' gradients", "reduce-scatter", ranks, ranks * decisions),
    )


def dispatch_traffic(
    model: ModelConfig, sequences: tuple[SequenceShape, ...], layout: Degrees, value: int
) -> tuple[Collective, ...]:
    """One micro-batch: rows to their experts and back for each linear (once for whole networks and top-1 FFNs), the same backward."""
    if model.experts.backend == "deepspeed":
        return _slot_traffic(model, sequences, layout, value)
    rows = counts = skipped = agreed = 0
    parts, in_slots = model.experts.exchange_parts, model.experts.exchange == "slots"
    for tower, mine in towers_of(model, sequences):
        copies = expert_rows(tower, sum(s.tokens for s in mine))
        sparse = sum(tower.experts.is_sparse(layer, tower.depth) for layer in range(tower.depth))
        pairs = sparse_linears(tower, layout.tensor)
        numbers = 0
        agreed += in_slots and sparse > 0
        for pair in pairs:
            # The decision's weights go along once; in a whole network, and for a single choice's FFN, hidden rows stay.
            stays = tower.experts.unit == "mlp" or (tower.experts.top_k == 1 and pair is pairs[-1])
            hops = (
                ((pair[0].local_inputs, pair[-1].local_outputs),)
                if stays
                else tuple((linear.local_inputs, linear.local_outputs) for linear in pair)
            )
            numbers += sum(sum(hop) for hop in hops) * value + FP32
        rows += sparse * copies * numbers
        # Of several parts the last one's results alone are sent after all that is kept.
        skipped += sparse * copies * tower.width * value * stops_early(tower) // parts
        if not in_slots:
            counts += sparse * len(pairs) * tower.experts.num_experts * INDEX * model.chunks * parts
    forwards = forwards_of(model)
    return (
        Collective("rows", "all-to-all", layout.expert, rows * forwards - skipped),
        Collective("rows' gradients", "all-to-all", layout.expert, rows),
        Collective("counts", "all-to-all", layout.expert, counts * forwards),
        Collective(
            "numbers of slots", "all-gather", layout.expert, agreed * INDEX * model.chunks * (1 + (model.chunks > 1))
        ),
    )


def _slot_traffic(
    model: ModelConfig, sequences: tuple[SequenceShape, ...], layout: Degrees, value: int
) -> tuple[Collective, ...]:
    """One micro-batch of DeepSpeed's layer: all slots there and back, the same backward. Weights stay at home, where results are
    weighed, so recomputation brings results again."""
    numbers = 0
    for tower, mine in towers_of(model, sequences):
        tokens = sum(s.tokens for s in mine)
        sparse = sum(tower.experts.is_sparse(layer, tower.depth) for layer in range(tower.depth))
        numbers += sparse * 2 * tower.width * expert_rows(tower, tokens)
    return (
        Collective("slots", "all-to-all", layout.expert, numbers * value * forwards_of(model)),
        Collective("slots' gradients", "all-to-all", layout.expert, numbers * value),
    )


def crossover_tokens(model: ModelConfig, layout: Degrees, value: int) -> int:
    """Tokens of a rank's pass (inputs and candidates) above which merging sends fewer bytes than dispatching; 0 where
    nothing is exchanged, or where experts are whole networks and cannot be merged. For one tower and a pass of three groups."""
    if layout.expert == 1 or model.experts.unit == "mlp" or not model.num_decisions:
        return 0

    def dispatched(tokens: int) -> int:
        return sent_in_all(dispatch_traffic(model, (SequenceShape(1, tokens, 1, 1, False),), layout, value))

    many = 1 << 20
    fixed = dispatched(0)
    merged = sent_in_all(merge_traffic(model, THREE_GROUPS, layout, value))
    return round((merged - fixed) * many / (dispatched(many) - fixed))
