"""The network of an exported run, in plain torch. It needs torch and safetensors; with transformers, `AutoModel.from_pretrained(FOLDER,
trust_remote_code=True)` loads it, without, `SparseGeneralistModel.load(FOLDER)`.

    model.encode_image(pictures)            unit vectors [N, W]; pictures: PIL images, arrays [H, W, 3], or pixels [N, 3, S, S] of bytes
    model.encode_video(clips)               the same of lists of frames, or pixels [N, T, 3, S, S]
    model.encode_text(["a red circle"])     unit vectors in the same space
    model.classify(pictures, names)         probabilities [N, names]; texts in place of pictures are read in the task's template
    model.answer(pictures, questions)       probabilities [N, answers]
    model.caption(pictures)                 sentences, by beam search

Legend: B rows, L positions (<SPE> first), D width, H heads, d head width, E experts, K choices, P positions of all rows, O out, I in,
G routing groups, N captions under way, C candidates, W width of the compared space.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, normalize, one_hot, scaled_dot_product_attention

if __package__:  # transformers copies what is imported so
    from .processing_sparse_generalist import SparseGeneralistProcessor
else:  # this file alone: the other one lies beside it
    _spec = importlib.util.spec_from_file_location(
        "processing_sparse_generalist", Path(__file__).with_name("processing_sparse_generalist.py")
    )
    assert _spec is not None and _spec.loader is not None
    sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_spec.name])
    SparseGeneralistProcessor = sys.modules[_spec.name].SparseGeneralistProcessor  # type: ignore[misc]

try:
    from transformers import PretrainedConfig, PreTrainedModel
except ImportError:  # the network itself does not need it

    class PretrainedConfig:  # type: ignore[no-redef]
        def __init__(self, **options: Any) -> None:
            self.__dict__.update(options)

    class PreTrainedModel(nn.Module):  # type: ignore[no-redef]
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.config = config

        def post_init(self) -> None:
            pass


TEXT, IMAGE, VIDEO = range(3)
PREFIX, CAUSAL, READOUT = range(3)
"""Who sees a part: everyone; words from its position on, and read-outs of later positions; itself alone."""
MEDIUM = {TEXT: "text", IMAGE: "image", VIDEO: "video"}
TEMPLATED = ("text_classification", "vqa")
"""Kinds that read a text in a template."""
COMPARED = ("classification", *TEMPLATED)
"""Kinds whose names and answers are compared, unless they were trained to be written (`answer: generate`)."""
MAX_LOGIT_SCALE = 100.0
ROWS = 1024
"""Candidates that are encoded in one pass."""


@dataclasses.dataclass
class Part:
    """Tokens of one modality and one attribute vector: ids [B, L], or patches [B, L, values]; positions [B, L] of words, or
    [B, L, (frame, row, column)]. attributes: a name in the configuration."""

    modality: int
    values: Tensor
    positions: Tensor
    valid_BL: Tensor
    attributes: str
    visibility: int = PREFIX


@dataclasses.dataclass
class Pass:
    """What the layers must know: which positions are real, who sees whom, and the condition of each span of positions.

    spans: (number of positions, attributes, modality). memo: weights that were merged in this call, by bank and condition.
    """

    valid_BL: Tensor
    prefix_L: Tensor
    mask_BLL: Tensor | None
    spans: list[tuple[int, str, int]]
    task: int
    is_target: bool
    memo: dict[Any, tuple[Tensor, Tensor]]


class Bank(nn.Module):
    """Linear experts: weight [E, O, I], bias [E, O]."""

    def __init__(self, num_experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(num_experts, outputs))

    def merged(self, gates_E: Tensor) -> tuple[Tensor, Tensor]:
        """One linear that does what the experts do together."""
        gates_E = gates_E.to(self.weight.dtype)
        return torch.tensordot(gates_E, self.weight, 1), torch.tensordot(gates_E, self.bias, 1)

    def expert(self, number: int) -> Callable[[Tensor], Tensor]:
        return lambda x: linear(x, self.weight[number], self.bias[number])


class Groups:
    """One decision for each span of positions: linears with merged weights, one after another."""

    def __init__(self, gates: list[tuple[int, Any, Tensor]], memo: dict[Any, tuple[Tensor, Tensor]]) -> None:
        self.gates, self.memo = gates, memo

    def apply(self, bank: Bank, x_BLI: Tensor, before: int = 0) -> Tensor:
        """before: prompts in front, which belong to the first span."""
        parts, start = [], 0
        for number, (length, key, gates_E) in enumerate(self.gates):
            end = start + length + (before if number == 0 else 0)
            if (bank, key) not in self.memo:
                self.memo[bank, key] = bank.merged(gates_E)
            parts.append(linear(x_BLI[:, start:end], *self.memo[bank, key]))
            start = end
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class Tokens:
    """One decision for each token: gates_BLE, zero for experts that do not get it."""

    def __init__(self, gates_BLE: Tensor) -> None:
        self.gates_PE = gates_BLE.flatten(0, 1)

    def apply(self, bank: Bank, x_BLI: Tensor, before: int = 0) -> Tensor:
        return self.spread([bank.expert(e) for e in range(len(bank.weight))], x_BLI)

    def spread(self, experts: list[Callable[[Tensor], Tensor]], x_BLI: Tensor) -> Tensor:
        x_PI = x_BLI.flatten(0, 1)
        y_PO: Tensor | None = None
        for number, expert in enumerate(experts):
            gate_P = self.gates_PE[:, number].to(x_PI.dtype)
            if (
                torch.compiler.is_compiling()
            ):  # a graph has no shapes that depend on data: every expert sees every token
                one_PO = gate_P[:, None] * expert(x_PI)
                y_PO = one_PO if y_PO is None else y_PO + one_PO
                continue
            rows_R = gate_P.nonzero().squeeze(1)
            one_RO = gate_P[rows_R, None] * expert(x_PI[rows_R])
            y_PO = one_RO.new_zeros(len(x_PI), one_RO.shape[1]) if y_PO is None else y_PO
            y_PO = y_PO.index_add(0, rows_R, one_RO)
        assert y_PO is not None
        return y_PO.unflatten(0, x_BLI.shape[:2])


Decision = Groups | Tokens | None


class Router(nn.Module):
    """Gates of experts in fp32: of a condition (attribute, modality, task), or of every token (token, context)."""

    def __init__(self, net: dict[str, Any]) -> None:
        super().__init__()
        self.net, self.experts = net, net["experts"]
        kind, width, experts = self.experts["router"], net["width"], self.experts["num_experts"]
        if kind == "attribute":
            self.embed: nn.Module = nn.Linear(len(net["attributes"]["visual_input"]), width)
            self.norm = nn.LayerNorm(width)
        elif kind in ("modality", "task"):
            self.embed = nn.Embedding(len(net["tasks"]) if kind == "task" else 3, width)
        if kind == "context" and self.experts["pooling"] == "attention":
            self.query = nn.Linear(width, 1, bias=False)
        if kind not in ("task_specific", "fixed"):
            self.gate = nn.Linear(2 * width if kind == "context" else width, experts, bias=False)

    def of_groups(self, about: Pass) -> Groups:
        found = []
        for length, attributes, modality in about.spans:
            key = key_of(self.net, attributes, modality, about.task)
            found.append((length, key, self.gates_of(key)))
        return Groups(found, about.memo)

    def gates_of(self, key: tuple[int, ...]) -> Tensor:
        kind, device = self.experts["router"], self._device()
        if kind in ("task_specific", "fixed"):
            number = key[0] if kind == "task_specific" else self.net["merged"]["keys"].index(list(key))
            return one_hot(torch.tensor(number, device=device), self.experts["num_experts"]).float()
        if kind == "attribute":
            bits_A = torch.tensor(key, dtype=self.gate.weight.dtype, device=device)
            state_D = self.norm(self.embed(bits_A))
        else:
            state_D = self.embed(torch.tensor(key[0], device=device))
        logits_1E = linear(state_D[None].float(), self.gate.weight.float())
        ids_1K, weights_1K = self._best(logits_1E)
        return torch.zeros_like(logits_1E).scatter(1, ids_1K, weights_1K)[0]

    def _device(self) -> torch.device | None:
        return next((p.device for p in self.parameters()), None)

    def of_tokens(self, x_BLD: Tensor, about: Pass) -> Tokens:
        features_BLF = x_BLD.float()
        if self.experts["router"] == "context":
            seen_BL = about.valid_BL & about.prefix_L
            scores_BL = torch.zeros_like(x_BLD[..., 0], dtype=torch.float32)
            if self.experts["pooling"] == "attention":
                scores_BL = linear(features_BLF, self.query.weight.float()).squeeze(-1) / math.sqrt(x_BLD.shape[-1])
            share_BL = scores_BL.masked_fill(~seen_BL, -math.inf).softmax(dim=1)
            context_BD = torch.einsum("bl,bld->bd", share_BL, features_BLF)
            features_BLF = torch.cat([features_BLF, context_BD[:, None].expand_as(x_BLD)], dim=-1)
        logits_PE = linear(features_BLF, self.gate.weight.float()).flatten(0, 1)
        ids_PK, weights_PK = self._best(logits_PE)
        kept_PK = about.valid_BL.flatten()[:, None].expand_as(ids_PK)
        factor = self.experts["eval_capacity_factor"]
        factor = self.experts["capacity_factor"] if factor is None else factor
        if factor:
            raw_PK = logits_PE.softmax(dim=-1).gather(1, ids_PK)
            kept_PK = self._with_slot(ids_PK, raw_PK, about.valid_BL, factor)
        gates_PE = torch.zeros_like(logits_PE).scatter(1, ids_PK, weights_PK * kept_PK)
        return Tokens(gates_PE.unflatten(0, x_BLD.shape[:2]))

    def _best(self, logits_NE: Tensor) -> tuple[Tensor, Tensor]:
        """(experts, weights) of each row, best first; of equal ones the lowest number first."""
        k = self.experts["eval_top_k"] or self.experts["top_k"]
        ids_NK = ranked(logits_NE, k)
        if self.experts["renormalise"] and k > 1:
            return ids_NK, logits_NE.gather(1, ids_NK).softmax(dim=-1)
        return ids_NK, logits_NE.softmax(dim=-1).gather(1, ids_NK)

    def _with_slot(self, ids_PK: Tensor, raw_PK: Tensor, valid_BL: Tensor, factor: float) -> Tensor:
        """Which choices find one of their expert's slots: first choices of all tokens before second ones, by falling priority."""
        experts, size = self.experts["num_experts"], self.experts["group_size"]
        positions, k = ids_PK.shape
        rows = valid_BL.shape[0]
        groups = math.ceil(rows / size) if size else 1
        group_B = torch.arange(rows, device=ids_PK.device) // (size or rows)
        group_P = group_B[:, None].expand_as(valid_BL).flatten()
        valid_P = valid_BL.flatten()
        in_group_PG = one_hot(group_P, groups) * valid_P[:, None]
        tokens_G = in_group_PG.sum(dim=0)
        exact_G = tokens_G.double() * k * factor / experts
        ceil = self.experts["capacity_rounding"] == "ceil"
        slots_G = torch.ceil(exact_G - 1e-9) if ceil else torch.floor(exact_G + 0.5)
        multiple = self.experts["capacity_multiple"]
        slots_G = torch.minimum((torch.ceil(slots_G / multiple) * multiple).long(), tokens_G).clamp(min=1)
        priority = self.experts["priority"]
        priority_P = {"none": torch.zeros_like(raw_PK[:, 0]), "max": raw_PK[:, 0], "sum": raw_PK.sum(dim=1)}[priority]
        order_P = ranked(priority_P, positions)
        key_PK = ids_PK + experts * group_P[:, None]
        asked_NX = one_hot(key_PK[order_P].T.flatten(), groups * experts) * valid_P[order_P].repeat(k)[:, None]
        place_N = ((asked_NX.cumsum(dim=0) - asked_NX) * asked_NX).sum(dim=1)
        slots_N = slots_G[group_P[order_P].repeat(k)]
        kept_PK = ((place_N < slots_N) & (asked_NX.sum(dim=1) > 0)).view(k, positions).T
        return torch.zeros_like(kept_PK).scatter(0, order_P[:, None].expand_as(kept_PK), kept_PK)


