"""Weights of another run in a fresh network: as they are, tokens by what they mean, experts as copies of dense layers.

Prompts, biases of <SPE> and linear heads belong to a task and always start fresh. Everything else of the other run must find its place, and
what the network has besides must be of a kind that may be new; so a mistaken option is an error, and not a network that knows half.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
from collections.abc import Collection

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.exchange.export.errors import ExportError
from model.exchange.export.folder import Export, unlike
from model.objective import Objective
from model.tuning.trained import HEAD
from parallel.checkpoints import Checkpoint, CheckpointError, load_parts
from parallel.placement import Placement, placement_of

ALWAYS_NEW = ("*prompts", "*.spe_bias", *HEAD)
MAY_BE_NEW = ("log_scales.*", "logit_biases.*", "*.lora.*")
"""Besides those: logit scales and biases of new kinds of tasks, and updates that start at zero."""
MAY_BE_LEFT = (*ALWAYS_NEW, "log_scales.*", "logit_biases.*")
"""What the other run may have and this network not."""
ROUTER = "*.router.*"
TOKENS, POSITIONS = "*.embedding.tokens.weight", "*.embedding.spatial_positions"
KINDS = ("router", "lora", "prompts", "spe_bias", "head", "similarity_weight", "log_scales", "logit_biases")
"""Words in names, for people."""


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Names of the network's parameters by where their values are from; left_out: what the other run has and this network has not.
    tokens: (rows that were found, rows), where the vocabularies differ."""

    as_it_is: tuple[str, ...]
    copied: tuple[str, ...]
    new: tuple[str, ...]
    left_out: tuple[str, ...]
    tokens: tuple[int, int] | None = None

    def __str__(self) -> str:
        """One line for people."""
        parts = [f"{len(self.as_it_is)} tensors as they are"]
        if self.tokens:
            parts.append(f"{self.tokens[0]:,} of {self.tokens[1]:,} tokens by name")
        if self.copied:
            parts.append(f"{len(self.copied)} banks of experts copied from dense layers")
        parts.append(f"new: {summary(self.new)}")
        if self.left_out:
            parts.append(f"left there: {summary(self.left_out)}")
        return ", ".join(parts)


def warm_start(
    objective: Objective, checkpoint: Checkpoint, theirs: ModelConfig, old_ids: tuple[int, ...], ids: tuple[int, ...]
) -> WarmStart:
    """Collective. theirs: options of the checkpoint's network; old_ids, ids: the CLIP id of every row of the token tables, there and here.

    Raises CheckpointError, on all ranks, for a checkpoint of another network.
    """
    own = dict(objective.named_parameters())
    taken = {name for name in own.keys() & checkpoint.names if not _matches(name, ALWAYS_NEW)}
    dense = {name: dense_name(name) for name in own.keys() - taken}
    copied = {name: source for name, source in dense.items() if name != source and source in checkpoint.names}
    new = own.keys() - taken - copied.keys()
    allowed = (*ALWAYS_NEW, *MAY_BE_NEW, *((ROUTER,) if copied else ()))
    left_out = checkpoint.names - taken - set(copied.values())
    missing = [name for name in new if not _matches(name, allowed)]
    unknown = [name for name in left_out if not _matches(name, MAY_BE_LEFT)]
    if missing or unknown:
        raise CheckpointError(
            f"{checkpoint.folder} is of another model: missing {sorted(missing)[:5]}, unknown {sorted(unknown)[:5]}; "
            "leave out options of `model` that differ from that run's, or choose with init_only"
        )
    check_same_use(checkpoint, theirs, objective.config, {*taken, *copied.values()})
    for name, source in sorted(copied.items()):
        _check_shape(checkpoint, source, name, placement_of(own[name]).shape[1:], objective.config)
    start = _taken(objective, checkpoint, taken, old_ids, ids)
    load_parts(
        checkpoint,
        [(own[name].data[0], source, _of_one_expert(own[name])) for name, source in sorted(copied.items())],
    )
    with torch.no_grad():
        for name in copied:
            own[name][1:] = own[name][:1]
    return dataclasses.replace(
        start, copied=tuple(sorted(copied)), new=tuple(sorted(new)), left_out=tuple(sorted(left_out))
    )


def take_only(
    objective: Objective,
    checkpoint: Checkpoint,
    only: tuple[str, ...],
    theirs: ModelConfig,
    old_ids: tuple[int, ...],
    ids: tuple[int, ...],
) -> WarmStart:
    """Collective. The same of the parameters alone whose names match one of the patterns; each must find something. All others stay as they
    are."""
    names = dict(objective.named_parameters()).keys()
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            raise CheckpointError(
                f"no parameter of the model matches {pattern!r}, which is to be taken from {checkpoint.folder}"
            )
    taken = {name for name in names if _matches(name, only)}
    missing = sorted(taken - checkpoint.names)
    if missing:
        raise CheckpointError(f"{checkpoint.folder} is of another model: it has no {', '.join(missing[:5])}")
    check_same_use(checkpoint, theirs, objective.config, taken)
    return _taken(objective, checkpoint, taken, old_ids, ids)


