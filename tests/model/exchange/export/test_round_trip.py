"""Exported runs of every kind give the features, classes and captions of the run, merged or not; so does what predict.py makes of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data.decode.video import decode_video, encode_mp4
from data.shards import DatasetError, ShardSet
from model.exchange.export.__main__ import main
from model.exchange.export.errors import ExportError
from model.exchange.export.modeling_sparse_generalist import SparseGeneralistModel
from prediction import Predictor, load, load_export, media_of, texts_of
from tests.helpers.runs import asking_config, saved_run, tiny_config

TWO_TOWERS = "model.text_tower={width: 16, depth: 2, heads: 2, ffn: 32}"
LIMOE = "model.experts={preset: limoe, num_experts: 4}"
KINDS = {
    "dense": ["model.experts.placement=none"],
    "attribute": [],
    "modality": ["model.experts.router=modality"],
    "task": ["model.experts.router=task", "model.layer_scale=0.5"],
    "task_specific": ["model.experts={router: task_specific, num_experts: 5}"],
    "token": ["model.experts.router=token", "model.experts.placement=all"],
    "context": ["model.experts.router=context", "model.experts.pooling=attention", "model.experts.unit=ffn_linear"],
    "slots": ["model.experts={router: token, num_experts: 4, capacity_factor: 0.7, group_size: 3, priority: sum}"],
    "limoe": [LIMOE, "model.output=per_modality", "model.space=24"],
    "mean": [LIMOE, "model.readout=mean"],
    "two_towers": [TWO_TOWERS, "model.space=24", "model.positions=learned"],
    "prompts": ["model.prompts={length: 3, target_length: 2}"],
    "lora": ["model.lora={rank: 2, alpha: 4}"],
}
COUNT = 4
TEXTS = ["a red circle", "the blue star is left of the green square, 28 of them", "It's Ünïcode &amp; more"]


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """By kind: (the run, its export), each made once."""
    made: dict[str, tuple] = {}

    def get(kind: str):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            config = tiny_config(world, folder)
            if kind == "mean":  # no words are read there
                raw = yaml.safe_load(config.read_text())
                raw["data"]["tasks"] = [t for t in raw["data"]["tasks"] if t["kind"] in ("classification", "retrieval")]
                config.write_text(yaml.safe_dump(raw))
            run = saved_run(config, *KINDS[kind], noise=0.1)
            assert main(["--run", str(run), "--out", str(folder / "export")]) == 0
            made[kind] = run, folder / "export"
        return made[kind]

    return get


def pictures_of(world) -> list[Image.Image]:
    shards = ShardSet.open(world / "shapes", "val")
    return [
        Image.open(io.BytesIO(next(v for k, v in shards.read(0, i).items() if k in ("png", "jpg"))))
        for i in range(COUNT)
    ]


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-6) -> bool:
    return torch.allclose(found.detach(), expected, rtol=0, atol=atol)


def embedded(model: Predictor, world) -> torch.Tensor:
    return torch.stack([v for _, v in model.embed(media_of([str(world / "shapes" / "val-000000.tar")]))])[:COUNT]


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_run(runs, world, kind):
    torch.set_num_threads(1)
    run, out = runs(kind)
    ours, theirs = load(str(run), batch_size=COUNT), SparseGeneralistModel.load(out)
    assert close(theirs.encode_image(pictures_of(world)), embedded(ours, world))
    assert close(theirs.encode_text(TEXTS), ours.embed_texts(TEXTS))


@pytest.mark.parametrize("kind", KINDS)
def test_captions_and_classes_are_those_of_the_run(runs, world, kind):
    run, out = runs(kind)
    ours, theirs = load(str(run), batch_size=COUNT), SparseGeneralistModel.load(out)
    media = list(media_of([str(world / "shapes" / "val-000000.tar")]))[:COUNT]
    if kind != "mean":
        assert theirs.caption(pictures_of(world), max_words=4) == [c for _, c in ours.caption(media, max_words=4)]
        assert theirs.caption([]) == []
    names = ["red circle", "blue star", "green square"]
    found = theirs.classify(pictures_of(world), names)
    for (_, choices), probs_C in zip(ours.classify(media, names), found, strict=True):
        assert {c.text: c.probability for c in choices} == pytest.approx(
            dict(zip(names, probs_C.tolist(), strict=True)), abs=1e-5
        )


@pytest.mark.parametrize("kind", ["attribute", "task", "slots", "two_towers"])
def test_texts_and_questions_are_answered_as_by_the_run(world, tmp_path, kind):
    """Of texts of several lengths, one too long for its template; by the task's own classes and by others."""
    options = ["data.tasks.sst2.template=it says {text} and is <spe> to me", "data.tasks.vqa.max_text=9"]
    run = saved_run(asking_config(world, tmp_path), *KINDS[kind], *options, noise=0.1)
    assert main(["--run", str(run), "--out", str(tmp_path / "e")]) == 0
    ours, theirs = load(str(run), batch_size=COUNT), SparseGeneralistModel.load(tmp_path / "e")
    texts = [*TEXTS, "a red circle " * 30]
    pictures, media = pictures_of(world), list(media_of([str(world / "shapes" / "val-000000.tar")]))[:COUNT]
    question = "what is it, and where is it, left of the star or right of the square?"
    assert theirs.classes(medium="text") == ["bad", "good"] and theirs.answers() == ["circle", "star"]
    for names in ((), ("red", "blue", "green star")):
        assert same(theirs.classify(texts, names), ours.classify(texts_of(texts), names), names or ("bad", "good"))
        told = ours.answer(media, question, names)
        assert same(theirs.answer(pictures, question, names), told, names or ("circle", "star"))
    each = theirs.answer(pictures, [question, "what?", question, "what?"])
    assert close(each[0], theirs.answer(pictures, question)[0], 1e-5) or kind == "slots"  # where rows compete
    assert not close(each[1], theirs.answer(pictures, question)[1])
    with pytest.raises(ValueError, match="2 questions about 4 pictures"):
        theirs.answer(pictures, ["what?", "where?"])
    with pytest.raises(ValueError, match="the text '&nbsp;' has no word"):
        theirs.classify(["a star", "&nbsp;"])


