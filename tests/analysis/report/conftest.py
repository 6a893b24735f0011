"""Run folders that other tests read and leave as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.analysis.report.synthetic import write_run


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> dict[str, Path]:
    """A sparse and a dense run."""
    folder = tmp_path_factory.mktemp("made")
    return {"sparse": write_run(folder / "sparse"), "dense": write_run(folder / "dense", is_sparse=False, seed=1)}
