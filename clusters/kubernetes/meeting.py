"""Nodes begin together, and each learns when another is gone: one TCP connection from every node to the first.

What goes over it: the number of the node, then `go` when all are there, then `bye` from a node whose ranks are done. A connection
that ends without that word says that its node is lost, so all restart together. The kernel's keep-alive finds a machine that
went silent. Nothing received is ever more than compared.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from collections.abc import Callable

GO, BYE = b"go\n", b"bye\n"
RETRY_S, TELL_S = 1.0, 60.0
IDLE_S, BETWEEN_S, PROBES = 10, 5, 3
"""A machine that does not answer for 25 s is gone."""


class Meeting:
    """Made by `meet`. On the first node: a connection for each other one; elsewhere: the one to the first."""

    def __init__(self, connections: list[socket.socket]) -> None:
        self._open = connections

    def is_broken(self) -> bool:
        """Has another node gone without a `bye`?"""
        for connection in _readable(self._open):
            if _line(connection) != BYE:
                return True
            self._open.remove(connection)
        return False

    def leave(self, done: bool) -> None:
        """done: this node's ranks have all ended with 0."""
        for connection in self._open:
            with contextlib.suppress(OSError):
                if done:
                    connection.sendall(BYE)
            connection.close()
        self._open = []


def meet(node: int, nodes: int, address: str, port: int, stopped: Callable[[], bool] = lambda: False) -> Meeting | None:
    """Waits without limit until all nodes are there, as a pod may wait for a machine for hours; None if `stopped` says so before."""
    if nodes == 1:
        return Meeting([])
    return _receive(nodes, port, stopped) if node == 0 else _visit(node, address, port, stopped)


def _listening(port: int, backlog: int) -> socket.socket:
    """To IPv6, too, where it is: a cluster may have nothing else."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=backlog)


def _receive(nodes: int, port: int, stopped: Callable[[], bool]) -> Meeting | None:
    there: dict[int, socket.socket] = {}
    told = time.monotonic() - TELL_S
    with _listening(port, nodes) as server:
        while not stopped():
            for number, connection in list(there.items()):
                if _readable([connection]):  # nothing is due: it has ended, or talks out of turn
                    connection.close()
                    del there[number]
            if len(there) == nodes - 1:
                for connection in there.values():
                    with contextlib.suppress(OSError):  # the ranks will see it
                        connection.sendall(GO)
                return Meeting(list(there.values()))
            if time.monotonic() - told >= TELL_S:
                told = time.monotonic()
                missing = [number for number in range(1, nodes) if number not in there]
                shown = ", ".join(map(str, missing[:8])) + " ..." * (len(missing) > 8)
                print(f"waiting for {len(missing)} of {nodes} nodes: {shown}", file=sys.stderr, flush=True)
            if not select.select([server], [], [], RETRY_S)[0]:
                continue
            with contextlib.suppress(OSError):
                connection = _kept_alive(server.accept()[0])
                connection.settimeout(10)
                word = _line(connection).strip()
                number = int(word) if word.isdigit() else 0
                if 0 < number < nodes:
                    there.pop(number, connection)
                    there[number] = connection
                else:
                    connection.close()
    for connection in there.values():
        connection.close()
    return None


def _visit(node: int, address: str, port: int, stopped: Callable[[], bool]) -> Meeting | None:
    told = time.monotonic() - TELL_S
    while not stopped():
        with contextlib.suppress(OSError):
            connection = _kept_alive(socket.create_connection((address, port), timeout=10))
            connection.sendall(b"%d\n" % node)
            while not stopped() and not _readable([connection], RETRY_S):
                pass
            if not stopped() and _line(connection) == GO:
                return Meeting([connection])
            connection.close()
        if time.monotonic() - told >= TELL_S:
            told = time.monotonic()
            print(f"node {node} waits for the first node at {address}:{port}", file=sys.stderr, flush=True)
        time.sleep(RETRY_S)
    return None


def _kept_alive(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, BETWEEN_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    return connection


def _readable(connections: list[socket.socket], timeout_s: float = 0.0) -> list[socket.socket]:
    return select.select(connections, [], [], timeout_s)[0] if connections else []


def _line(connection: socket.socket) -> bytes:
    """At most 16 bytes, up to the end of a line; what came so far if the connection ends."""
    text = b""
    with contextlib.suppress(OSError):
        while len(text) < 16 and not text.endswith(b"\n") and (more := connection.recv(1)):
            text += more
    return text
