"""Where records go, when what is there fails."""

from __future__ import annotations

import pytest

from run.config_file import load_config
from run.sinks import Wandb


class Broken:
    def log(self, record):
        raise ConnectionResetError("its helper is gone")

    def finish(self):
        raise ConnectionResetError("its helper is gone")

    def define_metric(self, *names, **options): ...


@pytest.mark.parametrize("breaks", ["start", "write", "close"])
def test_wandb_never_stops_the_training(breaks, config, tmp_path, monkeypatch, capsys):
    import wandb

    def init(**options):
        if breaks == "start":
            raise wandb.UsageError("no key\nmore of it")
        return Broken()

    monkeypatch.setattr(wandb, "init", init)
    sink = Wandb(load_config(config), tmp_path)
    if breaks == "write":
        sink.write({"step": 1})
    sink.close()
    sink.close()
    said = capsys.readouterr().err
    assert said.count("warning: no wandb from here on (") == 1 and "more of it" not in said
