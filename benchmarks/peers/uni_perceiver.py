"""The public Uni-Perceiver code from a clone, run as it is: its model on our batches.

Only what it needs besides its own files and cannot have without a GPU is put in its place: `timm`'s DropPath, and `.cuda()`, which does
nothing here. Its encoder's masks, bytes in the clone, are made bool, which today's torch insists on.
Legend: B rows, L positions, Q read-outs.
"""

from __future__ import annotations

import contextlib
import io
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.batches import VOCABULARY, Sizes, images
from data.batch import Modality, Segment, TaskBatch, Visibility
from model.exchange.public import TEMPERATURES

TYPES = {
    "classification": "image_classification",
    "captions": "image_caption",
    "masked text": "text_mlm",
    "retrieval": "image_retrieval",
}
"""What the public code calls our four tasks."""
SCALES = {ours: f"logit_scale_{public}" for public, ours in TEMPERATURES.items()}


class PeerError(RuntimeError):
    """The clone cannot be used; the message says why."""


def load(folder: Path, sizes: Sizes, experts: bool, temperatures: dict[str, str]) -> nn.Module:
    """Its model in training mode with fresh weights. temperatures: name of our logit scale by task. Raises PeerError."""
    with _quiet():
        config = _config(folder, sizes, experts, temperatures)
        from uniperceiver.modeling import build_model  # type: ignore[import-not-found]

        model: nn.Module = build_model(config)
    model.fused_encoder.register_forward_pre_hook(_with_bool_mask, with_kwargs=True)
    return model.train()


def batch_of(batch: TaskBatch, task: str, patch: int) -> dict[str, Any]:
    """Our batch as its `forward` takes it. It writes into what it is given: `copied` before every step."""
    captions = task == "captions"
    target = _text(batch.candidates.segments, "target")
    shared = not batch.symmetric
    segments = batch.inputs.segments
    inputs = [_image(s, patch) for s in segments if s.modality == Modality.IMAGE]
    texts = [s for s in segments if s.modality == Modality.TEXT]
    if texts:
        inputs.append(_text(texts, "input"))
    embedding = torch.tensor([list(attributes) for attributes in dict.fromkeys(s.attributes for s in segments)]).float()
    for part in inputs:
        part["moe_embedding"] = embedding
        part["sample_info"] = [{"text_spe_cat": True} if captions else {}]
    return {
        "input_sample_list": inputs,
        "target_sample_list": [] if shared else [target],
        "shared_target_sets": {"candidates": [target]} if shared else {},
        "target_set_list": ["candidates"] if shared else [],
        "target_idx_list": [_labels(batch)] if shared else [],
        "task_info": {"task_type": TYPES[task], "task_name": task},
    }


def copied(batch: dict[str, Any]) -> dict[str, Any]:
    """The same tensors in new lists and mappings."""
    return {
        key: {k: copied(v) if isinstance(v, dict) else _copied(v) for k, v in value.items()}
        if isinstance(value, dict)
        else _copied(value)
        for key, value in batch.items()
    }


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        return [dict(item) if isinstance(item, dict) else item for item in value]
    return value


