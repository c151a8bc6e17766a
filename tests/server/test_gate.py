"""The gate: callers, the queue, and uploads that are too large or too slow, on a real connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from detector import Detector
from detector.core.errors import InputError
from detector.server.gate import Gate, Limits
from detector.server.running import build_server, listen
from detector.server.service import Service

httpx = pytest.importorskip("httpx")
Serve = Callable[..., tuple[str, Gate]]


@pytest.fixture
def serve(detector: Detector) -> Iterator[Serve]:
    """Serve a detector on a free port, and end the server after the test."""
    from detector.server.application import build_application

    servers: list[tuple[Any, threading.Thread]] = []

    def start(header_seconds: float = 10.0, **limits: Any) -> tuple[str, Gate]:
        gate = build_application(Service(detector), Limits(**limits))
        opened, server = listen("127.0.0.1", 0), build_server(gate, header_seconds)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{opened.getsockname()[1]}", gate

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def post(address: str, photo: Path, **options: Any) -> Any:
    return httpx.post(f"{address}/detect", files={"image": photo.read_bytes()}, timeout=60, **options)


class Slow:
    """Takes the place of a detection: counts the calls, and waits until the test lets them go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = self.most = self.now = 0
        self.go_on = threading.Event()
        self._lock = threading.Lock()
        original = Service.detect

        def detect(service: Service, *arguments: Any) -> Any:
            with self._lock:
                self.calls, self.now = self.calls + 1, self.now + 1
                self.most = max(self.most, self.now)
            assert self.go_on.wait(30)
            try:
                return original(service, *arguments)
            finally:
                with self._lock:
                    self.now -= 1

        monkeypatch.setattr(Service, "detect", detect)


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("the condition never came true")


def test_beyond_the_queue_is_503(serve: Serve, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    address, gate = serve(queue=2)
    with ThreadPoolExecutor(3) as threads:
        inside = [threads.submit(post, address, photo) for _ in range(3)]
        until(lambda: gate.inside == 3)
        refused = post(address, photo)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "The server is busy: 3 requests are waiting or running" in refused.json()["detail"]
        assert httpx.get(f"{address}/health").json() == {"status": "ok", "inside": 3, "limit": 3}
        slow.go_on.set()
        answers = [one.result() for one in inside]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert len({json.dumps(answer.json()["detections"]) for answer in answers}) == 1
    assert (slow.calls, slow.most) == (3, 1)
    assert post(address, photo).status_code == 200


def test_several_may_run_at_once(serve: Serve, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    address, _ = serve(in_flight=2)
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(post, address, photo) for _ in range(4)]
        until(lambda: slow.now == 2)
        slow.go_on.set()
        found = {json.dumps(answer.result().json()["detections"]) for answer in answers}
    assert len(found) == 1
    assert slow.most == 2


def test_a_waiting_client_that_goes_away_is_forgotten(
    serve: Serve, photo: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    slow = Slow(monkeypatch)
    address, gate = serve(queue=1)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(post, address, photo)
        until(lambda: slow.calls == 1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/detect", files={"image": photo.read_bytes()}, timeout=0.2)
        until(lambda: gate.inside == 1)
        slow.go_on.set()
        assert running.result().status_code == 200
    assert slow.calls == 1  # nothing was computed for the other one
    assert "error" not in capfd.readouterr().err  # it is no failure of the server


def test_uploads_have_a_limit_with_and_without_a_length(serve: Serve, photo: Path) -> None:
    address, gate = serve(upload_bytes=50_000)

    def streamed() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(10_000)

    for content in (bytes(1_000_000), streamed()):
        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = httpx.post(f"{address}/detect", content=content, headers=headers)
        assert answer.status_code == 413
        assert answer.json()["detail"] == "The upload is larger than 50000 bytes, which is the limit."
    assert gate.inside == 0
    assert post(address, photo).status_code == 200


def connect(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_slow_uploads_and_slow_headers_end(
    serve: Serve, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detector.server.gate._DRAINED_SECONDS", 0.1)
    address, gate = serve(header_seconds=0.3, upload_seconds=0.3)
    with connect(address) as connection:
        head = "POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n--b"
        connection.sendall(head.encode())
        answer = read_all(connection)
    assert b" 408 " in answer
    assert b"The upload took longer than 0.3 s" in answer
    assert gate.inside == 0
    with connect(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert read_all(connection) == b""
    assert post(address, photo).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:8000"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "my-machine:8000"}, 200),
        ({"host": "evil.example"}, 400),
        ({"host": "localhost.evil.example"}, 400),
        ({"host": "127.0.0.1.evil.example"}, 400),
        ({"host": "[::1"}, 400),
        ({"host": ""}, 400),
        ({"origin": "http://localhost"}, 200),
        ({"origin": "http://LOCALHOST", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://[::1"}, 403),
        ({"origin": "http://[localhost]"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_who_may_post(
    headers: dict[str, str], status: int, detector: Detector, photo: Path, open_client: Callable[..., Any]
) -> None:
    client = open_client(detector, hosts={"my-machine"})
    answer = client.post("/detect", files={"image": photo.read_bytes()}, headers=headers)
    assert answer.status_code == status, answer.text
    assert "access-control-allow-origin" not in answer.headers
    if status != 200:
        assert set(answer.json()) == {"detail"}
    if "host" in headers:
        assert client.get("/model", headers=headers).status_code == status


def test_a_fault_before_or_after_the_application_is_logged_and_answered(
    detector: Detector,
    photo: Path,
    open_client: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret")

    client = open_client(detector)
    monkeypatch.setattr(Gate, "_check_caller", fail)
    answer = client.post("/detect", files={"image": photo.read_bytes()})
    assert (answer.status_code, set(answer.json())) == (500, {"detail"})
    assert "secret" not in answer.text
    assert capfd.readouterr().err.count("RuntimeError: secret") == 1


def test_so_many_connections_are_open_as_the_limit_says(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detector.server.running._MOST_CONNECTIONS", 3)
    address, _ = serve()
    with contextlib.ExitStack() as stack:
        for expected in (b" 200 ", b" 200 ", b" 200 ", b" 503 "):
            connection = stack.enter_context(connect(address))
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert expected in connection.recv(100)


def test_malformed_http_is_answered(serve: Serve) -> None:
    """By uvicorn, in plain text, as docs/serve.md says."""
    address, _ = serve()
    with connect(address) as connection:
        connection.sendall(b"GET / HTTP/9.9 what\r\n\r\n")
        answer = read_all(connection)
    assert b" 400 " in answer
    assert b"text/plain" in answer


def test_small_answers_are_sent_at_once() -> None:
    """asyncio sets TCP_NODELAY only for sockets of this protocol number, which accepted ones inherit."""
    with listen("127.0.0.1", 0) as opened:
        assert opened.proto == socket.IPPROTO_TCP
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def test_a_port_in_use_is_one_clear_error() -> None:
    with (
        listen("127.0.0.1", 0) as opened,
        pytest.raises(InputError, match="another program uses this port; choose another one"),
    ):
        listen("127.0.0.1", opened.getsockname()[1])
    with pytest.raises(InputError, match=r"--host no\.such\.host\.invalid: this name is unknown"):
        listen("no.such.host.invalid", 0)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from detector.core import libraries

    monkeypatch.setitem(libraries._SERVER, "uvicorn", "no_such_module")
    with pytest.raises(InputError, match=r'needs uvicorn: pip install "region-detector\[serve\]"'):
        build_server(Gate(lambda *_: asyncio.sleep(0), Limits()))
