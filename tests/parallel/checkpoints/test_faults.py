"""A save that is cut off anywhere, a full disk, damaged files: the run goes on from a complete checkpoint, or is told why not."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from parallel.checkpoints import (
    CheckpointError,
    Fragment,
    Saver,
    find_checkpoint,
    load_found,
    newest,
    newest_state,
    published,
    restore,
    save,
    saving,
)
from parallel.placement import placement_of
from tests.helpers.distributed import run_ranks
from tests.helpers.fragments import filled, named
from tests.helpers.runs import ROOT

KINDS = ("weight", "exp_avg")
TOUCHING = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
"""Audit events of calls that touch the file system. os.write and os.fsync have none."""


def fork(work: Callable[[], None]) -> int:
    """A child's process number; it ends with 0 when the work is done, 1 on an error."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)  # the parent's threads are not there
        work()
        code = 0
    finally:
        os._exit(code)


def die_at(step: int) -> list[int]:
    """Kill this process before its `step`-th call (from 0) that touches the file system; a write is cut in half. -> [calls so far]"""
    calls, write, fsync = [0], os.write, os.fsync

    def count() -> bool:
        calls[0] += 1
        return calls[0] == step + 1

    def cut_write(descriptor: int, data: memoryview) -> int:
        if count():
            write(descriptor, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, data)

    def cut_fsync(descriptor: int) -> None:
        if count():
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    def audit(event: str, arguments: tuple) -> None:
        if event in TOUCHING and count():
            os.kill(os.getpid(), signal.SIGKILL)

    os.write, os.fsync = cut_write, cut_fsync  # type: ignore[assignment]
    sys.addaudithook(audit)  # for the rest of this process's life
    return calls


def value_of(root: Path) -> int:
    """The newest checkpoint's step, after its numbers were restored and found right."""
    checkpoint, _ = newest(root)
    assert checkpoint is not None
    wanted = filled(-1.0, kinds=KINDS)
    restore(checkpoint, [wanted])
    for tensor in wanted.tensors.values():
        assert tensor.tolist() == [checkpoint.step] * 6
    return checkpoint.step


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "case", ["next", *(pytest.param(c, marks=pytest.mark.slow) for c in ("behind a damaged one", "in the background"))]
)
def test_killed_at_every_step_of_a_save(tmp_path, case):
    start = tmp_path / "start"
    save(start, 1, [filled(1.0, kinds=KINDS)], {})
    if case == "behind a damaged one":
        save(start, 2, [filled(7.0, kinds=KINDS)], {})
        damage(start / "step_00000002" / "rank_00000.safetensors")

    def saving(root: Path, step: int) -> Callable[[], None]:
        def work() -> None:
            saver = Saver(root, keep=1, background=case == "in the background")
            calls = die_at(step)
            saver.save(2, [filled(2.0, kinds=KINDS)], {})
            saver.publish()
            os.write(report, b"%d" % calls[0])

        return work

    reading, report = os.pipe()
    shutil.copytree(start, tmp_path / "whole")
    assert os.waitpid(fork(saving(tmp_path / "whole", 10**9)), 0)[1] == 0
    steps = int(os.read(reading, 20)) - 1  # the report's own write is the last
    os.close(reading), os.close(report)
    assert value_of(tmp_path / "whole") == 2 and steps >= 20
    seen = set()
    for step in range(steps):
        root = tmp_path / f"killed_{step}"
        shutil.copytree(start, root)
        _, status = os.waitpid(fork(saving(root, step)), 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (step, steps)
        seen.add(value_of(root))
        if case != "behind a damaged one":
            assert (root / (root / "latest").read_text() / "manifest.json").is_file()
        save(root, 3, [filled(3.0, kinds=KINDS)], {}, keep=1)
        assert value_of(root) == 3
        assert sorted(p.name for p in root.iterdir() if not p.name.startswith(".latest")) == ["latest", "step_00000003"]
    assert seen == {1, 2}


def test_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    """A kill does not show a forgotten sync, as a loss of power would: the order of calls does."""
    save(tmp_path, 1, [filled(1.0)], {})
    calls, fsync, replace = [], os.fsync, os.replace

    def noted_sync(descriptor: int) -> None:
        calls.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def noted_replace(old: Path, new: Path) -> None:
        calls.append(("replace", Path(new).name))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    save(tmp_path, 2, [filled(2.0)], {})
    assert calls == [
        ("sync", "rank_00000.safetensors"),
        ("sync", "manifest.json"),
        ("sync", ".partial_step_00000002"),
        ("replace", "step_00000002"),
        ("sync", tmp_path.name),
        ("sync", tmp_path.parent.name),
        ("sync", f".latest.{os.getpid()}"),
        ("replace", "latest"),
        ("sync", tmp_path.name),
    ]


@pytest.mark.parametrize("background", [False, True])
def test_killed_at_random_times(tmp_path, background):
    """Ten children one after another go on where the one before was killed."""

    def endless() -> None:
        step = value_of(tmp_path)
        saver = Saver(tmp_path, background=background)
        while True:
            step += 1
            saver.save(step, [filled(float(step), kinds=KINDS), ballast], {})

    ballast = named("ballast", filled(0.0, 100_000))
    save(tmp_path, 1, [filled(1.0, kinds=KINDS), ballast], {})
    chance, latest = random.Random(0), tmp_path / "latest"
    for _ in range(10):
        last = latest.read_text()
        child = fork(endless)
        deadline = time.monotonic() + 30
        while latest.read_text() == last and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert value_of(tmp_path) > int(last.removeprefix("step_"))


@pytest.mark.parametrize("background", [False, True])
def test_a_file_that_cannot_be_written_is_the_same_error_on_all_ranks(tmp_path, background):
    """Rank 1 may write 64 KiB; its file needs 400 KB."""
    results = run_ranks(2, save_with_a_limit, str(tmp_path), background)
    assert results[0] == results[1]
    assert "step 2 was not saved" in results[0] and "rank_00001.safetensors" in results[0]
    assert "File too large" in results[0] and "rank_00000.safetensors" not in results[0]
    assert [p.name for p in published(tmp_path)] == ["step_00000001"]
    assert newest(tmp_path)[1] == [] and list(tmp_path.glob(".partial*")) == []


def save_with_a_limit(rank: int, folder: str, background: bool) -> str:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    mine = named(f"w{rank}", filled(1.0, 100_000))
    saver = Saver(Path(folder), background=background)
    saver.save(1, [mine], {})
    saver.publish()
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
    try:
        saver.save(2, [mine], {})
        saver.publish()
    except CheckpointError as error:
        return str(error)
    return "saved"


@pytest.mark.parametrize("fault", ["sync_folder", "write_atomically"])
def test_a_fault_behind_the_rename_does_not_deny_the_checkpoint(tmp_path, monkeypatch, fault):
    save(tmp_path, 1, [filled(1.0, kinds=KINDS)], {}, keep=1)
    original = getattr(saving, fault)

    def full(path: Path, *rest: str) -> None:
        if (tmp_path / "step_00000002").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, *rest)

    monkeypatch.setattr(saving, fault, full)
    with pytest.raises(CheckpointError, match=r"step 2 is complete in .*No space left"):
        save(tmp_path, 2, [filled(2.0, kinds=KINDS)], {}, keep=1)
    assert value_of(tmp_path) == 2
    assert [p.name for p in published(tmp_path)] == ["step_00000002", "step_00000001"]  # `latest` names the older one


FULL_DISK = """
import sys
from pathlib import Path
from parallel.checkpoints import CheckpointError, newest, save
from tests.helpers.fragments import filled
root = Path(sys.argv[1])
save(root, 1, [filled(1.0, 50_000)], {})
try:
    save(root, 2, [filled(2.0, 500_000)], {})
except CheckpointError as error:
    print(error)
print("newest", newest(root)[0].step)
save(root, 3, [filled(3.0, 50_000)], {})
print("newest", newest(root)[0].step)
"""


