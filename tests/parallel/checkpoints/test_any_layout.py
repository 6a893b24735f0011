"""Checkpoints: exact resume, any other layout, atomic publishing, errors that name the part."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from parallel.checkpoints import (
    CheckpointError,
    Fragment,
    load_weights,
    newest,
    open_checkpoint,
    published,
    reading,
    restore,
    save,
)
from parallel.placement import EXPERT_AXIS, TENSOR_AXIS, Cut, Placement
from tests.helpers.distributed import run_ranks
from tests.helpers.fragments import filled, fragment, named
from tests.helpers.parity import ParityRun, logical_weights, merged_losses, run_job


@pytest.mark.parametrize("layout", [{}, {"expert": 2, "save_async": True}])
def test_resume_equals_the_uninterrupted_run_bit_by_bit(tmp_path, layout):
    job = ParityRun(steps=4, engine="zero2", **layout)
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


@pytest.mark.parametrize("engine", ["zero0", "zero1"])
def test_resume_before_the_first_applied_update(tmp_path, engine):
    """Every update so far was skipped, so there are no moments to save."""
    job = ParityRun(steps=2, engine=engine, broken_step=0)
    (whole,) = run_ranks(1, run_job, job)
    saved = dataclasses.replace(job, save_to=str(tmp_path), save_at=1)
    run_ranks(1, run_job, dataclasses.replace(saved, steps=1))
    (resumed,) = run_ranks(1, run_job, saved)
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        left, right = logical_weights([whole], kind), logical_weights([resumed], kind)
        assert all(np.array_equal(left[name], right[name]) for name in left)


def test_the_loss_scale_goes_on(tmp_path):
    """An overflow has halved the first scale of 2^16; bf16 has none, and leaves none to fp16."""
    job = ParityRun(steps=2, precision="fp16", broken_step=0, save_to=str(tmp_path / "fp16"), save_at=2)
    (saved,), (resumed,) = run_ranks(1, run_job, job), run_ranks(1, run_job, job)
    assert resumed["losses"] == {} and resumed["loss_scale"] == saved["loss_scale"] == 2.0**15
    assert resumed["good_updates"] == saved["good_updates"] == 1
    other = dataclasses.replace(job, precision="bf16")
    assert run_ranks(1, run_job, other)[0]["loss_scale"] == 1.0
    other = dataclasses.replace(other, save_to=str(tmp_path / "bf16"))
    run_ranks(1, run_job, other)
    assert run_ranks(1, run_job, dataclasses.replace(other, precision="fp16"))[0]["loss_scale"] == 2.0**16


@pytest.mark.parametrize("layout", [{"expert": 2}, {"tensor": 2}])
def test_locked_parameters_are_saved_and_stay(tmp_path, layout):
    locked = ("tower.embedding.*", "*.up.bank.*")
    job = ParityRun(steps=2, frozen=locked, save_to=str(tmp_path), save_at=2, **layout)
    trained = logical_weights(run_ranks(2, run_job, job))
    untouched = logical_weights(run_ranks(2, run_job, ParityRun(steps=0, **layout)))
    checkpoint, _ = newest(tmp_path)
    assert checkpoint is not None and checkpoint.names == untouched.keys()
    for name, before in untouched.items():
        is_locked = any(fnmatch.fnmatch(name, pattern) for pattern in locked)
        assert np.array_equal(before, trained[name]) or not is_locked, name
        np.testing.assert_array_equal(checkpoint.logical(name, "weight").numpy(), trained[name], err_msg=name)
    tuned = "tower.encoder.blocks.0.ffn.down.bank.weight"
    assert not np.array_equal(untouched[tuned], trained[tuned])


def test_expert_parallel_checkpoint_resumes_on_one_rank(tmp_path):
    job = ParityRun(steps=4)
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


FRAGMENT = {"cuts": [], "file": "rank_00000.safetensors", "start": 0, "numel": 6}
HALVES = [FRAGMENT | {"cuts": [[0, "expert", index, 2]], "numel": 3} for index in range(2)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "format version 99, this program reads 1"),
        ({"version": None}, "cannot be read: version"),
        ({"files": None}, "cannot be read: files"),
        ({"step": -1}, "cannot be read: step"),
        ({"step": "1"}, "cannot be read: step"),
        ({"files": {"../x": {"bytes": 1, "sha256": ""}}}, "'../x' leaves the folder"),
        ({"files": {"..": {"bytes": 1, "sha256": ""}}}, "'..' leaves the folder"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}, "'/etc/passwd' leaves the folder"),
        ({"files": {}}, "'rank_00000.safetensors', which is not in the list"),
        ({"files": {"rank_00000.safetensors": {"bytes": 23, "sha256": ""}}}, "has 23 bytes, its tensors need 24"),
        ({"shape": [2, 4]}, "w ends at element 6 of 8"),
        ({"shape": [-2, -3]}, "cannot be read: tensors.w.shape.0"),
        ({"shape": [10**30]}, "w ends at element 6 of 1"),
        ({"kinds": ["weight"] * 1000}, "its tensors need 24000"),
        ({"fragments": []}, "w has 0 of 6 elements: a rank's part is missing"),
        ({"fragments": [FRAGMENT | {"start": 1}]}, "gap or an overlap at element 0"),
        ({"fragments": [FRAGMENT, FRAGMENT]}, "gap or an overlap at element 6"),
        ({"fragments": [FRAGMENT | {"numel": -6}]}, "cannot be read: tensors.w.fragments.0.numel"),
        ({"fragments": [HALVES[0]]}, "w has 3 of 6 elements"),
        ({"fragments": [HALVES[0], HALVES[0] | {"cuts": [[1, "expert", 0, 1]]}]}, "cut in different ways"),
        ({"fragments": [FRAGMENT | {"cuts": [[2, "expert", 0, 1]]}]}, "cannot be cut along dimensions"),
        ({"fragments": [FRAGMENT | {"cuts": [[0, "a", 0, 1], [0, "b", 0, 1]]}]}, "cannot be cut along dimensions"),
        ({"fragments": [FRAGMENT | {"cuts": [[0, "expert", 2, 2]]}]}, "no part 2 of 2 expert ranks"),
        ({"fragments": [FRAGMENT | {"cuts": [[0, "expert", 0, 0]]}]}, "cannot be read: tensors.w.fragments.0.cuts.0.3"),
        ({"fragments": [FRAGMENT | {"cuts": [[0, "expert", 0, 4]]}]}, "no part 0 of 4 expert ranks"),
    ],
)
def test_untrusted_manifests(tmp_path, change, message):
    folder = save(tmp_path, 1, [fragment()], {}).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    for key, value in change.items():
        (manifest if key in manifest else manifest["tensors"]["w"])[key] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert message in str(caught.value) and str(folder / "manifest.json") in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"\xff", b"[" * 100_000, b'{"version": 1'],
    ids=["empty", "list", "no text", "nested", "cut off"],
)
def test_a_manifest_that_is_none(tmp_path, text):
    folder = save(tmp_path, 1, [fragment()], {}).folder
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"manifest.json: cannot be read"):
        open_checkpoint(folder)


def test_a_manifest_too_large(tmp_path, monkeypatch):
    folder = save(tmp_path, 1, [fragment()], {}).folder
    monkeypatch.setattr(reading, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(CheckpointError, match="larger than 100 bytes"):
        open_checkpoint(folder)


def header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((1 << 62).to_bytes(8, "little") + bytes(100), "header too large"),
        ((99_999_999).to_bytes(8, "little") + bytes(100), "cannot be read"),
        (bytes(40), "cannot be read"),
        (header({}) + bytes(24), "cannot be read"),
        (header({"weight/w": {"dtype": "F32", "shape": [6], "data_offsets": [0, 2400]}}) + bytes(24), "cannot be read"),
        (
            header({"weight/v": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}) + bytes(24),
            "not hold weight/w",
        ),
        (header({"weight/w": {"dtype": "I32", "shape": [6], "data_offsets": [0, 24]}}) + bytes(24), "w is I32 [6]"),
        (header({"weight/w": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}) + bytes(20), "w is F32 [5]"),
    ],
    ids=["endless", "cut off", "empty header", "no tensors", "range", "another name", "another type", "another size"],
)
def test_untrusted_files(tmp_path, data, message):
    """The manifest's size and checksum are right: they prove no more than that nothing changed since."""
    folder = save(tmp_path, 1, [fragment()], {}).folder
    (folder / "rank_00000.safetensors").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {"rank_00000.safetensors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert message in str(caught.value) and "rank_00000.safetensors" in str(caught.value)


@pytest.mark.parametrize("cut", [Cut(0, EXPERT_AXIS, 1, 8), Cut(1, TENSOR_AXIS, 7, 8)], ids=["rows", "columns"])
def test_restoring_a_part_takes_memory_for_the_part(tmp_path, cut):
    """16 of 128 MiB. Pages that are mapped for reading count too, up to 64 MiB."""
    values = torch.arange(float(1 << 25))
    whole = Fragment("w", Placement((64, 1 << 19)), 0, True, {"weight": values})
    save(tmp_path, 1, [whole], {})
    (growth,) = run_ranks(1, growth_of_restoring, str(tmp_path), cut)
    assert growth < 80 << 20


def growth_of_restoring(rank: int, folder: str, cut: Cut) -> int:
    placement = Placement((64, 1 << 19), (cut,))
    part = Fragment("w", placement, 0, True, {"weight": torch.zeros(1 << 22)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checkpoint, _ = newest(Path(folder))
    assert checkpoint is not None
    restore(checkpoint, [part])
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    expected = placement.take(torch.arange(float(1 << 25)).view(64, 1 << 19))
    assert torch.equal(part.tensors["weight"].view(placement.local_shape), expected)
    return growth


def test_moments_of_what_was_locked_are_refused_with_the_remedy(tmp_path):
    """No damage: more is tuned now than when the checkpoint was saved."""
    save(tmp_path, 1, [filled(0.0), filled_all("v")], {})
    checkpoint = open_checkpoint(tmp_path / "step_00000001")
    restore(checkpoint, [filled(1.0), filled_all("v")])
    with pytest.raises(CheckpointError, match=r"no exp_avg of w, which was frozen when it was saved: .* init="):
        restore(checkpoint, [filled_all("w")])
    with pytest.raises(CheckpointError, match=r"has no weight of u$"):
        restore(checkpoint, [filled_all("u")])


def filled_all(name: str) -> Fragment:
    return named(name, filled(0.0, kinds=("weight", "exp_avg", "exp_avg_sq")))


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
