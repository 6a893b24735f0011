"""The shared encoder: a stack of blocks, without a final LayerNorm (papers.md 1.3)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from model.attention import KeysValues
from model.block import Block, Drawn, Merged
from model.config import ModelConfig
from model.layout import PassLayout
from model.moe.gates import gates_of
from model.moe.layer import DispatchPath
from model.moe.report import Report, RoutingReport, summed_up
from model.moe.router import drawn_at_once
from model.noise import Key, derive, each, uniform
from model.reading import ReadTokens
from model.residual import Residual, Stream
from model.sequence_rows import WHOLE, CutRows, Rows, WholeRows
from parallel.dispatch_plan import agreed_slots
from parallel.kernels import Kernels
from parallel.mesh import Mesh

DECISIONS = (torch.ops.aten.sort.stable, torch.ops.aten.lt.Tensor)
"""What routing decides with: ranks of experts and of tokens, and which second choices are asked for. Kept under activation
checkpointing, so that recomputation sends every token where it went, also where a device does not repeat its sums to the last bit."""


class Encoder(nn.Module):
    def __init__(self, config: ModelConfig, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        self.merges = config.num_decisions > 0 and not config.experts.decides_per_token
        self.sequence, self.expert = mesh.sequence, mesh.expert
        self.drop_path, self.experts = config.drop_path, config.experts
        self.reads_early = config.reads_early(config.depth - 1) and mesh.sequence.size == 1
        # Prompts are joined to every row's keys.
        self.packs = kernels.packed_attention is not None and config.prompts is None
        self.recompute = config.activation_checkpointing == "block"
        self.residual = Residual.of(kernels)
        self.blocks = nn.ModuleList(Block(config, layer, mesh, kernels) for layer in range(config.depth))

    def merged_for(self, layout: PassLayout) -> tuple[Merged, ...]:
        """The decisions that merge experts, by layer, without noise."""
        return tuple(merged for _, merged in self._merging(layout, None))

    def continue_from(
        self, x_TD: Tensor, layout: PassLayout, past: tuple[KeysValues, ...], merged: tuple[Merged, ...]
    ) -> tuple[Tensor, tuple[KeysValues, ...]]:
        """More tokens of sequences whose keys and values are known by layer (none yet: an empty tuple), without noise and
        gradients -> (x_TD, keys and values of the new tokens by layer). merged: for these tokens, or others of the same groups.
        Rows are never cut: there are few."""
        assert self.sequence.size == 1 or not torch.is_grad_enabled(), (
            "gradients of norms would count once a tensor rank"
        )
        rows = WholeRows(self.sequence)
        stream, all_new = Stream(x_TD), []
        for layer, block in enumerate(self.blocks):
            before = past[layer] if past else None
            of_these = tuple(one and one.of_tokens(layout) for one in merged[layer])
            stream, _, (new,) = block(stream, layout, None, of_these, past=before, rows=rows)
            assert new is not None, "rows that are to go on are not packed"
            all_new.append(new)
        return self.residual.settled(stream).x_TD, tuple(all_new)

    def forward(
        self, x_TD: Tensor, layout: PassLayout, reads: ReadTokens | None = None
    ) -> tuple[Tensor, tuple[RoutingReport, ...]]:
        """All tokens of a pass -> (x_TD, or x_RD of those that are read, reports in the order of the decisions). The layout's counters
        know the pass, so that noise keys of layers are the same in all of them."""
        last = len(self.blocks) - 1
        noise: Key = 0 if layout.draws else None
        layout = self._with_slots(layout, noise)
        rows: Rows = WHOLE
        if self.sequence.size > 1:
            rows = CutRows(self.sequence, layout.num_tokens)
            x_TD = rows.take(x_TD)
        keep_TX = self._kept(layout, noise, rows)
        stream, reports = Stream(x_TD), list[Report]()
        numbers = self._drawn(layout, noise)
        for layer, (block, merged) in enumerate(self._merging(layout, noise)):
            run = functools.partial(self._settled, block) if self.recompute and torch.is_grad_enabled() else block
            keep_T2 = None if keep_TX is None else keep_TX[:, 2 * layer : 2 * layer + 2]
            early = reads if layer == last and self.reads_early else None
            key = derive(noise, layer)
            stream, more, _ = run(stream, layout, key, merged, keep_T2, numbers[layer], rows=rows, reads=early)
            reports += more
        x_TD = self.residual.settled(stream).x_TD
        if isinstance(rows, CutRows):
            x_TD = rows.give(x_TD)
        if reads is not None and not self.reads_early:
            x_TD = x_TD.index_select(0, reads.token_R)
        return x_TD, summed_up(reports, layout)

    def _blocks(self) -> list[Block]:
        """With their type, which a ModuleList forgets."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def _settled(self, block: nn.Module, *call: Any, **options: Any) -> Any:
        """A block that is computed again: the sum at its end is kept, and neither of its terms."""

        def run(*call: Any, **options: Any) -> Any:
            stream, *rest = block(*call, **options)
            return self.residual.settled(stream), *rest

        return recomputed(run)(*call, **options)

    def _merging(self, layout: PassLayout, noise: Key) -> Iterator[tuple[Block, Merged]]:
        """The blocks with their decisions that merge experts. Weights of a block travel while the one before it is computed, and
        recomputation keeps them."""
        blocks = self._blocks()
        routers = [router for block in blocks for router in block.group_routers]
        gates = iter(
            gates_of(routers, layout, derive(noise, "gates"), self.expert, self.experts.max_groups) if routers else ()
        )

        def start(block: Block) -> Callable[[], Merged]:
            return block.start_merges(layout, [next(gates) for _ in block.group_routers])

        waiting = start(blocks[0])
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            ahead = start(following) if following else None
            yield block, waiting()
            if ahead:
                waiting = ahead

    def _with_slots(self, layout: PassLayout, noise: Key) -> PassLayout:
        """Where rows travel in slots, with those of all expert ranks: collective, once a pass, as all decisions have the same."""
        paths = [path for block in self._blocks() for path in block.paths]
        router = next((path.router for path in paths if isinstance(path, DispatchPath)), None)
        if router is None or self.expert.size == 1 or self.experts.exchange != "slots":
            return layout
        slots_G = router.slots(layout, noise)
        if slots_G is None:
            return layout
        return dataclasses.replace(layout, slots_S=agreed_slots(sum(slots_G), layout.device, self.expert))

    def _drawn(self, layout: PassLayout, noise: Key) -> list[Drawn]:
        """Of each layer the numbers of its gates' noise, where they look at tokens."""
        blocks = self._blocks()
        decisions = sum(isinstance(path, DispatchPath) for block in blocks for path in block.paths)
        numbers = iter(drawn_at_once(self.experts, decisions, derive(noise, "gates"), layout))

        def of(path: nn.Module | None) -> Tensor | None:
            return next(numbers) if isinstance(path, DispatchPath) else None

        return [(of(first), of(second)) for first, second in (block.paths for block in blocks)]

    def _kept(self, layout: PassLayout, noise: Key, rows: Rows) -> Tensor | None:
        """What dropped paths leave of every branch of every layer, for each token of this rank: 0 or 1 / share kept."""
        if noise is None or not self.drop_path:
            return None
        drawn_RX = uniform(derive(noise, "drop"), each(layout.counter_R, 2 * len(self.blocks)))
        keep_RX = (drawn_RX >= self.drop_path).float() / (1 - self.drop_path)
        return rows.each(keep_RX.index_select(0, layout.row_T))


def recomputed(function):
    """The function, its activations computed again in the backward pass; routing decisions are kept."""
    contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    # All randomness comes from noise keys, so there is no generator state to restore.
    return functools.partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _policy(context, operation, *args, **kwargs) -> CheckpointPolicy:
    kept = operation in DECISIONS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