def ranked(values: Tensor, count: int) -> Tensor:
    """Places of the `count` largest along the last dimension, of equal ones the first. A graph has no stable sort; the runtimes of ONNX
    take the first of equal ones, too."""
    if torch.compiler.is_compiling():
        return values.topk(count, dim=-1).indices
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def key_of(net: dict[str, Any], attributes: str, modality: int, task: int) -> tuple[int, ...]:
    """What the routers of groups decide by. Raises ValueError for what the merged weights are not of."""
    merged = net["merged"]
    kind = merged["router"] if merged else net["experts"]["router"]
    key = {"attribute": tuple(net["attributes"][attributes]), "modality": (modality,)}.get(kind, (task,))
    if merged and list(key) not in merged["keys"]:
        raise ValueError(
            f"the experts of this export are merged for {merged['of']}: it has no weights for {attributes}"
        )
    return key


class RouterPath(nn.Module):
    def __init__(self, net: dict[str, Any]) -> None:
        super().__init__()
        self.router = Router(net)


class Projection(nn.Module):
    """A linear, or a bank of them."""

    def __init__(self, net: dict[str, Any], inputs: int, outputs: int, sparse: bool) -> None:
        super().__init__()
        if sparse:
            self.bank = Bank(net["experts"]["num_experts"], inputs, outputs)
        else:
            self.linear = nn.Linear(inputs, outputs)

    def forward(self, x_BLI: Tensor, decision: Decision, before: int = 0) -> Tensor:
        return self.linear(x_BLI) if decision is None else decision.apply(self.bank, x_BLI, before)


