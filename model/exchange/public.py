"""Weights of the public Uni-Perceiver and Uni-Perceiver-MoE code to ours and back: `python -m model.exchange.public to-ours IN OUT`.

Both sides are mappings of names to whole tensors. What ours has no place for (gates that never run, a second token type ...) is
kept under `unused/<public name>`, so that the way back gives the same file. Nothing is unpickled but plain tensors.

Differences besides names: experts are stacked; rows of QKV are ordered (head, q | k | v) here and (q | k | v, head) there; patch
convolutions are matrices; the token table is padded to full blocks of rows; logit scales have one element.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.embedding import VOCABULARY_MULTIPLE
from model.objective import Objective
from parallel.placement import placement_of

State = dict[str, Tensor]
UNUSED = "unused/"
HEAD_WIDTH = 64
"""Width of an attention head in all published sizes."""

PUBLIC_VOCABULARY = 49411
"""Rows of the public token table; ours is padded."""
HEADS = "heads"
"""In the metadata of a file that `to-ours` wrote: rows of QKV are ordered by heads, which no shape tells."""
MAY_BE_NEW = ("prompts", "spe_bias", "head.", "similarity_weight", "log_scales.", "logit_biases.", ".lora.")
"""Parts of the names of what a model may have and a file of weights not, as a run's checkpoint (model/tuning/warm_start.py)."""

TEMPERATURES = {
    "img_cls": "image",
    "video_cls": "video",
    "text_mlm": "text",
    "caption": "caption",
    "retrieve": "retrieval",
    "downstream": "downstream",
    "text_caption": "text_caption",
    "mlm": "image_text",
    "tqa_mlm": "qa_text",
    "tqa_caption": "qa_caption",
    "tqa_retrieve": "qa_retrieval",
}
"""Public logit scale -> ours. A model that is to take all of them lists them in model.temperatures."""

NAMES = {
    "token_embed.embeddings.weight": "tower.embedding.tokens.weight",
    "token_embed.embeddings_pos.position_embeddings.weight": "tower.embedding.text_positions.weight",
    "token_embed.embeddings_norm.weight": "tower.embedding.norm.weight",
    "token_embed.embeddings_norm.bias": "tower.embedding.norm.bias",
    "video_embed.embeddings.weight": "tower.embedding.patches.weight",
    "video_embed.embeddings.bias": "tower.embedding.patches.bias",
    "video_embed.embeddings_st_pos.temporal_pos_embed.weight": "tower.embedding.frames.weight",
    "loss_prepare.ln_post.weight": "tower.output_norm.weight",
    "loss_prepare.ln_post.bias": "tower.output_norm.bias",
    "loss_prepare.proj.weight": "tower.output.shared.weight",
    "loss_prepare.proj.bias": "tower.output.shared.bias",
    "fc_prompt.weight": "head.weight",
    "fc_prompt.bias": "head.bias",
    **{f"loss_prepare.logit_scale_{public}": f"log_scales.{ours}" for public, ours in TEMPERATURES.items()},
    "similarity_weight": "similarity_weight",
    "s_token_bias": "tower.embedding.spe_bias",
}
COPIES = {
    "video_embed.embeddings_norm.weight": "token_embed.embeddings_norm.weight",
    "video_embed.embeddings_norm.bias": "token_embed.embeddings_norm.bias",
    "token_embed.s_token_bias": "s_token_bias",
}
"""Names of a tensor that stands in the public file twice."""
TYPE, SPATIAL = "token_embed.embeddings_token_type.weight", "video_embed.embeddings_st_pos.spatial_pos_embed.weight"
TYPE_OURS = "tower.embedding.text_type"
WITHOUT_PLACE = (TYPE, SPATIAL, "video_embed.embeddings_type.weight")
"""Kept as they are. Of the types row 0 alone is used; the spatial table is the fixed sine-cosine one, or learned (--learned)."""

