"""An HTTP server on the loopback that serves bytes, and misbehaves as it is told."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclasses.dataclass
class Deed:
    """What happens to one request. cut: bytes of the body after which the connection ends; length: what is claimed;
    pause: seconds before every byte; silent: no answer at all."""

    status: int = 200
    cut: int | None = None
    length: int | None = None
    pause: float = 0.0
    silent: bool = False
    location: str = ""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


class ShardServer(ThreadingHTTPServer):
    """files: by path; deeds: what happens to the next requests of a path (then it behaves); seen: (path, Range, status).

    ranges, etags, if_ranges: whether it knows Range, tells ETags and obeys If-Range.
    """

    daemon_threads = True
    block_on_close = False  # a silent handler must not keep a test

    def __init__(self, ranges: bool = True, etags: bool = True, if_ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.deeds: dict[str, list[Deed]] = {}
        self.seen: list[tuple[str, str | None, int]] = []
        self.authorizations: list[str | None] = []
        self.ranges, self.etags, self.if_ranges = ranges, etags, if_ranges
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def requests(self, path: str) -> int:
        return sum(seen == path for seen, _, _ in self.seen)

    def handle_error(self, request: object, address: object) -> None:
        pass  # clients that go away are part of the tests


class _Handler(BaseHTTPRequestHandler):
    server: ShardServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0]
        waiting = server.deeds.get(path) or [Deed()]
        deed = waiting.pop(0)
        wanted = self.headers.get("Range")
        server.authorizations.append(self.headers.get("Authorization"))
        content = server.files.get(path)
        self.close_connection = True
        if deed.silent:
            server.seen.append((path, wanted, 0))
            server.ended.wait(60)
            return
        if deed.location:
            self._head(deed.status, {"Location": deed.location, "Content-Length": "0"}, path, wanted)
            return
        if content is None or deed.status != 200:
            body = b"" if content is None else b"busy"
            self._head(
                404 if content is None else deed.status, {"Content-Length": str(len(body))} | deed.headers, path, wanted
            )
            self.wfile.write(body)
            return
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        headers, status, start = {}, 200, 0
        if server.etags:
            headers["ETag"] = etag
        if wanted and server.ranges and (not server.if_ranges or self.headers.get("If-Range") in (None, etag)):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                beyond = {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"}
                self._head(416, headers | beyond, path, wanted)
                return
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        length = len(body) if deed.length is None else deed.length
        self._head(status, headers | {"Content-Length": str(length)} | deed.headers, path, wanted)
        self._send(body if deed.cut is None else body[: deed.cut], deed.pause)

    def _head(self, status: int, headers: dict[str, str], path: str, wanted: str | None) -> None:
        self.server.seen.append((path, wanted, status))
        self.send_response(status)
        for name, value in ({"Connection": "close"} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, body: bytes, pause: float) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if not pause:
                self.wfile.write(body)
            else:
                for byte in body:
                    if self.server.ended.is_set():
                        break
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(pause)
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serving(**options: bool) -> Iterator[ShardServer]:
    server = ShardServer(**options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
