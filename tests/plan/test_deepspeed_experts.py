"""What a plan says of experts behind DeepSpeed's layer, by hand and against real passes."""

from __future__ import annotations

from collections import Counter

import pytest

from plan.activations import activations_of, exchange_buffers
from plan.memory import Degrees
from plan.report import plan, render
from plan.tasks import expert_rows, sent_copies
from plan.traffic import dispatch_traffic, sent_in_all
from run.config_file import load_config
from tests.helpers.distributed import run_ranks
from tests.helpers.models import tiny
from tests.helpers.places import ROOT
from tests.parallel.test_traffic import of_a_pass
from tests.plan.test_plan import DROPLESS, KINDS, LARGER, captioning, handed, kept_by, passed, send

DEEPSPEED = {"backend": "deepspeed", "capacity_factor": 1.0}


def test_slots_by_hand():
    # 10 tokens of one choice for 4 experts: 2.5 slots, rounded up, of each.
    model = tiny("limoe", DEEPSPEED)
    assert (expert_rows(model, 10), sent_copies(model, 10)) == (12, 10)
    assert expert_rows(tiny("limoe", {**DEEPSPEED, "top_k": 2, "capacity_factor": 0.5}), 10) == 12
    assert expert_rows(tiny("limoe", {"backend": "deepspeed", **DROPLESS}), 10) == 12
    assert expert_rows(tiny("limoe", DROPLESS), 10) == 10


@pytest.mark.parametrize("recompute", ["none", "block", "selective"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_planned_slots_are_what_two_ranks_send(recompute, top_k):
    """Handed to the library, and counted beside it on both ranks, which have the same tokens."""
    experts = {**DEEPSPEED, "top_k": top_k}
    model = tiny("limoe", experts, activation_checkpointing=recompute)
    batch, layout = captioning(4, 2, 5), Degrees(1, 2, 2)
    planned = dispatch_traffic(model, passed(batch), layout, 4)
    for sent in run_ranks(2, send, model, 1, 2, batch):
        assert Counter({"all_to_all_single": sent["all_to_all_single"]}) == handed(planned)
    flag = 8 * (2 if recompute == "block" else 1)  # one number of eight bytes a decision says how many slots there are
    for sent in run_ranks(2, of_a_pass, model, 1, 2, batch, False):
        assert sent == {"tensor": 0, "expert": sent_in_all(planned) + flag, "data": 0}


@pytest.mark.parametrize("recompute", ["none", "block", "selective"])
@pytest.mark.parametrize("kind", KINDS)
def test_planned_activations_are_what_a_pass_keeps(kind, recompute):
    options = {"activation_checkpointing": recompute, "layer_scale": 0.1, "drop_path": 0.1, **LARGER}
    model = tiny("limoe", {**DEEPSPEED, "top_k": 2}, **options)
    batch = KINDS[kind](24, 4, 12)
    planned = activations_of(model, passed(batch), Degrees(1, 1, 1), 4, losses=1 + batch.symmetric)
    kept, most = kept_by(model, batch)
    assert planned.kept == pytest.approx(kept, rel=0.1)
    buffers = exchange_buffers(model, passed(batch), Degrees(1, 1, 1), 4)
    assert 0.9 * most < planned.peak + buffers < 1.2 * most


@pytest.mark.parametrize(
    ("factor", "words"), [("1.05", "equal passes, which"), ("0", "and experts that are used alike, which")]
)
def test_the_page_says_what_is_counted(factor, words):
    overrides = ("micro_batches=64", "parallel.expert=8", f"model.experts.capacity_factor={factor}")
    pages = []
    for backend in ("own", "deepspeed"):
        run = load_config(ROOT / "configs/presets/limoe_b16.yaml", (*overrides, f"model.experts.backend={backend}"))
        pages.append(render(plan(run, 64)))
    assert "slots are held, computed and sent" not in pages[0] and "slots (all-to-all" not in pages[0]
    assert (
        "slots are held, computed and sent" in pages[1]
        and words in pages[1]
        and "slots (all-to-all over 8)" in pages[1]
    )