def same(found: torch.Tensor, expected, names) -> bool:
    """Probabilities of an export, and choices of a run: the features' differences times a logit scale."""
    rows = [{choice.text: choice.probability for choice in choices} for _, choices in expected]
    return close(found, torch.tensor([[row[name] for name in names] for row in rows]), atol=1e-5)


@pytest.mark.parametrize(("task", "router"), [("sst2", "attribute"), ("vqa", "attribute"), ("vqa", "task")])
def test_merged_for_texts_or_questions_it_answers_them_alone(world, tmp_path, task, router):
    run, out = saved_run(asking_config(world, tmp_path), f"model.experts.router={router}", noise=0.1), tmp_path / "e"
    assert main(["--run", str(run), "--out", str(out), "--task", task]) == 0
    ours, theirs = load(str(run), batch_size=COUNT), SparseGeneralistModel.load(out)
    use = (out / "README.md").read_text(encoding="utf-8").partition("```python")[2].partition("```")[0]
    assert [method in use for method in (".classify([", ".answer([", ".encode_")] == [
        task == "sst2",
        task == "vqa",
        False,
    ]
    if task == "sst2":
        assert same(theirs.classify(TEXTS), ours.classify(texts_of(TEXTS)), ("bad", "good"))
        return
    media = list(media_of([str(world / "shapes" / "val-000000.tar")]))[:COUNT]
    assert same(theirs.answer(pictures_of(world), "what?"), ours.answer(media, "what?"), ("circle", "star"))


def test_written_answers_to_texts_and_questions_are_refused(world, tmp_path):
    """`answer: generate`: nothing was compared in training; masked text and captions do not take their place unless they are named."""
    changes = [f"data.tasks.{task}.answer=generate" for task in ("sst2", "vqa")]
    run, out = saved_run(asking_config(world, tmp_path), *changes, noise=0.1), tmp_path / "e"
    assert main(["--run", str(run), "--out", str(out)]) == 0
    ours, theirs = load_export(str(out)), SparseGeneralistModel.load(out)
    pictures, media = pictures_of(world), list(media_of([str(world / "shapes" / "val-000000.tar")]))[:COUNT]
    names = ("bad", "good")
    with pytest.raises(ValueError, match=r"task sst2 has learned to write its names .*: ask the run, by `evaluate.py`"):
        theirs.classify(TEXTS, names)
    with pytest.raises(ValueError, match="task vqa has learned to write its names"):
        theirs.answer(pictures, "what?", names)
    with pytest.raises(DatasetError, match="task sst2 has learned to write its answers"):
        list(ours.classify(texts_of(TEXTS), names))
    with pytest.raises(DatasetError, match="task vqa has learned to write its answers"):
        list(ours.answer(media, "what?", names))
    found = theirs.classify(TEXTS, names, task="sentences")
    assert same(found, load(str(run)).classify(texts_of(TEXTS), names, task="sentences"), names)


def test_one_picture_needs_no_list(runs, world):
    theirs = SparseGeneralistModel.load(runs("dense")[1])
    picture, names = pictures_of(world)[0], ["red circle", "blue star"]
    assert torch.equal(theirs.classify(picture, names), theirs.classify([picture], names))
    assert theirs.caption(picture, max_words=2) == theirs.caption([picture], max_words=2)


