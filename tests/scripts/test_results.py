"""Tables of results are those of the files that runs left, and the files are those of today's configurations."""

from __future__ import annotations

import json

import pytest

from scripts.results import DOCUMENTS, FOLDER, config_digest, rendered, table

KEPT = {
    "config": "configs/demo.yaml", "commit": "abc1234", "split": "val", "ranks": 2, "hardware": "2 cores", "steps": 1000,
    "seconds": 183.4, "data_wait": 0.0123,
    "results": [
        {"task": "shapes", "kind": "classification", "accuracy": 0.25, "majority": 1 / 6, "samples": 1256,
         "figure": "accuracy", "interval": [0.2, 0.3]},
        {"task": "words", "kind": "masked_text", "accuracy": 0.5, "majority": 0.1, "loss": 2.0, "unigram_loss": 3.0, "tokens": 77,
         "figure": "accuracy", "interval": [0.4, 0.6], "loss_interval": [1.9, 2.2]},
    ],
}  # fmt: skip


def test_a_table_by_hand():
    assert table(KEPT).splitlines() == [
        "| task | over | figure | reached | 95 % | without learning |",
        "|---|---|---|---|---|---|",
        "| shapes | 1,256 samples | accuracy | **0.250** | 0.200 to 0.300 | 0.167 (the most frequent class) |",
        "| words | 77 tokens | accuracy | **0.500** | 0.400 to 0.600 | 0.100 (the most frequent word) |",
        "| words | 77 tokens | nats per token | **2.000** | 1.900 to 2.200 | 3.000 (word frequencies) |",
        "",
        "`configs/demo.yaml`, evaluated at commit abc1234, split val; 2 ranks on 2 cores: 1,000 steps in "
        "3 min 3 s, 1.2% of it waiting for data.",
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_have_the_tables_of_the_files(document):
    text = document.read_text()
    assert "<!-- results: " in text and rendered(text) == text, "run scripts/results.py"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_what_was_trained_is_what_the_configuration_says(path):
    kept = json.loads(path.read_text())
    assert kept["config_digest"] == config_digest(kept["config"]), f"train {kept['config']} again: scripts/results.py"
    assert any(f"<!-- results: {path.stem} -->" in document.read_text() for document in DOCUMENTS), (
        "a file without a table"
    )