class Attention(nn.Module):
    def __init__(self, net: dict[str, Any], sparse: bool) -> None:
        super().__init__()
        self.head_width = net["width"] // net["heads"]
        self.qkv = Projection(net, net["width"], 3 * net["width"], sparse)
        self.out = Projection(net, net["width"], net["width"], sparse)

    def forward(self, x_BLD: Tensor, about: Pass, decision: Decision, prompts: Tensor | None) -> Tensor:
        """prompts [prompts, D] are seen by all and ask nothing."""
        before = 0 if prompts is None else len(prompts)
        mask = about.mask_BLL
        if prompts is not None:
            x_BLD = torch.cat([prompts.expand(x_BLD.shape[0], -1, -1), x_BLD], dim=1)
            mask = None if mask is None else torch.cat([mask.new_ones(*mask.shape[:2], before), mask], dim=2)
        qkv_BLF = self.qkv(x_BLD, decision, before)
        q_BHLd, k_BHLd, v_BHLd = qkv_BLF.unflatten(2, (-1, 3, self.head_width)).permute(3, 0, 2, 1, 4).unbind(0)
        mask = None if mask is None else mask.unsqueeze(1)
        y_BHLd = scaled_dot_product_attention(q_BHLd[:, :, before:], k_BHLd, v_BHLd, attn_mask=mask)
        return self.out(y_BHLd.transpose(1, 2).flatten(2), decision)


