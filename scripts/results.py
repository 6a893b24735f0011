"""Keeps what trainings reached in docs/results/NAME.json, and writes the tables of README.md and docs/ from these files.

python scripts/results.py demo --run runs/demo --split heldout     evaluates the run, keeps its figures, writes the tables
python scripts/results.py ablation --lines runs/ablation.jsonl     keeps the lines of `make ablation`
python scripts/results.py                                          writes the tables alone

In the documents a table stands between two comments, `results: NAME` and `/results`. A test holds that tables are those of the
files, and that a configuration is still the one that was trained.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.ablation import table as ablation_table
from run.changes import check_changes, told_changes
from run.config_file import load_config
from run.strict_text import read_yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "results.md")
ROWS: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "classification": (("accuracy", "accuracy", "majority", "the most frequent class"),),
    "text_classification": (("accuracy", "accuracy", "majority", "the most frequent class"),),
    "masked_text": (
        ("accuracy", "accuracy", "majority", "the most frequent word"),
        ("loss", "nats per token", "unigram_loss", "word frequencies"),
    ),
    "captioning": (("cider", "CIDEr-D", "shuffled_cider", "captions of other images"),),
    "retrieval": (
        ("image_to_text_r1", "R@1, image to text", "image_to_text_chance", ""),
        ("text_to_image_r1", "R@1, text to image", "text_to_image_chance", ""),
    ),
}
"""By kind of task: metric, its name for people, the metric of its floor, what that floor is."""


def config_digest(path: str) -> str:
    """Of what the configuration and those that it builds on say, not of their comments."""
    contents = [read_yaml((ROOT / path).read_bytes())]
    while "base" in contents[-1]:
        contents.append(read_yaml(((ROOT / path).parent / str(contents[-1]["base"])).read_bytes()))
    return hashlib.sha256(json.dumps(contents, default=str).encode()).hexdigest()[:12]


def table(kept: dict[str, Any]) -> str:
    """What a document shows of a stored training."""
    if "lines" in kept:
        return ablation_table(kept["lines"])
    lines = ["| task | over | figure | reached | 95 % | without learning |", "|---|---|---|---|---|---|"]
    for result in kept["results"]:
        for metric, name, floor, meaning in ROWS[result["kind"]]:
            unit = next(unit for unit in ("samples", "images", "tokens") if unit in result)
            count = f"{result[unit]:,} {unit}"
            chance = f"{result[floor]:.3f}" + (f" ({meaning})" if meaning else "")
            interval = result["interval" if metric == result["figure"] else f"{metric}_interval"]
            ends = "{:.3f} to {:.3f}".format(*interval)
            lines.append(f"| {result['task']} | {count} | {name} | **{result[metric]:.3f}** | {ends} | {chance} |")
    minutes, seconds = divmod(round(kept["seconds"]), 60)
    lines += [
        "",
        f"`{kept['config']}`, evaluated at commit {kept['commit']}, split {kept['split']}; {kept['ranks']} ranks on {kept['hardware']}: "
        f"{kept['steps']:,} steps in {minutes} min {seconds} s, {kept['data_wait']:.1%} of it waiting for data.",
    ]
    return "\n".join(lines)


def rendered(text: str) -> str:
    """The document with the tables of today's files."""

    def block(match: re.Match[str]) -> str:
        kept = json.loads((FOLDER / f"{match[2]}.json").read_text(encoding="utf-8"))
        return f"{match[1]}\n{table(kept)}\n{match[3]}"

    return re.sub(r"(<!-- results: (\w+) -->).*?(<!-- /results -->)", block, text, flags=re.DOTALL)


def training_of(run: Path, split: str) -> dict[str, Any]:
    """Evaluates a run on a split; its figures and what the training took."""
    command = [sys.executable, "evaluate.py", "--run", str(run), "--split", split]
    lines = subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout.splitlines()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [record["step"] for record in records]
    times = [r["step_s"] * (b - a) for r, a, b in zip(records, [0, *steps], steps, strict=False)]
    newest = max((run / "checkpoints").glob("step_*"))
    waited = sum(r["data_wait"] * seconds for r, seconds in zip(records, times, strict=True)) / sum(times)
    trained = load_config(run / "config.yaml")
    source = f"configs/{trained.name}.yaml"
    same = load_config(ROOT / source)
    check_changes(trained, same)
    changes = told_changes(trained, same, steps[-1])
    if changes:
        sys.exit(f"{run} was not trained as {source} says: {'; '.join(changes)}")
    return {
        "config": source,
        "config_digest": config_digest(source),
        "split": split,
        "ranks": len(list(newest.glob("rank_*.safetensors"))),
        "steps": steps[-1],
        "seconds": sum(times),
        "data_wait": waited,
        "results": [json.loads(line) for line in lines],
    }


def where() -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpu.read_text(encoding="utf-8")) if cpu.exists() else []
    model = names[0] if names else platform.processor()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE
    ).stdout.strip()
    return {"hardware": f"{os.cpu_count()} cores ({model}), torch {torch.__version__}", "commit": commit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="of the file in docs/results")
    parser.add_argument("--run", type=Path, help="folder of a finished training")
    parser.add_argument("--split", default="val")
    parser.add_argument("--lines", type=Path, help="file of JSON lines, in place of a run")
    options = parser.parse_args()
    if options.name:
        if not (options.run or options.lines):
            parser.error("give --run or --lines")
        if options.lines:
            text = options.lines.read_text(encoding="utf-8")
            config = "configs/ablation.yaml"
            found = {
                "config": config,
                "config_digest": config_digest(config),
                "lines": list(map(json.loads, text.splitlines())),
            }
        else:
            found = training_of(options.run.resolve(), options.split)
        FOLDER.mkdir(exist_ok=True)
        text = json.dumps(where() | found, indent=1, ensure_ascii=False) + "\n"
        (FOLDER / f"{options.name}.json").write_text(text, encoding="utf-8")
    for document in DOCUMENTS:
        document.write_text(rendered(document.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
