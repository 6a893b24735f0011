"""The model card of an exported folder: what it is, what it was trained on, how well it does, how it is used."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

FLOORS = "without learning"
"""What the simplest guess reaches."""


METHODS = {
    "encode_image": "model.encode_image([picture])                # unit vectors; picture: a PIL image, an array, or pixels",
    "encode_video": "model.encode_video([clip])                   # unit vectors; clip: its frames, as pictures",
    "encode_text": 'model.encode_text(["a red circle"])',
    "classify": 'model.classify([picture], ["red circle", "blue star"])',
    "caption": "model.caption([picture])",
    "classify_texts": 'model.classify(["a fine film"], ["terrible", "great"])',
    "answer": 'model.answer([picture], "what is it?", ["a dog", "a cat"])',
}
OF_KIND = {
    "classification": ("classify",),
    "captioning": ("caption",),
    "retrieval": ("encode_image", "encode_text"),
    "text_classification": ("classify_texts",),
    "masked_text": ("classify_texts",),
    "vqa": ("answer",),
}
"""Methods that a task alone can be asked by."""
PIPELINES = {"image": "zero-shot-image-classification", "video": "video-classification"}
"""The hub's names for classification, by medium."""
OTHER_PIPELINES = {
    "captioning": "image-to-text",
    "text_classification": "text-classification",
    "vqa": "visual-question-answering",
}


def use_of(folder: str, settings: Mapping[str, Any], modality: str = "") -> str:
    """The lines of Python that this export answers; modality: that it is merged for."""
    tasks = settings["tasks"]
    kinds = {task["kind"] for task in tasks if is_asked(task)}
    if modality:
        methods: tuple[str, ...] = (f"encode_{modality}",)
    elif settings["network"]["merged"]:
        methods = tuple(method for kind in sorted(kinds) for method in OF_KIND.get(kind, ()))
    else:
        answered = {method for kind in kinds for method in OF_KIND.get(kind, ())}
        if not kinds.isdisjoint(settings["network"]["related"]["retrieval"]):
            answered |= {"encode_image", "encode_text"}
        methods = tuple(method for method in METHODS if method in answered)
    asked = [METHODS[method] for method in methods]
    nothing = f"# no method of this folder answers tasks of kind {', '.join(sorted({task['kind'] for task in tasks}))}"
    return "\n".join(
        [
            "from transformers import AutoModel",
            "",
            f"model = AutoModel.from_pretrained({json.dumps(folder)}, trust_remote_code=True)",
            *(asked or [nothing]),
        ]
    )


def is_asked(task: Mapping[str, Any]) -> bool:
    """Exports write captions and class names of pictures, and answers to nothing else."""
    return not task.get("written") or task["kind"] == "captioning"


def _pipeline(tasks: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the hub calls the first task that it has a name for."""
    for task in tasks:
        if task["kind"] == "classification" and task["medium"] in PIPELINES:
            return {"pipeline_tag": PIPELINES[task["medium"]]}
        if task["kind"] in OTHER_PIPELINES and is_asked(task):
            return {"pipeline_tag": OTHER_PIPELINES[task["kind"]]}
    return {}


def card(
    name: str,
    settings: Mapping[str, Any],
    data: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    numbers: int,
    step: int,
    licence: str,
    command: Sequence[str],
    use: str,
) -> str:
    """Markdown with the hub's front matter.

    data: rows of task, kind, data, splits; results: rows of task, split, figure, value, low, high, floor; numbers: of all tensors; licence:
    an SPDX name, or empty where none was said; use: a few lines of Python.
    """
    network, experts = settings["network"], settings["network"]["experts"]
    merged = network["merged"]
    head = {
        "license": licence.lower() or "other",
        "library_name": "transformers",
        "tags": ["sparse-generalists", "mixture-of-experts", "image-text", "custom_code"],
    } | _pipeline(settings["tasks"])
    front = [f"{key}: {json.dumps(value)}" for key, value in head.items()]
    if not licence:
        front.append('license_name: "unspecified"')
    if merged:
        sparse = f"merged for {merged['of']}, from router {merged['router']}: {len(merged['keys'])} weights per layer"
    elif experts["placement"] == "none":
        sparse = "none (dense)"
    else:
        sparse = f"{experts['num_experts']} {experts['unit']} experts, router {experts['router']}, placement {experts['placement']}"
    shape = f"width {network['width']}, depth {network['depth']}, heads {network['heads']}, FFN {network['ffn']}"
    towers = "two towers, one for text" if network["text_tower"] else "one tower for all modalities"
    rows = [
        ("parameters", f"{numbers:,}"),
        ("shape", f"{shape}; {towers}"),
        ("experts", sparse),
        ("images", f"{network['image_size']} x {network['image_size']} pixels in patches of {network['patch']}"),
        ("clips", f"{network['max_frames']} frames at most"),
        ("texts", f"{network['max_text']} tokens at most, {network['spe'] + 1:,} known"),
        ("trained steps", f"{step:,}"),
    ]
    tasks = [(r["task"], r["kind"], r["data"] or "not known", r["splits"] or "not known") for r in data]
    scores = [
        (
            r["task"],
            r["split"],
            r["figure"],
            f"{r['value']:.4f}",
            f"{r['low']:.4f} to {r['high']:.4f}",
            "" if r["floor"] is None else f"{r['floor']:.4f}",
        )
        for r in results
    ]
    parts = [
        "---",
        *front,
        "---",
        f"# {name}",
        "",
        "A generalist on images, clips and text: every question is which candidate is most similar. Trained and exported with "
        "sparse-generalists.",
        "",
        *_table(("", ""), rows),
        "",
        "## Use",
        "```python",
        use,
        "```",
        "It needs no other package of ours. Pillow scales pictures, regex cuts texts into words, and ftfy repairs "
        "those that are more than plain ASCII.",
        "",
        "## Data",
        *_table(("task", "kind", "data", "samples of splits"), tasks),
        "",
        "## Metrics",
        *(
            _table(("task", "split", "figure", "value", "95 %", FLOORS), scores)
            if scores
            else ["No evaluation was kept in the run's folder."]
        ),
        "",
        "## Licences",
        f"- Weights: {licence or 'not said by who exported them (`--license`)'}.",
        "- Data sets have licences of their own, which may bind what is trained on them.",
        "- `merges.txt` is the byte-pair vocabulary of CLIP (MIT). The code in this folder: Apache-2.0.",
        "",
        "## Made by",
        "```",
        shlex.join(command),
        "```",
    ]
    return "\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Cells cannot break the table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(" ".join(str(cell).replace("|", "/").split()) for cell in line) + " |" for line in lines]


def results_of(run: Path, step: int) -> list[dict[str, Any]]:
    """What evaluations of this step the run's folder has kept; files that cannot be read are left out."""
    rows = []
    for path in sorted((run / "evaluations").glob(f"*_step_{step:08d}.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            kept, split = content["results"], content["split"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        for row in kept:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                rows.append(_result(row, split))
    return rows


def _result(row: Mapping[str, Any], split: str) -> dict[str, Any]:
    """floor: None where there is none, as for the captions of a single picture."""
    low, high = map(float, row["interval"])
    floor = row["metrics"][row["floor"]]
    found = {
        "task": row["task"],
        "split": split,
        "figure": row["figure"],
        "value": float(row["metrics"][row["figure"]]),
    }
    return found | {"low": low, "high": high, "floor": None if floor is None else float(floor)}
