"""The command: what it writes and refuses, what an exported folder may hold, and runs that begin from one."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from data.shards import DatasetError
from model.config import LoraConfig, TextTowerConfig
from model.exchange.export.__main__ import main
from model.exchange.export.errors import ExportError
from model.exchange.export.folder import open_export, unlike
from model.exchange.export.from_run import rows_of_data
from model.exchange.export.modeling_sparse_generalist import SparseGeneralistModel
from model.initialise import initialise
from model.objective import Objective
from model.tuning.warm_start import warm_start_from_export
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from predict import main as predict
from prediction import load, load_export, media_of
from run.config_file import load_config
from run.data import open_run_data
from run.folder import read_run
from run.resume import Resume
from run.weights.initial import initial_weights
from tests.helpers.models import tiny
from tests.helpers.runs import saved_run, tiny_config


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    """(run folder, configuration, exported folder)."""
    folder = tmp_path_factory.mktemp("made")
    config = tiny_config(world, folder)
    run = saved_run(config, noise=0.1)
    evaluation = {
        "split": "val",
        "results": [{"task": "shapes", "figure": "accuracy", "floor": "chance", "interval": [0.2, 0.4]}],
    }
    evaluation["results"][0]["metrics"] = {"accuracy": 0.3, "chance": 0.1}
    (run / "evaluations").mkdir()
    (run / "evaluations" / "val_step_00000003.json").write_text(json.dumps(evaluation), encoding="utf-8")
    out = folder / "export"
    assert main(["--run", str(run), "--out", str(out), "--license", "CC-BY-4.0", "--max-shard-mib", "1"]) == 0
    return run, config, out


def test_the_folder_holds_what_others_need(made):
    *_, out = made
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.json", "README.md", "merges.txt", "vocabulary.json", "processor_config.json"}
    assert names >= {"modeling_sparse_generalist.py", "processing_sparse_generalist.py", "model.safetensors.index.json"}
    card = (out / "README.md").read_text(encoding="utf-8")
    assert 'license: "cc-by-4.0"' in card and "| shapes | val | accuracy | 0.3000 | 0.2000 to 0.4000 | 0.1000 |" in card
    assert f"python -m model.exchange.export --run {made[0]} --out {out}" in card
    assert "| shapes | classification | shapes | " in card and "train 48" in card


def test_weights_lie_in_files_of_the_size_that_was_asked_for(made, tmp_path, monkeypatch):
    run, _, out = made
    monkeypatch.setattr("model.exchange.export.__main__.write_weights", _small(100_000))
    assert main(["--run", str(run), "--out", str(tmp_path / "e")]) == 0
    files = sorted((tmp_path / "e").glob("model-*.safetensors"))
    assert len(files) > 2 and all(path.stat().st_size < 110_000 for path in files)
    index = json.loads((tmp_path / "e" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["weight_map"] == {name: path.name for path in files for name in load_file(path)}
    whole = load_file(out / "model-00001-of-00001.safetensors")
    assert all(
        torch.equal(load_file(tmp_path / "e" / file)[name], whole[name]) for name, file in index["weight_map"].items()
    )


def _small(size: int):
    from model.exchange.export.writing import write_weights

    return lambda folder, entries, max_bytes: write_weights(folder, entries, size)


@pytest.mark.parametrize(
    ("overrides", "words", "said"),
    [
        (
            [],
            ["--task", "nothing"],
            "--task nothing: the run's tasks are shapes, clips, sentences, captions, retrieval",
        ),
        (["model.experts.placement=none"], ["--task", "shapes"], "merges experts, and this run has none"),
        (["model.experts.router=token"], ["--task", "shapes"], "router token chooses them for every token"),
        (
            ["model.experts.router=task"],
            ["--modality", "image"],
            "router task decides by tasks; choose one of them with --task",
        ),
        ([], ["--format", "open_clip"], "no place for a model of one tower"),
        ([], ["--step", "9"], "no checkpoint of step 9; there are 3"),
    ],
)
def test_what_cannot_be_exported_is_one_line(world, tmp_path, capsys, overrides, words, said):
    run = saved_run(tiny_config(world, tmp_path), *overrides)
    assert main(["--run", str(run), "--out", str(tmp_path / "e"), *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and said in error
    assert not (tmp_path / "e").exists() and not list(tmp_path.glob(".e.*"))


def test_what_is_there_is_kept_unless_it_is_an_export_to_be_replaced(made, tmp_path, capsys):
    run, _, out = made
    words = ["--run", str(run), "--out"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years", encoding="utf-8")
    assert main([*words, str(mine)]) == 2
    assert "is not empty: give another --out, or --overwrite" in capsys.readouterr().err
    assert main([*words, str(mine), "--overwrite"]) == 2
    assert "holds something else than an export" in capsys.readouterr().err
    assert (mine / "thesis.tex").read_text(encoding="utf-8") == "years"
    shutil.copytree(out, tmp_path / "e")
    (tmp_path / "e" / "old").touch()
    assert main([*words, str(tmp_path / "e"), "--overwrite"]) == 0
    assert not (tmp_path / "e" / "old").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["e", "mine"]


def _edit(folder, name: str, change) -> None:
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    change(content)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", lambda c: c.pop("model_type"), "is no folder of"),
        ("config.json", lambda c: c["network"].update(width=-1), "width=-1"),
        ("config.json", lambda c: c["network"].update(depth=3), "does not fit the model: missing"),
        ("config.json", lambda c: c["network"].update(ffn=128), "does not fit the model: shapes"),
        ("config.json", lambda c: c["network"].update(spe=9), "the model 10: export the run again"),
        ("config.json", lambda c: c["tasks"][0].update(max_text=-4), "the tasks of its config.json are damaged"),
        ("config.json", lambda c: c.update(tasks="all"), "is damaged"),
        ("model.safetensors.index.json", lambda c: c["weight_map"].update(x="../x.safetensors"), "leaves the folder"),
        ("model.safetensors.index.json", lambda c: c["weight_map"].update(x="model-9.safetensors"), "cannot be read"),
        ("vocabulary.json", lambda c: c.pop("words"), "is damaged"),
    ],
)
def test_a_damaged_folder_is_one_line(made, tmp_path, capsys, name, change, said):
    folder = tmp_path / "e"
    shutil.copytree(made[2], folder)
    _edit(folder, name, change)
    assert predict(["fill", "--model", str(folder), "--texts", "the red ___"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and said in error


def test_code_in_the_folder_is_not_run(made, tmp_path):
    folder = tmp_path / "e"
    shutil.copytree(made[2], folder)
    (folder / "modeling_sparse_generalist.py").write_text("raise SystemExit(9)", encoding="utf-8")
    assert predict(["fill", "--model", str(folder), "--texts", "the red ___", "--json"]) == 0


def test_a_run_begins_from_an_export(made, world, tmp_path):
    _, config, out = made
    run = load_config(config, [f"init={out}"])
    exported = open_export(out)
    objective = Objective(run.model, exported.vocabulary_size, Mesh(), load_kernels("torch"))
    initial_weights(Resume(run, open_run_data(run), None, 0, (), ()), objective)
    expected = dict(exported.objective().named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in objective.named_parameters())


def test_a_run_takes_a_part_of_an_export(made):
    _, config, out = made
    run = load_config(config, [f"init={out}", "init_only=['*.attention.*']"])
    exported = open_export(out)
    objective = Objective(run.model, exported.vocabulary_size, Mesh(), load_kernels("torch"))
    initial_weights(Resume(run, open_run_data(run), None, 0, (), ()), objective)
    fresh = Objective(run.model, exported.vocabulary_size, Mesh(), load_kernels("torch"))
    initialise(fresh, run.seed)
    theirs, ours = dict(exported.objective().named_parameters()), dict(fresh.named_parameters())
    for name, parameter in objective.named_parameters():
        assert torch.equal(parameter, (theirs if ".attention." in name else ours)[name])


def test_a_pattern_that_takes_nothing_is_told(made):
    _, config, out = made
    run = load_config(config, [f"init={out}", "init_only=['*.attention.*', 'towr.*']"])
    exported = open_export(out)
    objective = Objective(run.model, exported.vocabulary_size, Mesh(), load_kernels("torch"))
    with pytest.raises(ExportError, match=r"no parameter of the model matches 'towr\.\*'"):
        initial_weights(Resume(run, open_run_data(run), None, 0, (), ()), objective)


def test_weights_that_mean_something_else_are_refused(made):
    """Of another number of heads all shapes are the same."""
    _, config, out = made
    exported = open_export(out)
    run = load_config(config, [f"init={out}", "model.heads=4"])
    objective = Objective(run.model, exported.vocabulary_size, Mesh(), load_kernels("torch"))
    with pytest.raises(ExportError, match=r"does not fit the model: model\.heads=4, there 2: "):
        exported.load(objective)
    exported.load(objective, ("*.ffn.*",))  # no row of theirs is ordered by heads


QKV, BANK, GATE = (
    f"tower.encoder.blocks.0.{name}.weight" for name in ("attention.qkv.linear", "ffn.up.bank", "ffn_path.router.gate")
)


@pytest.mark.parametrize(
    ("there", "here", "names", "said"),
    [
        (tiny(), tiny(heads=4), [QKV], ["model.heads=4, there 2"]),
        (tiny(), tiny(heads=4), ["text_" + QKV, BANK, GATE], []),
        (
            tiny(text_tower=TextTowerConfig(width=16, depth=2, heads=2, ffn=32)),
            tiny(text_tower=TextTowerConfig(width=16, depth=2, heads=4, ffn=32)),
            [QKV, "text_" + QKV],
            ["model.text_tower.heads=4, there 2"],
        ),
        (
            tiny(lora=LoraConfig(rank=2, alpha=4)),
            tiny(lora=LoraConfig(rank=2)),
            ["tower.encoder.blocks.0.ffn.up.lora.up"],
            ["model.lora.alpha=16.0, there 4"],
        ),
        (tiny(lora=LoraConfig(rank=2, alpha=4)), tiny(lora=LoraConfig(rank=2)), [QKV], []),
        (
            tiny("task", tasks=("a", "b")),
            tiny("task", tasks=("b", "a")),
            [GATE],
            ["the order of data.tasks=b, a, there a, b"],
        ),
        (tiny("task", tasks=("a", "b")), tiny("task", tasks=("a", "c")), [GATE], []),
        (tiny("attribute", tasks=("a", "b")), tiny("attribute", tasks=("b", "a")), [GATE], []),
        (tiny("task", tasks=("a",)), tiny("task_specific", tasks=("a",)), [BANK], []),
        (tiny("modality"), tiny("task"), [GATE], ["model.experts.router=task, there modality"]),
    ],
)
def test_options_that_no_shape_tells(there, here, names, said):
    assert unlike(there, here, names) == said
    assert unlike(here, here, names) == []


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("model.prompts={length: 2}", "new: 2 prompts, 1 spe_bias"),
        ("model.lora={rank: 2}", "lora"),
        ("model.head_classes=6", "new: 2 head, 1 similarity_weight"),
        ("data.tasks.retrieval.loss=sigmoid", "new: 1 logit_biases"),
    ],
)
def test_tuning_begins_from_an_export(made, option, told):
    """As from a run: prompts, heads, updates and biases are new, all else is the export's; a network of another shape is refused."""
    _, config, out = made
    run = load_config(config, [f"init={out}", option])
    exported = open_export(out)
    objective = Objective(run.model, exported.vocabulary_size, Mesh(), load_kernels("torch"))
    data = SimpleNamespace(vocabulary=read_run(made[0])[1])
    (note,) = initial_weights(Resume(run, data, None, 0, (), ()), objective).notes
    theirs = dict(exported.objective().named_parameters())
    assert note.startswith(f"init {out}: {len(theirs)} tensors as they are, new: ") and told in note
    ours = dict(objective.named_parameters())
    assert len(ours) > len(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_prompts_of_an_export_are_left_there(world, tmp_path):
    config = tiny_config(world, tmp_path)
    out = tmp_path / "export"
    assert main(["--run", str(saved_run(config, "model.prompts={length: 2}", noise=0.1)), "--out", str(out)]) == 0
    exported = open_export(out)
    theirs = dict(exported.objective().named_parameters())
    for option, told in (
        ("seed=0", "new: nothing, left there"),
        ("model.prompts={length: 3}", "new: 2 prompts, 1 spe_bias"),
    ):
        run = load_config(config, [option])
        objective = Objective(run.model, exported.vocabulary_size, Mesh(), load_kernels("torch"))
        initialise(objective, 0)
        assert told in str(warm_start_from_export(objective, exported))
        for name, parameter in objective.named_parameters():
            assert "prompts" in name or "spe_bias" in name or torch.equal(parameter, theirs[name])
    deeper = load_config(config, ["model.depth=3"])
    with pytest.raises(ExportError, match=r"does not fit the model: missing: tower\.encoder\.blocks\.2"):
        warm_start_from_export(
            Objective(deeper.model, exported.vocabulary_size, Mesh(), load_kernels("torch")), exported
        )


def test_the_card_has_no_credentials(made):
    run = load_config(made[1])
    task = dataclasses.replace(run.data.tasks[0], path="https://me:secret@host/sets/pets?sig=secret")
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, tasks=(task,)))
    assert [row["data"] for row in rows_of_data(run, {})] == ["pets"]


