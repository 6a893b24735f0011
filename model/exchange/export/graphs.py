"""Graphs of an exported folder's encoders: torch.export (.pt2) and ONNX, with any number of rows, compared with the network they are of.

    FOLDER/onnx/  image_encoder.pt2  image_encoder.onnx  [image_encoder.int8.onnx]   pixels: uint8 [B, 3, S, S]  -> features [B, W]
                  text_encoder.pt2   text_encoder.onnx   [text_encoder.int8.onnx]    tokens: int64 [B, L], -1 behind a text's end

Features are unit vectors. Experts that do not look at data are merged first; those that do are all computed, since a graph has no shapes
that depend on data. Needs the packages of the extra `export`: onnx, onnxscript, onnxruntime.
Legend: B rows, L positions, S side of an image, W width of the compared space.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from model.exchange.export.errors import ExportError
from model.exchange.export.merging import BANK, ROUTER
from model.exchange.export.modeling_sparse_generalist import (
    IMAGE,
    TEXT,
    SparseGeneralistConfig,
    SparseGeneralistModel,
    is_sparse,
    key_of,
)

BATCHES = (1, 7)
"""Rows that the graphs are tried with; they are made with others."""
TRACED_ROWS = 3
OPSET = 22
"""The newest whose graphs onnxruntime can quantise: 23 has an operator for attention, for which its int8 form has no causal mask."""
TOLERANCE = 1e-5
"""Of a feature, a number of a unit vector."""


class ImageEncoder(nn.Module):
    def __init__(self, model: SparseGeneralistModel, about: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.about = model, about

    def forward(self, pixels: Tensor) -> Tensor:
        return normalize(self.model.pictures(pixels.unsqueeze(1), IMAGE, self.about), dim=-1)


class TextEncoder(nn.Module):
    def __init__(self, model: SparseGeneralistModel, about: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.about = model, about

    def forward(self, tokens: Tensor) -> Tensor:
        return normalize(self.model.some_targets(tokens, "name_target", self.about, {}), dim=-1)


def check(settings: dict[str, Any]) -> None:
    """settings: config.json. Raises ExportError where a package is missing, or the network has no graph."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"--onnx needs {error.name}, which is not installed: pip install -e '.[export]'") from error
    network = settings["network"]
    kinds, needed = [task["kind"] for task in settings["tasks"]], network["related"]["retrieval"]
    if not set(kinds) & set(needed):
        raise ExportError(
            f"--onnx writes encoders of pictures and of texts to compare with them, and no task is of kind {', '.join(needed)} (but "
            f"{', '.join(kinds)}): leave --onnx out"
        )
    size = network["experts"]["group_size"]
    if size and _has_slots(network):
        raise ExportError(
            f"--onnx: experts with slots in groups of group_size={size} rows need as many groups as there are rows, which a graph does not "
            "know: leave --onnx out"
        )


def write_graphs(folder: Path, int8: bool) -> Iterator[str]:
    """Yields a line about each file. Raises ExportError where a graph does not give the network's features."""
    model = SparseGeneralistModel.load(folder)
    network = model.config.network
    try:
        about = model.task_for("retrieval", "image")
    except ValueError as error:  # of several it is not known which is one of images
        raise ExportError(f"--onnx: {error}; to export, --task") from error
    (folder / "onnx").mkdir()
    generator = torch.Generator().manual_seed(0)
    for name, modality in (("image", IMAGE), ("text", TEXT)):
        try:
            dense = dense_for(model, "visual_input" if modality == IMAGE else "name_target", modality, about)
        except ValueError as error:  # merged for something else
            yield f"onnx/{name}_encoder: left out: {error}"
            continue
        encoder = (ImageEncoder if modality == IMAGE else TextEncoder)(dense, about).eval()
        inputs = {rows: _inputs(network, modality, about, rows, generator) for rows in (TRACED_ROWS, *BATCHES)}
        yield from _write(folder / "onnx" / f"{name}_encoder", encoder, inputs, modality, int8)


def _has_slots(network: dict[str, Any]) -> bool:
    """Whether tokens compete for places of experts."""
    experts = network["experts"]
    factor = experts["eval_capacity_factor"]
    towers = (network, network | (network["text_tower"] or {}))
    sparse = any(is_sparse(tower, layer) for tower in towers for layer in range(tower["depth"]))
    return sparse and bool(experts["capacity_factor"] if factor is None else factor)


