"""A view that fails is told once, and nothing else stops."""

from __future__ import annotations

import pytest

from run.errors import ConfigError
from run.sinks.guarded import Guarded


class Breaking:
    def __init__(self, where: str) -> None:
        self.where, self.calls = where, 0
        self._maybe("open")

    def _maybe(self, here: str) -> None:
        self.calls += 1
        if here == self.where:
            raise OSError(28, "No space left on device\nmore of it")

    def write(self, record):
        self._maybe("write")

    def close(self):
        self._maybe("close")


@pytest.mark.parametrize("where", ["open", "write", "close"])
def test_it_is_told_once_and_dropped(where, capsys):
    sink = Guarded("TensorBoard", lambda: Breaking(where))
    sink.write({"step": 1})
    sink.write({"step": 2})
    sink.close()
    sink.close()
    said = capsys.readouterr().err
    assert said == (
        "warning: no TensorBoard from here on ([Errno 28] No space left on device); metrics.jsonl has everything\n"
    )


def test_one_that_works_gets_everything():
    breaking = Breaking("never")
    sink = Guarded("wandb", lambda: breaking)
    sink.write({"step": 1})
    sink.write({"step": 2})
    sink.close()
    assert breaking.calls == 4


def test_what_the_user_must_mend_is_raised():
    def opened():
        raise ConfigError("tracking.prometheus=x.prom: no such folder")

    with pytest.raises(ConfigError, match="no such folder"):
        Guarded("Prometheus", opened)
