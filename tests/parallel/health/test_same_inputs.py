"""Ranks that were started differently are found before the first step."""

from __future__ import annotations

import os

import pytest

from parallel.health.same_inputs import DisagreementError, check_same_inputs, environment
from tests.helpers.distributed import run_ranks


def agree(rank: int, configurations: list[str], variables: list[dict[str, str]]) -> list[str] | str:
    from parallel.mesh import create_mesh

    os.environ |= variables[rank]
    create_mesh()
    try:
        return check_same_inputs({"configurations": configurations[rank]})
    except DisagreementError as error:
        return str(error)


def test_differences_of_the_environment_are_told_and_secrets_are_not():
    lines, same = run_ranks(
        2, agree, ["a", "a"], [{"NCCL_DEBUG": "INFO", "WANDB_API_KEY": "hush"}, {"NCCL_DEBUG": "WARN"}]
    )
    assert lines == same
    assert [line.split(" (")[0] for line in lines] == [
        "environment differs: NCCL_DEBUG is INFO on rank 0",
        "environment differs: WANDB_API_KEY is set on rank 0",
    ]
    assert "not set on rank 1" in lines[1] and "hush" not in "".join(lines)


def test_different_configurations_are_an_error_on_all_ranks():
    messages = run_ranks(3, agree, ["a", "b", "a"], [{}, {}, {}])
    assert len(set(messages)) == 1
    assert messages[0].startswith("ranks were given different configurations: a on ranks 0, 2 (")
    assert "b on rank 1 (" in messages[0]


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "NCCL_TOKEN"])
def test_secrets_do_not_leave_the_process(name, monkeypatch):
    monkeypatch.setenv(name, "hush")
    assert environment()[name] == "set"