@pytest.mark.parametrize("kind", ["attribute", "limoe", "two_towers"])
def test_predict_gives_the_same_with_either(runs, world, kind):
    run, out = runs(kind)
    ours, theirs = load(str(run), batch_size=COUNT), load_export(str(out), batch_size=COUNT)
    shard = [str(world / "shapes" / "val-000000.tar")]
    assert theirs.step == ours.step == 3
    assert torch.equal(embedded(theirs, world), embedded(ours, world))
    pictures = list(media_of(shard))[:COUNT]
    assert list(theirs.classify(pictures, task="shapes")) == list(ours.classify(pictures, task="shapes"))
    clips = list(media_of([str(world / "clips" / "val-000000.tar")]))[:2]
    assert list(theirs.caption(clips, max_words=3)) == list(ours.caption(clips, max_words=3))
    assert theirs.fill(["the red ___"]) == ours.fill(["the red ___"])


def test_clips(runs, world):
    run, out = runs("attribute")
    theirs = SparseGeneralistModel.load(out)
    shards = ShardSet.open(world / "clips", "val")
    frames = [decode_video(shards.read(0, i)["mp4"], 4) for i in range(3)]
    media = list(media_of([str(world / "clips" / "val-000000.tar")]))[:3]
    expected = torch.stack([v for _, v in load(str(run)).embed(media)])
    assert close(theirs.encode_video([list(clip) for clip in frames], task="retrieval"), expected)


def test_clips_by_stride(world, tmp_path):
    """20 frames of noise at 10 a second, of which 4 are taken 0.3 s apart: at other rates the export takes others."""
    noise_THWC = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "noise.mp4").write_bytes(encode_mp4(noise_THWC, 10))
    frames = list(decode_video((tmp_path / "noise.mp4").read_bytes(), 20))
    options = [f"data.tasks.clips.{option}" for option in ("num_frames=4", "frame_sampling=stride", "frame_stride=0.3")]
    run, out = saved_run(tiny_config(world, tmp_path), *options, noise=0.1), tmp_path / "e"
    assert main(["--run", str(run), "--out", str(out)]) == 0
    ours, theirs, media = load(str(run)), SparseGeneralistModel.load(out), list(media_of([str(tmp_path / "noise.mp4")]))
    expected = torch.stack([v for _, v in ours.embed(media, task="clips")])
    assert close(theirs.encode_video([frames], task="clips", fps=10), expected)
    assert not close(theirs.encode_video([frames], task="clips", fps=5), expected, 1e-3)
    names = ("red circle", "blue star")
    assert same(theirs.classify([frames], names, fps=10), ours.classify(media, names), names)
    with pytest.raises(ValueError, match="say fps="):
        theirs.classify([frames], names)
    again = torch.stack([v for _, v in load_export(str(out)).embed(media, task="clips")])
    assert torch.equal(again, expected)


@pytest.mark.parametrize(
    ("kind", "task"),
    [("attribute", "captions"), ("modality", "shapes"), ("task", "captions"), ("task_specific", "shapes")],
)
def test_merged_for_a_task_it_answers_as_before(runs, world, tmp_path, kind, task):
    run, whole = runs(kind)
    assert main(["--run", str(run), "--out", str(tmp_path / "e"), "--task", task]) == 0
    kept, merged = SparseGeneralistModel.load(whole), SparseGeneralistModel.load(tmp_path / "e")
    ours = load_export(str(tmp_path / "e"), batch_size=COUNT)
    assert sum(p.numel() for p in merged.parameters()) < sum(p.numel() for p in kept.parameters())
    media = list(media_of([str(world / "shapes" / "val-000000.tar")]))[:COUNT]
    if task == "captions":
        expected = kept.caption(pictures_of(world), max_words=3)
        assert merged.caption(pictures_of(world), max_words=3) == expected
        assert [caption for _, caption in ours.caption(media, max_words=3)] == expected
    else:
        names = ["red circle", "blue star"]
        expected = kept.classify(pictures_of(world), names, task="shapes")
        assert close(merged.classify(pictures_of(world), names), expected, 1e-5)
        found = [{c.text: c.probability for c in choices} for _, choices in ours.classify(media, names)]
        assert torch.allclose(torch.tensor([[row[n] for n in names] for row in found]), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["attribute", "modality"])
def test_merged_for_a_modality_it_is_dense_and_refuses_others(runs, world, tmp_path, kind):
    run, whole = runs(kind)
    kept = SparseGeneralistModel.load(whole)
    for modality in ("image", "text"):
        assert main(["--run", str(run), "--out", str(tmp_path / modality), "--modality", modality]) == 0
    images, texts = (SparseGeneralistModel.load(tmp_path / modality) for modality in ("image", "text"))
    assert not any("bank" in name or "router" in name for name, _ in images.named_parameters())
    assert close(images.encode_image(pictures_of(world)), kept.encode_image(pictures_of(world)))
    assert close(texts.encode_text(TEXTS), kept.encode_text(TEXTS))
    with pytest.raises(ValueError, match="merged for modality image: it has no weights for name_target"):
        images.encode_text(TEXTS)
    predictor = load_export(str(tmp_path / "text"))
    assert close(predictor.embed_texts(TEXTS), kept.encode_text(TEXTS))
    with pytest.raises(ExportError, match="merged for modality text, and it cannot do anything else"):
        embedded(predictor, world)
