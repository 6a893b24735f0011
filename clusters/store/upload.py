"""What is new in a run's folder goes to the store: a checkpoint's files, the run's records, and last the manifest by which the checkpoint
counts. The training is not touched: it may save, prune or end meanwhile."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clusters.store.names import UPLOADING, folder_name, manifest_name, records
from clusters.store.place import Place, StoreError
from clusters.store.stored import Stored, all_stored, look, sizes_by_step
from parallel.checkpoints import CheckpointError, newest_state, published
from parallel.checkpoints.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, parse
from parallel.checkpoints.saving import latest_step, step_of
from parallel.health.claim import FolderError
from run.errors import ConfigError

EVENTS = "events.jsonl"
MAX_LINE_BYTES = 1 << 20
THREADS = 4
"""Files at a time."""
SMALL_BYTES = 16 << 20


def check_run(run: Path, must_be_there: bool) -> None:
    """Raises ConfigError where the folder is none of a run."""
    if must_be_there and not (run / "config.yaml").is_file():
        raise ConfigError(f"{run} is not the folder of a run: it has no config.yaml; name it as --run runs/NAME")


class Upload:
    """Remembers what it has sent, so that a round without news asks the store for nothing."""

    def __init__(self, run: Path, place: Place, keep: int, tell: Callable[[str], None]) -> None:
        """keep: complete checkpoints that stay in the store besides the best one; 0 = all."""
        self.run, self.place, self._keep, self.tell = run, place, keep, tell
        self._records: dict[str, tuple[int, int]] = {}
        self._done: set[tuple[str, str]] = set()
        self._told: set[str] = set()
        self._is_ours = False

    def round(self) -> bool:
        """Whether all that is complete here is in the store now, damaged ones excepted, which are told. Raises StoreError; FolderError
        where the place holds another run."""
        if not self._knows_owner():
            return False
        good = True
        for folder in self._wanted():
            good &= self._checkpoint(folder)
        self._send_records()
        return good

    def _wanted(self) -> list[Path]:
        """Newest first; not those that would be removed again."""
        root = self.run / "checkpoints"
        here = published(root)
        if not self._keep:
            return here
        latest = latest_step(root)
        here = [folder for folder in here if step_of(folder) <= latest]
        try:
            best = newest_state(root).get("best")
        except CheckpointError:
            return here
        step = best.get("step") if isinstance(best, dict) else None
        return here[: self._keep] + [folder for folder in here[self._keep :] if step_of(folder) == step]

    def _knows_owner(self) -> bool:
        """Whether the place is this run's: a run that has not begun to tell of itself does not write over what is there."""
        if self._is_ours:
            return True
        mine, there = first_line(self.run / EVENTS), stored_first_line(self.place)
        if not mine:
            if there:
                self._tell_once(
                    f"warning: {self.place.url} holds a run, and {self.run} has no {EVENTS} yet: nothing is sent"
                )
            return not there
        if there and there != mine:
            raise FolderError(
                f"{self.place.url} holds another run, whose {EVENTS} begins otherwise: choose another --to, or remove what is there"
            )
        self._is_ours = True
        self._warn_of_later()
        return True

    def _warn_of_later(self) -> None:
        here = max(map(step_of, published(self.run / "checkpoints")), default=0)
        later = [step for step in sizes_by_step(self.place) if step > here]
        if later and here:
            self.tell(
                f"warning: {self.place.url} holds step {later[0]}, and {self.run} ends at step {here}: a download takes the later one, "
                "unless --step names another"
            )

    def _checkpoint(self, folder: Path) -> bool:
        """Whether it is in the store now, or the training has removed it."""
        try:
            text = (folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            return True
        digest = hashlib.sha256(text).hexdigest()
        if (folder.name, digest) in self._done:
            return True
        try:
            if len(text) > MAX_MANIFEST_BYTES:
                raise CheckpointError(f"more than {MAX_MANIFEST_BYTES:,} bytes")
            self._send_checkpoint(folder, parse(text), text, digest)
        except FileNotFoundError:
            if folder.exists():
                return self._damaged(folder, "a file is missing")
            self.place.remove([f"{folder_name(step_of(folder))}/{UPLOADING}"])
            return True
        except (CheckpointError, OSError) as error:
            return self._damaged(folder, str(error))
        self._done.add((folder.name, digest))
        return True

    def _damaged(self, folder: Path, reason: str) -> bool:
        self._tell_once(f"warning: {folder} is damaged ({reason}) and was not uploaded")
        return False

    def _tell_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self.tell(line)

    def _send_checkpoint(self, folder: Path, manifest: Manifest, text: bytes, digest: str) -> None:
        """Raises CheckpointError where the files are not those of the manifest."""
        step, start = step_of(folder), time.monotonic()
        there = self._prepared(step, manifest, text, digest)
        if there is None:
            self.tell(f"{folder.name} is there already")
            return
        missing = {name: file for name, file in manifest.files.items() if there.get(name) != file.bytes}
        with ThreadPoolExecutor(THREADS) as pool:
            sent = pool.map(
                lambda name: (name, self.place.send(f"{folder_name(step)}/{name}", folder / name, missing[name].bytes)),
                missing,
            )
            for name, sha256 in sent:
                if sha256 != missing[name].sha256:
                    self.place.remove([f"{folder_name(step)}/{name}"])
                    raise CheckpointError(f"the checksum of {name} differs from the manifest's")
        self._send_records()  # so that what counts has the records of all its steps
        self.place.write(manifest_name(step), text)
        self.place.remove([f"{folder_name(step)}/{UPLOADING}"])
        stored = look(self.place, step, sizes_by_step(self.place).get(step, {}))
        if stored.problem or stored.text != text:
            raise StoreError(
                f"{self.place.url}: {folder.name} is not there as it was sent: {stored.problem or MANIFEST}"
            )
        count, taken = sum(file.bytes for file in missing.values()), time.monotonic() - start
        also = f", {len(manifest.files) - len(missing)} were there" if len(missing) < len(manifest.files) else ""
        self.tell(f"uploaded {folder.name}: {len(missing)} files{also}, {count:,} bytes in {taken:.1f} s")
        if manifest.base:
            self._tell_base(folder, manifest.base.folder)
        if self._keep:
            self._prune()

    def _prepared(self, step: int, manifest: Manifest, text: bytes, digest: str) -> dict[str, int] | None:
        """Bytes of the files that are there and are surely this checkpoint's; None where it is complete."""
        there = look(self.place, step, sizes_by_step(self.place).get(step, {}))
        if there.text == text and not there.problem:
            return None
        marker = f"{folder_name(step)}/{UPLOADING}"
        if there.text is None and UPLOADING in there.sizes and self.place.read(marker, 1024) == digest.encode():
            return there.sizes
        # Of another checkpoint, or nobody knows: all of one model have files of the same sizes. The manifest goes first.
        old = sorted(there.sizes, key=lambda name: name != MANIFEST)
        self.place.remove(f"{folder_name(step)}/{name}" for name in old)
        self.place.write(marker, digest.encode())
        return {}

    def _send_records(self) -> None:
        for name, path in records(self.run):
            try:
                stat = path.stat()
                if self._records.get(name) == (stat.st_size, stat.st_mtime_ns):
                    continue
                if stat.st_size <= SMALL_BYTES:
                    self.place.write(name, path.read_bytes())
                else:
                    self.place.send(name, path, stat.st_size)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._damaged(path, str(error))
                continue
            self._records[name] = (stat.st_size, stat.st_mtime_ns)

    def _prune(self) -> None:
        """All complete ones but the newest and the best, and unfinished ones that are older. The manifest goes first. Steps that the run
        went back behind are not counted and stay, as in its own folder: what it saves now must stay."""
        latest = latest_step(self.run / "checkpoints")
        found = [stored for stored in all_stored(self.place) if stored.step <= latest]
        complete = [stored for stored in found if not stored.problem]
        newest = complete[0]
        gone: list[Stored] = [
            stored
            for stored in found
            if stored.step < newest.step and stored not in complete[: self._keep] and stored.step != newest.best_step
        ]
        for stored in gone:
            names = sorted(stored.sizes, key=lambda name: name != MANIFEST)
            self.place.remove(f"{folder_name(stored.step)}/{name}" for name in names)

    def _tell_base(self, folder: Path, base: str) -> None:
        self._tell_once(
            f"warning: {folder.name} holds what was tuned alone; to use it elsewhere, upload the run of {(folder / base).resolve()} as "
            "well, and download it beside this one"
        )


def first_line(path: Path) -> bytes:
    """Of a run's events: it has the time and the machine of the first start, so it tells runs apart. Empty where there is none yet."""
    try:
        with path.open("rb") as file:
            line = file.readline(MAX_LINE_BYTES)
    except FileNotFoundError:
        return b""
    return line if line.endswith(b"\n") else b""


def stored_first_line(place: Place) -> bytes:
    line, newline, _ = (place.head(EVENTS, MAX_LINE_BYTES) or b"").partition(b"\n")
    return line + newline