def test_a_full_disk(tmp_path):
    """A file system of 1 MiB of its own."""
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}"
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        probe = subprocess.run([*inside, mount], capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare(1) on this machine")
    if probe.returncode:
        pytest.skip(f"the kernel gives no file system to an ordinary user: {probe.stderr.strip()}")
    script = tmp_path.parent / f"{tmp_path.name}.py"
    script.write_text(FULL_DISK)
    done = subprocess.run(
        [*inside, f"{mount} && exec {sys.executable} {script} {tmp_path}"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    first, *rest = done.stdout.splitlines()
    assert "rank_00000.safetensors (2,000," in first and "No space left on device" in first
    assert rest == ["newest 1", "newest 3"]


# -- ranks that must agree -------------------------------------------------------------------------------------------


def test_ranks_at_different_steps_are_refused_before_anything_is_written(tmp_path):
    results = run_ranks(2, save_own_step, str(tmp_path))
    assert results[0] == results[1] and "rank 0 step 5, rank 1 step 6" in results[0]
    assert list(tmp_path.iterdir()) == []


def save_own_step(rank: int, folder: str) -> str:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        save(Path(folder), 5 + rank, [filled(1.0)], {})
    except CheckpointError as error:
        return str(error)
    return "saved"


@pytest.mark.parametrize("deed", ["damage", "drop"])
@pytest.mark.parametrize("victim", [0, 1])
def test_all_ranks_name_the_bad_file_and_find_the_same_older_checkpoint(tmp_path, victim, deed):
    run_ranks(2, save_parts, str(tmp_path), (1, 2))
    file = tmp_path / "step_00000002" / f"rank_0000{victim}.safetensors"
    if deed == "drop":
        file.unlink()
    else:
        damage(file)
    for step, problems in run_ranks(2, find_newest, str(tmp_path)):
        assert step == 1 and len(problems) == 1
        assert f"{file} is {'missing' if deed == 'drop' else 'damaged'}" in problems[0]
    assert [f"{file} is" in problem for problem in newest(tmp_path)[1]] == [True]  # one process reads all files


def save_parts(rank: int, folder: str, steps: tuple[int, ...]) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    for step in steps:
        save(Path(folder), step, [named(f"w{rank}", filled(float(step)))], {})


def find_newest(rank: int, folder: str) -> tuple[int, list[str]]:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    checkpoint, problems = newest(Path(folder))
    assert checkpoint is not None
    return checkpoint.step, problems


def test_the_newest_is_never_pruned_in_favour_of_a_damaged_later_one(tmp_path):
    for step in (8, 10):
        save(tmp_path, step, [filled(float(step))], {}, keep=2)
    damage(tmp_path / "step_00000010" / "rank_00000.safetensors")
    save(tmp_path, 9, [filled(9.0)], {}, keep=1)
    assert newest(tmp_path)[0].step == 9  # type: ignore[union-attr]
    save(tmp_path, 11, [filled(11.0)], {}, keep=1)
    assert [p.name for p in published(tmp_path)] == ["step_00000011"]


def test_a_state_is_of_the_last_one_whose_manifest_can_be_read(tmp_path):
    for step in (3, 6, 9):
        save(tmp_path, step, [filled(float(step))], {"of": step}, keep=3)
    (tmp_path / "step_00000009" / "manifest.json").write_text("{")
    assert newest_state(tmp_path) == {"of": 6}
    save(tmp_path, 7, [filled(7.0)], {"of": 7}, keep=3)
    save(tmp_path, 9, [filled(9.0)], {"of": 9}, keep=3)
    save(tmp_path, 8, [filled(8.0)], {"of": 8}, keep=3)  # the run went back behind 9
    assert newest_state(tmp_path) == {"of": 8}
    for folder in published(tmp_path):
        (folder / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"step_00000008/manifest.json: .*; .*step_00000009/manifest.json: "):
        newest_state(tmp_path)


# -- beside the training ---------------------------------------------------------------------------------------------


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_in_the_background_equals_at_once_byte_for_byte(tmp_path):
    for name in ("now", "later"):
        saver = Saver(tmp_path / name, background=name == "later")
        for step in (1, 2):
            values = torch.arange(6.0) + step
            whole = filled(0.0, kinds=KINDS)
            whole.tensors.update(weight=values, exp_avg=values.bfloat16())
            saver.save(step, [whole], {"consumed": (step, 0)})
            values.zero_()  # the next update; a snapshot was taken
        saver.publish()
    assert contents(tmp_path / "now") == contents(tmp_path / "later")
    assert len(contents(tmp_path / "now")) == 5


def test_nothing_is_published_before_it_is_asked_for(tmp_path):
    saver = Saver(tmp_path, background=True)
    saver.save(1, [filled(1.0)], {})
    while saver.is_writing:
        time.sleep(0.001)
    assert published(tmp_path) == [] and not (tmp_path / "latest").exists()
    saver.save(2, [filled(2.0)], {})  # publishes the one before
    assert (tmp_path / "latest").read_text() == "step_00000001"
    saver.publish()
    saver.publish()  # nothing is left to do
    assert (tmp_path / "latest").read_text() == "step_00000002"


def test_an_error_of_the_thread_is_not_lost(tmp_path):
    saver = Saver(tmp_path, background=True)
    saver.save(1, [filled(1.0)], {})
    saver.publish()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        saver.save(2, [filled(2.0, 100_000)], {})
        with pytest.raises(CheckpointError, match="File too large"):
            saver.save(3, [filled(3.0)], {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert newest(tmp_path)[0].step == 1  # type: ignore[union-attr]
    saver.save(4, [filled(4.0)], {})  # it can be used again
    saver.publish()
    assert newest(tmp_path)[0].step == 4  # type: ignore[union-attr]


def test_reading_beside_a_training_that_prunes(tmp_path):
    """Each save removes the checkpoint before it, as fast as it can; a reader gets whole ones all the same."""
    module = torch.nn.Linear(400, 100, bias=False)

    def keep_saving() -> None:
        for step in range(1, 100_000):
            weight = torch.full((40_000,), float(step))
            save(
                tmp_path,
                step,
                [Fragment("weight", placement_of(module.weight), 0, True, {"weight": weight})],
                {},
                keep=1,
            )
            time.sleep(0.005)

    child = fork(keep_saving)
    try:
        while not published(tmp_path):
            time.sleep(0.01)
        steps, deadline = [], time.monotonic() + 60
        # On a busy machine the writer may stand still for some readings.
        while len(steps) < 30 or (steps[-1] == steps[0] and time.monotonic() < deadline):
            checkpoint = load_found(tmp_path, None, module)
            assert module.weight.unique().tolist() == [checkpoint.step]
            steps.append(checkpoint.step)
        assert steps == sorted(steps) and steps[-1] > steps[0]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_checkpoint_that_goes_while_a_file_is_opened(tmp_path, monkeypatch):
    """safe_open reads the header, and torch maps the file a moment later: the reader takes the newer checkpoint."""
    from parallel.checkpoints import spans

    module, original, opened = torch.nn.Linear(4, 2, bias=False), spans.safe_open, []

    def saved(step: int) -> None:
        kinds = {"weight": torch.full((8,), float(step))}
        save(tmp_path, step, [Fragment("weight", placement_of(module.weight), 0, True, kinds)], {}, keep=1)

    def late(path, **options):
        opened.append(path)
        if len(opened) == 1:
            saved(2)
            raise RuntimeError(f"unable to open file <{path}> in read-only mode: No such file or directory (2)")
        return original(path, **options)

    saved(1)
    monkeypatch.setattr(spans, "safe_open", late)
    assert load_found(tmp_path, None, module).step == 2 and (module.weight == 2).all()


def test_a_step_that_is_not_there_names_those_that_are(tmp_path):
    for step in (3, 6):
        save(tmp_path, step, [filled(step, kinds=KINDS)], {})
    with pytest.raises(CheckpointError, match="has no checkpoint of step 5; there are 3, 6"):
        find_checkpoint(tmp_path, 5)
    with pytest.raises(CheckpointError, match="step 5; there are none yet"):
        find_checkpoint(tmp_path / "new", 5)