def loss_of(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """What its trainer would optimise. It adds up all that comes back, but accuracies have no gradient."""
    losses: dict[str, Tensor] = model(copied(batch))
    return sum(loss for name, loss in losses.items() if not name.startswith("Accuracy"))  # type: ignore[return-value]


@contextlib.contextmanager
def without_noise(model: nn.Module) -> Iterator[None]:
    """Inside, nothing is drawn: no noise of gates, no dropped paths."""
    kept = [(m, m.drop_prob) for m in model.modules() if isinstance(m, DropPath)]
    gates = [(m, m.noisy_gate_policy) for m in model.modules() if hasattr(m, "noisy_gate_policy")]
    for path, _ in kept:
        path.drop_prob = 0.0
    for gate, _ in gates:
        gate.noisy_gate_policy = None
    try:
        yield
    finally:
        for path, share in kept:
            path.drop_prob = share
        for gate, policy in gates:
            gate.noisy_gate_policy = policy


class DropPath(nn.Module):
    """In the place of timm's: drops a branch for whole rows, in training."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x_BLD: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return x_BLD
        keep = 1 - self.drop_prob
        return x_BLD * x_BLD.new_empty(len(x_BLD), 1, 1).bernoulli_(keep).div_(keep)


def _config(folder: Path, sizes: Sizes, experts: bool, temperatures: dict[str, str]) -> Any:
    if not (folder / "uniperceiver" / "modeling").is_dir():
        raise PeerError(f"{folder} is no clone of the Uni-Perceiver repository: it has no folder uniperceiver/modeling")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    layers = types.ModuleType("timm.models.layers")
    layers.DropPath = DropPath  # type: ignore[attr-defined]
    sys.modules |= {"timm": types.ModuleType("timm"), "timm.models": types.ModuleType("timm.models")}
    sys.modules["timm.models.layers"] = layers
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    try:
        from uniperceiver.config import get_cfg
        from uniperceiver.modeling import add_config
    except ImportError as error:
        raise PeerError(f"the code in {folder} needs a package: {error}; benchmarks/peers.md lists them") from error
    config = get_cfg()
    config.MODEL.META_ARCHITECTURE = "MultiTaskTransformerEncoder"
    add_config(config, config)
    _set(config, _values(sizes, experts))
    config.TASKS = [
        {
            "NAME": task,
            "MODEL": {"MAX_SEQ_LEN": sizes.text, "TEMP_NAME": SCALES[temperature]},
            "LOSSES": {"NAMES": ["CrossEntropy", "Accuracy"], "LOSS_WEIGHT": 1.0, "REDUCTION": "mean"},
        }
        for task, temperature in temperatures.items()
    ]
    return config


def _values(sizes: Sizes, experts: bool) -> dict[str, Any]:
    """As in the released configurations of its base model, at our sizes."""
    width = sizes.width
    model = {
        "DEVICE": "cuda" if torch.cuda.is_available() else "cpu",
        "VOCAB_SIZE": VOCABULARY,
        "ENCODER": "UnifiedBertEncoder",
        "ENCODER_DIM": width,
        "PREDICTOR": "EmbedClsAsRetrievalPredictor",
        "LEARN_TEMP": True,
        "PRED_USE_NORM": True,
        "PRED_TEMPERATURE": 0.07,
        "OUTPUT_PROJ": True,
        "SHARE_LAYERNORM": True,
        "MAEParamsInit": True,
        "POSEMBEDFIX": True,
        "IMG_INPUT_SIZE": sizes.image,
        "PATCH_SIZE": sizes.patch,
        "LAYER_SCALE": True,
        "LAYER_SCALE_INIT": 1e-3,
        "LAYER_SCALE_FP32": True,
        "TOKEN_EMBED": {
            "NAME": "TokenBaseEmbedding",
            "DIM": width,
            "USE_NORM": True,
            "POSITION": "NNEmbeddingEncoding",
            "POSITION_MAX_LEN": sizes.text,
            "TYPE_VOCAB_SIZE": 2,
        },
        "VIDEO_EMBED": {
            "NAME": "VideoBaseEmbedding",
            "IN_DIM": 3 * sizes.patch**2,
            "OUT_DIM": width,
            "USE_NORM": True,
            "TYPE_SIZE": 1,
            "POSITION": "NNEmbeddingEncoding",
            "PATCH_SIZE_T": 1,
            "DIVIDE_ST_POS": True,
            "MAX_FRAMES": 1,
        },
        "BERT": {
            "DROP_PATH_PROB": 0.1,
            "DROP_PATH_PROB_FIXED": True,
            "HIDDEN_SIZE": width,
            "HIDDEN_DROPOUT_PROB": 0.0,
            "NUM_ATTENTION_HEADS": sizes.heads,
            "INTERMEDIATE_SIZE": sizes.ffn,
            "FFN_DROPOUT_PROB": 0.0,
            "ATTENTION_PROBS_DROPOUT_PROB": 0.0,
            "NUM_HIDDEN_LAYERS": sizes.depth,
            "UNIFY_QKV": True,
        },
    }
    moe = {
        "MOE": experts,
        "MOE_TYPE": "attribute",
        "TAG_Transform": True,
        "NUM_EXPERTS": 8,
        "TOP_K": 2,
        "NOISY_GATE_POLICY": "vmoe",
        "MOE_EXPERT_TYPE": "FFN,SA",
        "MOE_EXPERT_LOCATION": "odd",
        "SA_LINEAR_OUT_MOE": True,
        "FFN_SHARE_GATE_DECISION": True,
    }
    return {"MODEL": model, "MOE": moe}


def _set(node: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _set(node[name], value)
        else:
            node[name] = value


def _image(segment: Segment, patch: int) -> dict[str, Any]:
    return {"data": images(segment, patch), "invalid_mask": None, "modality": "image", "data_type": "input"}


def _text(segments: Any, kind: str) -> dict[str, Any]:
    """Segments side by side."""
    valid_BL = torch.cat([s.valid_BL for s in segments], dim=1)
    return {
        "data": torch.cat([s.values for s in segments], dim=1),
        "invalid_mask": None if valid_BL.all() else (~valid_BL).byte(),
        "modality": "text",
        "data_type": kind,
        "sample_info": {},
        "moe_embedding": torch.tensor([list(segments[0].attributes)]).float(),
    }


def _labels(batch: TaskBatch) -> Tensor:
    """[B], or [B, L] of the texts that are read out, -1 where nothing is."""
    last = batch.inputs.segments[-1]
    if last.modality != Modality.TEXT:
        return batch.labels_Q
    rows, length = last.values.shape
    labels_BL = torch.full((rows, length), -1)
    row_Q, place_Q = batch.read_Q2.unbind(1)
    labels_BL[row_Q, place_Q - (batch.inputs.length - length)] = batch.labels_Q
    assert last.visibility != Visibility.CAUSAL
    return labels_BL


def _with_bool_mask(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    mask = named.get("invalid_mask")
    return positional, named if mask is None else {**named, "invalid_mask": mask.bool()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield
