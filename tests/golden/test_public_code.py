"""Agreement with the public code in fp32: embeddings, layers, features, logits, losses, experts, gradients."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from model.exchange.public import to_ours, to_public
from model.layout import PassLayout
from model.moe import router as router_module
from model.objective import Objective
from model.residual import Stream
from model.tuning.trained import choose_trained
from tests.golden.reference import HEADS, arrays, batch_of, cases, described, load, public_state, tensor

TASKS = ("image_cls", "video_cls", "caption", "video_caption", "mlm", "retrieval", "text_cls")
PLAIN = [f"{kind}_{task}" for kind in ("moe", "dense") for task in TASKS]
PROMPTS = [f"{kind}_prompt_{task}" for kind in ("moe", "dense") for task in ("cls", "caption", "retrieval")]


def model_of(case: str) -> Objective:
    return load(model_name(case), case if "_prompt_" in case else "")


def model_name(case: str) -> str:
    """compact/moe of compact/moe_image_cls."""
    return case.split("_")[0]


def close(got: Tensor, expected: np.ndarray, what: str, factor: float = 1.0) -> None:
    reference = tensor(expected)
    scale = reference.abs().max().item()
    torch.testing.assert_close(
        got.detach(), reference, rtol=1e-4 * factor, atol=1e-5 * scale * factor, msg=lambda text: f"{what}: {text}"
    )


def record(objective: Objective) -> dict:
    """Hooks that keep what goes through the encoder: states by layer for both sides, weights of every decision. The last block
    has states of all tokens, as the public code's has."""
    kept: dict = {"states": {}, "weights": {}}
    encoder = objective.tower.encoder
    encoder.reads_early = False

    def placed(stream: Stream, layout: PassLayout) -> list[torch.Tensor]:
        x_TD = encoder.residual.settled(stream).x_TD
        return [sequence.placed(x) for sequence, x in zip(layout.sequences, layout.each(x_TD), strict=True)]

    for index, block in enumerate(encoder.blocks):
        block.register_forward_hook(
            lambda _, args, out, i=index: kept["states"].update(
                {i: placed(out[0], args[1]), i - 0.5: placed(args[0], args[1])}
            )
        )
        for name in ("attention_path", "ffn_path"):
            path = getattr(block, name)
            if path is not None:
                path.register_forward_hook(
                    lambda _, args, out, key=(index, name): kept["weights"].update({key: (args[1], args[2])})
                )
    return kept


@pytest.mark.parametrize("case", cases(*PLAIN, *PROMPTS))
def test_forward(case):
    objective, batch, stored = model_of(case), batch_of(case), arrays(case)
    inputs_QW, _ = objective.encode(batch.inputs, batch.read_Q2)
    candidates_CW, _ = objective.encode_candidates(batch.candidates)
    kept = record(objective)
    losses = objective(batch)

    target = "target" if batch.symmetric else "target_set"
    for side, name, sequences in ((0, "input", batch.inputs), (1, target, batch.candidates)):
        valid_BL = torch.cat(
            [torch.ones(sequences.num_rows, 1, dtype=torch.bool), *(s.valid_BL for s in sequences.segments)], dim=1
        )
        for key, layer in (("embed", -0.5), *((f"layer{layer}", layer) for layer in range(4))):
            if f"{name}/{key}" in stored:  # the compact set has the last layer of one case each
                expected = stored[f"{name}/{key}"]
                rows = slice(0, len(expected))
                mask = valid_BL[rows]
                close(kept["states"][layer][side][rows][mask], expected[mask.numpy()], f"{name} {key}")

    close(inputs_QW, stored["out/input_feature"], "input features")
    if "out/target_feature" in stored:
        close(candidates_CW, stored["out/target_feature"], "target features")
    logits = objective.logits(inputs_QW, candidates_CW, batch.temperature)
    close(logits, stored.get("out/logits", stored.get("out/logits_i2t")), "logits")

    reported = described(case)["losses"]
    expected_loss = sum(value for key, value in reported.items() if "Accuracy" not in key)
    assert (batch.weight * losses.loss).item() == pytest.approx(expected_loss, abs=1e-4)
    accuracy = next(value for key, value in reported.items() if key in ("Accuracy", "Accuracy (i2t)"))
    assert losses.correct.item() / len(batch.labels_Q) == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.parametrize("case", cases(*(case for case in PLAIN + PROMPTS if case.startswith("moe"))))
def test_chosen_experts_and_weights(case):
    objective, batch, stored = model_of(case), batch_of(case), arrays(case)
    kept = record(objective)
    objective(batch)
    target = "target" if batch.symmetric else "target_set"
    assert len(kept["weights"]) == 4
    for (layer, path), (layout, gates) in kept["weights"].items():
        groups = [len(sequence.tokens.groups) for sequence in layout.sequences]
        for name, rows in zip(("input", target), gates.weights_CE.split(groups), strict=True):
            linear = "qkv" if path == "attention_path" else "ffn"
            prefix = f"{name}/gate/layer{layer}.{linear}"
            experts = tensor(stored[f"{prefix}/experts"])
            assert torch.equal(rows.topk(2, dim=1).indices, experts), prefix
            close(rows.gather(1, experts), stored[f"{prefix}/weights"], prefix)