LAYER = re.compile(r"fused_encoder\.layers\.(\d+)\.(.+)")
LAYER_NAMES = {
    "gamma_1": "attention_scale",
    "gamma_2": "ffn_scale",
    "norm1.weight": "attention_norm.weight",
    "norm1.bias": "attention_norm.bias",
    "norm2.weight": "ffn_norm.weight",
    "norm2.bias": "ffn_norm.bias",
    "deep_prompt_embedding.embedding.weight": "prompts",
    "deep_prompt_embedding.target_embedding.weight": "target_prompts",
}
LINEARS = {
    "self_attn.qkv_proj": "attention.qkv",
    "self_attn.dense": "attention.out",
    "linear1": "ffn.up",
    "linear2": "ffn.down",
}
DENSE_ATTENTION = {
    "self_attn.in_proj_weight": "self_attn.qkv_proj.weight",
    "self_attn.in_proj_bias": "self_attn.qkv_proj.bias",
    "self_attn.out_proj.weight": "self_attn.dense.weight",
    "self_attn.out_proj.bias": "self_attn.dense.bias",
}
"""The dense model's attention is torch.nn.MultiheadAttention; a layer with these names is written back with them."""
GATES = {"tag_transform.0": "embed", "tag_transform.1": "norm", "wg": "gate"}
ROUTERS = {"self_attn.qkv_proj": "attention_path.router", "linear1": "ffn_path.router"}
EXPERT = re.compile(r"(.+)\.experts\.deepspeed_experts\.(\d+)\.(weight|bias)")
GATE = re.compile(r"(.+)\.gate\.(tag_transform\.[01]|wg)\.(weight|bias)")


class ConversionError(ValueError):
    """The weights cannot be converted; the message lists names."""


def to_ours(public: Mapping[str, Tensor], heads: int | None = None, learned_positions: bool = False) -> State:
    """Public names to ours. Raises ConversionError that lists every name without a meaning, every expert that is missing
    and every pair of copies that differ."""
    ours: State = {}
    experts: dict[tuple[str, str], dict[int, Tensor]] = {}
    unknown = []
    for name, tensor in public.items():
        if name in COPIES:
            original = public.get(COPIES[name])
            if original is None or not torch.equal(original, tensor):
                unknown.append(f"{name} (differs from {COPIES[name]})")
        elif name in NAMES:
            ours[NAMES[name]] = _reshaped(NAMES[name], tensor)
        elif name in WITHOUT_PLACE:
            ours[UNUSED + name] = tensor
            if name == TYPE:
                ours[TYPE_OURS] = tensor[0].clone()
            if name == SPATIAL and learned_positions:
                side = round(tensor.shape[0] ** 0.5)
                ours["tower.embedding.spatial_positions"] = tensor.view(side, side, -1)
        elif match := LAYER.fullmatch(name):
            block = f"tower.encoder.blocks.{match[1]}."
            part = DENSE_ATTENTION.get(match[2], match[2])
            if expert := EXPERT.fullmatch(part):
                key = (f"{block}{LINEARS.get(expert[1], '?')}.bank", expert[3])
                experts.setdefault(key, {})[int(expert[2])] = tensor
                unknown += [name] if expert[1] not in LINEARS else []
            elif gate := GATE.fullmatch(part):
                router = ROUTERS.get(gate[1])
                ours[f"{block}{router}.{GATES[gate[2]]}.{gate[3]}" if router else UNUSED + name] = tensor
            elif part in LAYER_NAMES:
                ours[block + LAYER_NAMES[part]] = tensor
            elif part.rsplit(".", 1)[0] in LINEARS:
                linear, kind = part.rsplit(".", 1)
                ours[f"{block}{LINEARS[linear]}.linear.{kind}"] = tensor
            else:
                unknown.append(name)
        else:
            unknown.append(name)
    for (bank, kind), by_number in experts.items():
        missing = sorted(set(range(max(by_number) + 1)) - by_number.keys())
        unknown += [f"{bank}: expert {number} is missing" for number in missing]
        if not missing:
            ours[f"{bank}.{kind}"] = torch.stack([by_number[number] for number in range(len(by_number))])
    if unknown:
        raise ConversionError(
            f"{len(unknown)} names of the public file mean nothing here: {', '.join(sorted(unknown))}"
        )
    return {name: _rows(name, tensor, heads, to_public=False).contiguous() for name, tensor in ours.items()}


def to_public(ours: Mapping[str, Tensor], heads: int | None = None) -> State:
    """Ours to public names, with what was kept under `unused/`. Raises ConversionError that lists what has no public name."""
    back = {name: public for public, name in NAMES.items()}
    layers = {name: public for public, name in LAYER_NAMES.items()}
    linears = {name: public for public, name in LINEARS.items()}
    routers = {name: public for public, name in ROUTERS.items()}
    gates = {name: public for public, name in GATES.items()}
    sparse = any(".bank." in name for name in ours)
    dense = {qkv: public for public, qkv in DENSE_ATTENTION.items()} if not sparse else {}
    public: State = {}
    unknown = []
    for name, stored in ours.items():
        tensor = _rows(name, stored, heads, to_public=True)
        if name.startswith(UNUSED):
            public.setdefault(name.removeprefix(UNUSED), tensor)
        elif name in back:
            public[back[name]] = _public_shape(back[name], tensor)
        elif name == TYPE_OURS:
            public[TYPE] = torch.cat([tensor[None], ours[UNUSED + TYPE][1:]]) if UNUSED + TYPE in ours else tensor[None]
        elif name == "tower.embedding.spatial_positions":
            public[SPATIAL] = tensor.flatten(0, 1)
        elif match := re.fullmatch(r"tower\.encoder\.blocks\.(\d+)\.(.+)", name):
            layer, part = f"fused_encoder.layers.{match[1]}.", match[2]
            if part in layers:
                public[layer + layers[part]] = tensor
                continue
            router = re.fullmatch(r"(.+\.router)\.(embed|norm|gate)\.(weight|bias)", part)
            linear = re.fullmatch(r"(.+)\.(linear|bank)\.(weight|bias)", part)
            if router and router[1] in routers:
                public[f"{layer}{routers[router[1]]}.gate.{gates[router[2]]}.{router[3]}"] = tensor
            elif linear and linear[1] in linears and linear[2] == "bank":
                for number, expert in enumerate(tensor):
                    where = f"{layer}{linears[linear[1]]}.experts.deepspeed_experts"
                    public[f"{where}.{number}.{linear[3]}"] = expert
            elif linear and linear[1] in linears:
                plain = f"{linears[linear[1]]}.{linear[3]}"
                public[layer + dense.get(plain, plain)] = tensor
            else:
                unknown.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise ConversionError(f"{len(unknown)} names have no place in the public code: {', '.join(sorted(unknown))}")
    public |= {copy: public[original].clone() for copy, original in COPIES.items() if original in public}
    return {name: tensor.contiguous() for name, tensor in public.items()}


@torch.no_grad()
def load_logical(module: nn.Module, tensors: Mapping[str, Tensor], missing_ok: tuple[str, ...] = ()) -> None:
    """Whole tensors into a module on any layout; each rank takes its part.

    Raises ConversionError that lists names which only one side has (`unused/` aside) or whose shapes differ. Names that
    contain a text of `missing_ok` keep their values where the mapping lacks them.
    """
    own = dict(module.named_parameters())
    given = {name: tensor for name, tensor in tensors.items() if not name.startswith(UNUSED)}
    missing = [name for name in own.keys() - given.keys() if not any(text in name for text in missing_ok)]
    unknown = sorted(given.keys() - own.keys())
    shapes = [
        f"{name} is {tuple(given[name].shape)}, the model's {placement_of(p).shape}"
        for name, p in own.items()
        if name in given and tuple(given[name].shape) != placement_of(p).shape
    ]
    if missing or unknown or shapes:
        raise ConversionError(
            "the weights do not fit the model: "
            + "; ".join(
                f"{title}: {', '.join(names)}"
                for title, names in (("missing", sorted(missing)), ("unknown", unknown), ("shapes", shapes))
                if names
            )
        )
    for name, parameter in own.items():
        if name in given:
            parameter.copy_(placement_of(parameter).take(given[name]))


def load_converted(objective: Objective, path: Path) -> None:
    """A file that `to-ours` wrote into a model. Temperatures that the model does not list are left out; what public weights lack and
    tuning adds starts fresh. Raises ConversionError."""
    own = {name for name, _ in objective.named_parameters()}
    tensors = {n: t for n, t in read_state(path).items() if n in own or not n.startswith("log_scales.")}
    heads, there = objective.config.heads, heads_in(path)
    if there not in (None, heads):
        raise ConversionError(
            f"{path} holds weights of {there} attention heads, the model has model.heads={heads}: set model.heads={there}"
        )
    load_logical(objective, tensors, missing_ok=MAY_BE_NEW)


