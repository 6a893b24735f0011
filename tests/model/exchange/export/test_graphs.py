"""ONNX and torch.export graphs give the features of the network for other numbers of rows than they were made with."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml

from model.exchange.export import graphs
from model.exchange.export.__main__ import main
from model.exchange.export.modeling_sparse_generalist import IMAGE, TEXT, SparseGeneralistModel
from tests.helpers.runs import saved_run, tiny_config

LIMOE = "model.experts={preset: limoe, num_experts: 2}"
PROMPTS = "model.prompts={length: 2, target_length: 1}"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="merged"),
        pytest.param([LIMOE], id="slots", marks=pytest.mark.slow),
        pytest.param([PROMPTS], id="prompts", marks=pytest.mark.slow),
    ],
)
def test_graphs_of_both_encoders(world, tmp_path, capsys, options):
    runtime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    run = saved_run(tiny_config(world, tmp_path), *options, noise=0.1)
    assert main(["--run", str(run), "--out", str(tmp_path / "e"), "--onnx", "--int8"]) == 0
    told = capsys.readouterr().out
    assert len(re.findall(r"_encoder\.(pt2|onnx): .* within \S+e-0[678] for 1 and 7 rows|within 0\.0e\+00", told)) == 4
    model = SparseGeneralistModel.load(tmp_path / "e")
    pixels = torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    session = runtime.InferenceSession(str(tmp_path / "e" / "onnx" / "image_encoder.onnx"))
    found = torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])
    assert torch.allclose(found, model.encode_image(pixels).detach(), atol=1e-5)
    tokens = model.processor.tokens(["a red circle", "star"])
    session = runtime.InferenceSession(str(tmp_path / "e" / "onnx" / "text_encoder.onnx"))
    found = torch.from_numpy(session.run(None, {"tokens": tokens.numpy()})[0])
    assert torch.allclose(found, model.encode_text(["a red circle", "star"]).detach(), atol=1e-5)
    assert (tmp_path / "e" / "onnx" / "text_encoder.int8.onnx").is_file()


def test_groups_with_slots_have_no_graph(world, tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    grouped = "model.experts={router: token, capacity_factor: 1.0, group_size: 2, num_experts: 2}"
    run = saved_run(tiny_config(world, tmp_path), grouped)
    assert main(["--run", str(run), "--out", str(tmp_path / "e"), "--onnx"]) == 2
    assert "group_size=2 rows need as many groups as there are rows" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ([], True),
        (["model.experts.placement=none"], False),
        (["model.experts.eval_capacity_factor=0.0"], False),
    ],
)
def test_groups_matter_where_tokens_compete_for_experts(world, tmp_path, options, refused):
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    grouped = "model.experts={router: token, capacity_factor: 1.0, group_size: 2, num_experts: 2}"
    run = saved_run(tiny_config(world, tmp_path), grouped, *options)
    assert main(["--run", str(run), "--out", str(tmp_path / "e")]) == 0
    settings = json.loads((tmp_path / "e" / "config.json").read_text(encoding="utf-8"))
    if refused:
        with pytest.raises(graphs.ExportError, match="group_size=2"):
            graphs.check(settings)
    else:
        graphs.check(settings)


def test_a_run_of_texts_has_no_encoders_to_compare(world, tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    config = tiny_config(world, tmp_path)
    raw = yaml.safe_load(config.read_text())
    raw["data"]["tasks"] = [task for task in raw["data"]["tasks"] if task["name"] == "sentences"]
    config.write_text(yaml.safe_dump(raw))
    assert main(["--run", str(saved_run(config)), "--out", str(tmp_path / "e"), "--onnx"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --onnx writes encoders") and "(but masked_text): leave --onnx out" in error
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(("modality", "longest", "vary"), [(IMAGE, 3, [0]), (TEXT, 3, [0, 1]), (TEXT, 2, [0])])
def test_dimensions_that_vary(modality, longest, vary):
    """Of texts of one word and the end the length does not."""
    assert list(graphs._dynamic(modality, longest)) == vary


def test_without_its_packages_it_is_one_line(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    run = saved_run(tiny_config(world, tmp_path))
    assert main(["--run", str(run), "--out", str(tmp_path / "e"), "--onnx"]) == 2
    assert "--onnx needs onnx" in capsys.readouterr().err
