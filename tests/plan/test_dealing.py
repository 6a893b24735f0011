"""What decides who takes which micro-batch, and how long ranks wait by plan."""

from __future__ import annotations

import dataclasses

import pytest

from data.config import TaskConfig
from plan.dealing import dealing_of, lock_step_efficiency
from plan.report import plan, render
from plan.tasks import shares_of, task_loads, word_candidates_of
from run.config import RunConfig
from run.config_file import load_config
from tests.helpers.places import ROOT

PRESETS = ROOT / "configs" / "presets"
BASE = [f"uni_perceiver_{kind}base{stage}" for kind in ("", "moe_") for stage in ("", "_stage2")]


def loads_of(run: RunConfig):
    return task_loads(run, word_candidates_of(run), shares_of(run)[0])


def with_tasks(run: RunConfig, **changes) -> RunConfig:
    """Changes of all tasks but those of pairs."""
    tasks = tuple(t if t.kind == "retrieval" else dataclasses.replace(t, **changes) for t in run.data.tasks)
    return dataclasses.replace(run, data=dataclasses.replace(run.data, tasks=tasks))


@pytest.mark.parametrize("name", BASE)
@pytest.mark.parametrize("ranks", [8, 56, 256, 1024])
def test_ranks_of_the_base_presets_wait_little(name, ranks):
    run = load_config(PRESETS / f"{name}.yaml")
    assert lock_step_efficiency(run, loads_of(run), ranks) >= 0.9


def test_without_sharing_ranks_would_wait_a_third_of_the_time():
    run = with_tasks(load_config(PRESETS / "uni_perceiver_moe_base.yaml"), candidates="local")
    assert dealing_of(run).together == 8
    assert lock_step_efficiency(run, loads_of(run), 56) < 0.7


def test_costs_are_those_of_a_rank_alone():
    """Shared candidates cost all ranks the same, and inputs and scores do not: twice the batch is twice the cost."""
    run = load_config(PRESETS / "uni_perceiver_base.yaml")
    dealing = dealing_of(run)
    assert dealing.together == 0 and len(dealing.costs) == len(run.data.tasks)
    half = dealing_of(with_tasks(run, batch_size=150)).costs
    names = [task.name for task in run.data.tasks]
    assert half[names.index("caption_coco")] == pytest.approx(dealing.costs[names.index("caption_coco")] / 2)
    local = dealing_of(with_tasks(run, candidates="local")).costs
    # 49,411 words of three tokens, 170 MFLOP each.
    assert 22e12 < local[names.index("books_wiki")] - dealing.costs[names.index("books_wiki")] < 28e12
    assert local[names.index("retrieval_sbu")] == dealing.costs[names.index("retrieval_sbu")]


def test_a_pass_has_its_part_of_the_sets_that_are_asked_for_beside_it():
    run = load_config(PRESETS / "uni_perceiver_base.yaml")
    loads = {load.name: load for load in loads_of(run)}
    words = -(-49411 // 64)
    asked = sum(task.share for name, task in loads.items() if name.startswith(("caption", "books")))
    for name in ("caption_coco", "retrieval_coco"):
        load = loads[name]
        assert [one.asked for one in load.shared if one.kind.startswith("words")] == [pytest.approx(asked)]
    _, own, *others = loads["caption_coco"].passes(64)
    assert (own.rows, own.reads) == (words, 49411) and not others  # names are not known: their data sets are not there
    _, own, *others = loads["retrieval_coco"].passes(64)
    assert own.rows == 512 and [other.rows for other in others] == [words]
    # One other rank asks for words as often as they are drawn; alone, a batch of pairs has nothing beside it.
    (other,) = loads["retrieval_coco"].passes(2, mean=True)[2:]
    assert other.rows == pytest.approx(-(-49411 // 2) * asked, abs=1)
    assert loads["retrieval_coco"].passes(1)[2:] == ()
    same = loads_of(dataclasses.replace(run, data=dataclasses.replace(run.data, draw="same")))
    assert all(load.passes(64)[2:] == () for load in same)


def test_the_page_says_how_long_ranks_wait():
    page = render(plan(load_config(PRESETS / "uni_perceiver_moe_base.yaml"), 56))
    assert "mean cost of a step / that of the slowest rank: 0.99 at 8, 0.93 at 56, 0.93 at 256, 0.93 at 1,024" in page


def test_one_task_waits_for_nobody():
    run = load_config(PRESETS / "uni_perceiver_base.yaml")
    task: TaskConfig = run.data.tasks[3]
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, tasks=(task,)))
    assert lock_step_efficiency(run, loads_of(run), 64) == pytest.approx(1.0)