class ExpertNetworks(nn.Module):
    """Experts that are whole networks."""

    def __init__(self, num_experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = Bank(num_experts, width, hidden), Bank(num_experts, hidden, width)

    def functions(self) -> list[Callable[[Tensor], Tensor]]:
        return [self._function(number) for number in range(len(self.up.weight))]

    def _function(self, number: int) -> Callable[[Tensor], Tensor]:
        up, down = self.up.expert(number), self.down.expert(number)
        return lambda x: down(gelu(up(x)))


class FeedForward(nn.Module):
    """Linear, GELU, linear; where an expert is a whole network, a bank of these."""

    def __init__(self, net: dict[str, Any], sparse: bool) -> None:
        super().__init__()
        self.whole = sparse and net["experts"]["unit"] == "mlp"
        pair = (net["width"], net["ffn"]), (net["ffn"], net["width"])
        if self.whole:
            self.experts = ExpertNetworks(net["experts"]["num_experts"], *pair[0])
        else:
            self.up, self.down = (Projection(net, *shape, sparse) for shape in pair)

    def forward(self, x_BLD: Tensor, decision: Decision) -> Tensor:
        if not self.whole:
            return self.down(gelu(self.up(x_BLD, decision)), decision)
        assert isinstance(decision, Tokens)
        return decision.spread(self.experts.functions(), x_BLD)


def is_sparse(net: dict[str, Any], layer: int) -> bool:
    kind, _, count = net["experts"]["placement"].partition("-")
    if kind == "every":
        return (layer + 1) % int(count) == 0
    if kind == "last":
        return layer in range(1, net["depth"], 2)[-int(count) :]
    return {"odd": layer % 2 == 0, "four": layer % 4 == 0, "all": True, "none": False}[kind]


class Block(nn.Module):
    """x + s Attention(LN x), then x + s FeedForward(LN x); a router decides once for each."""

    def __init__(self, net: dict[str, Any], layer: int) -> None:
        super().__init__()
        width, prompts, sparse = net["width"], net["prompts"], is_sparse(net, layer)
        in_attention = sparse and net["experts"]["unit"] == "linear"
        self.per_token = net["experts"]["router"] in ("token", "context")
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.ffn = Attention(net, in_attention), FeedForward(net, sparse)
        scaled = net["layer_scale"] > 0
        self.attention_scale = nn.Parameter(torch.empty(width)) if scaled else None
        self.ffn_scale = nn.Parameter(torch.empty(width)) if scaled else None
        self.attention_path = RouterPath(net) if in_attention else None
        self.ffn_path = RouterPath(net) if sparse else None
        self.prompts = nn.Parameter(torch.empty(prompts["length"], width)) if prompts else None
        own = prompts and prompts["target_length"]
        self.target_prompts = nn.Parameter(torch.empty(own, width)) if own else None

    def forward(self, x_BLD: Tensor, about: Pass) -> Tensor:
        prompts = self.target_prompts if about.is_target and self.target_prompts is not None else self.prompts
        prompts = None if prompts is None else self.attention_norm(prompts)
        normed = self.attention_norm(x_BLD)
        branch = self.attention(normed, about, self._decision(self.attention_path, normed, about), prompts)
        x_BLD = x_BLD + (branch if self.attention_scale is None else branch * self.attention_scale)
        normed = self.ffn_norm(x_BLD)
        branch = self.ffn(normed, self._decision(self.ffn_path, normed, about))
        return x_BLD + (branch if self.ffn_scale is None else branch * self.ffn_scale)

    def _decision(self, path: RouterPath | None, x_BLD: Tensor, about: Pass) -> Decision:
        if path is None:
            return None
        router = path.router
        return router.of_tokens(x_BLD, about) if self.per_token else router.of_groups(about)


class Embedding(nn.Module):
    """LN(word + position + type), LN(patch + frame + place), LN(<SPE>)."""

    def __init__(self, net: dict[str, Any]) -> None:
        super().__init__()
        width, self.net = net["width"], net
        self.tokens = nn.Embedding(net["token_rows"], width)
        self.text_positions = nn.Embedding(net["max_text"], width)
        self.text_type = nn.Parameter(torch.empty(width))
        self.patches = nn.Linear(3 * net["patch"] ** 2, width)
        self.frames = nn.Embedding(net["max_frames"], width)
        side = net["position_grid"] or net["image_size"] // net["patch"]
        learned = net["positions"] == "learned"
        self.spatial_positions = nn.Parameter(torch.empty(side, side, width)) if learned else None
        self.norm = nn.LayerNorm(width)
        self.spe_bias = nn.Parameter(torch.empty(width)) if net["prompts"] else None

    def forward(self, parts: Sequence[Part]) -> Tensor:
        first = parts[0].valid_BL
        spe_B1 = torch.full_like(first[:, :1], self.net["spe"], dtype=torch.long)
        states = [self._lookup(spe_B1)]
        states += [self._text(part) if part.modality == TEXT else self._visual(part) for part in parts]
        return self.norm(torch.cat(states, dim=1))

    def _lookup(self, ids_BL: Tensor) -> Tensor:
        x_BLD = self.tokens(ids_BL)
        return x_BLD if self.spe_bias is None else x_BLD + (ids_BL == self.net["spe"])[..., None] * self.spe_bias

    def _text(self, part: Part) -> Tensor:
        if part.values.shape[1] > self.net["max_text"]:
            raise ValueError(f"a text of {part.values.shape[1]} tokens: the model reads {self.net['max_text']} at most")
        return self._lookup(part.values) + self.text_positions(part.positions) + self.text_type

    def _visual(self, part: Part) -> Tensor:
        """Bytes become (byte / 255 - mean) / deviation here."""
        pixels = self.net["pixels"][MEDIUM[part.modality]]
        mean_C1, std_C1 = (
            torch.tensor(pixels[name], device=part.values.device)[:, None] * 255 for name in ("mean", "std")
        )
        values = ((part.values.unflatten(-1, (3, -1)).float() - mean_C1) / std_C1).flatten(-2)
        frame_BL, grid_BL2 = part.positions[..., 0], part.positions[..., 1:]
        scale, width = self.net["position_scale"], self.net["width"]
        if self.spatial_positions is None:
            spatial = sine_cosine(grid_BL2, width, scale)
        else:
            spatial = interpolated(self.spatial_positions.float(), grid_BL2 * scale)
        dtype = self.patches.weight.dtype
        return self.patches(values.to(dtype)) + self.frames(frame_BL) + spatial.to(dtype)


def sine_cosine(grid_BL2: Tensor, width: int, scale: float) -> Tensor:
    """[B, L, D] of (row, column): sines and cosines of the row, then of the column."""
    quarter = width // 4
    steps = torch.arange(quarter, dtype=torch.float64, device=grid_BL2.device)
    angle = grid_BL2.double().unsqueeze(-1) * scale * 10000.0 ** (-steps / quarter)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2).float()


def interpolated(table_RCD: Tensor, grid_BL2: Tensor) -> Tensor:
    """Of a table at (row, column), bilinear between its entries, clamped to its edge."""
    last_2 = torch.tensor([side - 1 for side in table_RCD.shape[:2]], device=grid_BL2.device)
    at_BL2 = torch.minimum(grid_BL2.float(), last_2)
    low = at_BL2.long()
    high = torch.minimum(low + 1, last_2)
    share = (at_BL2 - low).unsqueeze(-1)
    top, bottom = (
        torch.lerp(table_RCD[row, low[..., 1]], table_RCD[row, high[..., 1]], share[..., 1, :])
        for row in (low[..., 0], high[..., 0])
    )
    return torch.lerp(top, bottom, share[..., 0, :])


