"""Strict configuration: every mistake is one clear line, before any process group or data is touched."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from data.batch import Modality
from data.config import TaskConfig
from data.tasks import TASKS, WRITTEN
from data.tasks.related import trained_temperature
from run.config import check_layout
from run.config_file import dump_config, load_config, parse_config
from run.engine_file import read_engine_file
from run.errors import ConfigError
from tests.helpers.places import ROOT

DEMO = ROOT / "configs" / "demo.yaml"


def error_of(*overrides: str, world: int = 1) -> str:
    with pytest.raises(ConfigError) as caught:
        run = load_config(DEMO, overrides)
        check_layout(run, world)
        read_engine_file(run)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configurations_load_and_survive_a_round_trip(path, tmp_path):
    run = load_config(path)
    written = tmp_path / "again.yaml"
    written.write_text(dump_config(run))
    assert load_config(written) == run
    assert read_engine_file(run)["zero_optimization"]["stage"] == 1


def test_a_profile_and_a_peak_survive_a_round_trip(tmp_path):
    written = tmp_path / "again.yaml"
    for peak, found in (("measured", "measured"), ("312", 312.0)):
        run = load_config(DEMO, ["profile={steps: [10, 59]}", f"tracking.peak={peak}"])
        written.write_text(dump_config(run))
        again = load_config(written)
        assert again == run and again.profile and again.profile.steps == (10, 59) and again.tracking.peak == found


def test_overrides():
    run = load_config(
        DEMO, ["model.depth=6", "optimizer.lr=1e-3", "data.tasks.shapes.batch_size=8", "data.tasks.1.num_frames=2"]
    )
    assert (run.model.depth, run.optimizer.lr) == (6, 0.001)
    assert (run.data.tasks[0].batch_size, run.data.tasks[1].num_frames) == (8, 2)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.dept=6"], "unknown key model.dept; did you mean model.depth?"),
        (
            ["profile={steps: [5, 2]}"],
            "profile: steps=[5, 2]: needs a first and a last step, 50 steps at most, as [10, 15]",
        ),
        (["profile={steps: [0, 2]}"], "profile: steps=[0, 2]: needs"),
        (["profile={steps: [4]}"], "profile: steps=[4]: needs"),
        (["profile={steps: [1, 51]}"], "profile: steps=[1, 51]: needs"),
        (["profile={steps: [999, 1001]}"], "profile.steps=[999, 1001] goes beyond the run of steps=1000"),
        (["profile={step: [1, 2]}"], "unknown key profile.step; did you mean profile.steps?"),
        (["tracking.peak=fast"], "tracking.peak"),
        (["tracking.peak=0"], "peak=0.0: TFLOP/s of a rank must be positive; or known, or measured"),
        (["data.tasks.shapes.batchsize=6"], "did you mean data.tasks.shapes.batch_size?"),
        (["data.tasks.1.batch_size=x"], "command line, data.tasks.1.batch_size=x: data.tasks.clips.batch_size: "),
        (["model.depth=2", "model.depth=six"], "command line, model.depth=six: model.depth: "),
        (
            ["model.experts={num_expert: 3}"],
            "command line, model.experts={num_expert: 3}: unknown key model.experts.num_expert",
        ),
        (
            ["model.experts.preset=switsh"],
            "command line, model.experts.preset=switsh: unknown model.experts.preset='switsh'",
        ),
        (["model.heads=5", "steps=900"], "demo.yaml with model.heads=5: model: width=96 does not divide"),
        (["steps=7"], "demo.yaml with steps=7 parallel.expert=1: optimizer.warmup_steps=80 is longer"),
        (["model.depth=six"], "model.depth"),
        (["model.depth=6.5"], "6.5"),
        (["seed=true"], "seed"),
        (["model.heads=5"], "width=96 does not divide by heads=5"),
        (["steps=0"], "steps=0"),
        (["name=../x"], "name='../x'"),
        (["kernels=cuda"], "kernels"),
        (["data.tasks.none.batch_size=1"], "no list element 'none'"),
        (["data.tasks=[]"], "name at least one task"),
        (["depth"], "must read key=value"),
        (["model.depth.x=3"], "override 'model.depth.x=3': 'x' lies below a value, not below a group of keys"),
        (["steps.x=3"], "override 'steps.x=3': 'x' lies below a value"),
        (["optimizer.warmup_steps=10000"], "longer than the run"),
        (["data.tasks.shapes.temperature=hot"], "temperature='hot'"),
        (
            ["model.temperatures=[shared]"],
            "task shapes: its logit scale is image or video where nothing else is said, and that is not among "
            "model.temperatures=['shared']: choose one with data.tasks.shapes.temperature",
        ),
        (["model.temperatures=[a.b]"], "temperatures: 'a.b' cannot name a parameter"),
        (["model.temperatures=[keys]"], "temperatures: 'keys' cannot name a parameter"),
        (
            ["model.position_grid=2"],
            "position_grid=2 is the size of a learned table, and positions=sine_cosine has none: leave it out",
        ),
        (
            ["init_only=[tower.*]"],
            "init_only=['tower.*'] chooses from what init names, and it names nothing: say init=",
        ),
        (["data.tasks=[{name: ../x, kind: classification, path: x}]"], "task name '../x': one to 100 bytes, no slash"),
        (["data.tasks=[{name: '', kind: classification, path: x}]"], "task name '': one to 100 bytes"),
        (["data.tasks.clips.num_frames=9"], "above model.max_frames=4"),
        (
            ["data.tasks.shapes.candidates=global", "data.draw=same"],
            "candidates=global does not go with classification",
        ),
        (
            ["data.tasks.retrieval.candidates=sharded", "data.draw=same"],
            "candidates=sharded does not go with retrieval: use local or global",
        ),
        (["data.tasks.retrieval.candidates=global"], "set draw=same or candidates=local"),
        (
            ["data.tasks.sentences.candidates=sharded", "data.draw=same", "data.vocabulary_sample=8"],
            "the whole vocabulary",
        ),
        (["parallel.deepspeed=ds_configs/none.json"], "zero1.json"),
        (["model.readout=mean"], "model.readout=mean reads a whole input once"),
        (["model.experts.priority=sum"], "priority are about tokens: router attribute"),
        (["model.experts.group_size=3"], "are about tokens: router attribute"),
        (["model.experts={router: token, pooling: attention}"], "pooling=attention is of router context"),
        (
            ["model.experts={router: token, noise: jitter}", "model.width=6144"],
            "draws a number for each of the gate's 6144",
        ),
        (["model.activation_checkpointing=selective", "model.chunks=2"], "computed again as a whole"),
        (["model.activation_checkpointing=some"], "selective"),
        (["parallel.sequence=2"], "parallel.sequence"),
        (
            ["model.text_tower={width: 100, depth: 2, heads: 3, ffn: 64}"],
            "text_tower: width=100 does not divide by heads=3",
        ),
        (
            ["model.experts.backend=deepspeed"],
            "model.experts: backend=deepspeed sends tokens to whole networks: it needs unit=mlp, not linear",
        ),
        (
            ["model.experts={backend: deepspeed, unit: mlp}"],
            "unit=mlp cannot be merged: it needs router token or context, not attribute",
        ),
        (["model.experts.backend=tutel"], "model.experts.backend"),
        (["optimizer.betas=[0.9, 1.0]"], "betas=[0.9, 1.0] and eps=1e-06: betas must lie in [0, 1)"),
        (["optimizer.betas=[-0.1, 0.9]"], "betas=[-0.1, 0.9]"),
        (["optimizer.eps=0"], "eps above 0"),
        (
            ["attention=packed", "parallel.precision=fp32"],
            "attention=packed and parallel.precision=fp32: flash attention takes bf16 or fp16; choose one of both",
        ),
        (
            ["attention=packed", "model.width=36", "model.heads=3"],
            "attention=packed: heads of 12: flash attention takes multiples of 8 up to 256",
        ),
        (
            ["model.experts.exchange=slots"],
            "exchange=slots sends slots as they are: it needs capacity_factor > 0, exchange_parts=1 and backend=own",
        ),
        (
            ["model.experts.exchange_parts=2"],
            "exchange_parts=2 cuts our own exchange of tokens: it needs router token or context and backend=own",
        ),
    ],
)
def test_mistakes_are_one_line(overrides, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert expected in error_of(*overrides, "parallel.expert=1")


@pytest.mark.parametrize("modality", [Modality.IMAGE, Modality.VIDEO])
def test_a_scale_that_is_said_nowhere_is_the_one_of_the_task(modality):
    """As the options are checked by it before there are data."""
    for answer, tasks in (("rank", TASKS), ("generate", WRITTEN)):
        for kind, task in tasks.items():
            config = TaskConfig(name="t", kind=kind, path="x", answer=answer)  # type: ignore[arg-type]
            scale = task.default_temperature.fget(SimpleNamespace(modality=modality))  # type: ignore[attr-defined]
            assert scale == trained_temperature(config, modality.name.lower()), kind


@pytest.mark.parametrize(
    ("world", "overrides", "expected"),
    [
        (2, ["parallel.expert=3"], "parallel.expert=3 does not divide the 2 data ranks"),
        (4, ["parallel.expert=4", "model.experts.num_experts=6", "micro_batches=4"], "num_experts=6 does not divide"),
        (4, ["parallel.tensor=2", "model.heads=1"], "model.heads=1 does not divide by parallel.tensor=2"),
        (2, ["micro_batches=3"], "micro_batches=3"),
        (2, ["model.experts.placement=none"], "needs experts"),
        (
            1,
            ["model.experts.placement=every-20", "parallel.expert=1"],
            "placement=every-20 puts experts into none of the",
        ),
        (3, ["parallel.tensor=2"], "does not divide the 3 ranks"),
        (
            4,
            ["parallel.tensor=2", "model.heads=2", "model.experts={router: token, unit: mlp, backend: deepspeed}"],
            "model.experts.backend=deepspeed with parallel.tensor=2: its layer sends a part of the slots",
        ),
    ],
)
def test_impossible_layouts(world, overrides, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert expected in error_of(*overrides, world=world)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"zero_optimization": {"stage": 3}}', "ZeRO stage 3 does not work with native experts"),
        ('{"zero_optimization": {"stage": 4}}', "use 0, 1 or 2"),
        ('{"zero_optimization": {"stage": 1, "cpu_offload": true}}', "cpu_offload is DeepSpeed's old name"),
        ('{"bf16": {"enabled": true}}', "engine.json: bf16 is an option of the run, parallel.precision"),
        ('{"bf16": true}', "engine.json: bf16 is an option of the run"),
        ('{"fp16": {"enabled": true}}', "fp16 is an option of the run"),
        ('{"data_types": {"grad_accum_dtype": "fp32"}}', "data_types is an option of the run"),
        (
            '{"zero_optimization": {"stage": 1}, "gradient_clipping": 1}',
            "gradient_clipping belongs to the run configuration",
        ),
        ("{", "line 1: not JSON"),
        ("[]", "engine.json: the top level must be a mapping of keys, got []"),
        ('{"zero_optimization": null}', "zero_optimization must be a mapping of keys, got null"),
        ('{"zero_optimization": {"offload_optimizer": true}}', "zero_optimization.offload_optimizer must be a mapping"),
        (
            '{"zero_optimization": {"stage": 2, "compute_grad_norm": false}}',
            "without zero_optimization.compute_grad_norm a gradient that is not finite would be applied",
        ),
    ],
)
def test_engine_files(text, expected, tmp_path):
    engine = tmp_path / "engine.json"
    engine.write_text(text)
    assert expected in error_of(f"parallel.deepspeed={engine}", "parallel.expert=1")


@pytest.mark.parametrize(("router", "groups"), [("task", 12), ("attribute", 8)])
def test_room_for_the_groups_of_task_routers_follows_from_the_tasks(router, groups):
    """Eight tasks whose candidates all ranks share, and four groups of a batch."""
    tasks = [{"name": f"t{n}", "kind": "classification", "path": "x", "candidates": "sharded"} for n in range(8)]
    raw = {"name": "x", "model": {"experts": {"router": router}}, "data": {"tasks": tasks}}
    assert parse_config(raw, "x.yaml", []).model.experts.max_groups == groups


def test_a_bare_name_is_a_file_of_the_program_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_engine_file(load_config(DEMO, ["parallel.deepspeed=zero2"]))["zero_optimization"]["stage"] == 2
    message = error_of("parallel.deepspeed=zero9", "parallel.expert=1")
    assert "zero9.json: No such file" in message and "zero1.json, " in message
    (tmp_path / "own.json").write_text('{"zero_optimization": {"stage": 0}}')
    assert read_engine_file(load_config(DEMO, ["parallel.deepspeed=own.json"]))["zero_optimization"]["stage"] == 0


def test_not_a_mapping(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load_config(path)
    with pytest.raises(ConfigError, match="data"):
        parse_config({"name": "x"}, "here")


def test_exit_code_and_message_of_the_program(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(DEMO.read_text()) | {"stepz": 3}))
    done = subprocess.run(
        [sys.executable, "train.py", "--config", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {path}: unknown key stepz; did you mean steps?"
