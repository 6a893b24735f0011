"""What may change when a run goes on."""

from __future__ import annotations

import dataclasses
import fnmatch
import math

import pytest

from run.changes import RULES, check_changes, options, rule_of, told_changes
from run.config_file import load_config
from run.errors import ConfigError
from tests.helpers.places import ROOT

DEMO = ROOT / "configs" / "demo.yaml"
OLD = load_config(DEMO)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.depth=7", "was started with model.depth=3, now 7: choose another name=, with init="),
        ("model.experts.top_k=1", "was started with model.experts.top_k=2, now 1"),
        (
            "model.text_tower={width: 96, depth: 1, heads: 3, ffn: 64}",
            "was started with model.text_tower.width=None, now 96",
        ),
        ("seed=7", "was started with seed=0, now 7"),
        ("micro_batches=4", "was started with micro_batches=2, now 4"),
        ("data.tasks.clips.batch_size=2", "was started with data.tasks.clips.batch_size="),
        ("data.tasks.clips.sampling_weight=0.5", "was started with data.tasks.clips.sampling_weight="),
        ("data.tasks.clips.split=val", "was started with data.tasks.clips.split='train', now 'val'"),
        ("data.tasks.shapes.flip=true", "was started with data.tasks.shapes.flip=False, now True"),
        ("data.mixture=sizes", "was started with data.mixture='weights', now 'sizes'"),
        ("data.shuffle_window=16", "was started with data.shuffle_window="),
        ("data.vocabulary=full", "was started with data.vocabulary='restricted', now 'full'"),
        ("data.tasks=[{name: a, kind: masked_text, path: x}]", "was started with data.tasks=['shapes'"),
    ],
)
def test_what_makes_it_another_run_is_named(override, expected):
    options = ["parallel.expert=1", "model.tasks=[a]"] if override.startswith("model.text") else []
    with pytest.raises(ConfigError) as caught:
        check_changes(load_config(DEMO, options), load_config(DEMO, [*options, override]))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    ["log_every=2", "save_every=9", "save_async=true", "keep_checkpoints=9", "parallel.expert=1", "parallel.timeout_s=900", "threads=2",
     "data.workers=2", "data.cache_gib=3", "data.cache_dir=/x", "data.max_bad_fraction=0.5", "tracking.project=other", "runs=/else",
     "data.tasks.shapes.path=/else", "data.tasks.shapes.shards=[/else/a.tar]", "model.activation_checkpointing=block", "check_every=0"],
)  # fmt: skip
def test_what_may_change_without_a_word(override):
    new = load_config(DEMO, [override])
    check_changes(OLD, new)
    assert told_changes(OLD, new, 100) == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.weight_decay=0.1", "changed: optimizer.weight_decay was 0.05, now 0.1"),
        ("optimizer.frozen=[tower.*]", "changed: optimizer.frozen was [], now ['tower.*']"),
        ("parallel.deepspeed=zero2", "changed: parallel.deepspeed was 'zero1', now 'zero2'"),
        ("model.experts.backend=deepspeed", "changed: model.experts.backend was 'own', now 'deepspeed'"),
        ("kernels=apex", "changed: kernels was 'torch', now 'apex'"),
        ("evaluate.split=heldout", "changed: evaluate.split was 'val', now 'heldout'"),
        ("init=runs/other", "changed: init was '', now '{cwd}/runs/other', without effect after the start"),
    ],
)
def test_what_goes_on_otherwise_is_told(override, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    networks = ["model.experts.router=token", "model.experts.unit=mlp"] if "backend" in override else []
    old, new = load_config(DEMO, networks), load_config(DEMO, [*networks, override])
    check_changes(old, new)
    assert told_changes(old, new, 100) == [line.replace("{cwd}", str(ROOT))]


def test_more_steps_after_the_end_are_told_with_both_rates():
    """At the end the cosine is at min_lr; over twice the steps it is half way up: peak 1.5e-3, 80 steps of warm-up."""
    new = load_config(DEMO, [f"steps={2 * OLD.steps}"])
    half = 1e-6 + 0.5 * (1.5e-3 - 1e-6) * (1 + math.cos(math.pi * (OLD.steps - 80) / (2 * OLD.steps - 80)))
    assert told_changes(OLD, new, OLD.steps) == [
        f"changed: steps was {OLD.steps}, now {2 * OLD.steps}",
        f"changed: the learning rate goes on from step {OLD.steps:,} with {half:.3g}, and not with 1e-06",
    ]


def test_another_peak_rate_is_told_with_both_rates():
    lines = told_changes(OLD, load_config(DEMO, ["optimizer.lr=3e-3"]), 79)
    assert (
        lines[1] == "changed: the learning rate goes on from step 79 with 0.00296, and not with 0.00148"
    )  # 80/81 of the peaks


def test_a_best_checkpoint_that_is_followed_no_more_is_told():
    old = load_config(DEMO, ["evaluate={every: 50, keep_best: shapes/accuracy}"])
    assert told_changes(old, OLD, 100) == [
        "changed: evaluate.keep_best was 'shapes/accuracy', now ''; the best checkpoint so far stays until another one is found"
    ]


def test_every_option_has_one_rule_and_no_rule_is_idle():
    keys = [key for key, _ in options(dataclasses.asdict(OLD))]
    first = [next(pattern for pattern, _ in RULES if fnmatch.fnmatchcase(key, pattern)) for key in keys]
    assert {rule_of(key) for key in keys} == {"refused", "told", "free"}
    assert set(first) == {pattern for pattern, _ in RULES}


def test_the_table_for_users_says_the_same():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for pattern, rule in RULES:
        assert f"| `{pattern}` | {rule} |" in text, pattern


def test_secrets_in_addresses_are_not_printed():
    old = load_config(DEMO, ["init=https://me:secret@host/a.safetensors?sig=123"])
    lines = told_changes(old, load_config(DEMO), 1)
    assert "secret" not in lines[0] and "sig" not in lines[0] and "@host/a.safetensors" in lines[0]