class Tower(nn.Module):
    def __init__(self, net: dict[str, Any]) -> None:
        super().__init__()
        self.net = net
        self.embedding = Embedding(net)
        blocks = nn.ModuleList(Block(net, layer) for layer in range(net["depth"]))
        self.encoder = nn.ModuleDict({"blocks": blocks})
        self.output_norm = nn.LayerNorm(net["width"])
        kinds = ("visual", "text") if net["output"] == "per_modality" else ("shared",)
        self.output = nn.ModuleDict({kind: nn.Linear(net["width"], net["space_width"]) for kind in kinds})

    def forward(
        self, parts: Sequence[Part], read: int | Tensor, task: int, is_target: bool, memo: dict[Any, Any]
    ) -> Tensor:
        """Features [B, W] in fp32 at position `read`, or at one [B] of each row, not normalised."""
        first = parts[0].valid_BL
        valid_BL = torch.cat([torch.ones_like(first[:, :1]), *(part.valid_BL for part in parts)], dim=1)
        seen = [torch.full_like(part.valid_BL[0], part.visibility == PREFIX) for part in parts]
        # Without words to be told apart everyone sees everyone, but for padding.
        pictures = all(part.modality != TEXT for part in parts)
        lengths = [part.valid_BL.shape[1] + (number == 0) for number, part in enumerate(parts)]
        spans = [(n, part.attributes, part.modality) for n, part in zip(lengths, parts, strict=True)]
        prefix_L = torch.cat([torch.ones_like(first[0, :1]), *seen])
        mask_BLL = None if pictures else visible(parts, valid_BL)
        about = Pass(valid_BL, prefix_L, mask_BLL, spans, task, is_target, memo)
        if self.net["merged"]:
            for _, attributes, modality in spans:
                key_of(self.net, attributes, modality, task)
        x_BLD = self.embedding(parts)
        for block in self.encoder["blocks"]:  # type: ignore[attr-defined]
            x_BLD = block(x_BLD, about)
        kind = "shared" if "shared" in self.output else "text" if parts[0].modality == TEXT else "visual"
        if self.net["readout"] == "mean":
            valid_BL1 = valid_BL.unsqueeze(-1)
            return self.output[kind]((self.output_norm(x_BLD) * valid_BL1).sum(dim=1) / valid_BL1.sum(dim=1)).float()
        row_B = slice(None) if isinstance(read, int) else torch.arange(len(read), device=read.device)
        return self.output[kind](self.output_norm(x_BLD[row_B, read])).float()


def visible(parts: Sequence[Part], valid_BL: Tensor) -> Tensor:
    """mask[b, i, j]: position i sees position j."""
    device, batch = valid_BL.device, valid_BL.shape[0]
    kinds = [torch.zeros(1, dtype=torch.long, device=device)]
    orders = [torch.zeros_like(valid_BL[:, :1], dtype=torch.long)]
    for part in parts:
        kinds.append(torch.full((part.valid_BL.shape[1],), part.visibility, device=device))
        zeros = torch.zeros_like(part.valid_BL, dtype=torch.long)
        orders.append(zeros if part.visibility == PREFIX else part.positions.expand(batch, -1))
    kind_L, order_BL = torch.cat(kinds), torch.cat(orders, dim=1)
    earlier = order_BL[:, None, :] < order_BL[:, :, None]
    same = order_BL[:, None, :] == order_BL[:, :, None]
    row_L1 = kind_L[:, None]
    word = (kind_L == CAUSAL) & (((row_L1 == CAUSAL) & (earlier | same)) | ((row_L1 == READOUT) & earlier))
    places_L = torch.arange(valid_BL.shape[1], device=device)
    itself = places_L[:, None] == places_L
    return ((kind_L == PREFIX) | word) & valid_BL[:, None, :] | itself


class SparseGeneralistConfig(PretrainedConfig):
    """network: shape of the towers; tasks: what was trained, with the options that its questions take."""

    model_type = "sparse_generalist"

    def __init__(self, network: Any = None, tasks: Any = (), **options: Any) -> None:
        super().__init__(**options)
        self.network, self.tasks = network or {}, list(tasks)


