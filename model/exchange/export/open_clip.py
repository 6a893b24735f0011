"""Two-tower models in open_clip's layout, and image towers of that program in ours.

The image tower fits open_clip's VisionTransformer exactly: biases that it lacks go where they do the same (that of the patches into the
positions, that of the projection into the last LayerNorm). Its text tower has no LayerNorm on embeddings and sees padding; ours has one and
does not. So the text tower is written under open_clip's names and one more (`text.ln_pre`), and `open_clip_sparse.py` in the folder builds
it: `model, preprocess, tokenizer = load(FOLDER)`. open_clip alone refuses the file for that name, and computes nothing wrong.

    FOLDER/  open_clip_config.json  open_clip_model.safetensors  open_clip_sparse.py  processing_sparse_generalist.py  ...

Legend: O out, I in, W width of the compared space, D width, H heads, d head width, R rows of the patch grid, P patches, V tokens.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from data.batch import Modality
from data.visual.normalise import MEAN, STD
from model.config import ModelConfig
from model.embedding import interpolated, sine_cosine
from model.exchange.export.errors import ExportError
from model.exchange.export.merging import Entry, Tensors
from model.exchange.public import HEAD_WIDTH, MAY_BE_NEW, ConversionError, State, load_logical, read_state
from model.initialise import INITIAL_BIAS
from model.objective import MAX_LOGIT_SCALE, Objective
from parallel.checkpoints import UNREADABLE
from parallel.placement import placement_of

CONFIG, WEIGHTS, LOADER = "open_clip_config.json", "open_clip_model.safetensors", "open_clip_sparse.py"
BLOCK = {
    "attention_norm": "ln_1",
    "ffn_norm": "ln_2",
    "attention.out.linear": "attn.out_proj",
    "ffn.up.linear": "mlp.c_fc",
    "ffn.down.linear": "mlp.c_proj",
}
"""Modules with a weight and a bias."""
SCALES = {"attention_scale": "ls_1.gamma", "ffn_scale": "ls_2.gamma"}
SCALED = {"ls_1.gamma": "attn.out_proj", "ls_2.gamma": "mlp.c_proj"}
"""The linear that is multiplied by the factors of its branch (LayerScale)."""
QKV = "attention.qkv.linear"
MAX_RESIDUE = 1e-5
"""Of the projection's bias, relative to its largest number."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What open_clip's images are normalised with where a model says nothing else."""
USE = """from open_clip_sparse import load  # in this folder

