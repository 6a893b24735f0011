"""Faults of disks, of the store that shards come from, and of the network; most need root, on Linux."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from clusters.ranks import free_port
from scripts.faults.faults import Fault
from scripts.faults.kinds import Kind, Stage
from scripts.faults.launching import Started, in_namespaces

DISK_MIB = 48
FROZEN_S = 8.0
CABLE = "cable"
TASKS = ("shapes", "sentences")


def call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def full_disk(fault: Fault, folder: Path) -> Iterator[Stage]:
    """The run's folder lies on a small tmpfs, which another program fills."""
    disk = folder / "disk"
    disk.mkdir()
    call("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", str(disk))
    filler = disk / "filler"

    def act(started: Started) -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass

    try:
        yield Stage(act, frozenset({0, 1, 2}), mend=lambda: filler.unlink(missing_ok=True), disk=disk)
    finally:
        call("umount", "-l", str(disk))


def stalled(pauses: tuple[float, ...]) -> Kind:
    """An ext4 file system that takes no write for some seconds (fsfreeze), once or again and again: what a slow disk or a network file
    system does. The run only waits."""

    @contextlib.contextmanager
    def stage(fault: Fault, folder: Path) -> Iterator[Stage]:
        disk, image = folder / "disk", folder / "image"
        disk.mkdir()
        with image.open("wb") as file:
            file.truncate(DISK_MIB << 20)
        call("mkfs.ext4", "-q", "-F", str(image))
        call("mount", "-o", "loop", str(image), str(disk))

        def act(started: Started) -> None:
            for pause in pauses:
                call("fsfreeze", "--freeze", str(disk))
                try:
                    time.sleep(pause)
                finally:
                    call("fsfreeze", "--unfreeze", str(disk))
                time.sleep(0.1)

        try:
            yield Stage(act, frozenset({0}), disk=disk)
        finally:
            call("umount", "-l", str(disk))
            image.unlink()

    return stage


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Store

    def do_GET(self) -> None:
        self.server.requests += 1
        ill = self.server.ill
        if ill and self.server.requests > self.server.good_requests:
            if ill == "silent":
                self.server.closing.wait(120)
                self.close_connection = True
                return
            if ill == "dead":
                self.connection.close()
                self.close_connection = True
                return
            self.send_error(503)
            return
        super().do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


class _Store(ThreadingHTTPServer):
    """Serves a folder; after some good requests it is ill: dead (connections are closed), silent, or answers 503."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(("127.0.0.1", port), functools.partial(_Handler, directory=str(folder)))
        self.ill, self.good_requests, self.requests = "", 0, 0
        self.closing = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        pass


def store(ill: str, lasts_s: float, codes: set[int]) -> Kind:
    """Shards come by HTTP; lasts_s: after the place until it is well again by itself; 0: not before it is mended."""

    @contextlib.contextmanager
    def stage(fault: Fault, folder: Path) -> Iterator[Stage]:
        port = free_port()
        server = _Store(folder.parent / "world", port)
        server.ill, server.good_requests = ill, fault.number % 5
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

        def mend() -> None:
            server.ill = ""

        def act(started: Started) -> None:
            if lasts_s:
                deadline = time.monotonic() + 120
                while (
                    server.requests <= server.good_requests and started.code() is None and time.monotonic() < deadline
                ):
                    time.sleep(0.05)
                time.sleep(lasts_s)
                mend()

        paths = tuple(f"data.tasks.{task}.path=http://127.0.0.1:{port}/{task}" for task in TASKS)
        try:
            yield Stage(act, frozenset(codes), mend=mend, overrides=(*paths, f"data.cache_dir={folder / 'cache'}"))
        finally:
            server.closing.set()
            server.shutdown()
            server.server_close()

    return stage


def network(deed: str, codes: set[int]) -> Kind:
    """Two machines, each a network namespace, joined by a cable (a veth pair), which is cut, or drops a tenth of all packets."""

    @contextlib.contextmanager
    def stage(fault: Fault, folder: Path) -> Iterator[Stage]:
        names = [f"fault{os.getpid()}{side}" for side in "ab"]
        machines = {name: f"10.209.48.{place + 1}" for place, name in enumerate(names)}
        left, right = names
        try:
            for name in names:
                call("ip", "netns", "add", name)
            call("ip", "link", "add", CABLE, "netns", left, "type", "veth", "peer", "name", CABLE, "netns", right)
            for name, address in machines.items():
                call("ip", "-n", name, "addr", "add", f"{address}/24", "dev", CABLE)
                call("ip", "-n", name, "link", "set", CABLE, "up")
                call("ip", "-n", name, "link", "set", "lo", "up")
            hurt = names[fault.rank]

            def cut(started: Started) -> None:
                call("ip", "-n", hurt, "link", "set", CABLE, "down")

            def drop(started: Started) -> None:
                rules = (
                    "add table inet lossy; add chain inet lossy incoming { type filter hook input priority 0; }; "
                    f'add rule inet lossy incoming iifname "{CABLE}" numgen random mod 100 < 10 drop'
                )
                call("ip", "netns", "exec", hurt, "nft", rules)

            def plug_in() -> None:
                call("ip", "-n", hurt, "link", "set", CABLE, "up")

            launch = functools.partial(in_namespaces, machines=machines, cable=CABLE)
            if deed == "cut":
                yield Stage(cut, frozenset(codes), mend=plug_in, launch=launch)
            else:
                yield Stage(drop, frozenset(codes), launch=launch)
        finally:
            for name in names:
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    return stage