@pytest.mark.parametrize("case", cases(*(case for case in PLAIN + PROMPTS if "video_caption" not in case)))
def test_gradients(case):
    objective, batch, stored = model_of(case), batch_of(case), arrays(case)
    about = described(case)
    if "trainable" in about:
        trainable = set(to_ours_names(objective, about["trainable"]))
        for name, parameter in objective.named_parameters():
            parameter.requires_grad_(name in trainable)
    losses = objective(batch)
    losses.total.backward()
    gradients = to_public(
        {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in objective.named_parameters()}, HEADS
    )
    gradients["token_embed.embeddings_token_type.weight"] = torch.cat(
        [gradients["token_embed.embeddings_token_type.weight"], torch.zeros(1, 64)]
    )
    compared = 0
    for name, norm in about["grad_norm"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-5), name
        if f"grad/{name}" in stored:
            close(gradients[name].reshape(stored[f"grad/{name}"].shape), stored[f"grad/{name}"], name, factor=10)
        compared += 1
    assert compared > 8
    for name in about["no_grad"]:
        if name in gradients and ".experts." in name:
            assert not gradients[name].any(), name


@pytest.mark.parametrize("case", cases(*PROMPTS))
def test_prompt_tuning_trains_the_same_parameters(case):
    objective = model_of(case)
    choose_trained(objective, "prompts")
    tuned = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert tuned == set(to_ours_names(objective, described(case)["trainable"]))


def to_ours_names(objective: Objective, public: list[str]) -> list[str]:
    """Our names of public ones, by marking each parameter."""
    marks = {name: torch.full_like(p, i + 1.0) for i, (name, p) in enumerate(objective.named_parameters())}
    names = list(marks)
    seen = to_public({k: v.detach() for k, v in marks.items()}, HEADS)
    return [names[round(seen[name].flatten()[0].item()) - 1] for name in public if name in seen]


@pytest.mark.parametrize("case", cases("moe_image_cls"))
def test_the_scale_is_capped_without_a_gradient(case):
    objective, batch = model_of(case), batch_of(case)
    expected = described(case)["clamped_scale"]
    objective.log_scales["image"].data.fill_(expected["logit_scale_img_cls"])
    losses = objective(batch)
    assert losses.loss.item() == pytest.approx(expected["losses"]["LabelSmoothing"], abs=1e-4)
    losses.total.backward()
    assert not objective.log_scales["image"].grad.any()


@pytest.mark.parametrize("case", cases("moe_gate_noise"))
def test_gate_noise(case, monkeypatch):
    """The public code's noise instead of ours, in the order of the decisions; inputs' groups come before candidates'."""
    stored = arrays(case)
    order = [f"gate/layer{layer}.{linear}" for layer in (0, 2) for linear in ("qkv", "ffn")]
    queue = [torch.cat([tensor(stored[f"{side}/{key}/noise"]) for side in ("input", "target_set")]) for key in order]
    std = 1 / 8
    noise = torch.stack(queue) / std
    monkeypatch.setattr(router_module, "normal", lambda key, counter: noise)
    objective, batch = model_of(case), batch_of(case.replace("gate_noise", "image_cls"))
    monkeypatch.setattr("model.embedding.temporal_offset", lambda noise, free: 0)
    loss = objective(batch, noise=1).loss
    expected = described(case)["train_mode_losses"]["LabelSmoothing"]
    assert loss.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("case", cases("moe_temporal_offset"))
def test_temporal_offset(case, monkeypatch):
    stored = arrays(case)
    monkeypatch.setattr("model.embedding.temporal_offset", lambda noise, free: int(stored["in/temporal_offset"][0]))
    objective, batch = model_of(case), batch_of(case.replace("temporal_offset", "video_cls"))
    for index in (0, 2):
        block = objective.tower.encoder.blocks[index]
        for path in (block.attention_path, block.ffn_path):
            path.router.config = _quiet(objective)
    kept = record(objective)
    losses = objective(batch, noise=1)
    close(kept["states"][-0.5][0], stored["input/embed"], "embedding")
    expected = described(case)["train_mode_losses"]["LabelSmoothing"]
    assert (batch.weight * losses.loss).item() == pytest.approx(expected, abs=1e-4)


def _quiet(objective: Objective):
    return dataclasses.replace(objective.config.experts, noise="none")


@pytest.mark.parametrize("case", cases("moe_image_cls", "dense_image_cls"))
def test_conversion_there_and_back_is_exact(case):
    public = public_state(model_name(case))
    back = to_public(to_ours(public, HEADS), HEADS)
    assert back.keys() == public.keys()
    for name, value in public.items():
        assert torch.equal(back[name], value), name