model, preprocess, tokenizer = load("FOLDER")
model.encode_image(preprocess(picture)[None], normalize=True)
model.encode_text(tokenizer(["a red circle"]), normalize=True)"""
"""On the model card."""


def is_export(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / LOADER).is_file()


def check(config: ModelConfig) -> None:
    """Raises ExportError for what open_clip has no place for."""
    text = config.text_tower_config()
    reasons = {
        "one tower: it needs model.text_tower": text is None,
        f"experts ({config.experts.placement}): it needs a dense model": config.num_decisions > 0,
        "prompts or a linear head": config.prompts is not None or config.head_classes > 0,
        f"readout={config.readout}: it reads at the first token": config.readout != "spe",
        f"space={config.space_width} above width={config.width}": config.space_width > config.width,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ExportError(f"--format open_clip has no place for a model of {reason}; leave --format out")


def entries(tensors: Tensors, config: ModelConfig, spe: int, temperature: str) -> list[Entry]:
    """What open_clip_model.safetensors holds. temperature: name of the logit scale of pairs. Raises ExportError."""
    check(config)
    text = config.text_tower_config()
    assert text is not None
    # open_clip has no cap, so what is above it is written as the cap.
    highest = math.log(MAX_LOGIT_SCALE)
    found = [Entry("logit_scale", (), lambda: tensors.read(f"log_scales.{temperature}")[0].clamp(max=highest))]
    if temperature in config.logit_biases:
        found.append(Entry("logit_bias", (), lambda: tensors.read(f"logit_biases.{temperature}")[0]))
    found += _image_tower(tensors, config, spe) + _text_tower(tensors, text, spe)
    return sorted(found, key=lambda entry: entry.name)


def _image_tower(tensors: Tensors, config: ModelConfig, spe: int) -> list[Entry]:
    width, patch, grid = config.width, config.patch, config.image_size // config.patch
    embedding = "tower.embedding."

    def positions() -> Tensor:
        rows = torch.cartesian_prod(torch.arange(grid), torch.arange(grid))[None]
        if config.positions == "learned":
            table = tensors.read(embedding + "spatial_positions")
            places_PD = interpolated(table, rows * config.position_scale)[0]
        else:
            places_PD = sine_cosine(rows, width, config.position_scale)[0]
        same_D = tensors.read(embedding + "frames.weight")[0] + tensors.read(embedding + "patches.bias")
        return torch.cat([torch.zeros(1, width), places_PD + same_D])

    def projection() -> tuple[Tensor, Tensor]:
        name = _output(config, "visual")
        return tensors.read(f"tower.{name}.weight"), tensors.read(f"tower.{name}.bias")

    def last_bias() -> Tensor:
        """LN's bias + d with W d = the projection's bias, the shortest such d."""
        weight_WD, bias_W = (tensor.double() for tensor in projection())
        shift_D = torch.linalg.pinv(weight_WD) @ bias_W
        residue = (weight_WD @ shift_D - bias_W).abs().max() / bias_W.abs().max().clamp(min=1e-12)
        if residue > MAX_RESIDUE:
            raise ExportError(
                "--format open_clip: the bias of the image projection cannot be kept, as its matrix is singular"
            )
        return tensors.read("tower.output_norm.bias") + shift_D.float()

    def patches() -> Tensor:
        return tensors.read(embedding + "patches.weight").view(width, 3, patch, patch)

    space = config.space_width
    return [
        Entry("visual.conv1.weight", (width, 3, patch, patch), patches),
        Entry("visual.class_embedding", (width,), lambda: tensors.read(embedding + "tokens.weight")[spe]),
        Entry("visual.positional_embedding", (1 + grid * grid, width), positions),
        Entry("visual.ln_pre.weight", (width,), lambda: tensors.read(embedding + "norm.weight")),
        Entry("visual.ln_pre.bias", (width,), lambda: tensors.read(embedding + "norm.bias")),
        Entry("visual.ln_post.weight", (width,), lambda: tensors.read("tower.output_norm.weight")),
        Entry("visual.ln_post.bias", (width,), last_bias),
        Entry("visual.proj", (width, space), lambda: projection()[0].T),
        *_blocks(tensors, config, "tower", "visual"),
    ]


def _text_tower(tensors: Tensors, config: ModelConfig, spe: int) -> list[Entry]:
    """Token spe + 1 is padding. <SPE> stands first, without position and type."""
    width, embedding = config.width, "text_tower.embedding."
    output = "text_tower." + _output(config, "text")

    def tokens() -> Tensor:
        return torch.cat([tensors.read(embedding + "tokens.weight")[: spe + 1], torch.zeros(1, width)])

    def positions() -> Tensor:
        places = tensors.read(embedding + "text_positions.weight") + tensors.read(embedding + "text_type")
        return torch.cat([torch.zeros(1, width), places])

    same = {
        "ln_pre.weight": embedding + "norm.weight",
        "ln_pre.bias": embedding + "norm.bias",
        "ln_final.weight": "text_tower.output_norm.weight",
        "ln_final.bias": "text_tower.output_norm.bias",
        "text_projection.weight": output + ".weight",
        "text_projection.bias": output + ".bias",
    }
    return [
        Entry("text.token_embedding.weight", (spe + 2, width), tokens),
        Entry("text.positional_embedding", (1 + config.max_text, width), positions),
        *(_same(tensors, f"text.{theirs}", ours) for theirs, ours in same.items()),
        *_blocks(tensors, config, "text_tower", "text"),
    ]


def _blocks(tensors: Tensors, config: ModelConfig, tower: str, theirs: str) -> Iterator[Entry]:
    heads = config.heads
    for layer in range(config.depth):
        ours, new = f"{tower}.encoder.blocks.{layer}.", f"{theirs}.transformer.resblocks.{layer}."
        for name, other in BLOCK.items():
            for kind in ("weight", "bias"):
                yield _same(tensors, f"{new}{other}.{kind}", f"{ours}{name}.{kind}")
        if config.layer_scale:
            for name, other in SCALES.items():
                yield _same(tensors, new + other, ours + name)
        for kind in ("weight", "bias"):
            source = f"{ours}{QKV}.{kind}"
            yield Entry(
                f"{new}attn.in_proj_{kind}",
                tensors.shapes[source],
                lambda source=source: _reordered(tensors.read(source), heads, 3),  # type: ignore[misc]
            )


def _same(tensors: Tensors, name: str, source: str) -> Entry:
    return Entry(name, tensors.shapes[source], lambda: tensors.read(source))


def _reordered(fused: Tensor, outer: int, inner: int) -> Tensor:
    """Rows (outer, inner, d) as (inner, outer, d): heads and q | k | v change places."""
    return fused.unflatten(0, (outer, inner, -1)).transpose(0, 1).flatten(0, 2)


def _output(config: ModelConfig, kind: str) -> str:
    return f"output.{kind if config.output == 'per_modality' else 'shared'}"


def write_texts(folder: Path, config: ModelConfig, spe: int, max_text: int, temperature: str) -> None:
    """Configuration and loader. max_text: tokens of a text in training; temperature: see `entries`."""
    text = config.text_tower_config()
    assert text is not None
    scaled = {"ls_init_value": config.layer_scale} if config.layer_scale else {}
    biased = {"init_logit_bias": INITIAL_BIAS} if temperature in config.logit_biases else {}
    model = {
        "embed_dim": config.space_width,
        "custom_text": True,
        **biased,
        "vision_cfg": {
            "image_size": config.image_size,
            "patch_size": config.patch,
            "width": config.width,
            "layers": config.depth,
            "head_width": config.width // config.heads,
            "mlp_ratio": config.ffn / config.width,
            **scaled,
        },
        "text_cfg": {
            "context_length": 1 + config.max_text,
            "vocab_size": spe + 2,
            "width": text.width,
            "layers": text.depth,
            "heads": text.heads,
            "mlp_ratio": text.ffn / text.width,
            "no_causal_mask": True,
            "pool_type": "first",
            "proj_bias": True,
            "pad_id": spe + 1,
            **scaled,
        },
    }
    pixels = {"mean": list(MEAN[Modality.IMAGE]), "std": list(STD[Modality.IMAGE])}
    about = {"model_cfg": model, "preprocess_cfg": pixels, "sparse_generalists": {"spe": spe, "max_text": max_text}}
    (folder / CONFIG).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    source = Path(__file__).with_name(LOADER).read_text(encoding="utf-8")
    (folder / LOADER).write_text(source, encoding="utf-8")


# -- the other way -------------------------------------------------------------------------------------------------------


def is_weights(path: Path) -> bool:
    """Whether a .safetensors file is of open_clip's ViT. False for what cannot be read."""
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as opened:
            return "visual.conv1.weight" in opened.keys()  # noqa: SIM118
    except UNREADABLE:
        return False


