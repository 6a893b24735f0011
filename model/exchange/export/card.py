"""The model card of an exported folder: what it is, what it was trained on, how well it does, how it is used."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

FLOORS = "without learning"
"""What the simplest guess reaches."""


def card(
    name: str,
    settings: Mapping[str, Any],
    data: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    numbers: int,
    step: int,
    licence: str,
    command: Sequence[str],
) -> str:
    """Markdown with the hub's front matter.

    data: rows of task, kind, data, splits; results: rows of task, split, figure, value, low, high, floor; numbers: of all tensors; licence:
    an SPDX name, or empty where none was said.
    """
    network, experts = settings["network"], settings["network"]["experts"]
    merged = network["merged"]
    head = {
        "license": licence.lower() or "other",
        "library_name": "transformers",
        "tags": ["sparse-generalists", "mixture-of-experts", "image-text", "custom_code"],
        "pipeline_tag": "zero-shot-image-classification",
    }
    front = [f"{key}: {json.dumps(value)}" for key, value in head.items()]
    if not licence:
        front.append('license_name: "unspecified"')
    if merged:
        sparse = f"merged for {merged['of']} from a router by {merged['router'].replace('_', ' ')} ({len(merged['keys'])} weights per layer)"
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
            f"{r['floor']:.4f}",
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
        "from transformers import AutoModel",
        "",
        'model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)',
        "model.encode_image([picture])                # unit vectors; picture: a PIL image, an array, or pixels",
        'model.encode_text(["a red circle"])',
        'model.classify([picture], ["red circle", "blue star"])',
        "model.caption([picture])",
        "```",
        "The code that travels with it needs torch, transformers and safetensors; Pillow scales pictures, and ftfy repairs texts that are "
        "more than plain ASCII.",
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
            for row in content["results"]:
                low, high = map(float, row["interval"])
                value, floor = (float(row["metrics"][row[which]]) for which in ("figure", "floor"))
                found = {"task": row["task"], "split": content["split"], "figure": row["figure"]}
                rows.append(found | {"value": value, "low": low, "high": high, "floor": floor})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return rows
