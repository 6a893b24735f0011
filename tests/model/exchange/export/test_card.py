"""The model card: methods that the export answers, the hub's name for it, and results that can be read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model.exchange.export.card import _pipeline, results_of, use_of
from run.evaluation.suite import RELATED


def settings(*tasks: tuple[str, str], merged: bool = False) -> dict[str, Any]:
    return {
        "network": {"merged": {"of": "something"} if merged else None, "related": RELATED},
        "tasks": [
            {"kind": kind.removesuffix(", written"), "medium": medium, "written": "written" in kind}
            for kind, medium in tasks
        ],
    }


def methods(use: str) -> list[str]:
    return [line.partition("(")[0].removeprefix("model.") for line in use.splitlines() if line.startswith("model.")]


ALL = (("classification", "image"), ("captioning", "image"), ("retrieval", "image"), ("masked_text", "text"))


@pytest.mark.parametrize(
    ("made", "modality", "expected"),
    [
        (settings(*ALL), "", ["encode_image", "encode_text", "classify", "caption", "classify"]),
        (settings(ALL[2]), "", ["encode_image", "encode_text"]),
        (settings(*ALL, merged=True), "image", ["encode_image"]),
        (settings(*ALL, merged=True), "text", ["encode_text"]),
        (settings(ALL[0], merged=True), "", ["classify"]),
        (settings(ALL[1], merged=True), "", ["caption"]),
        (settings(ALL[3], merged=True), "", ["classify"]),
        (settings(("text_classification", "text")), "", ["classify"]),
        (settings(("vqa", "image")), "", ["answer"]),
        (settings(("captioning, written", "image")), "", ["encode_image", "encode_text", "caption"]),
        (settings(("text_classification, written", "text"), ("vqa, written", "image")), "", []),
    ],
)
def test_a_card_shows_what_the_export_answers(made, modality, expected):
    use = use_of("my model", made, modality)
    assert 'from_pretrained("my model", trust_remote_code=True)' in use and methods(use) == expected
    assert ("# no method of this folder answers tasks of kind text_classification, vqa" in use) == (not expected)


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (ALL, "zero-shot-image-classification"),
        ((("classification", "video"),), "video-classification"),
        ((("captioning", "image"),), "image-to-text"),
        ((("text_classification", "text"),), "text-classification"),
        ((("text_classification, written", "text"), ("vqa", "image")), "visual-question-answering"),
        ((("masked_text", "text"),), None),
    ],
)
def test_the_hub_is_told_what_it_is_for(tasks, expected):
    assert _pipeline(settings(*tasks)["tasks"]).get("pipeline_tag") == expected


def test_one_result_without_a_floor_or_damaged_costs_no_other(tmp_path):
    def row(task: str, floor: float | None, **changes: Any) -> dict[str, Any]:
        metrics = {"cider": 0.5, "shuffled_cider": floor}
        return {
            "task": task,
            "figure": "cider",
            "floor": "shuffled_cider",
            "metrics": metrics,
            "interval": [0.1, 0.9],
        } | changes

    (tmp_path / "evaluations").mkdir()
    rows = [row("one picture", None), row("no interval", 0.1, interval=None), row("plain", 0.25)]
    path = tmp_path / "evaluations" / "val_step_00000003.json"
    path.write_text(json.dumps({"split": "val", "results": rows}), encoding="utf-8")
    assert [(found["task"], found["floor"]) for found in results_of(tmp_path, 3)] == [
        ("one picture", None),
        ("plain", 0.25),
    ]
