"""Locked parameters."""

from __future__ import annotations

import pytest

from model.objective import Objective
from model.tuning import freeze
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from tests.helpers.batches import VOCABULARY_SIZE
from tests.helpers.parity import tiny


def make() -> Objective:
    return Objective(tiny("attribute"), VOCABULARY_SIZE, Mesh(), load_kernels("torch"))


def test_patterns_lock_what_they_match():
    objective = make()
    count = freeze(objective, ("tower.embedding.*", "*.router.*"))
    locked = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
    assert len(locked) == count
    assert all(".embedding." in name or ".router." in name for name in locked)
    assert "tower.embedding.tokens.weight" in locked
    assert freeze(make(), ()) == 0


def test_a_pattern_without_a_match_is_an_error():
    with pytest.raises(ValueError, match=r"optimizer.frozen='towers\.\*' matches no parameter; there are log_scales"):
        freeze(make(), ("towers.*",))