def _inputs(
    network: dict[str, Any], modality: int, about: dict[str, Any], rows: int, generator: torch.Generator
) -> Tensor:
    if modality == IMAGE:
        size = network["image_size"]
        return torch.randint(0, 256, (rows, 3, size, size), generator=generator).to(torch.uint8)
    longest = about["max_text"]
    tokens_BL = torch.randint(0, network["num_words"], (rows, longest), generator=generator)
    ends_B1 = torch.randint(1, longest + 1, (rows, 1), generator=generator)
    ends_B1[0] = longest
    return torch.where(torch.arange(longest) < ends_B1, tokens_BL, -1)


def _dynamic(modality: int, longest: int) -> dict[int, Any]:
    """Dimensions that vary. longest: tokens of a text; where that is 2, a word and the end, all have it."""
    dims = {0: torch.export.Dim("batch", min=1, max=1 << 16)}
    if modality == TEXT and longest > 2:
        dims[1] = torch.export.Dim("length", min=2, max=longest)
    return dims


@torch.no_grad()
def _write(path: Path, encoder: nn.Module, inputs: dict[int, Tensor], modality: int, int8: bool) -> Iterator[str]:
    name = "pixels" if modality == IMAGE else "tokens"
    dynamic = _dynamic(modality, inputs[TRACED_ROWS].shape[1])
    graph, onnx = path.with_suffix(".pt2"), path.with_suffix(".onnx")
    with _quiet():
        program = torch.export.export(encoder, (inputs[TRACED_ROWS],), dynamic_shapes={name: dynamic})
        torch.export.save(program, graph)
        made = torch.onnx.export(
            program, dynamo=True, input_names=[name], output_names=["features"], opset_version=OPSET, verbose=False
        )
        assert made is not None
        made.save(onnx, external_data=False)
    expected = {rows: encoder(inputs[rows]) for rows in BATCHES}
    away = max(_distance(program.module()(inputs[rows]), expected[rows]) for rows in BATCHES)
    yield _checked(graph, away)
    away = max(_distance(_run(onnx, name, inputs[rows]), expected[rows]) for rows in BATCHES)
    yield _checked(onnx, away) + f", opset {made.model.opset_imports['']}"
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        small = path.with_suffix(".int8.onnx")
        with _quiet():
            quantize_dynamic(onnx, small, weight_type=QuantType.QInt8)
        cosine = min(float((_run(small, name, inputs[rows]) * expected[rows]).sum(dim=-1).min()) for rows in BATCHES)
        yield f"onnx/{small.name}: {small.stat().st_size / 1e6:,.1f} MB, cosine at least {cosine:.4f}"


def _run(path: Path, name: str, inputs: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


def _checked(path: Path, away: float) -> str:
    if not away <= TOLERANCE:
        raise ExportError(
            f"{path.name} gives features that are {away:.2g} away from the network's, more than {TOLERANCE:g}"
        )
    batches = " and ".join(map(str, BATCHES))
    return f"onnx/{path.name}: {path.stat().st_size / 1e6:,.1f} MB, within {away:.1e} for {batches} rows"


@torch.no_grad()
def dense_for(
    model: SparseGeneralistModel, attributes: str, modality: int, about: dict[str, Any]
) -> SparseGeneralistModel:
    """The same network for one condition, its experts merged; itself where it has none, or where they look at data. Raises ValueError
    for a condition that the export has no weights for."""
    network = model.config.network
    experts = network["experts"]
    per_token = experts["router"] in ("token", "context")
    key = key_of(network, attributes, modality, model.task_id(about))
    if per_token or experts["placement"] == "none":
        return model
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        match = BANK.fullmatch(name)
        if match:
            router: Any = model.get_submodule(f"{match[1]}.{match[2]}_path.router")
            state[name.replace(".bank.", ".linear.")] = torch.tensordot(router.gates_of(key), tensor, 1)
        elif ROUTER not in name:
            state[name] = tensor
    dense = copy.deepcopy(network) | {"experts": {**experts, "placement": "none"}, "merged": None}
    with torch.device("meta"):
        made = SparseGeneralistModel(SparseGeneralistConfig(network=dense, tasks=model.config.tasks))
    made.load_state_dict(state, assign=True)
    return made.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters tell much that is about themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