def heads_in(path: Path) -> int | None:
    """Attention heads of a file that `to-ours` wrote, None where nothing is said. Raises ConversionError."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as opened:
            said = (opened.metadata() or {}).get(HEADS, "")
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{path} cannot be read as weights: {str(error).splitlines()[0]}") from error
    return int(said) if said.isdecimal() else None


def read_state(path: Path) -> State:
    """A mapping of tensors from .safetensors, .npz or a torch file, which may hold it under `model` or `state_dict`."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]).float() for name in arrays.files}
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, ValueError, RuntimeError, EOFError) as error:
        raise ConversionError(f"{path} cannot be read as weights: {str(error).splitlines()[0]}") from error
    except Exception as error:  # torch's own UnpicklingError, which names the forbidden type
        raise ConversionError(
            f"{path} holds more than tensors and is not opened: {str(error).splitlines()[0]}"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ConversionError(f"{path} does not hold a mapping of names to tensors")
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}


def _reshaped(name: str, tensor: Tensor) -> Tensor:
    if name == "tower.embedding.tokens.weight":
        return nn.functional.pad(tensor, (0, 0, 0, -tensor.shape[0] % VOCABULARY_MULTIPLE))
    if name == "tower.embedding.patches.weight":
        return tensor.flatten(1)
    if name.startswith("log_scales.") or name == "similarity_weight":
        return tensor.reshape(1)
    return tensor.flatten() if name.endswith("spe_bias") else tensor


def _public_shape(name: str, tensor: Tensor) -> Tensor:
    if name == "token_embed.embeddings.weight":
        return tensor[:PUBLIC_VOCABULARY]
    if name == "video_embed.embeddings.weight":
        side = round((tensor.shape[1] / 3) ** 0.5)
        return tensor.view(-1, 3, side, side)
    if name.startswith("loss_prepare.logit_scale_") or name == "similarity_weight":
        return tensor.reshape(())
    return tensor.unsqueeze(0) if name == "s_token_bias" else tensor


def _rows(name: str, tensor: Tensor, heads: int | None, to_public: bool) -> Tensor:
    """QKV rows from (q | k | v, head, d) to (head, q | k | v, d) or back; experts, if any, come first."""
    if ".attention.qkv." not in name:
        return tensor
    rows_at = 1 if ".bank." in name else 0
    width = tensor.shape[rows_at] // 3
    count = heads or width // HEAD_WIDTH
    if not count or width % count:
        raise ConversionError(f"{name}: width {width} does not divide by {count} heads; say how many with --heads")
    outer, inner = (count, 3) if to_public else (3, count)
    split = tensor.unflatten(rows_at, (outer, inner, width // count))
    return split.transpose(rows_at, rows_at + 1).flatten(rows_at, rows_at + 2)


def _metadata(ours: State, heads: int | None) -> dict[str, str]:
    """With the heads that `_rows` took, where there is attention."""
    widths = (tensor.shape[-1] for name, tensor in ours.items() if ".attention.qkv." in name and "weight" in name)
    width = next(widths, None)
    return {"format": "pt"} | ({HEADS: str(heads or width // HEAD_WIDTH)} if width else {})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m model.exchange.public",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("direction", choices=["to-ours", "to-public"])
    parser.add_argument("source", type=Path, help=".safetensors, .npz or a torch file of tensors")
    parser.add_argument("target", type=Path, help="the .safetensors file to write")
    parser.add_argument(
        "--heads", type=int, help=f"attention heads (default: those of a file of to-ours, else width / {HEAD_WIDTH})"
    )
    parser.add_argument("--learned", action="store_true", help="take the spatial table, for model.positions=learned")
    options = parser.parse_args(argv)
    metadata = {"format": "pt"}
    try:
        state = read_state(options.source)
        if options.direction == "to-ours":
            state = to_ours(state, options.heads, options.learned)
            metadata = _metadata(state, options.heads)
        else:
            state = to_public(state, options.heads or heads_in(options.source))
    except ConversionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        save_file(state, options.target, metadata)
    except (OSError, SafetensorError) as error:
        print(f"error: {options.target} cannot be written: {error}", file=sys.stderr)
        return 2
    print(f"{options.target}: {len(state)} tensors, {sum(t.numel() for t in state.values()):,} numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
