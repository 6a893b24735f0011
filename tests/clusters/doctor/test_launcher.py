"""Hostfiles and .deepspeed_env, against what DeepSpeed's own launcher makes of them."""

from __future__ import annotations

import pytest

from clusters.doctor.launcher import (
    HANDED_ON,
    HostfileError,
    check_environment_files,
    environment_files,
    read_hostfile,
    variables_of,
)


@pytest.fixture
def hostfile(tmp_path):
    def write(text: str):
        path = tmp_path / "hosts"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    "text", ["gpu1 slots=8\ngpu2 slots=4\n", "# rack 1\n\n  gpu1   slots=8 max_slots=8\nuser@10.0.0.7 slots=1"]
)
def test_hostfiles_that_deepspeed_takes(text, hostfile):
    from deepspeed.launcher.runner import _parse_hostfile

    found = read_hostfile(hostfile(text))
    assert found == dict(_parse_hostfile(text.splitlines())) and found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu1 slots=8\ngpu1 slots=8\n", ":2: gpu1 stands twice"),
        ("gpu1 slots=8\ngpu2\n", ":2: 'gpu2' is no line `NAME slots=N`"),
        ("gpu1 slots = 8\n", "no spaces around ="),
        ("gpu1:8\n", ":1: 'gpu1:8' is no line"),
        ("# nothing\n\n", "names no machine"),
    ],
)
def test_hostfiles_that_end_deepspeed_are_named_with_the_line(text, said, hostfile):
    from deepspeed.launcher.runner import _parse_hostfile

    with pytest.raises(ValueError):
        _parse_hostfile(text.splitlines())
    with pytest.raises(HostfileError) as caught:
        read_hostfile(hostfile(text))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-oProxyCommand=touch${IFS}x slots=1\n", "is no name of a machine"),  # ssh would take it for an option
        ("gpu1;reboot slots=1\n", "is no name of a machine"),
        ("gpu1 slots=0\n", "gpu1 has slots=0"),
    ],
)
def test_hostfiles_that_deepspeed_takes_and_should_not(text, said, hostfile):
    with pytest.raises(HostfileError, match=said):
        read_hostfile(hostfile(text))


def test_a_hostfile_that_is_not_there(tmp_path):
    with pytest.raises(HostfileError, match="No such file or directory: name a hostfile with --hosts"):
        read_hostfile(tmp_path / "hosts")


def test_environment_files_are_those_that_deepspeed_reads(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
        (folder / ".deepspeed_env").write_text(f"PLACE={folder.name}\nWANDB_API_KEY=hush\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("DS_ENV_FILE", raising=False)
    monkeypatch.chdir(here)
    assert environment_files() == [home / ".deepspeed_env", here / ".deepspeed_env"]
    assert variables_of(environment_files()) == {"PLACE": "here"}
    monkeypatch.setenv("DS_ENV_FILE", str(tmp_path / "none"))
    assert environment_files() == []
    assert [finding.verdict for finding in check_environment_files()] == ["FAILED"]


def test_what_is_handed_on_is_what_deepspeed_hands_on():
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
    from deepspeed.launcher.runner import EXPORT_ENVS

    assert set(HANDED_ON) == {*EXPORT_ENVS, *CUDA_Accelerator.export_envs(None)}  # type: ignore[arg-type]
