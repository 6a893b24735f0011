"""The output of a command, started without a shell."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Iterator

from data.transport.reply import FetchError, FetchOptions, Reply, TransientError
from data.transport.urls import command_of, masked, shown

CHUNK = 1 << 20
ERROR_BYTES = 4096
ERROR_LETTERS = 300


@contextlib.contextmanager
def open_at(url: str, offset: int, validator: str | None, options: FetchOptions) -> Iterator[Reply]:
    """Always from 0; a failed command is started anew."""
    words = command_of(url)
    with tempfile.TemporaryFile() as complaints:
        try:
            # A session of its own, so that its children end with it.
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, start_new_session=True
            )
        except (OSError, ValueError) as error:
            raise FetchError(f"{shown(url)}: {type(error).__name__}: cannot be started") from error
        try:
            yield Reply(0, None, None, _chunks(url, process, complaints.fileno(), options))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _chunks(url: str, process: subprocess.Popen, complaints: int, options: FetchOptions) -> Iterator[bytes]:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(options.stall_s):
                raise TransientError(f"{shown(url)}: nothing for {options.stall_s:g} s")
            chunk = os.read(process.stdout.fileno(), CHUNK)
            if not chunk:
                break
            yield chunk
    try:
        code = process.wait(options.stall_s)
    except subprocess.TimeoutExpired as error:
        raise TransientError(f"{shown(url)}: does not end") from error
    if code:
        raise TransientError(f"{shown(url)}: exit code {code}: {_last_words(complaints)}")


def _last_words(complaints: int) -> str:
    """Of what the command wrote. Masked before they are cut: half of a URL is not known for one."""
    size = os.fstat(complaints).st_size
    words = os.pread(complaints, ERROR_BYTES, max(0, size - ERROR_BYTES)).decode(errors="replace").split()
    if size > ERROR_BYTES:
        words = words[1:]  # the first is half of one
    return masked(" ".join(words))[-ERROR_LETTERS:]
