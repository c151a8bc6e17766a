"""A web server on 127.0.0.1 that has files, and the faults that servers have."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Web:
    """What the server has and how it behaves; tests change it while it runs."""

    files: dict[str, bytes]
    ranges: bool = True
    etag: str | None = '"v1"'
    length: bool = True
    """Whether answers say how long they are."""
    breaks: list[int] = field(default_factory=list)
    """The first answers break off after so many bytes each."""
    statuses: list[int] = field(default_factory=list)
    """The first requests are answered with these statuses."""
    redirects: dict[str, str] = field(default_factory=dict)
    first_byte: int | None = None
    """The first byte that an answer to a range pretends to begin with, whatever was asked for."""
    pause: float = 0.0
    """Seconds between pieces of 1 kB."""
    address: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of each request."""

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"

    def bytes_asked_from(self) -> list[str | None]:
        return [span for _, span in self.asked]


@contextmanager
def serving(**files: bytes) -> Iterator[Web]:
    """Provide a running server with ``files``; a name's "__" stands for "."."""
    web = Web({name.replace("__", "."): content for name, content in files.items()})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(web, self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    web.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


def answer(web: Web, handler: BaseHTTPRequestHandler) -> None:
    path, span = handler.path.lstrip("/"), handler.headers.get("Range")
    web.asked.append((path, span))
    handler.close_connection = True
    if path in web.redirects:
        return _empty(handler, 302, Location=web.redirects[path])
    if web.statuses:
        return _empty(handler, web.statuses.pop(0))
    if path not in web.files:
        return _empty(handler, 404)
    content = web.files[path]
    start = _start(web, handler, span)
    if start is not None and start >= len(content):
        return _empty(handler, 416)
    handler.send_response(200 if start is None else 206)
    body = content[start or 0 :]
    if web.etag:
        handler.send_header("ETag", web.etag)
    if start is not None:
        first = start if web.first_byte is None else web.first_byte
        handler.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
    if web.length:
        handler.send_header("Content-Length", str(len(body)))
    handler.send_header("Connection", "close")
    handler.end_headers()
    _send(web, handler, body)
    return None


def _start(web: Web, handler: BaseHTTPRequestHandler, span: str | None) -> int | None:
    """Return the byte from which on the file is sent, None for the whole file."""
    condition = handler.headers.get("If-Range")
    if span is None or not web.ranges or (condition is not None and condition != web.etag):
        return None
    return int(span.removeprefix("bytes=").rstrip("-"))


def _send(web: Web, handler: BaseHTTPRequestHandler, body: bytes) -> None:
    until = web.breaks.pop(0) if web.breaks else len(body)
    step = 1024 if web.pause else max(until, 1)
    try:
        for place in range(0, until, step):
            handler.wfile.write(body[place : min(place + step, until)])
            handler.wfile.flush()
            time.sleep(web.pause)
    except OSError:  # the other side has gone
        pass


def _empty(handler: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", "0")
    handler.end_headers()
