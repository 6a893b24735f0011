"""Dependencies point one way, each heavy library has one place, and only parallel/ talks to other ranks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from tests.helpers.places import ROOT

ENTRIES = ("train", "evaluate", "predict")
PACKAGES = (
    "data",
    "model",
    "parallel",
    "evaluation",
    "prediction",
    "run",
    "plan",
    "analysis",
    "clusters",
    "benchmarks",
)
PARALLEL = {
    "parallel.checkpoints",
    "parallel.collectives",
    "parallel.config",
    "parallel.engine",
    "parallel.health",
    "parallel.kernels",
    "parallel.launch",
    "parallel.mesh",
    "parallel.norms",
    "parallel.placement",
    "parallel.precision",
}
"""What others than the model may use of it."""
ALLOWED = {
    "data": set(),
    "parallel": set(),
    "model": {
        "parallel",
        "data.batch",
        "data.movable",
        "data.token_layout",
        "data.attributes",
        "data.visual.normalise",
    },
    "evaluation": {
        "model",
        "data",
        "parallel.collectives",
        "parallel.checkpoints",
        "parallel.health.claim",
        "parallel.health.stop_signal",
        "parallel.mesh",
    },
    "prediction": {"evaluation", "run", "model", "data"} | PARALLEL,
    "run": {"model", "data", "evaluation.config", "evaluation.in_training", "evaluation.metrics.meteor"} | PARALLEL,
    "plan": {"run", "model", "data"} | PARALLEL,
    "analysis": {"prediction", "evaluation", "run", "model", "data"} | PARALLEL,
    "clusters": {"plan", "run", "model", "data"} | PARALLEL,
    "benchmarks": {"train", "evaluation", "plan", "run", "model", "data", "parallel"},
}
"""Packages, and what each imports besides itself."""
EXPORTER = {"model.exchange.export.__main__", "model.exchange.export.from_run"}
"""The program that exports a run, in the room of what it writes: it knows runs and data, and nothing else imports it."""
DATA_BASE = {"data.config", "data.batch", "data.attributes", "data.seeding", "data.subset"}
DATA_ALLOWED = {
    "data.attributes": set(),
    "data.movable": set(),
    "data.token_layout": {"data.attributes", "data.movable"},
    "data.batch": {"data.attributes", "data.movable", "data.token_layout"},
    "data.config": set(),
    "data.json_numbers": set(),
    "data.seeding": set(),
    "data.subset": {"data.seeding"},
    "data.transport": set(),
    "data.workers": set(),
    "data.text": set(),
    "data.shards": {"data.transport"},
    "data.decode": {"data.config", "data.shards", "data.text"},
    "data.visual": {"data.config", "data.batch"},
    "data.tasks": {*DATA_BASE, "data.decode", "data.shards", "data.text", "data.transport", "data.visual"},
    "data.stream": {*DATA_BASE, "data.shards", "data.tasks", "data.text", "data.transport", "data.workers"},
    "data.prepare": {"data.decode", "data.shards", "data.text", "data.transport", "data.workers"},
    "data.synthetic": {"data.decode", "data.shards", "data.text"},
    "data.inspect": {"data"},
}
"""The rooms of data/, in the order in which a sample meets them; the last three are tools that no training needs."""
OWNERS: dict[str, str | tuple[str, ...]] = {
    "deepspeed": "parallel",
    "megatron": "parallel",
    "apex": "parallel",
    "torch.distributed": "parallel",
    "wandb": "run.sinks.tracking",
    "tensorboard": "run.sinks.tensorboard",
    "torch.utils.tensorboard": "run.sinks.tensorboard",
    "prometheus_client": "run.sinks.prometheus",
    "vl_convert": "analysis",
    "webdataset": "data",
    "av": "data",
    "requests": "data",
    "fsspec": ("data", "clusters.store.place"),
    "wandb_workspaces": "clusters.dashboards.wandb_report",
    "faiss": "prediction.nearest",
}


def imports_of(path: Path) -> set[str]:
    """Modules, and `package.name` for what is imported from a package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def lies_in(module: str, rooms: set[str]) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


def test_packages_import_only_what_lies_below_them():
    seen = 0
    for package, allowed in ALLOWED.items():
        for path in sources(package):
            for module in imports_of(path):
                if module.split(".")[0] in (*PACKAGES, *ENTRIES):
                    seen += 1
                    assert name_of(path) in EXPORTER or not lies_in(module, EXPORTER), (
                        f"{name_of(path)} imports {module}"
                    )
                    more = {"run", *ALLOWED["run"]} if name_of(path) in EXPORTER else set()
                    assert lies_in(module, {package, *allowed, *more}), f"{name_of(path)} imports {module}"
    assert seen > 500


def test_rooms_of_data_follow_the_way_of_a_sample():
    rooms = {".".join(name_of(path).split(".")[:2]) for path in sources("data")} - {"data"}
    assert rooms == DATA_ALLOWED.keys()
    order = list(DATA_ALLOWED)
    for room, allowed in DATA_ALLOWED.items():
        assert all(order.index(other) < order.index(room) for other in allowed if other != "data"), f"{room}: a circle"
        for path in [path for path in sources("data") if lies_in(name_of(path), {room})]:
            for module in imports_of(path):
                if module.startswith("data."):
                    assert lies_in(module, {room, *allowed}), f"{name_of(path)} imports {module}"


def test_heavy_libraries_and_collectives_have_one_owner():
    files = [path for package in PACKAGES if package != "benchmarks" for path in sources(package)]
    for path in [*files, *(ROOT / f"{entry}.py" for entry in ENTRIES)]:
        for module in imports_of(path):
            for library, owner in OWNERS.items():
                if lies_in(module, {library}):
                    assert lies_in(name_of(path), {owner} if isinstance(owner, str) else set(owner)), (
                        f"{name_of(path)} imports {module}, which belongs to {owner}"
                    )


def test_the_tree_stays_in_rooms_that_one_can_survey():
    for folder in {path.parent for package in PACKAGES for path in sources(package)}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 20, f"{folder.relative_to(ROOT)} has {len(files)} modules: give some of them a room"
    assert len((ROOT / "train.py").read_text().splitlines()) < 170


def test_the_model_and_the_help_need_no_heavy_library():
    code = "import sys, train, evaluate; print([m for m in ('deepspeed', 'megatron', 'wandb') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