def check_same_use(checkpoint: Checkpoint, theirs: ModelConfig, ours: ModelConfig, names: Collection[str]) -> None:
    """Raises CheckpointError where weights of these names would be used otherwise than they were trained, which no shape tells."""
    if options := unlike(theirs, ours, names):
        raise CheckpointError(
            f"{checkpoint.folder} is of another model: {'; '.join(options)}: weights of the same shapes mean something else there; set "
            "these as there"
        )


def _taken(
    objective: Objective, checkpoint: Checkpoint, names: Collection[str], old_ids: tuple[int, ...], ids: tuple[int, ...]
) -> WarmStart:
    """With these weights in their places, tokens by what they mean. Collective."""
    own = dict(objective.named_parameters())
    tokens = {name for name in names if fnmatch.fnmatchcase(name, TOKENS)} if old_ids != ids else set()
    as_it_is = sorted(set(names) - tokens)
    for name in (*as_it_is, *tokens):
        rows, *rest = placement_of(own[name]).shape
        rows = checkpoint.shape(name)[0] if name in tokens else rows
        _check_shape(checkpoint, name, name, (rows, *rest), objective.config)
    load_parts(checkpoint, [(own[name], name, placement_of(own[name])) for name in as_it_is])
    found = 0
    with torch.no_grad():
        for name in sorted(tokens):
            found = _map_rows(own[name], checkpoint.logical(name), old_ids, ids)
    new = tuple(sorted(own.keys() - set(names)))
    return WarmStart(tuple(as_it_is), (), new, (), (found, len(ids)) if tokens else None)


def warm_start_from_export(objective: Objective, export: Export) -> WarmStart:
    """The same of an exported folder, of which experts are not copied and the vocabulary is this one. Raises ExportError."""
    own, there = dict(objective.named_parameters()).keys(), export.shapes.keys()
    new = {name for name in own if _matches(name, ALWAYS_NEW)}
    new |= {name for name in own - there if _matches(name, MAY_BE_NEW)}
    left_out = {name for name in there - (own - new) if _matches(name, MAY_BE_LEFT)}
    for name in fnmatch.filter(own & there, POSITIONS):
        found, wanted = export.shapes[name], placement_of(objective.get_parameter(name)).shape
        if found != wanted:
            raise ExportError(f"{export.folder}: {_other_shape(name, found, name, wanted, objective.config)}")
    export.load(objective, leave=frozenset(new | left_out))
    return WarmStart(tuple(sorted(own - new)), (), tuple(sorted(new)), tuple(sorted(left_out)))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def dense_name(name: str) -> str:
    """Of the dense layer in whose place a bank is: of linears, or of whole networks."""
    return (
        name.replace(".bank.", ".linear.")
        .replace(".ffn.experts.up.", ".ffn.up.linear.")
        .replace(".ffn.experts.down.", ".ffn.down.linear.")
    )


def _of_one_expert(parameter: nn.Parameter) -> Placement:
    """Where one expert's part lies in the dense layer."""
    whole = placement_of(parameter)
    cuts = tuple(dataclasses.replace(cut, dim=cut.dim - 1) for cut in whole.cuts if cut.dim)
    return Placement(whole.shape[1:], cuts)


def _check_shape(checkpoint: Checkpoint, source: str, name: str, shape: tuple[int, ...], ours: ModelConfig) -> None:
    found = checkpoint.shape(source)
    if found != shape:
        raise CheckpointError(f"{checkpoint.folder}: {_other_shape(source, found, name, shape, ours)}")


def _other_shape(source: str, found: tuple[int, ...], name: str, wanted: tuple[int, ...], ours: ModelConfig) -> str:
    """What is wrong, and the remedy."""
    remedy = "leave out options of `model` that differ from that run's"
    if fnmatch.fnmatchcase(name, POSITIONS) and found[2:] == wanted[2:]:
        scale = found[0] / (ours.image_size // ours.patch)
        remedy = (
            f"for images of another size set model.position_grid={found[0]}, which keeps the table, and model.position_scale={scale:.6g}, "
            "which spreads it over the image"
        )
    return f"{source} has shape {found}, this model needs {wanted} for {name}: {remedy}"


def _map_rows(table: nn.Parameter, old: Tensor, old_ids: tuple[int, ...], ids: tuple[int, ...]) -> int:
    """Rows of this rank's part of the table [V, D] from those of the other one with the same CLIP id; returns how many of all rows of
    the whole table have one."""
    row_of = {clip: row for row, clip in enumerate(old_ids)}
    placement = placement_of(table)
    start = placement.cuts[0].index * len(table) if placement.cuts else 0
    pairs = [(own - start, row_of[clip]) for own, clip in enumerate(ids) if clip in row_of]
    here = [(own, row) for own, row in pairs if 0 <= own < len(table)]
    if here:
        to, source = (torch.tensor(rows) for rows in zip(*here, strict=True))
        table[to] = old[source].to(table.dtype)
    return len(pairs)


def summary(names: tuple[str, ...]) -> str:
    """How many of each kind."""
    kinds = collections.Counter(next((kind for kind in KINDS if kind in name), "other") for name in names)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "nothing"
