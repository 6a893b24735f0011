"""The text of the files: the same as the examples, right for bash, and nothing in it that a user's words could start."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from run.errors import ConfigError
from tests.clusters.slurm.made import made
from tests.helpers.places import ROOT

EXAMPLES = sorted((ROOT / "clusters" / "slurm" / "examples").glob("*.sbatch"))


def test_there_is_an_example_of_each_kind():
    assert [path.stem for path in EXAMPLES] == ["apptainer", "bare", "pyxis"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_what_its_command_prints(path: Path, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = path.read_text().splitlines()[1]
    words = shlex.split(command.removeprefix("# "))
    assert words[:4] == ["python", "-m", "clusters", "slurm"]
    assert path.read_text() == made(words[4:])


def test_an_example_names_no_folder_of_this_machine():
    for path in EXAMPLES:
        assert str(ROOT) not in path.read_text() and str(Path.home()) not in path.read_text()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_bash_reads_the_examples(path: Path):
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck here: bash scripts/slurm_here.sh installs it")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_shellcheck_has_nothing_to_say(path: Path):
    """An array is among them, a chain, and both launchers."""
    done = subprocess.run(["shellcheck", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


HOSTILE = "tracking.tags=['$(touch owned) `touch owned` ; touch owned \" \\']"


@pytest.mark.parametrize("flags", [(), ("--kind=apptainer", "--image=$(touch owned)'.sif")])
def test_words_reach_the_program_as_they_were_typed(flags, tmp_path):
    """The file's own lines up to the launch, with a program in place of srun that prints what it was given."""
    text = made(("--config=configs/demo.yaml", "--nodes=2", "--gpus-per-node=0", *flags, HOSTILE))
    head = text[: text.index("# From here on")]
    ended = head.replace("cd -- ", "cd -- . || cd -- ") + "printf '%s\\n' \"${launch[@]}\"\n"
    done = subprocess.run(["bash", "-c", ended], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert HOSTILE in done.stdout.splitlines() and done.stdout.startswith("srun\n")
    assert {path.name for path in tmp_path.iterdir()} <= {"runs"}
    options = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=[\w:@.%,-]+)?", line) for line in options)


@pytest.mark.parametrize(
    ("sbatch", "code", "said"),
    [("echo 8", 0, "the next of the chain goes on"), ("exit 1", 85, "could not be submitted")],
)
def test_a_chain_says_whether_it_goes_on(tmp_path, sbatch, code, said):
    """A run that saves, in a job whose machines may, or may not, submit the next one."""
    for name, line in {"sbatch": sbatch, "scontrol": "echo JobState=RUNNING"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    settings = "launch=(sh -c 'exit 85') run_folder=. links_left=2 SLURM_JOB_ID=7 SLURM_SUBMIT_DIR=.\n"
    body = (ROOT / "clusters" / "slurm" / "body.sh").read_text()
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", settings + body], cwd=tmp_path, env=path, capture_output=True, text=True, check=False
    )
    assert done.returncode == code and said in done.stdout.splitlines()[-1]


def test_a_container_sees_the_folders_of_the_run():
    text = made((
        "--config=configs/demo.yaml", "--nodes=2", "--gpus-per-node=0", "--kind=pyxis", "--image=a/b:1", "--directory=/shared/code",
        "--cache=/local/cache", "runs=/runs", "data.tasks.shapes.path=/sets/shapes",
    ))  # fmt: skip
    mounts = "/local/cache:/local/cache,/runs:/runs,/sets/shapes:/sets/shapes,/shared/code:/shared/code"
    assert f"'--container-mounts={mounts}' --container-workdir=/shared/code" in text
    assert "train=(/app/train.py " in text and "mkdir -p -- /local/cache" in text


def documented() -> list[str]:
    return re.findall(
        r"^python -m clusters slurm (.*) > \w+\.sbatch$", (ROOT / "docs" / "slurm.md").read_text(), re.MULTILINE
    )


@pytest.mark.parametrize("command", documented())
def test_commands_of_the_page_print_a_file(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = made(shlex.split(command))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert text.startswith("#!/bin/bash\n")


def test_the_page_has_commands():
    assert len(documented()) == 4


def test_a_container_sees_what_patterns_lie_in_and_what_else_is_named():
    text = made((
        "--config=configs/demo.yaml", "--nodes=1", "--gpus-per-node=0",
        "--kind=pyxis", "--image=a/b:1", "--directory=/shared/code", "runs=/runs/mine",
        "tracking.prometheus=/metrics/a.prom", "parallel.expert=1",
        "data.tasks.shapes.path=s3://bucket/shapes", "data.cache_dir=/node/cache",
        "data.tasks.clips.shards=['/data/l/part-{00..09}/x-*.tar']", "data.tasks.clips.path=/data/l",
    ))  # fmt: skip
    mounts = re.search(r"--container-mounts=([^ ']+)", text)[1].split(",")
    assert {"/data/l:/data/l", "/metrics:/metrics", "/node/cache:/node/cache", "/runs/mine:/runs/mine"} <= set(mounts)
    assert (
        "part-" not in ",".join(mounts)
        and "mkdir -p -- /runs/mine || exit 2" in text
        and "mkdir -p -- /node/cache" in text
    )


def test_bound_ranks_are_told_their_data_workers():
    words = ("--config=configs/demo.yaml", "--nodes=1", "--gpus-per-node=8", "micro_batches=8", "data.workers=auto")
    assert "data.workers=8)" in made(words) and "data.workers=3)" in made((*words, "--cores-per-rank=5"))
    assert "data.workers=8" not in made((*words, "--launcher=deepspeed"))


def test_passwords_stand_in_no_job_file():
    with pytest.raises(ConfigError, match="has a user, password, query or command"):
        made(
            ("--config=configs/demo.yaml", "--nodes=1", "data.tasks.shapes.shards=['pipe:curl -H SECRET https://h/x']")
        )
    with pytest.raises(
        ConfigError, match=r"shapes.path=https://\*\*\*@host/pets has a user, password, query or command"
    ):
        made(("--config=configs/demo.yaml", "--nodes=1", "data.tasks.shapes.path=https://me:secret@host/pets"))
