"""A real S3 server over HTTP."""

from __future__ import annotations

import os
import subprocess

import pytest
from s3fs import S3FileSystem

from clusters.ranks import free_port
from clusters.store.place import Place, StoreError
from parallel.checkpoints import find_checkpoint
from tests.clusters.store.made import KEYS, QUICK, add_step, command, files, made_run, program
from tests.helpers.places import ROOT


def test_there_and_back(s3, tmp_path, capsys):
    run = made_run(tmp_path / "run", (1, 2), best=1)
    url = f"{s3}/there_and_back"
    assert command("upload", "--run", run, "--to", url, "--keep", 1) == 0
    assert command("list", "--from", url) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].endswith("complete") and lines[-1].endswith("complete, best")
    new = tmp_path / "new"
    partial = new / "checkpoints" / ".partial_step_00000002"
    partial.mkdir(parents=True)
    whole = run / "checkpoints" / "step_00000002" / "rank_00000.safetensors"
    (partial / whole.name).write_bytes(whole.read_bytes()[:50_000])
    assert command("download", "--from", url, "--run", new) == 0
    got, here = files(new), files(run)
    assert got == {name: here[name] for name in got} and len(got) == 8
    assert find_checkpoint(new / "checkpoints").step == 2
    add_step(run, 3, best=1)
    assert command("upload", "--run", run, "--to", url, "--keep", 1) == 0
    names = Place(url).find()
    assert not any("step_00000002" in name or name.endswith("uploading") for name in names)
    assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} == {
        "step_00000001",
        "step_00000003",
    }


def test_a_file_of_several_parts(s3, tmp_path):
    """20 MiB: a part of 16 MiB and a rest; and read in two ranges."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(20 << 20))
    place = Place(f"{s3}/large", QUICK)
    digest = place.send("large", path, 20 << 20)
    assert place.find() == {"large": 20 << 20}
    with (tmp_path / "back").open("w+b") as file:
        place.fetch("large", file, 20 << 20)
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
    assert digest == place.send("large", path, 20 << 20)
    assert place.read("none", 10) is None and place.head("large", 5) == path.read_bytes()[:5]
    with pytest.raises(StoreError, match="has more than 10 bytes"):
        place.read("large", 10)


@pytest.mark.slow
def test_no_secret_is_told(s3, tmp_path):
    """Whatever goes wrong, also in another process, and with all that its libraries have to say."""
    run = made_run(tmp_path / "run", (1,))
    environment = os.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "S3FS_LOGGING_LEVEL": "DEBUG"}
    words = program("upload", "--run", run, "--to", f"{s3}/secret")
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1 and "given up after 4 attempts" in done.stderr
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr + " ".join(words)
    assert "Traceback" not in done.stderr.splitlines()[-1]


def test_no_credentials(s3, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in KEYS:
        monkeypatch.delenv(name)
    assert command("upload", "--run", made_run(tmp_path / "run", (1,)), "--to", f"{s3}/x") == 1
    assert "NoCredentialsError: Unable to locate credentials" in capsys.readouterr().err


def test_no_bucket_and_no_server(s3, tmp_path, monkeypatch, capsys):
    run = made_run(tmp_path / "run", (1,))
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    assert command("upload", "--run", run, "--to", "s3://nobucket/x") == 1
    assert "The specified bucket does not exist" in capsys.readouterr().err
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreError, match=r"Could not connect to the endpoint.*given up after 2 attempts"):
        Place(f"{s3}/x", QUICK).find()
