"""What the command takes and refuses."""

from __future__ import annotations

import pytest

from clusters.slurm.job import seconds_of
from run.errors import ConfigError
from tests.clusters.slurm.made import made

DEMO = ("--config=configs/demo.yaml", "--nodes=2", "--gpus-per-node=0")


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("90", 5400), ("90:30", 5430), ("24:00:00", 86400), ("2-12", 216000), ("1-0:30", 88200), ("1-0:0:9", 86409)],
)
def test_limits_are_read_as_sbatch_reads_them(limit, seconds):
    assert seconds_of(limit) == seconds


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--nodes=3", "parallel.expert=1"), "micro_batches=2 per step must be a multiple of the 3 data ranks"),
        (("parallel.expert=3",), "parallel.expert=3 does not divide the 2 data ranks"),
        (("model.depht=3",), "depht"),
        (("--nodes=0",), "--nodes=0: must be at least 1"),
        (("--time=tomorrow",), "--time=tomorrow: write hours:minutes:seconds"),
        (("--time=00:05:00",), "--warn=300 must be below the time limit of 300 seconds"),
        (("--warn=65536", "--time=7-0"), "Slurm takes 65535 seconds at most"),
        (("--partition=a\n#SBATCH --uid=0",), "is no name that Slurm takes"),
        (("--account=$(id)",), "is no name that Slurm takes"),
        (("--interface=lo;id",), "is no name of a network interface"),
        (("--directory=/a\nb",), "control characters"),
        (("name=x\n",), "'name=x\\n': control characters"),
        (("--kind=pyxis",), "--kind=pyxis needs --image"),
        (("--image=x",), "--kind=bare takes no --image"),
        (("--kind=pyxis", "--image=x", "--cache=/a,b"), "/a,b: a comma or a colon"),
        (("--seeds", "1", "1"), "a seed twice"),
        (("--seeds", "1", "x"), "'x' is no number"),
        (("--seeds", "1", "seed=3"), "--seeds with seed="),
        (("--chain=2", "--seeds", "1"), "--chain with --seeds"),
        (("--gpus-per-node=2", "--ranks-per-node=4"), "a GPU takes one rank"),
    ],
)
def test_what_cannot_be_is_one_line(words, said):
    with pytest.raises(ConfigError) as error:
        made((*DEMO, *words))
    assert said in str(error.value) and "\n" not in str(error.value)


def lines(*words: str) -> list[str]:
    return made((*DEMO, *words)).splitlines()


def test_sizes_follow_from_the_configuration():
    """Demo: one thread and one data worker; a rank is 2 GiB, a worker 1 GiB, and the plan's part below 2 GiB. With the full vocabulary,
    as the size of a restricted one is known only where data are."""
    full = "data.vocabulary=full"
    made_lines = lines("--ranks-per-node=1", full)
    assert "#SBATCH --cpus-per-task=2" in made_lines and "#SBATCH --mem=5G" in made_lines
    more = lines("--ranks-per-node=1", "data.workers=3", "threads=2", full)
    assert "#SBATCH --cpus-per-task=5" in more and "#SBATCH --mem=7G" in more and "export OMP_NUM_THREADS=2" in more
    gpus = lines("--gpus-per-node=1", full)
    # One core for the driver, and 4 GiB of CUDA in place of the plan's.
    assert "#SBATCH --cpus-per-task=3" in gpus and "#SBATCH --mem=7G" in gpus and "#SBATCH --gpus-per-node=1" in gpus


def test_a_plan_that_does_not_fit_is_told(capsys):
    lines("--gpus-per-node=1", "--device-memory=0.01")
    said = capsys.readouterr().err
    assert said.startswith("warning: by the plan a rank needs ") and "GiB of a GPU's 0.01" in said


def test_seeds_may_stand_before_overrides():
    text = lines("--seeds", "3", "5", "steps=100")
    assert "#SBATCH --array=0-1" in text and "seeds=(3 5)" in text
    assert any(line.startswith("train=(") and line.endswith("steps=100)") for line in text)
