"""How the programs end: exit codes, and the errors that a user can cause, each told in one line."""

from __future__ import annotations

from data.shards import DatasetError
from data.stream.faults import StoreGoneError
from data.text.tokenizer import VocabularyFileError
from data.text.vocabulary import UnknownTokenError
from data.transport import may_pass
from data.workers.loader import WorkerGoneError, WorkersError
from model.exchange.export.errors import ExportError
from model.exchange.public import ConversionError
from model.objective import NotFiniteError
from model.reading import BatchError
from model.tuning.trained import TuningError
from parallel.checkpoints import CheckpointError
from parallel.health.claim import FolderError
from parallel.health.same_inputs import DisagreementError
from parallel.launch import MeetingError, PreflightError

EXIT_FAILURE = 1
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
    BatchError,
    NotFiniteError,
    OutputError,
    ConversionError,
    ExportError,
    DatasetError,
    VocabularyFileError,
    UnknownTokenError,
    WorkersError,
    CheckpointError,
    DisagreementError,
    FolderError,
    TuningError,
    ModuleNotFoundError,
    PreflightError,
)


def is_told_here(error: Exception, is_first: bool) -> bool:
    """Of errors that all ranks have the first one on a machine tells; of those that a rank may have alone, it does itself."""
    return is_first or getattr(error, "of_one_rank", False)


def exit_code(error: Exception) -> int:
    """Of one of USER_ERRORS: 1 where the same command may do as it is, since only a store or a process was gone or late. Schedulers start
    such a run again, and one that ends with 2 never."""
    return (
        EXIT_FAILURE
        if isinstance(error, (MeetingError, WorkerGoneError, StoreGoneError)) or may_pass(error)
        else EXIT_USER
    )
