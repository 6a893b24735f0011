"""The files of a run folder that are not metrics: the resolved configuration, the vocabulary, and what the data sets are.

runs/<name>/ config.yaml  vocabulary.json  data_sets.json  threads.json  metrics.jsonl  ledger_rank_*.jsonl  in_use.json
            wandb_run.json  wandb/  checkpoints/  evaluations/  logs/  health/  errors/
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pydantic

from data.shards import DatasetError, DatasetInfo, read_info
from data.text.tokenizer import Tokenizer
from data.text.vocabulary import Vocabulary
from data.transport import is_remote, shown
from parallel.checkpoints import write_atomically
from parallel.health.claim import FolderError
from run.config import RunConfig
from run.config_file import CONFIG, dump_config, load_config
from run.errors import ConfigError
from run.places import with_absolute
from run.strict_text import TextError, read_json

VOCABULARY, DATA_SETS = "vocabulary.json", "data_sets.json"


def write_run_files(run: RunConfig, vocabulary: Vocabulary, infos: Mapping[str, DatasetInfo] | None = None) -> None:
    """Places of data may be URLs with passwords, or commands: then their owner alone reads the configuration. Raises FolderError."""
    text = dump_config(with_absolute(run))
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(run.folder / CONFIG, text, 0o600 if _has_secrets(run) else 0o644)
        write_vocabulary(run.folder, vocabulary)
        write_data_sets(run.folder, infos or {})
    except OSError as error:
        raise FolderError(f"{error.filename or run.folder} cannot be written: {error.strerror or error}") from error


def _has_secrets(run: RunConfig) -> bool:
    places = [run.init, *(place for task in run.data.tasks for place in (task.path, *task.shards))]
    return any(shown(place) != place for place in places)


def write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    content = {"words": vocabulary.clip_ids[: vocabulary.num_words], "spells": vocabulary.num_spelling > 0}
    write_atomically(folder / VOCABULARY, json.dumps(content))


def write_data_sets(folder: Path, infos: Mapping[str, DatasetInfo]) -> None:
    """Kind and class names of each task's data set: what questions need where the data are elsewhere by then."""
    if infos:
        content = {name: {"kind": info.kind, "classes": info.classes} for name, info in infos.items()}
        write_atomically(folder / DATA_SETS, json.dumps(content, ensure_ascii=False))


def infos_of(folder: Path, run: RunConfig) -> dict[str, DatasetInfo]:
    """Of the tasks' data sets that are there on this machine; of others what the run has kept: kind and class names. Runs of before kept
    nothing. Raises ConfigError."""
    found, path = dict[str, DatasetInfo](), folder / DATA_SETS
    if path.is_file():
        try:
            kept = {
                name: about | {"token_ids": (), "splits": {}} for name, about in read_json(path.read_bytes()).items()
            }
            found = pydantic.TypeAdapter(dict[str, DatasetInfo]).validate_python(kept, strict=False)
        except (OSError, TextError, ValueError, TypeError, AttributeError) as error:
            said = str(error).splitlines()[0]
            raise ConfigError(f"{path} is damaged ({said}): copy it from a backup, or remove it") from error
    for task in run.data.tasks:
        with contextlib.suppress(DatasetError):  # it may have been moved, or belong to others
            if not is_remote(task.path):
                found[task.name] = read_info(task.path)
    return found


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
    return load_config(folder / CONFIG, overrides, is_resolved=True), read_vocabulary_file(path)


def is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def read_vocabulary_file(path: Path) -> Vocabulary:
    """Of the stored file; earlier versions stored a list, without bytes to spell with. Raises ConfigError."""
    try:
        content = read_json(path.read_bytes())
        words, spells = (content, False) if isinstance(content, list) else (content["words"], content["spells"])
        make = Vocabulary.restricted if spells else Vocabulary.closed
        return make(Tokenizer.load(), words)
    except (OSError, TextError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged ({type(error).__name__}: {error}): copy it from a backup, or start anew"
        ) from error