def test_written_names_are_captions_in_an_export(world, tmp_path):
    """`answer: generate`: the exported network writes what the run writes, and no names are compared that never were."""
    config = tiny_config(world, tmp_path)
    raw = yaml.safe_load(config.read_text())
    tasks = {task["name"]: task for task in raw["data"]["tasks"]}
    raw["data"]["tasks"] = [tasks["shapes"] | {"answer": "generate"}]
    config.write_text(yaml.safe_dump(raw))
    run, out = saved_run(config), tmp_path / "out"
    assert main(["--run", str(run), "--out", str(out), "--task", "shapes"]) == 0
    shard = media_of([str(world / "shapes" / "val-000000.tar")])
    theirs, ours = load_export(str(out)), load(str(run))
    media = list(shard)[:4]
    assert [text for _, text in theirs.caption(media)] == [text for _, text in ours.caption(media)]
    for predictor in (theirs, ours):
        with pytest.raises(DatasetError, match="task shapes has learned to write its names"):
            list(predictor.classify(media, ["red circle", "blue star"]))
    with pytest.raises(ValueError, match=r"task shapes has learned to write its names .* with task='shapes'"):
        SparseGeneralistModel.load(out).classify(
            torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["red circle", "blue star"]
        )


def test_the_task_of_a_question_is_that_of_the_run():
    """Those that wrote class names come after those that wrote captions, and count as classification where features are asked for."""
    tasks = [
        {"name": "names", "kind": "captioning", "written": True, "medium": "image"},
        {"name": "captions", "kind": "captioning", "written": False, "medium": "image"},
    ]
    related = {
        "classification": ["classification", "retrieval", "captioning"],
        "retrieval": ["retrieval", "classification", "captioning"],
        "captioning": ["captioning"],
    }

    def chosen(kind: str, *there: dict) -> str:
        model = SimpleNamespace(config=SimpleNamespace(tasks=there, network={"related": related}))
        return SparseGeneralistModel.task_for(model, kind, "image")["name"]  # type: ignore[arg-type]

    assert [chosen(kind, *tasks) for kind in ("captioning", "classification", "retrieval")] == [
        "captions",
        "captions",
        "names",
    ]
    assert chosen("captioning", tasks[0]) == "names"
    with pytest.raises(ValueError, match="task names has learned to write"):
        chosen("classification", tasks[0])


def test_its_code_is_loaded_without_transformers(made, monkeypatch):
    out = made[2]
    monkeypatch.syspath_prepend(str(out))
    for name in ("modeling_sparse_generalist", "processing_sparse_generalist"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("modeling_sparse_generalist")
    monkeypatch.setitem(sys.modules, "modeling_sparse_generalist", module)  # and away again
    assert module.__file__ == str(out / "modeling_sparse_generalist.py") and module.__package__ == ""
    texts = ["a red circle"]
    expected = SparseGeneralistModel.load(out).encode_text(texts)
    assert torch.equal(module.SparseGeneralistModel.load(out).encode_text(texts), expected)
