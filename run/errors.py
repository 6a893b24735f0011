"""How the programs end: exit codes, and the errors that a user can cause, each told in one line."""

from __future__ import annotations

from data.shards import DatasetError
from data.text.tokenizer import VocabularyFileError
from data.workers.loader import WorkersError
from model.exchange.export.errors import ExportError
from model.exchange.public import ConversionError
from model.tuning.trained import TuningError
from parallel.checkpoints import CheckpointError
from parallel.health.claim import FolderError
from parallel.health.same_inputs import DisagreementError
from parallel.launch import PreflightError

EXIT_USER = 2
EXIT_STOPPED = 85
"""Stopped by a signal, after saving: start the same command again."""


class ConfigError(Exception):
    """The configuration cannot be used; the message is one line with the key, the value and the remedy."""


class DivergedError(Exception):
    """The loss or its gradient is no finite number any more."""


class OutputError(Exception):
    """Results cannot be printed."""


USER_ERRORS: tuple[type[Exception], ...] = (
    ConfigError,
    DivergedError,
    OutputError,
    ConversionError,
    ExportError,
    DatasetError,
    VocabularyFileError,
    WorkersError,
    CheckpointError,
    DisagreementError,
    FolderError,
    TuningError,
    ModuleNotFoundError,
    PreflightError,
)