@dataclasses.dataclass(frozen=True)
class About:
    """What weights do not tell, but open_clip_config.json beside them: mean and deviation of images, width of a head."""

    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    head_width: int = HEAD_WIDTH

    @classmethod
    def read(cls, path: Path) -> About:
        """open_clip's defaults where there is no such file. Raises ConversionError, also for what is not computed here."""
        if not path.is_file():
            return cls()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            mean, std = (tuple(float(number) for number in content["preprocess_cfg"][name]) for name in ("mean", "std"))
            model = content.get("model_cfg", {})
            vision = {"head_width": HEAD_WIDTH, "pool_type": "tok", "act_kwargs": None} | model.get("vision_cfg", {})
            about = cls(mean, std, int(vision["head_width"]))
            others = {
                "quick_gelu": model.get("quick_gelu"),
                "vision_cfg.act_kwargs": vision["act_kwargs"],
                "vision_cfg.pool_type": vision["pool_type"] if vision["pool_type"] != "tok" else None,
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConversionError(f"{path} does not say how images are normalised ({error})") from error
        for name, value in others.items():
            if value:
                raise ConversionError(
                    f"{path} says {name}={value}, which is not computed here: take weights of a tower that was trained with GELU and reads "
                    "at the first token"
                )
        return about


def to_ours(public: State, config: ModelConfig, token_rows: int, spe: int, about: About) -> State:
    """The image tower of open_clip's ViT under our names. Raises ConversionError."""
    if config.text_tower is None or config.num_decisions or config.positions != "learned" or config.layer_scale:
        raise ConversionError(
            "an image tower of open_clip goes into a dense model with a tower for text, learned positions and without LayerScale: set "
            "model.text_tower, model.experts.placement=none, model.positions=learned, model.layer_scale=0"
        )
    theirs = _without_layer_scale({n.removeprefix("visual."): t for n, t in public.items() if n.startswith("visual.")})
    weight, places_PD = theirs.pop("conv1.weight").float(), theirs.pop("positional_embedding").float()
    width, heads = weight.shape[0], weight.shape[0] // about.head_width
    if width == config.width and heads != config.heads:
        raise ConversionError(
            f"this image tower of open_clip has heads of {about.head_width} numbers, {heads} at width {width}, and not "
            f"model.heads={config.heads}: set that, or vision_cfg.head_width in {CONFIG} beside it"
        )
    side = round((len(places_PD) - 1) ** 0.5)
    # Pixels are normalised otherwise here: the linear that reads them takes up the difference.
    own, other = (torch.tensor([MEAN[Modality.IMAGE], STD[Modality.IMAGE]]), torch.tensor([about.mean, about.std]))
    bias_D = (weight * ((own[0] - other[0]) / other[1]).view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
    weight = weight * (own[1] / other[1]).view(1, 3, 1, 1)
    tokens_VD = torch.zeros(token_rows, width)
    tokens_VD[spe] = theirs.pop("class_embedding").float() + places_PD[0]
    output, projection_DW = _output(config, "visual"), theirs.pop("proj")
    found: State = {
        "embedding.patches.weight": weight.flatten(1),
        "embedding.patches.bias": bias_D,
        "embedding.tokens.weight": tokens_VD,
        "embedding.spatial_positions": places_PD[1:].view(side, side, width),
        "embedding.frames.weight": torch.zeros(config.max_frames, width),
        "embedding.norm.weight": theirs.pop("ln_pre.weight"),
        "embedding.norm.bias": theirs.pop("ln_pre.bias"),
        "output_norm.weight": theirs.pop("ln_post.weight"),
        "output_norm.bias": theirs.pop("ln_post.bias"),
        f"{output}.weight": projection_DW.T,
        f"{output}.bias": torch.zeros(projection_DW.shape[1]),
    }
    back = {other: ours for ours, other in BLOCK.items()} | {"attn.in_proj": QKV}
    for name in list(theirs):
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
        if match and match[2] in back:
            tensor, ours = theirs.pop(name), back[match[2]]
            tensor = _reordered(tensor, 3, heads) if ours == QKV else tensor
            found[f"encoder.blocks.{match[1]}.{ours}.{match[3]}"] = tensor
    if theirs:
        raise ConversionError(f"of open_clip's image tower {', '.join(sorted(theirs)[:5])} mean nothing here")
    return {f"tower.{name}": tensor.float().contiguous() for name, tensor in found.items()}


def _without_layer_scale(theirs: State) -> State:
    """The factors of branches are taken up by the linears that end these."""
    found = dict(theirs)
    for name in theirs:
        for scale, linear in SCALED.items():
            if name.endswith(f".{scale}"):
                factor_O, stem = found.pop(name).float(), name.removesuffix(scale) + linear
                found[f"{stem}.weight"] = factor_O[:, None] * found[f"{stem}.weight"].float()
                found[f"{stem}.bias"] = factor_O * found[f"{stem}.bias"].float()
    return found


def load_image_tower(objective: Objective, path: Path, config: ModelConfig, spe: int) -> None:
    """The image tower of a file into `tower.*`; the tower for text and all else start fresh. Raises ConversionError."""
    about = About.read(path.parent / CONFIG)
    try:
        rows = dict(objective.named_parameters())["tower.embedding.tokens.weight"]
        tensors = to_ours(read_state(path), config, placement_of(rows).shape[0], spe, about)
    except (KeyError, RuntimeError) as error:
        raise ConversionError(f"{path} is no ViT of open_clip's of this model's shape ({error})") from error
    fresh = ("text_tower.", "tower.embedding.text_", "tower.output.text")
    load_logical(objective, tensors, missing_ok=(*fresh, *MAY_BE_NEW))