class SparseGeneralistModel(PreTrainedModel):
    config_class = SparseGeneralistConfig
    base_model_prefix = "sparse_generalist"
    main_input_name = "pixels"
    _no_split_modules = ("Block",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        net = config.network
        self.tower = Tower(net)
        text = net["text_tower"]
        self.text_tower = Tower({**net, **text}) if text else None
        classes = net["head_classes"]
        self.head = nn.Linear(net["space_width"], classes) if classes else None
        self.similarity_weight = nn.Parameter(torch.empty(1)) if classes else None
        self.log_scales = nn.ParameterDict({name: nn.Parameter(torch.empty(1)) for name in net["temperatures"]})
        self._processor: SparseGeneralistProcessor | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """All weights are in the file."""

    @classmethod
    def load(cls, folder: str | Path) -> SparseGeneralistModel:
        """Of an exported folder, without transformers. Raises ValueError for names that differ."""
        from safetensors.torch import load_file

        folder = Path(folder)
        config = SparseGeneralistConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
        with torch.device("meta"):
            model = cls(config)
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        state: dict[str, Tensor] = {}
        for name in sorted(set(index["weight_map"].values())):
            if Path(name).name != name:
                raise ValueError(f"{folder}: the index names {name!r}, which leaves the folder")
            state |= load_file(folder / name)
        model.load_state_dict(state, assign=True)
        model._processor = SparseGeneralistProcessor.from_pretrained(folder)
        return model.eval()

    @property
    def processor(self) -> SparseGeneralistProcessor:
        """Pictures to pixels, texts to tokens; from the folder or the repository that the model came from."""
        if self._processor is None:
            self._processor = SparseGeneralistProcessor.from_pretrained(self.name_or_path)
        return self._processor

    def forward(self, pixels: Any = None, texts: Any = None) -> dict[str, Tensor]:
        """Features of what is given, and where both are, `similarity` [N, texts]."""
        found = {}
        if pixels is not None:
            found["image_features"] = self.encode_image(pixels)
        if texts is not None:
            found["text_features"] = self.encode_text(texts)
        if len(found) == 2:
            found["similarity"] = found["image_features"] @ found["text_features"].T
        return found

    # -- questions ---------------------------------------------------------------------------------------------------

    def encode_image(self, pictures: Any, normalized: bool = True, task: str = "") -> Tensor:
        """Features [N, W]."""
        return self._encode_pictures(pictures, IMAGE, normalized, task)

    def encode_video(self, clips: Any, normalized: bool = True, task: str = "", fps: float = 0.0) -> Tensor:
        """Features [N, W] of clips; of more frames than the task was trained with, some, as in its evaluation: evenly spaced, or
        `frame_stride` seconds apart, for which fps says how many frames a second has. Raises ValueError."""
        return self._encode_pictures(clips, VIDEO, normalized, task, fps)

    def encode_text(self, texts: Any, normalized: bool = True, task: str = "", of_clips: bool = False) -> Tensor:
        """Features [N, W], comparable with those of pictures. texts: strings, one string, or tokens [N, L] with -1 where a text has
        ended."""
        about = self.task_for("retrieval", MEDIUM[VIDEO if of_clips else IMAGE], task)
        texts = [texts] if isinstance(texts, str) else texts
        tokens_NL = texts if isinstance(texts, Tensor) else self.processor.tokens(list(texts), about["max_text"])
        features_NW = self.targets(tokens_NL.to(self.device_of_inputs), "name_target", about)
        return normalize(features_NW, dim=-1) if normalized else features_NW

    @torch.no_grad()
    def classify(self, pictures: Any, names: Sequence[str] = (), task: str = "", fps: float = 0.0) -> Tensor:
        """Probabilities [N, names] of each picture or clip; names: by default those that were trained (`classes`). A linear head takes
        no others; where they did not travel, all of them in the order of training. pictures: strings are texts, which a task of text
        classification reads in its template. Raises ValueError."""
        texts = texts_of(pictures)
        modality = modality_of(pictures) if texts is None else TEXT
        about = self.task_for("classification" if texts is None else "text_classification", MEDIUM[modality], task)
        chosen = self._candidates(names, about)
        if texts is not None:
            if empty := [text for text in texts if len(self.processor.encode(text, 2)) < 2]:
                raise ValueError(f"the text {empty[0][:20]!r} has no word: leave it out")
            return self._ranked(self._read_out([], texts, "text_input", about), chosen, "word_target", modality, about)
        features_NW = self.pictures(self._pixels(pictures, modality, about, fps), modality, about)
        return self._ranked(features_NW, chosen, "name_target", modality, about)

    def classes(self, task: str = "", medium: str = "image") -> list[str]:
        """Names that `classify` takes by default; medium: image, video or text."""
        kind = "text_classification" if medium == "text" else "classification"
        return list(self.task_for(kind, medium, task)["classes"])

    @torch.no_grad()
    def answer(
        self, pictures: Any, questions: Any, answers: Sequence[str] = (), task: str = "", fps: float = 0.0
    ) -> Tensor:
        """Probabilities [N, answers] for each picture or clip. questions: one of each, or a string for all; answers: by default those that
        were trained (`answers`). Raises ValueError."""
        modality = modality_of(pictures)
        about = self.task_for("vqa", MEDIUM[modality], task)
        chosen = self._candidates(answers, about)
        part = self.part_of(self._pixels(pictures, modality, about, fps), modality, "caption_visual")
        count = len(part.values)
        asked = [questions] * count if isinstance(questions, str) else list(questions)
        if len(asked) != count:
            raise ValueError(f"{len(asked)} questions about {count} pictures: give one of each, or a string for all")
        features_NW = self._read_out([part], asked, "question_text", about)
        return self._ranked(features_NW, chosen, "word_target", modality, about)

    def answers(self, task: str = "", medium: str = "image") -> list[str]:
        """What `answer` chooses from by default."""
        return list(self.task_for("vqa", medium, task)["classes"])

    @torch.no_grad()
    def caption(self, pictures: Any, beam: int = 2, max_words: int = 0, task: str = "", fps: float = 0.0) -> list[str]:
        """A sentence of each picture or clip. max_words: tokens at most; 0: as in training. beam=1 is greedy."""
        modality = modality_of(pictures)
        about = self.task_for("captioning", MEDIUM[modality], task)
        if isinstance(pictures, (list, tuple, Tensor)) and not len(pictures):
            return []
        prefix = self.part_of(self._pixels(pictures, modality, about, fps), modality, "caption_visual")
        rows = beam_search(self, prefix, about, beam, max_words or about["max_text"])
        return [self.processor.decode(row).strip() for row in rows]

    # -- what questions are made of ------------------------------------------------------------------------------------

    @property
    def device_of_inputs(self) -> torch.device:
        return self.tower.embedding.text_type.device

    def task_for(self, kind: str, medium: str, name: str = "") -> dict[str, Any]:
        """The trained task whose options a question takes: of the kind, else of a related one; of the medium where there is one."""
        tasks = [task for task in self.config.tasks if not name or task["name"] == name]
        # Those that wrote (`answer: generate`) have not learned to compare, and of texts and questions no other kind takes their place;
        # those that wrote class names serve for captions.
        trained, related = "classification" if kind == "captioning" else kind, self.config.network["related"][kind]
        written = [task for task in tasks if task.get("written") and kind_of(task) == trained]
        for wanted in related[:1] if written and kind in TEMPLATED else related:
            own = [task for task in tasks if kind_of(task) == wanted]
            served = [task for task in own if not (kind in COMPARED and task in written)]
            if served:
                return of_medium(served, medium)
        if written and kind == "captioning":
            return of_medium(written, medium)
        if written:
            how = f"ask for captions of it, `caption` with task={written[0]['name']!r}"
            if kind != "classification":
                how = "exports do not write them: ask the run, by `evaluate.py`"
            raise ValueError(
                f"task {written[0]['name']} has learned to write its names (answer: generate), not to compare with them: {how}"
            )
        there = ", ".join(f"{task['name']} ({task['kind']})" for task in self.config.tasks) or "none"
        raise ValueError(f"{name or 'no task of this export'} cannot serve as {kind}; its tasks are {there}")

    def pictures(self, pixels: Tensor, modality: int, about: dict[str, Any]) -> Tensor:
        """Features [N, W] of pixels [N, T, 3, S, S], not normalised."""
        part = self.part_of(pixels, modality, "visual_input")
        return self.encode([part], self.task_id(about), {})

    def _read_out(self, parts: list[Part], texts: Sequence[str], attributes: str, about: dict[str, Any]) -> Tensor:
        """Features [N, W] at <SPE> in the task's template, which the texts are put into, behind other parts. Raises ValueError."""
        net, longest = self.config.network, about["max_text"]
        filled = [self.processor.filled(text, about["template"], longest, net["spe"]) for text in texts]
        rows = [torch.tensor(tokens) for tokens, _ in filled]
        tokens_NL = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1).to(self.device_of_inputs)
        first = 1 + sum(part.valid_BL.shape[1] for part in parts)
        read_N = torch.tensor([first + place for _, place in filled], device=self.device_of_inputs)
        return self.encode([*parts, words_of(tokens_NL, attributes)], self.task_id(about), {}, read=read_N)

    def _candidates(self, names: Sequence[str], about: dict[str, Any]) -> list[str]:
        """The names to choose from. Raises ValueError."""
        if isinstance(names, str):
            raise ValueError(f"names={names!r} is one text: give a list of names")
        chosen, trained = list(names) or about["classes"], about["classes"]
        if not chosen:
            how = f": all {len(self.head.weight)}, in the order of training" if self.head is not None else ""
            raise ValueError(f"the names of the classes did not travel with this export: say them{how}")
        if self.head is not None and (chosen != trained if trained else len(chosen) != len(self.head.weight)):
            raise ValueError(
                f"the linear head of this model knows the {len(self.head.weight)} classes that it was trained on, in their order: name no "
                "others"
            )
        return chosen

    def _ranked(
        self, features_NW: Tensor, names: list[str], attributes: str, modality: int, about: dict[str, Any]
    ) -> Tensor:
        """Probabilities [N, names]."""
        tokens_CL = self.processor.tokens(names, about["max_text"]).to(self.device_of_inputs)
        names_CW = self.targets(tokens_CL, attributes, about)
        return self.logits(features_NW, names_CW, scale_of(about, modality)).softmax(dim=-1)

    def targets(self, tokens_NL: Tensor, attributes: str, about: dict[str, Any]) -> Tensor:
        """Features [N, W] of texts that are compared with, not normalised; tokens are -1 where a text has ended."""
        memo: dict[Any, Any] = {}
        return torch.cat([self.some_targets(rows, attributes, about, memo) for rows in tokens_NL.split(ROWS)])

    def some_targets(self, tokens_NL: Tensor, attributes: str, about: dict[str, Any], memo: dict[Any, Any]) -> Tensor:
        """The same in one pass."""
        return self.encode([words_of(tokens_NL, attributes)], self.task_id(about), memo, is_target=True)

    def encode(
        self, parts: Sequence[Part], task: int, memo: dict[Any, Any], read: int | Tensor = 0, is_target: bool = False
    ) -> Tensor:
        """Features [B, W] at one position of each row, not normalised; read: the same of all, or [B]."""
        tower = self.text_tower if self.text_tower is not None and parts[0].modality == TEXT else self.tower
        return tower(parts, read, task, is_target, memo)

    def logits(self, features_NW: Tensor, candidates_CW: Tensor, temperature: str) -> Tensor:
        """Scaled cosine [N, C], and the linear head of prompt tuning where there is one."""
        scale = self.log_scales[temperature].float().exp().clamp(max=MAX_LOGIT_SCALE)
        logits_NC = scale * normalize(features_NW, dim=-1) @ normalize(candidates_CW, dim=-1).T
        if self.head is None:
            return logits_NC
        return logits_NC * self.similarity_weight + self.head(features_NW.to(self.head.weight.dtype))

    def part_of(self, pixels: Tensor, modality: int, attributes: str) -> Part:
        """Pixels [N, T, 3, S, S] cut into patches: frame by frame, row by row; inside a patch by channel, row, column."""
        frames, size, patch = pixels.shape[1], pixels.shape[3], self.config.network["patch"]
        side = size // patch
        cut = pixels.unflatten(4, (side, patch)).unflatten(3, (side, patch)).permute(0, 1, 3, 5, 2, 4, 6)
        values_BLP = cut.flatten(4).flatten(1, 3)
        axes = [torch.arange(count, device=pixels.device) for count in (frames, side, side)]
        positions_L3 = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)
        positions_BL3 = positions_L3[None].expand(values_BLP.shape[0], -1, -1)
        valid_BL = torch.ones_like(values_BLP[..., 0], dtype=torch.bool)
        return Part(modality, values_BLP, positions_BL3, valid_BL, attributes)

    def _encode_pictures(self, pictures: Any, modality: int, normalized: bool, task: str, fps: float = 0.0) -> Tensor:
        about = self.task_for("retrieval", MEDIUM[modality], task)
        features_NW = self.pictures(self._pixels(pictures, modality, about, fps), modality, about)
        return normalize(features_NW, dim=-1) if normalized else features_NW

    def task_id(self, about: dict[str, Any]) -> int:
        names = self.config.network["tasks"]
        return names.index(about["name"]) if about["name"] in names else 0

    def _pixels(self, pictures: Any, modality: int, about: dict[str, Any], fps: float = 0.0) -> Tensor:
        """uint8 [N, T, 3, S, S]."""
        size, longest = self.config.network["image_size"], self.config.network["max_frames"]
        if modality == IMAGE:
            pixels = pictures if isinstance(pictures, Tensor) else self.processor.images(pictures)
            pixels = pixels.unsqueeze(1)
        elif isinstance(pictures, Tensor):
            pixels = pictures
        else:
            stride = about["frame_stride"] if about["frame_sampling"] == "stride" else 0.0
            pixels = self.processor.clips(pictures, about["num_frames"], stride, fps)
        if pixels.dim() != 5 or tuple(pixels.shape[2:]) != (3, size, size) or pixels.dtype != torch.uint8:
            raise ValueError(
                f"pixels are {pixels.dtype} {tuple(pixels.shape)}: the model takes bytes [N, (frames,) 3, {size}, {size}]"
            )
        if pixels.shape[1] > longest:
            raise ValueError(f"a clip of {pixels.shape[1]} frames: the model takes {longest} at most")
        return pixels.to(self.device_of_inputs)


