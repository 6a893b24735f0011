"""Conversion of public weights: there and back, and errors that list names. Real weights: tests/golden."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import LoraConfig, PromptConfig
from model.exchange.public import (
    MAY_BE_NEW,
    ConversionError,
    heads_in,
    load_converted,
    load_logical,
    main,
    read_state,
    to_ours,
    to_public,
)
from model.objective import Objective
from model.tuning import warm_start
from tests.helpers.models import make, tiny

VOCABULARY = 49411


def public_sized(**options) -> Objective:
    return make(tiny(layer_scale=1e-3, **options), VOCABULARY)


def state_of(objective: Objective) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in objective.named_parameters()}


@pytest.mark.parametrize("options", [{}, {"prompts": PromptConfig(length=3, target_length=2), "head_classes": 4}])
def test_there_and_back(options):
    ours = state_of(public_sized(**options))
    ours["tower.embedding.tokens.weight"][VOCABULARY:] = 0  # padding is not part of the public table
    public = to_public(ours, heads=2)
    assert public["token_embed.embeddings.weight"].shape == (VOCABULARY, 16)
    assert public["video_embed.embeddings.weight"].shape == (16, 3, 8, 8)
    assert "fused_encoder.layers.0.self_attn.qkv_proj.experts.deepspeed_experts.3.bias" in public
    back = to_ours(public, heads=2)
    assert {name for name in back if not name.startswith("unused/")} == ours.keys()
    for name, value in ours.items():
        assert torch.equal(back[name], value), name


def test_rows_of_qkv_are_reordered():
    # Width 2, two heads of width 1: public rows q0 q1 k0 k1 v0 v1, ours q0 k0 v0 q1 k1 v1.
    rows = torch.arange(6.0).view(6, 1).expand(6, 2)
    ours = to_ours({"fused_encoder.layers.0.self_attn.in_proj_weight": rows}, heads=2)
    assert ours["tower.encoder.blocks.0.attention.qkv.linear.weight"][:, 0].tolist() == [0, 2, 4, 1, 3, 5]


def test_names_without_a_meaning_are_listed():
    public = to_public(state_of(public_sized()), heads=2)
    public |= {"decoder.weight": torch.zeros(1), "fused_encoder.layers.0.extra": torch.zeros(1)}
    with pytest.raises(ConversionError, match=r"2 names .*: decoder.weight, fused_encoder.layers.0.extra"):
        to_ours(public, heads=2)
    with pytest.raises(ConversionError, match="text_tower"):
        to_public({"text_tower.embedding.norm.weight": torch.zeros(1)})


def test_a_missing_expert_is_listed():
    public = to_public(state_of(public_sized()), heads=2)
    del public["fused_encoder.layers.0.linear1.experts.deepspeed_experts.1.weight"]
    with pytest.raises(ConversionError, match=r"blocks.0.ffn.up.bank: expert 1 is missing"):
        to_ours(public, heads=2)


def test_copies_must_agree():
    public = to_public(state_of(public_sized()), heads=2)
    public["video_embed.embeddings_norm.bias"] = public["video_embed.embeddings_norm.bias"] + 1
    with pytest.raises(ConversionError, match=r"embeddings_norm.bias .differs from token_embed"):
        to_ours(public, heads=2)


def test_weights_that_do_not_fit_are_listed():
    objective = public_sized()
    tensors = state_of(objective)
    renamed = {("x" + name if name.startswith("log_scales.text") else name): t for name, t in tensors.items()}
    with pytest.raises(ConversionError, match=r"missing: log_scales.text; unknown: xlog_scales.text"):
        load_logical(objective, renamed)
    wrong = tensors | {"tower.output_norm.bias": torch.zeros(3)}
    with pytest.raises(ConversionError, match=r"tower.output_norm.bias is \(3,\), the model's \(16,\)"):
        load_logical(objective, wrong)
    load_logical(objective, {name: t + 1 for name, t in tensors.items()})
    assert torch.equal(objective.tower.output_norm.bias, tensors["tower.output_norm.bias"] + 1)


def test_command_line_reads_every_format(tmp_path, capsys):
    public = to_public(state_of(public_sized()), heads=2)
    save_file(public, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **{name: value.numpy() for name, value in public.items()})
    torch.save({"model": {f"module.{name}": value for name, value in public.items()}}, tmp_path / "a.pth")
    for suffix in ("safetensors", "npz", "pth"):
        out = tmp_path / f"ours_{suffix}.safetensors"
        assert main(["to-ours", str(tmp_path / f"a.{suffix}"), str(out), "--heads", "2"]) == 0
        back = tmp_path / "back.safetensors"
        assert main(["to-public", str(out), str(back), "--heads", "2"]) == 0
        assert all(torch.equal(value, public[name]) for name, value in load_file(back).items())
    assert "tensors" in capsys.readouterr().out


def test_a_converted_file_starts_a_model(tmp_path):
    source = public_sized(temperatures=("image", "video", "text", "caption", "retrieval", "downstream"))
    save_file(to_ours(to_public(state_of(source), heads=2), heads=2), tmp_path / "ours.safetensors")
    objective = public_sized(prompts=PromptConfig(length=2))
    for parameter in objective.parameters():
        parameter.data += 1
    load_converted(objective, tmp_path / "ours.safetensors")
    assert torch.equal(objective.tower.output.shared.weight, source.tower.output.shared.weight)
    assert objective.tower.embedding.spe_bias[0] == 1.0


def test_heads_are_kept_in_the_file_and_compared(tmp_path, capsys):
    """Rows of QKV are ordered by heads, and have the same shape with any number of them."""
    public = to_public(state_of(public_sized()), heads=2)
    theirs, ours, back = (tmp_path / f"{name}.safetensors" for name in ("theirs", "ours", "back"))
    save_file(public, theirs)
    assert heads_in(theirs) is None
    assert main(["to-ours", str(theirs), str(ours), "--heads", "2"]) == 0
    assert heads_in(ours) == 2
    with pytest.raises(
        ConversionError, match=r"weights of 2 attention heads, the model has model.heads=4: set model.heads=2"
    ):
        load_converted(public_sized(heads=4), ours)
    load_converted(public_sized(), ours)
    assert main(["to-public", str(ours), str(back)]) == 0
    assert all(torch.equal(value, public[name]) for name, value in load_file(back).items())


def test_what_tuning_adds_to_a_file_of_weights_is_what_it_adds_to_a_run(tmp_path):
    more = {"prompts": PromptConfig(length=2), "head_classes": 3, "lora": LoraConfig(rank=2)}
    objective = make(tiny(logit_biases=("retrieval",), **more), 40)
    source = make(tiny(temperatures=("image", "video", "text", "caption")), 40)
    save_file(state_of(source), tmp_path / "ours.safetensors")
    load_converted(objective, tmp_path / "ours.safetensors")
    assert torch.equal(objective.tower.output.shared.weight, source.tower.output.shared.weight)
    new = (*warm_start.ALWAYS_NEW, *warm_start.MAY_BE_NEW)
    for name, _ in objective.named_parameters():
        assert warm_start._matches(name, new) == any(part in name for part in MAY_BE_NEW), name


class Harmful:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_pickles_are_not_opened(tmp_path, capsys):
    torch.save({"model": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(ConversionError, match=r"bad.pth holds more than tensors"):
        read_state(tmp_path / "bad.pth")
    (tmp_path / "bad.safetensors").write_text("no")
    assert main(["to-ours", str(tmp_path / "bad.safetensors"), str(tmp_path / "out")]) == 2
    output = capsys.readouterr()
    assert "unpickled" not in output.out
    assert output.err.startswith("error: ") and output.err.count("\n") == 1


def test_a_target_that_cannot_be_written_is_one_line(tmp_path, capsys):
    state = {name: tensor.detach() for name, tensor in make(tiny()).state_dict().items()}
    save_file(state, tmp_path / "ours.safetensors")
    assert (
        main(
            [
                "to-public",
                str(tmp_path / "ours.safetensors"),
                str(tmp_path / "nowhere" / "x.safetensors"),
                "--heads",
                "2",
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'nowhere' / 'x.safetensors'}") and error.count("\n") == 1
