from __future__ import annotations

import pytest

from tests.clusters.store.made import Server, environment, serving


@pytest.fixture(scope="package")
def server() -> Server:
    with serving() as server:
        yield server


@pytest.fixture
def s3(server, monkeypatch) -> str:
    """URL of its bucket; this process has the credentials."""
    for key, value in environment(server).items():
        monkeypatch.setenv(key, value)
    return "s3://bucket"
