"""Two towers in open_clip's own classes give the run's features; its image towers give theirs in a run that begins from them."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.exchange.export.__main__ import main
from model.exchange.export.open_clip import CLIP_MEAN, CLIP_STD, CONFIG, WEIGHTS
from model.exchange.public import ConversionError
from model.initialise import initialise
from model.objective import Objective
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from prediction import load, media_of
from run.config_file import load_config
from run.resume import Resume
from run.weights.initial import initial_weights
from tests.helpers.runs import saved_run, tiny_config
from tests.model.exchange.export.test_round_trip import COUNT, TEXTS, close, embedded, pictures_of

TOWERS = "model.text_tower={width: 16, depth: 2, heads: 2, ffn: 32}"
DENSE = ["model.experts.placement=none", TOWERS, "model.space=24"]


@pytest.fixture
def open_clip(monkeypatch) -> ModuleType:
    """The package as it is, but for torchvision and timm: its towers need none of them."""
    for name in (
        "torchvision",
        "torchvision.ops",
        "torchvision.ops.misc",
        "torchvision.transforms",
        "timm",
        "timm.layers",
        "timm.models",
    ):
        try:
            found = importlib.util.find_spec(name.split(".")[0])
        except ValueError:
            found = None
        if found is None:
            monkeypatch.setitem(sys.modules, name, MagicMock(__spec__=None))
    monkeypatch.setitem(sys.modules, "torchvision.transforms.functional", MagicMock(__spec__=None))
    try:
        return pytest.importorskip("open_clip", reason="open_clip_torch cannot be imported here")
    except Exception as error:
        pytest.skip(f"open_clip_torch cannot be imported here: {error}")


def _loader(folder):
    spec = importlib.util.spec_from_file_location("open_clip_sparse", folder / "open_clip_sparse.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["model.layer_scale=0.5", "model.positions=learned", "model.output=per_modality"],
        ["data.tasks.retrieval.loss=sigmoid"],
    ],
)
def test_its_towers_give_the_features_of_the_run(open_clip, world, tmp_path, options):
    run = saved_run(tiny_config(world, tmp_path), *DENSE, *options, noise=0.1)
    assert main(["--run", str(run), "--out", str(tmp_path / "e"), "--format", "open_clip"]) == 0
    model, preprocess, tokenizer = _loader(tmp_path / "e").load(tmp_path / "e")
    ours = load(str(run), batch_size=COUNT)
    pixels = torch.stack([preprocess(picture) for picture in pictures_of(world)])
    with torch.no_grad():
        assert close(model.encode_image(pixels, normalize=True), embedded(ours, world), 2e-6)
        assert close(model.encode_text(tokenizer(TEXTS), normalize=True), ours.embed_texts(TEXTS), 2e-6)
    assert model.logit_scale.item() == pytest.approx(ours.objective.log_scales["retrieval"].item())
    biases = [bias.item() for bias in ours.objective.logit_biases.values()]
    assert ([] if model.logit_bias is None else [model.logit_bias.item()]) == biases
    assert len(biases) == ("data.tasks.retrieval.loss=sigmoid" in options)


def test_a_scale_above_the_cap_is_written_as_the_cap(world, tmp_path):
    run = saved_run(
        tiny_config(world, tmp_path), *DENSE, "model.initial_scale=200", "data.tasks.retrieval.loss=sigmoid"
    )
    assert main(["--run", str(run), "--out", str(tmp_path / "e"), "--format", "open_clip"]) == 0
    written = load_file(tmp_path / "e" / WEIGHTS)
    assert written["logit_scale"].item() == pytest.approx(math.log(100)) and written["logit_bias"].item() == -10
    about = json.loads((tmp_path / "e" / CONFIG).read_text(encoding="utf-8"))
    assert about["model_cfg"]["init_logit_bias"] == -10


def _image_tower(open_clip, folder, about: dict | None = None, more: tuple[str, ...] = (), **options):
    """Two heads of 16 numbers: the tower and its file, beside which lies what `about` adds to its configuration."""
    torch.manual_seed(0)
    visual = open_clip.transformer.VisionTransformer(32, 8, 32, 2, 2, 2.0, output_dim=24, **options).eval()
    for parameter in visual.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    state = {f"visual.{name}": tensor.contiguous() for name, tensor in visual.state_dict().items()}
    save_file(state | {name: torch.zeros(1) for name in more}, folder / WEIGHTS)
    model = {"vision_cfg": {"head_width": 16}} | (about or {})
    content = {"model_cfg": model, "preprocess_cfg": {"mean": CLIP_MEAN, "std": CLIP_STD}}
    (folder / CONFIG).write_text(json.dumps(content), encoding="utf-8")
    return visual, folder / WEIGHTS


@pytest.mark.parametrize("scaled", [None, 0.5])
def test_a_run_begins_from_its_image_tower(open_clip, world, tmp_path, scaled):
    visual, file = _image_tower(open_clip, tmp_path, ls_init_value=scaled)
    config = tiny_config(world, tmp_path)
    run = load_config(config, [*DENSE, "model.positions=learned", f"init={file}", "init_only=['tower.*']"])
    folder = saved_run(config, *DENSE, "model.positions=learned")
    predictor = load(str(folder), batch_size=COUNT)
    initial_weights(Resume(run, None, None, 0, (), ()), predictor.objective)  # type: ignore[arg-type]
    pixels = torch.stack([_clip_pixels(predictor, picture) for picture in pictures_of(world)])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(visual(pixels), dim=-1)
    media = list(media_of([str(world / "shapes" / "val-000000.tar")]))[:COUNT]
    assert close(torch.stack([v for _, v in predictor.embed(media)]), expected, 2e-6)


def _clip_pixels(predictor, picture) -> torch.Tensor:
    import numpy as np

    from data.visual.transform import spatial_transform

    (square,) = spatial_transform(np.asarray(picture.convert("RGB"))[None], 32, None)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (torch.from_numpy(square).permute(2, 0, 1) / 255 - mean) / std


@pytest.mark.parametrize(
    ("about", "more", "option", "said"),
    [
        ({}, (), "model.heads=4", r"heads of 16 numbers, 2 at width 32, and not model\.heads=4: set that"),
        (
            {"quick_gelu": True},
            (),
            "seed=0",
            r"open_clip_config\.json says quick_gelu=True, which is not computed here",
        ),
        ({"vision_cfg": {"head_width": 16, "pool_type": "avg"}}, (), "seed=0", r"says vision_cfg\.pool_type=avg"),
        ({"vision_cfg": []}, (), "seed=0", r"open_clip_config\.json does not say"),
        ({}, ("visual.attn_pool.query",), "seed=0", r"of open_clip's image tower attn_pool\.query mean nothing here"),
    ],
)
def test_a_tower_that_computes_something_else_is_one_line(open_clip, world, tmp_path, about, more, option, said):
    _, file = _image_tower(open_clip, tmp_path, about, more)
    run = load_config(tiny_config(world, tmp_path), [*DENSE, "model.positions=learned", f"init={file}", option])
    objective = Objective(run.model, 40, Mesh(), load_kernels("torch"))
    with pytest.raises(ConversionError, match=said):
        initial_weights(Resume(run, None, None, 0, (), ()), objective)  # type: ignore[arg-type]


def test_tuning_begins_from_its_image_tower(open_clip, world, tmp_path):
    """What tuning adds is new, as from a run."""
    visual, file = _image_tower(open_clip, tmp_path)
    more = ["model.lora={rank: 2}", "data.tasks.retrieval.loss=sigmoid", f"init={file}"]
    run = load_config(tiny_config(world, tmp_path), [*DENSE, "model.positions=learned", *more])
    objective = Objective(run.model, 40, Mesh(), load_kernels("torch"))
    initial_weights(Resume(run, None, None, 0, (), ()), objective)  # type: ignore[arg-type]
    assert torch.equal(objective.tower.output_norm.weight, visual.ln_post.weight)
    assert objective.logit_biases["retrieval"].item() == -10


def test_a_model_that_it_does_not_fit_is_one_line(world, tmp_path):
    file = tmp_path / WEIGHTS
    save_file({"visual.conv1.weight": torch.zeros(4, 3, 8, 8)}, file)
    run = load_config(tiny_config(world, tmp_path), [f"init={file}"])
    objective = Objective(run.model, 40, Mesh(), load_kernels("torch"))
    with pytest.raises(ConversionError, match=r"set model\.text_tower, model\.experts\.placement=none"):
        initial_weights(Resume(run, None, None, 0, (), ()), objective)  # type: ignore[arg-type]
    run = load_config(tiny_config(world, tmp_path), [f"init={file}", *DENSE, "model.positions=learned"])
    objective = Objective(run.model, 40, Mesh(), load_kernels("torch"))
    initialise(objective, 0)
    with pytest.raises(ConversionError, match="is no ViT of open_clip's of this model's shape"):
        initial_weights(Resume(run, None, None, 0, (), ()), objective)  # type: ignore[arg-type]