def words_of(tokens_BL: Tensor, attributes: str, first: int = 0, visibility: int = PREFIX) -> Part:
    """Words at positions `first` and after; tokens are -1 where a text has ended."""
    positions_L = torch.arange(first, first + tokens_BL.shape[1], device=tokens_BL.device)
    valid_BL = tokens_BL >= 0
    return Part(TEXT, tokens_BL.clamp(min=0), positions_L.expand_as(tokens_BL), valid_BL, attributes, visibility)


def modality_of(pictures: Any) -> int:
    """Clips are pixels [N, T, 3, S, S], or lists of frames. What is no list is one picture."""
    if isinstance(pictures, Tensor):
        return VIDEO if pictures.dim() == 5 else IMAGE
    if not isinstance(pictures, (list, tuple)):
        return IMAGE
    return VIDEO if len(pictures) and isinstance(pictures[0], (list, tuple)) else IMAGE


def texts_of(given: Any) -> list[str] | None:
    """Of one text or a list of them; None for pictures."""
    if isinstance(given, str):
        return [given]
    is_list = isinstance(given, (list, tuple)) and len(given) > 0 and isinstance(given[0], str)
    return list(given) if is_list else None


def kind_of(task: dict[str, Any]) -> str:
    """In the run: classification whose names were written is captioning in an export."""
    return "classification" if task.get("written") and task["kind"] == "captioning" else task["kind"]


