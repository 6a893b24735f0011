"""Checkpoints of logical tensors by global name, in safetensors and JSON alone.

    step_00000200/  manifest.json            what must be there: shapes, fragments, checksums, the run's state
                    rank_00000.safetensors   the fragments that rank 0 owns: "<kind>/<name>", flat fp32
                    ...
    latest                                   name of the newest published folder

A fragment is a slice [start, start + numel) of the flattened part that a placement's cuts leave of the logical tensor.
Every rank writes what it owns, a chunk at a time; nothing is gathered. A folder is written under a temporary name, synced and
renamed, so a published folder is complete; only then `latest` moves and old folders are pruned. Restoring reads the spans that
a rank's part needs, whatever the layout was.

    fragments -> manifest, files -> saving -> background
                 manifest, resharding -> spans -> reading
"""

from parallel.checkpoints.background import Saver
from parallel.checkpoints.files import write_atomically
from parallel.checkpoints.fragments import UNREADABLE, CheckpointError, Fragment
from parallel.checkpoints.manifest import Base
from parallel.checkpoints.reading import (
    find_checkpoint,
    load_found,
    load_parts,
    load_weights,
    newest,
    newest_state,
    open_checkpoint,
    restore,
    with_found,
)
from parallel.checkpoints.saving import Published, mark_as_base, published, save
from parallel.checkpoints.spans import Checkpoint

__all__ = [
    "UNREADABLE",
    "Base",
    "Checkpoint",
    "CheckpointError",
    "Fragment",
    "Published",
    "Saver",
    "find_checkpoint",
    "load_found",
    "load_parts",
    "load_weights",
    "mark_as_base",
    "newest",
    "newest_state",
    "open_checkpoint",
    "published",
    "restore",
    "save",
    "with_found",
    "write_atomically",
]
