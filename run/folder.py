"""The files of a run folder that are not metrics: the resolved configuration and the vocabulary.

runs/<name>/ config.yaml  vocabulary.json  metrics.jsonl  ledger_rank_*.jsonl  in_use.json
            wandb_run.json  wandb/  checkpoints/  logs/  health/  errors/
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from data.text.tokenizer import Tokenizer
from data.text.vocabulary import Vocabulary
from parallel.checkpoints import write_atomically
from run.config import RunConfig
from run.config_file import dump_config, load_config
from run.errors import ConfigError
from run.places import with_absolute
from run.strict_text import TextError, read_json

CONFIG, VOCABULARY = "config.yaml", "vocabulary.json"


def write_run_files(run: RunConfig, vocabulary: Vocabulary) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(run.folder / CONFIG, dump_config(with_absolute(run)))
    write_atomically(run.folder / VOCABULARY, json.dumps(vocabulary.clip_ids))


def read_run(folder: Path, overrides: Sequence[str] = ()) -> tuple[RunConfig, Vocabulary]:
    """overrides: of options below `data`, as places may have changed. Raises ConfigError if the folder holds no run."""
    other = [override for override in overrides if not override.startswith("data.")]
    if other:
        raise ConfigError(
            f"{other[0]}: the run is what it is; only data.* may be said anew, as data.tasks.NAME.path=PLACE"
        )
    path = folder / VOCABULARY
    if not path.is_file():
        raise ConfigError(f"{folder} is not the folder of a run: it has no {VOCABULARY}")
    try:
        clip_ids = read_json(path.read_bytes())
    except (OSError, TextError) as error:
        raise ConfigError(f"{path}: {error}") from error
    tokenizer = Tokenizer.load()
    if not isinstance(clip_ids, list) or not all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in clip_ids):
        raise ConfigError(f"{path}: not a list of token numbers below {tokenizer.vocab_size:,}: take it from a copy")
    return load_config(folder / CONFIG, overrides), Vocabulary.restricted(tokenizer, clip_ids)