def of_medium(served: list[dict[str, Any]], medium: str) -> dict[str, Any]:
    """The first that was trained on the medium, else one of which that is not known. Raises ValueError where these are several."""
    right = [task for task in served if task["medium"] == medium]
    unknown = [task for task in served if not task["medium"]]
    if not right and len(unknown) > 1 and medium != "text":
        names = ", ".join(task["name"] for task in unknown)
        raise ValueError(
            f"which of the tasks {names} is one of {medium}s is not known, as their data were not there when they were exported: name one "
            "with task="
        )
    return (right or unknown or served)[0]


def scale_of(about: dict[str, Any], modality: int) -> str:
    """Name of the logit scale that the task was trained with, which the others that it serves take: theirs was not."""
    own = {"classification": about["medium"] or MEDIUM[modality], "captioning": "caption", "retrieval": "retrieval"}
    return about["temperature"] or own.get(about["kind"], "text")


@torch.no_grad()
def beam_search(
    model: SparseGeneralistModel, prefix: Part, about: dict[str, Any], beam: int, max_words: int
) -> list[list[int]]:
    """Tokens of the likeliest caption of each row. Every step encodes picture, words and one query again, which reads the next word.
    A caption that has ended goes on with end-of-text at no cost. Raises ValueError."""
    net, temperature = model.config.network, about["temperature"] or "caption"
    if beam < 1 or not 1 <= max_words <= net["max_text"]:
        raise ValueError(f"beam={beam}, max_words={max_words}: at least 1, and {net['max_text']} words at most")
    device, end = prefix.values.device, net["end"]
    tokens_C = torch.tensor([*range(net["num_words"]), end], device=device)
    ended_C = torch.full_like(tokens_C, end)
    rows_CL = torch.stack([tokens_C, ended_C] if net["word_end"] else [tokens_C], dim=1)
    words_CW = model.targets(rows_CL, "word_target", about)
    batch, last = prefix.values.shape[0], len(tokens_C) - 1
    only_end_C = torch.full((len(tokens_C),), -torch.inf, device=device)
    only_end_C[last] = 0.0
    scores_BK = torch.zeros(batch, 1, device=device)
    tokens_BKT = torch.empty(batch, 1, 0, dtype=torch.long, device=device)
    ended_BK = torch.zeros(batch, 1, dtype=torch.bool, device=device)
    row_B1 = torch.arange(batch, device=device)[:, None]
    memo: dict[Any, Any] = {}
    for length in range(max_words):
        width = scores_BK.shape[1]
        picture_N = torch.arange(batch, device=device).repeat_interleave(width)
        fields = {name: getattr(prefix, name)[picture_N] for name in ("values", "positions", "valid_BL")}
        query_N1 = torch.full((batch * width, 1), net["spe"], device=device)
        parts = [dataclasses.replace(prefix, **fields)]
        if length:
            parts.append(words_of(tokens_BKT.flatten(0, 1), "caption_text", visibility=CAUSAL))
        parts.append(words_of(query_N1, "caption_text", length, READOUT))
        features_NW = model.encode(parts, model.task_id(about), memo, read=-1)
        step_BKC = model.logits(features_NW, words_CW, temperature).log_softmax(dim=1).view(batch, width, -1)
        step_BKC = torch.where(ended_BK.unsqueeze(-1), only_end_C, step_BKC)
        total_BX = (scores_BK.unsqueeze(-1) + step_BKC).flatten(1)
        scores_BK, flat_BK = total_BX.topk(min(beam, total_BX.shape[1]), dim=1)
        parent_BK, word_BK = flat_BK // len(tokens_C), flat_BK % len(tokens_C)
        tokens_BKT = torch.cat([tokens_BKT[row_B1, parent_BK], tokens_C[word_BK].unsqueeze(-1)], dim=2)
        ended_BK = ended_BK[row_B1, parent_BK] | (word_BK == last)
        if bool(ended_BK.all()):
            break
    rows = tokens_BKT[:, 0].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]
