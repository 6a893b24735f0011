"""Checkpoints: exact resume, any other layout, atomic publishing, errors that name the part."""

from __future__ import annotations

import dataclasses
import fnmatch
import json

import numpy as np
import pytest
import torch

from parallel.checkpoints import (
    CheckpointError,
    load_weights,
    newest,
    open_checkpoint,
    published,
    restore,
    save,
)
from parallel.placement import EXPERT_AXIS, Cut
from tests.helpers.distributed import run_ranks
from tests.helpers.fragments import fragment
from tests.helpers.parity import Job, logical_weights, merged_losses, run_job


@pytest.mark.parametrize("layout", [{}, {"expert": 2}])
def test_resume_equals_the_uninterrupted_run_bit_by_bit(tmp_path, layout):
    job = Job(steps=4, engine="zero2", **layout)
    whole = run_ranks(2, run_job, job)
    saved = dataclasses.replace(job, save_to=str(tmp_path), save_at=2)
    run_ranks(2, run_job, dataclasses.replace(saved, steps=2))
    resumed = run_ranks(2, run_job, saved)
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        left, right = logical_weights(whole, kind), logical_weights(resumed, kind)
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=f"{kind} of {name}")
    late = {key: value for key, value in merged_losses(whole).items() if key[0] >= 2}
    assert merged_losses(resumed) == late


@pytest.mark.parametrize("layout", [{"expert": 2}, {"tensor": 2}])
def test_locked_parameters_are_saved_and_stay(tmp_path, layout):
    locked = ("tower.embedding.*", "*.up.bank.*")
    job = Job(steps=2, frozen=locked, save_to=str(tmp_path), save_at=2, **layout)
    trained = logical_weights(run_ranks(2, run_job, job))
    untouched = logical_weights(run_ranks(2, run_job, Job(steps=0, **layout)))
    checkpoint, _ = newest(tmp_path)
    assert checkpoint is not None and checkpoint.names == untouched.keys()
    for name, before in untouched.items():
        is_locked = any(fnmatch.fnmatch(name, pattern) for pattern in locked)
        assert np.array_equal(before, trained[name]) or not is_locked, name
        np.testing.assert_array_equal(checkpoint.logical(name, "weight").numpy(), trained[name], err_msg=name)
    tuned = "tower.encoder.blocks.0.ffn.down.bank.weight"
    assert not np.array_equal(untouched[tuned], trained[tuned])


def test_expert_parallel_checkpoint_resumes_on_one_rank(tmp_path):
    job = Job(steps=4)
    saved = dataclasses.replace(job, save_to=str(tmp_path), save_at=2)
    run_ranks(2, run_job, dataclasses.replace(saved, steps=2, expert=2))
    resumed, whole = run_ranks(1, run_job, saved), run_ranks(1, run_job, job)
    assert merged_losses(resumed)[3, 0] == pytest.approx(merged_losses(whole)[3, 0], rel=1e-4)


def test_round_trip_of_cut_fragments(tmp_path):
    # A [2, 3] tensor whose rows lie on two expert ranks, the first row itself in two pieces.
    rows = [Cut(0, EXPERT_AXIS, index, 2) for index in range(2)]
    parts = [
        fragment("a", [0, 1], start=0, cuts=(rows[0],)),
        fragment("b", range(6)),
    ]
    with pytest.raises(CheckpointError, match="a "):
        save(tmp_path, 1, parts, {})
    folder = save(tmp_path, 2, [fragment("b", range(6))], {"note": 7}).folder
    checkpoint = open_checkpoint(folder)
    assert checkpoint.state == {"note": 7} and checkpoint.step == 2
    assert checkpoint.logical("b", "weight").tolist() == [[0, 1, 2], [3, 4, 5]]
    second_row = fragment("b", [0, 0], start=1, cuts=(rows[1],))
    restore(checkpoint, [second_row])
    assert second_row.tensors["weight"].tolist() == [4, 5]


def test_damage_is_named_and_the_older_checkpoint_found(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, [fragment()], {})
    assert [p.name for p in published(tmp_path)] == ["step_00000003", "step_00000002"]  # the oldest is pruned
    assert (tmp_path / "latest").read_text() == "step_00000003"
    file = tmp_path / "step_00000003" / "rank_00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    checkpoint, problems = newest(tmp_path)
    assert checkpoint is not None and checkpoint.step == 2
    assert "rank_00000.safetensors is damaged" in problems[0]
    (tmp_path / "step_00000002" / "rank_00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        newest(tmp_path)


def test_a_half_written_folder_is_never_published(tmp_path):
    partial = tmp_path / ".partial_step_00000009"
    partial.mkdir()
    (partial / "manifest.json").write_text("{}")
    assert newest(tmp_path) == (None, [])
    save(tmp_path, 9, [fragment()], {})
    assert newest(tmp_path)[0].step == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=99), "version 99"),
        (lambda m: m["files"].update({"../x": {"bytes": 1, "sha256": ""}}), "leaves the folder"),
        (lambda m: m["tensors"]["w"]["fragments"][0].update(start=1), "gap"),
        (lambda m: m.pop("files"), "cannot be read"),
    ],
)
def test_untrusted_manifests(tmp_path, change, message):
    folder = save(tmp_path, 1, [fragment()], {}).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_weights_of_another_model_are_refused(tmp_path):
    saved = save(tmp_path, 1, [fragment("weight", range(6)), fragment("bias", [0, 1], (2,))], {})
    checkpoint = open_checkpoint(saved.folder)
    linear = torch.nn.Linear(3, 2)
    load_weights(checkpoint, linear)
    assert linear.weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(CheckpointError, match=r"missing \['extra'\]"):
        linear.register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
        load_weights(checkpoint, linear)
    with pytest.raises(CheckpointError, match="shape"):
        load_weights(checkpoint, torch.nn.Linear(2, 2))
